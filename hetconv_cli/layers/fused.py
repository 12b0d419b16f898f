"""HetConv2d for inference, with what follows it: BatchNorm folded in, a residual added, ReLU applied."""

import torch
from torch import Tensor, nn

from hetconv_cli.layers.hetconv2d import HetConv2d
from hetconv_cli.ops.hetconv2d import api, validation
from hetconv_cli.ops.hetconv2d.fused import pack_weights

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


class FusedHetConv2d(HetConv2d):
    """A HetConv2d whose filters and bias have a BatchNorm folded in, followed by ReLU if asked for. No gradients.

    Computes relu(convolution + bias + residual). The fused GPU kernel does that in one launch; the other
    implementations do it step by step.

    Args:
        layer: The layer to take over; it is left as it is.
        norm: The BatchNorm behind it, with running statistics, or None.
        relu: Whether ReLU follows.

    Attributes:
        relu: Whether ReLU follows.
        packed: The weights as the GPU kernel reads them once `prepare` found that it serves here, else None. A copy:
            after changing the weights call `prepare` again.
    """

    packed: Tensor | None

    def __init__(self, layer: HetConv2d, norm: BatchNorm | None = None, *, relu: bool = False) -> None:
        g = layer.geometry
        super().__init__(
            g.in_channels,
            g.out_channels,
            g.kernel,
            g.stride,
            g.padding,
            g.dilation,
            True,
            g.padding_mode,
            p=layer.p,
            arrangement=layer.arrangement,
            device="meta",
        )
        self.relu, self.implementation = relu, layer.implementation
        weight = layer.weight_1x1
        scale, shift = _scale_and_shift(norm, g.out_channels, weight.device)
        bias = 0 if layer.bias is None else layer.bias.detach().double()
        folded = {
            "weight_1x1": weight.detach().double() * scale.view(-1, 1, 1, 1),
            "weight_ring": layer.weight_ring.detach().double() * scale.view(-1, 1, 1),
            "bias": bias * scale + shift,
        }
        for name, value in folded.items():
            setattr(self, name, nn.Parameter(value.to(weight.dtype), requires_grad=False))
        self.register_buffer("packed", None, persistent=False)
        self.eval()

    @torch.no_grad()
    def prepare(self) -> "FusedHetConv2d":
        """Packs the weights now where the GPU kernel serves this layer, so that a call is one launch."""
        serves = self.choice().implementation == "triton"
        self.packed = pack_weights(self.weight_1x1, self.weight_ring, self.spec) if serves else None
        return self

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(convolution of `input` + bias + residual); `residual` has the output's shape."""
        validation.check_input(input, self.geometry)
        return api.run_inference(
            input,
            self.weight_1x1,
            self.weight_ring,
            self.bias,
            self.spec,
            self.implementation,
            packed=self.packed,
            residual=residual,
            relu=self.relu,
        )

    def extra_repr(self) -> str:
        """As HetConv2d's, and whether ReLU follows."""
        return f"{super().extra_repr()}, relu={self.relu}"


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
