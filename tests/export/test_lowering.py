"""The lowered model computes the same and leaves its model alone."""

import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import fx, nn

from hetconv_cli.conversion.convert import convert
from hetconv_cli.export.lowering import lower, with_two_convolutions
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
    lowered = with_two_convolutions(layer)
    assert isinstance(lowered, fx.GraphModule)
    for shape in [(2, 8, 9, 7), (8, 9, 7)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(lowered(x), layer(x), rtol=0, atol=1e-12)


def test_a_shared_layer_becomes_one_module_everywhere():
    shared = HetConv2d(4, 4, 3, padding=1, p=2)
    model = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"again": shared})["again"], nn.Sequential(shared))
    lowered = with_two_convolutions(model)
    assert isinstance(lowered[0], fx.GraphModule)
    assert lowered[0] is lowered[2] is lowered[3][0]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(HetConv2d(4, 4, 3, p=2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    before = copy.deepcopy(model.state_dict())
    lowered = with_two_convolutions(model)
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
    lowered = with_two_convolutions(nn.Sequential(hooked, Derived(4, 4, 3, p=2)))
    assert [type(layer) for layer in lowered] == [HetConv2d, Derived]


def hetconv_network():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    example = torch.randn(2, 3, 64, 64)
    return convert(model, p=8, example=example).model.eval(), example


def test_lower_folds_every_batchnorm_and_leaves_only_torchs_own_modules():
    model, x = hetconv_network()
    lowered = lower(model, x)
    kinds = {type(module) for module in lowered.modules()}
    assert nn.BatchNorm2d not in kinds
    assert not any(kind.__module__.startswith("hetconv_cli") for kind in kinds)
    convs = [module for module in lowered.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.in_channels // conv.groups for conv in convs if conv.groups > 1} == {16, 32, 64}  # P = 8: 8 joined
    with torch.no_grad():
        wanted = model(x)
        assert (lowered(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_lowered_network_runs_where_this_package_is_not(tmp_path):
    model, x = hetconv_network()
    lowered = lower(model, x)
    with torch.no_grad():
        torch.save({"model": lowered, "x": x, "y": lowered(x)}, tmp_path / "model.pt")
    program = f"""
import sys
sys.modules["hetconv_cli"] = None  # an import of it fails
import torch
saved = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
with torch.no_grad():
    assert (saved["model"](saved["x"]) - saved["y"]).abs().max() < 1e-6 * saved["y"].abs().max()
assert sys.modules["hetconv_cli"] is None
print("same")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr


def test_torch_export_takes_a_lowered_network():
    model, x = hetconv_network()
    lowered = lower(model, x)
    with torch.no_grad():
        wanted = lowered(x)
        assert (torch.export.export(lowered, (x,)).module()(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
