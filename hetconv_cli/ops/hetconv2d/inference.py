"""The layer with what follows it, without gradients, on weights that were prepared once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hetconv_cli.ops.hetconv2d import cpu_kernel, onednn
from hetconv_cli.ops.hetconv2d.api import Implementation, choose_implementation, run
from hetconv_cli.ops.hetconv2d.fused import check_dtypes, compute_dtype, hetconv2d_triton_inference, pack_weights
from hetconv_cli.ops.hetconv2d.grouped import group_kernels, two_convolutions
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec


@dataclass(frozen=True)
class Prepared:
    """A layer's weights as implementations read them; those that do not serve it have None.

    Attributes:
        triton: For the fused GPU kernel.
        cpu: For the fused CPU kernel.
        kernels: Of the grouped convolution, for the two vendor convolutions.
        onednn: Both convolutions' weights in oneDNN's own layout.
    """

    triton: Tensor | None = None
    cpu: Tensor | None = None
    kernels: Tensor | None = None
    onednn: tuple[Tensor, Tensor] | None = None


def prepare(
    weight_1x1: Tensor, weight_ring: Tensor, spec: HetConvSpec, implementation: Implementation = "auto"
) -> Prepared:
    """The weights, shapes as in `hetconv2d`, for the implementation that serves them where they are."""
    chosen = choose_implementation(implementation, spec=spec, device=weight_1x1.device, dtype=weight_1x1.dtype)
    if chosen.implementation == "triton":
        return Prepared(triton=pack_weights(weight_1x1, weight_ring, spec))
    if chosen.implementation != "grouped":
        return Prepared()
    if implementation == "auto" and cpu_kernel.serves_layer(spec, weight_1x1):
        return Prepared(cpu=cpu_kernel.pack(weight_1x1, weight_ring, spec))
    kernels = group_kernels(weight_ring, spec).contiguous(memory_format=torch.channels_last)
    packed = onednn.pack(kernels, weight_1x1, spec) if onednn.serves_layer(spec, weight_1x1) else None
    return Prepared(kernels=kernels, onednn=packed)


def run_inference(
    input: Tensor,
    weight_1x1: Tensor,
    weight_ring: Tensor,
    bias: Tensor | None,
    spec: HetConvSpec,
    implementation: Implementation,
    *,
    prepared: Prepared,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """relu(`run` + residual) on arguments that are already checked; what is not prepared is made at the call."""
    shortcut = not _is_watched(input, residual, weight_1x1, weight_ring, bias)
    if implementation == "auto" and prepared.cpu is not None and shortcut and cpu_kernel.serves_input(input):
        return cpu_kernel.hetconv2d_cpu(input, prepared.cpu, bias, spec, residual, relu=relu)
    dtype = compute_dtype(input)
    chosen = choose_implementation(implementation, spec=spec, device=input.device, dtype=dtype).implementation
    if chosen == "triton" and input.dim() == 4:
        check_dtypes(input, weight_1x1)
        packed = pack_weights(weight_1x1, weight_ring, spec) if prepared.triton is None else prepared.triton
        residual = None if residual is None else residual.to(dtype)
        return hetconv2d_triton_inference(input.to(dtype), packed.to(dtype), bias, residual, spec, relu=relu)
    if chosen == "grouped" and input.dim() == 4 and prepared.kernels is not None:
        if prepared.onednn is not None and shortcut and onednn.serves_input(input):
            return onednn.hetconv2d_onednn(input, prepared.onednn, bias, spec, residual, relu=relu)
        output = two_convolutions(input, prepared.kernels, weight_1x1, bias, spec, residual)
    else:
        output = run(input, weight_1x1, weight_ring, bias, spec, chosen)
        output = output if residual is None else output + residual
    return torch.relu(output) if relu else output


def _is_watched(*tensors: Tensor | None) -> bool:
    """Whether somebody needs torch's own operators: to differentiate, or for a graph that runs without this package."""
    wants_gradient = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return (
        (wants_gradient and torch.is_grad_enabled())
        or forward_ad._current_level >= 0  # of torch.func.jvp, too
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_exporting()
    )
