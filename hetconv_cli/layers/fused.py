"""HetConv2d for inference, with what follows it: BatchNorm folded in, a residual added, ReLU applied."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hetconv_cli.layers.hetconv2d import HetConv2d
from hetconv_cli.ops.hetconv2d import validation
from hetconv_cli.ops.hetconv2d.inference import Prepared, prepare, run_inference

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


def fold_into_hetconv(layer: HetConv2d, norm: BatchNorm) -> HetConv2d:
    """A HetConv2d in eval mode that computes norm(layer(x)); both are left as they are."""
    folded = HetConv2d(*_arguments(layer), p=layer.p, arrangement=layer.arrangement, device="meta")
    folded.implementation = layer.implementation
    _take(folded, layer, ("weight_1x1", "weight_ring"), norm)
    return folded.eval()


def fold_into_conv(layer: nn.Conv2d, norm: BatchNorm) -> nn.Conv2d:
    """A Conv2d in eval mode that computes norm(layer(x)); both are left as they are."""
    folded = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # a tuple of two, like the next three
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        True,
        layer.padding_mode,
        device="meta",
    )
    _take(folded, layer, ("weight",), norm)
    return folded.eval()


class FusedHetConv2d(HetConv2d):
    """A HetConv2d for inference, with a BatchNorm folded into its filters and bias, and ReLU behind if asked for.

    Computes relu(convolution + bias + residual). The fused kernels for GPU and CPU do that in one pass, oneDNN in two;
    the other implementations do it step by step.

    Args:
        layer: The layer to take over; it is left as it is.
        norm: The BatchNorm behind it, with running statistics, or None.
        relu: Whether ReLU follows.

    Attributes:
        relu: Whether ReLU follows.
        packed: The weights as the GPU kernel reads them where it serves this layer, else None. A copy, like the next
            two: made anew when the layer is moved, cast or loaded; after changing weights by hand call `prepare`.
        packed_cpu: The weights as the CPU kernel reads them where it serves this layer, else None.
        kernels: The weights of the grouped convolution where that serves, else None.
    """

    packed: Tensor | None
    packed_cpu: Tensor | None
    kernels: Tensor | None

    def __init__(self, layer: HetConv2d, norm: BatchNorm | None = None, *, relu: bool = False) -> None:
        super().__init__(*_arguments(layer), p=layer.p, arrangement=layer.arrangement, device="meta")
        self.relu, self.implementation = relu, layer.implementation
        _take(self, layer, ("weight_1x1", "weight_ring"), norm)
        for name in ("packed", "packed_cpu", "kernels"):
            self.register_buffer(name, None, persistent=False)
        self._onednn: tuple[Tensor, Tensor] | None = None  # no buffer: it can be neither moved nor saved
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]
        self.eval().prepare()

    @torch.no_grad()
    def prepare(self) -> "FusedHetConv2d":
        """Works out the weights now as the implementation that serves this layer reads them."""
        prepared = prepare(self.weight_1x1, self.weight_ring, self.spec, self.implementation)
        self.packed, self.packed_cpu = prepared.triton, prepared.cpu
        self.kernels, self._onednn = prepared.kernels, prepared.onednn
        return self

    @property
    def runs_as(self) -> str:
        """What computes inputs for which it was prepared: 'GPU kernel', 'CPU kernel', 'oneDNN' or 'torch'."""
        if self.packed is not None or self.packed_cpu is not None:
            return "GPU kernel" if self.packed is not None else "CPU kernel"
        return "oneDNN" if self._onednn is not None else "torch"

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(convolution of `input` + bias + residual); `residual` has the output's shape."""
        validation.check_input(input, self.geometry)
        onednn = None if torch.compiler.is_compiling() else self._onednn  # a compiler packs weights itself
        return run_inference(
            input,
            self.weight_1x1,
            self.weight_ring,
            self.bias,
            self.spec,
            self.implementation,
            prepared=Prepared(self.packed, self.packed_cpu, self.kernels, onednn),
            residual=residual,
            relu=self.relu,
        )

    def extra_repr(self) -> str:
        """As HetConv2d's, whether ReLU follows, and what computes it."""
        return f"{super().extra_repr()}, relu={self.relu}, runs_as={self.runs_as!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedHetConv2d":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_onednn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.prepare()


def _prepare_again(layer: FusedHetConv2d, keys: Any) -> None:
    layer.prepare()


def _arguments(layer: HetConv2d) -> tuple[Any, ...]:
    """HetConv2d's positional arguments for a layer like this one, with a bias."""
    g = layer.geometry
    return g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation, True, g.padding_mode


def _take(folded: nn.Module, layer: HetConv2d | nn.Conv2d, weights: tuple[str, ...], norm: BatchNorm | None) -> None:
    """Gives `folded` the weights and bias of `layer` with `norm` folded in, worked out in float64."""
    first: Tensor = getattr(layer, weights[0])
    scale, shift = _scale_and_shift(norm, len(first), first.device)
    values = {name: getattr(layer, name) for name in weights}
    values = {name: _double(value) * scale.view(-1, *[1] * (value.dim() - 1)) for name, value in values.items()}
    values["bias"] = (0 if layer.bias is None else _double(layer.bias)) * scale + shift
    for name, value in values.items():
        setattr(folded, name, nn.Parameter(value.to(first.dtype), requires_grad=False))


def _scale_and_shift(norm: BatchNorm | None, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """BatchNorm with fixed statistics as scale * x + shift, both [channels] float64."""
    scale = torch.ones(channels, dtype=torch.float64, device=device)
    shift = torch.zeros_like(scale)
    if norm is None or norm.running_mean is None or norm.running_var is None:
        return scale, shift
    scale = scale / torch.sqrt(_double(norm.running_var) + norm.eps)
    if norm.affine:
        scale, shift = scale * _double(norm.weight), shift + _double(norm.bias)
    return scale, shift - _double(norm.running_mean) * scale


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()
