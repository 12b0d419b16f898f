"""The public function, and which implementation serves a call."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hetconv_cli.arrangement import Arrangement
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import PaddingMode
from hetconv_cli.ops.hetconv2d import validation
from hetconv_cli.ops.hetconv2d.availability import architecture, why_not_triton
from hetconv_cli.ops.hetconv2d.fused import check_dtypes, compute_dtype, hetconv2d_triton
from hetconv_cli.ops.hetconv2d.grouped import hetconv2d_grouped
from hetconv_cli.ops.hetconv2d.measured import lookup
from hetconv_cli.ops.hetconv2d.reference import hetconv2d_reference
from hetconv_cli.ops.hetconv2d.spec import HetConvSpec

Implementation = Literal["auto", "reference", "grouped", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


SERVING = {"reference": hetconv2d_reference, "grouped": hetconv2d_grouped, "triton": hetconv2d_triton}


@dataclass(frozen=True)
class Choice:
    """The implementation that serves a call, and why."""

    implementation: Implementation
    reason: str


def choose_implementation(
    asked: Implementation = "auto",
    *,
    spec: HetConvSpec | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Choice:
    """What `asked` runs as.

    Args:
        asked: One of `IMPLEMENTATIONS`.
        spec: Of the layer; `auto` looks its shape up in the measured tables.
        device: Where the tensors are.
        dtype: What is computed in.

    Raises:
        ArgumentError: an unknown implementation, or one that cannot run there.
    """
    validation.check_word(asked, "implementation", IMPLEMENTATIONS)
    if asked == "triton":
        problem = why_not_triton(device, dtype)
        if problem:
            raise ArgumentError(f"implementation 'triton' cannot run here: {problem}; 'auto' takes what can")
    if asked != "auto":
        return Choice(asked, "asked for")
    if spec is not None and device is not None and device.type == "cuda" and dtype is not None:
        return _measured_choice(spec, device, dtype)
    return Choice("grouped", "two vendor convolutions, on every device; the reference runs two for each class")


def _measured_choice(spec: HetConvSpec, device: torch.device, dtype: torch.dtype) -> Choice:
    """What `auto` takes on a CUDA device: the fused kernel only where it was measured to be the faster one."""
    problem = why_not_triton(device, dtype)
    if problem:
        return Choice("grouped", f"two vendor convolutions; not the fused kernel: {problem}")
    row = lookup(device, dtype, spec.geometry, spec.p)
    where = f"on this GPU ({architecture(device)}, {str(dtype).removeprefix('torch.')})"
    if row is None:
        return Choice("grouped", f"two vendor convolutions; the fused kernel is not yet measured {where}")
    times = f"{row.fused_us:g} us, two vendor convolutions {row.grouped_us:g} us, measured {where}"
    if spec.arrangement == "shifted" and spec.p > 1:
        return Choice("grouped", f"two vendor convolutions; a shifted layer's relabelling is not yet measured {where}")
    return Choice("triton" if row.fused_us < row.grouped_us else "grouped", f"fused kernel {times}")


def run(
    input: Tensor,
    weight_1x1: Tensor,
    weight_ring: Tensor,
    bias: Tensor | None,
    spec: HetConvSpec,
    implementation: Implementation,
) -> Tensor:
    """The operator on arguments that are already checked; `HetConv2d` calls this."""
    chosen = choose_implementation(
        implementation, spec=spec, device=input.device, dtype=compute_dtype(input)
    ).implementation
    if chosen == "triton":
        check_dtypes(input, weight_1x1)
    serve = SERVING[chosen]
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    output = serve(batched, weight_1x1, weight_ring, bias, spec)
    return output if input.dim() == 4 else output.squeeze(0)


def hetconv2d(
    input: Tensor,
    weight_1x1: Tensor,
    weight_ring: Tensor,
    bias: Tensor | None = None,
    stride: validation.IntOrPair = 1,
    padding: str | validation.IntOrPair = 0,
    dilation: validation.IntOrPair = 1,
    padding_mode: PaddingMode = "zeros",
    *,
    kernel_size: validation.IntOrPair,
    p: int | Literal["pc"],
    arrangement: Arrangement = "blocked",
    implementation: Implementation = "auto",
) -> Tensor:
    """A convolution whose filters have K x K kernels on M/P of the input channels and 1 x 1 kernels on the others.

    Paper: section 3, figure 3 (`arrangement="shifted"`). The 1 x 1 kernels sit at the centre tap of the window.

    Args:
        input: [batch, M, H, W] or [M, H, W].
        weight_1x1: [N, M, 1, 1]; on a filter's own class this is the centre tap of its K x K kernel.
        weight_ring: [N, M/P, K_h*K_w - 1]; the K x K kernels without centre, row by row, on the channels of the
            filter's class in ascending order.
        bias: [N] or None.
        stride: As in `torch.nn.functional.conv2d`, like the next two.
        padding: Numbers, 'same' or 'valid'.
        dilation: Spacing of the taps.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular', as in `torch.nn.Conv2d`.
        kernel_size: K or (K_h, K_w), odd.
        p: The part, a divisor of M, or "pc" for M.
        arrangement: Which filter has K x K kernels on which channels; see `hetconv_cli.arrangement`.
        implementation: 'auto', 'reference', 'grouped' or 'triton'. Never replaced by another than asked for.

    Returns:
        [batch, N, H_o, W_o] or [N, H_o, W_o].

    Raises:
        ArgumentError: an argument that is out of range or does not fit the tensors; an implementation that
            cannot run here.
    """
    n, m = validation.channels_of(weight_1x1)
    spec = validation.spec(
        m,
        n,
        kernel_size,
        stride,
        padding,
        dilation,
        bias=bias is not None,
        padding_mode=padding_mode,
        p=p,
        arrangement=arrangement,
    )
    validation.check_shapes(input, weight_1x1, weight_ring, bias, spec)
    return run(input, weight_1x1, weight_ring, bias, spec, implementation)
