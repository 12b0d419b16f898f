"""The fast ways of the grouped form: the 1 x 1 added in place, and classes joined into wider groups."""

import pytest
import torch
from torch import nn

from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d import grouped
from hetconv_cli.ops.hetconv2d.grouped import coarsened, group_kernels, two_convolutions


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    return list(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (3, 0, 1), ((1, 5), (0, 1), 2), (5, 2, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_in_place_on_channels_last_equals_the_reference_with_every_gradient(
    stride, kernel, padding, dilation, bias, monkeypatch
):
    added = []
    add = grouped._add_pointwise
    monkeypatch.setattr(grouped, "_add_pointwise", lambda *given: added.append(1) or add(*given))
    layer = HetConv2d(8, 12, kernel, stride, padding, dilation, bias, p=4, dtype=torch.float64)
    x = torch.randn(2, 8, 11, 13, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    got = [layer(x), *gradients(layer, x)]
    assert added, "the in-place way was not taken"
    layer.implementation = "reference"
    for ours, theirs in zip(got, [layer(x), *gradients(layer, x)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_input_is_not_written_to():
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    HetConv2d(8, 8, 3, padding=1, p=2)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
@pytest.mark.parametrize(
    ("m", "n", "p", "width"), [(64, 64, 16, 16), (48, 36, 12, 16), (32, 10, 8, 16), (24, 24, 24, 24)]
)
def test_joined_classes_compute_the_same_in_groups_wide_enough(m, n, p, width, arrangement):
    layer = HetConv2d(m, n, 3, padding=1, p=p, arrangement=arrangement, dtype=torch.float64)
    ring, spec = coarsened(layer.weight_ring, layer.spec, width)
    assert m // spec.p >= min(width, m)
    assert p % spec.p == 0
    x = torch.randn(2, m, 6, 7, dtype=torch.float64)
    joined = two_convolutions(x, group_kernels(ring, spec), layer.weight_1x1, layer.bias, spec)
    torch.testing.assert_close(joined, layer(x), rtol=0, atol=1e-10)


def test_groups_that_are_wide_enough_stay_as_they_are():
    layer = HetConv2d(64, 64, 3, padding=1, p=4)
    ring, spec = coarsened(layer.weight_ring, layer.spec, 16)
    assert ring is layer.weight_ring
    assert spec is layer.spec
