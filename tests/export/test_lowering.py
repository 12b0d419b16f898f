"""The lowered model computes the same and leaves its model alone."""

import copy

import pytest
import torch
from torch import nn

from hetconv_cli.export.lowering import TwoConvolutions, lower
from hetconv_cli.layers import HetConv2d

CASES = [
    {"padding": 1, "p": 2},
    {"padding": 1, "p": 4, "arrangement": "shifted"},
    {"padding": 0, "p": 4, "stride": 2},
    {"padding": (0, 2), "p": 2, "dilation": (2, 1), "bias": False},
    {"padding": 3, "p": 8, "padding_mode": "reflect"},
    {"padding": "same", "p": 2, "padding_mode": "circular"},
]


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_bare_layer_computes_the_same(arguments):
    torch.manual_seed(0)
    layer = HetConv2d(8, 10, 3, **arguments).double()
    lowered = lower(layer)
    assert type(lowered) is TwoConvolutions
    for shape in [(2, 8, 9, 7), (8, 9, 7)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(lowered(x), layer(x), rtol=0, atol=1e-12)


def test_a_shared_layer_becomes_one_module_everywhere():
    shared = HetConv2d(4, 4, 3, padding=1, p=2)
    model = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"again": shared})["again"], nn.Sequential(shared))
    lowered = lower(model)
    assert type(lowered[0]) is TwoConvolutions
    assert lowered[0] is lowered[2] is lowered[3][0]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(HetConv2d(4, 4, 3, p=2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    before = copy.deepcopy(model.state_dict())
    lowered = lower(model)
    lowered.eval()(torch.randn(2, 4, 5, 5))
    assert type(model[0]) is HetConv2d
    assert model.training
    assert model[1].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_hooked_and_derived_layers_stay():
    class Derived(HetConv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    hooked = HetConv2d(4, 4, 3, p=2)
    hooked.register_forward_hook(lambda *_: None)
    lowered = lower(nn.Sequential(hooked, Derived(4, 4, 3, p=2)))
    assert [type(layer) for layer in lowered] == [HetConv2d, Derived]
