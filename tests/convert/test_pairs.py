from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from hetconv_cli.convert.candidates import find_candidates
from hetconv_cli.convert.checkpoint import load, save
from hetconv_cli.convert.conversion import convert
from hetconv_cli.convert.pairs import find_pairs, with_pairs
from hetconv_cli.convert.rewrite import apply_plan
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import Geometry
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.analyze import analyze
from hetconv_cli.models.build import build
from hetconv_cli.models.source import resolve
from hetconv_cli.plan import Pair, Rules, Wish, make_plan
from hetconv_cli.plan_file import plan_from_data, plan_to_data

IMAGES = torch.randn(2, 8, 8, 8)


def pair_of_layers(**changes):
    parts = OrderedDict(
        dw=nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
        bn=nn.BatchNorm2d(8),
        act=nn.ReLU(inplace=True),
        pw=nn.Conv2d(8, 12, 1, bias=False),
        bn2=nn.BatchNorm2d(12),
    )
    return nn.Sequential(OrderedDict(parts | changes))


class Reading(nn.Module):
    """A depthwise and a pointwise convolution with something of ours between."""

    def __init__(self, between):
        super().__init__()
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.relu = nn.ReLU()
        self.pw = nn.Conv2d(8, 8, 1)
        self.between = between

    def forward(self, x):
        return self.between(self, self.dw(x))


def test_a_pair_is_found_with_what_stands_between():
    found = find_pairs(pair_of_layers(), (IMAGES,))
    geometry = Geometry(8, 12, (3, 3), (2, 2), (1, 1), bias=False)
    assert found == {"dw": Pair(geometry, ("bn", "act", "pw"))}


@pytest.mark.parametrize("inplace", [True, False])
def test_a_value_written_in_place_is_followed(inplace):
    model = nn.Sequential(pair_of_layers(act=nn.Hardswish(inplace=inplace)), nn.ReLU(inplace=True))
    assert isinstance(find_pairs(model, (IMAGES,))["0.dw"], Pair)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda m, x: m.pw(x) + x, "its output is read in 2 places"),
        (lambda m, x: (m.pw(x), x), "its output is read in 2 places"),
        (lambda m, x: m.pw(functional.relu(x)), "relu (a function, not a module) stands between"),
        (lambda m, x: m.pw(x + 1), "add (a function, not a module) stands between"),
        (lambda m, x: m.relu(m.pw(m.relu(x))), "relu, which stands between, is called 2 times"),
        (lambda m, x: m.pw(m.pw(x)), "pw is called 2 times"),
        (lambda m, x: x, "the network's output reads its output"),
        (lambda m, x: IMAGES, "nothing reads its output"),
    ],
)
def test_what_cannot_be_one_convolution_is_no_pair(between, reason):
    assert find_pairs(Reading(between), (IMAGES,)) == {"dw": reason}


def test_looking_at_a_shape_is_not_reading_the_value():
    model = Reading(lambda m, x: m.pw(x) if x.shape[1] == x.size(1) and x.dim() == 4 and x.is_floating_point() else x)
    assert isinstance(find_pairs(model, (IMAGES,))["dw"], Pair)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pw": nn.Conv2d(8, 12, 3)}, "a 3x3 convolution follows"),
        ({"pw": nn.Conv2d(8, 12, 1, groups=2)}, "a 1x1 convolution in 2 groups follows"),
        ({"pw": nn.Conv2d(8, 12, 1, stride=2)}, "the pointwise convolution has a stride or a padding"),
        ({"act": nn.MaxPool2d(1)}, "MaxPool2d stands between"),
        ({"dw": nn.Conv2d(8, 16, 3, groups=8), "bn": nn.Identity(), "pw": nn.Conv2d(16, 12, 1)}, "2 filters a channel"),
    ],
)
def test_layers_of_another_kind_are_no_pair(changes, reason):
    assert find_pairs(pair_of_layers(**changes), (IMAGES,)) == {"dw": reason}


def test_hooks_forbid_a_pair_and_ours_are_gone_afterwards():
    model = pair_of_layers()
    find_pairs(model, (IMAGES,))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.bn.register_forward_hook(lambda *args: None)
    assert find_pairs(model, (IMAGES,)) == {"dw": "bn, which stands between, has hooks"}
    model.pw.register_forward_hook(lambda *args: None)
    model.bn._forward_hooks.clear()
    assert find_pairs(model, (IMAGES,)) == {"dw": "pw: has hooks"}


def test_a_squeeze_and_excitation_between_is_named():
    model = torchvision.models.efficientnet_b0().eval()
    found = find_pairs(model, (torch.randn(1, 3, 32, 32),))
    assert set(found.values()) == {"SqueezeExcitation stands between"}
    assert len(found) == 16


def converted(model, p=4, example=IMAGES, **options):
    return convert(model, p, example=example, pairs=True, **options)


def test_a_pair_becomes_one_hetconv_and_the_rest_nothing():
    conversion = converted(pair_of_layers())
    names = {name: type(module).__name__ for name, module in conversion.model.named_children()}
    assert names == {"dw": "HetConv2d", "bn": "Identity", "act": "Identity", "pw": "Identity", "bn2": "BatchNorm2d"}
    assert conversion.model(IMAGES).shape == (2, 12, 4, 4)
    assert [layer.name for layer in conversion.plan.converted] == ["dw"]
    assert conversion.plan.kept == ()
    assert {layer.name: layer.reason for layer in conversion.plan.layers} == {
        "dw": None,
        "pw": "one convolution with dw",
    }


def test_without_pairs_nothing_changes():
    plan = convert(pair_of_layers(), 4, example=IMAGES).plan
    assert {layer.name: layer.reason for layer in plan.kept} == {"dw": "depthwise", "pw": "1x1: nothing to save"}


def test_pairs_need_an_example():
    with pytest.raises(ArgumentError, match="expected an example, got None"):
        convert(pair_of_layers(), 4, pairs=True)


def test_a_part_that_does_not_fit_keeps_both_convolutions():
    model = nn.Sequential(pair_of_layers(), nn.Conv2d(12, 6, 3))
    plan = converted(model, 3).plan
    reasons = {layer.name: layer.reason for layer in plan.kept}
    assert reasons["0.dw"] == "depthwise, its pair stays: 8 input channels not divisible by p = 3"
    assert reasons["0.pw"] == "1x1: nothing to save"
    assert plan.absorbed == frozenset()


def test_a_rule_for_the_depthwise_convolution_holds_for_the_pair():
    model = nn.Sequential(pair_of_layers(), nn.Conv2d(12, 6, 3))
    plan = converted(model, rules=Rules(Wish(p=4), {"0.dw": "keep"})).plan
    assert [layer.name for layer in plan.converted] == ["1"]


def test_the_plan_comes_back_from_text():
    plan = converted(pair_of_layers()).plan
    assert plan_from_data(plan_to_data(plan), "here") == plan


def test_a_converted_file_gives_the_same_outputs(tmp_path):
    model = build(resolve("mobilenet_cifar")).model
    example = torch.randn(2, 3, 32, 32)
    conversion = converted(model, 32, example, transfer="fresh")
    save(conversion, tmp_path / "net.safetensors", source="mobilenet_cifar")
    again = load(tmp_path / "net.safetensors")
    assert torch.equal(again.model(example), conversion.model.eval()(example))
    assert again.plan == conversion.plan


@pytest.mark.parametrize(
    ("absorbs", "said"),
    [
        (("bn2", "pw"), "goes through 'bn2', no normalisation"),
        (("bn",), "ends with 'bn', no pointwise convolution"),
        (("nothing", "pw"), "goes through 'nothing'"),
    ],
)
def test_a_plan_from_elsewhere_is_checked_against_the_model(absorbs, said):
    plan = converted(pair_of_layers()).plan
    data = plan_to_data(plan)
    data[0]["absorbs"] = list(absorbs)
    model = pair_of_layers(bn2=nn.Flatten())
    with pytest.raises(ArgumentError, match=said):
        apply_plan(model, plan_from_data(data, "here"))


@pytest.mark.parametrize("bias", [True, False])
def test_without_an_activation_the_weights_are_the_pair_s_own(bias):
    model = pair_of_layers(act=nn.Identity(), pw=nn.Conv2d(8, 12, 1, bias=bias), bn2=nn.Identity()).double().eval()
    nn.init.uniform_(model.bn.running_var, 0.5, 2.0)
    nn.init.normal_(model.bn.weight)
    if bias:
        nn.init.normal_(model.bn.running_mean)
        nn.init.normal_(model.bn.bias)
    images = IMAGES.double()
    candidates = with_pairs(find_candidates(model), model, (images,))
    whole = apply_plan(model, make_plan(candidates, Rules(Wish(p=1 + 1, arrangement="blocked"))))
    dense = functional.conv2d(images, whole.dw.dense_weight(), whole.dw.bias, 2, 1)
    torch.testing.assert_close(whole(images), dense)
    scale = model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()
    expected = model.pw.weight[..., 0, 0, None, None] * (model.dw.weight[:, 0] * scale[:, None, None])
    own = whole.dw.dense_weight() != 0
    torch.testing.assert_close(whole.dw.dense_weight()[own], expected[own])
    if bias:
        at_zero = model(torch.zeros_like(images))[:, :, 2, 2]
        torch.testing.assert_close(whole.dw.bias.expand(2, 12), at_zero)


def test_fresh_weights_give_a_signal_the_size_that_the_pointwise_convolution_gives():
    torch.manual_seed(0)
    model = pair_of_layers(
        dw=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), pw=nn.Conv2d(8, 512, 1, bias=False), bn2=nn.Identity()
    )
    conversion = converted(model, 4, transfer="fresh")
    noise = torch.randn(16, 8, 16, 16)
    assert conversion.model(noise).std().item() == pytest.approx(model.pw(noise).std().item(), rel=0.15)


@pytest.mark.parametrize(
    ("name", "taken", "kept_depthwise"),
    [("mobilenet_v2", 17, 0), ("mobilenet_v3_small", 2, 9), ("mnasnet0_5", 17, 0), ("shufflenet_v2_x0_5", 19, 0)],
)
def test_torchvision_s_mobile_networks_keep_their_output_shapes(name, taken, kept_depthwise):
    model = torchvision.models.get_model(name).eval()
    images = torch.randn(1, 3, 64, 64)
    conversion = converted(model, 4, images)
    pairs = [layer for layer in conversion.plan.converted if layer.absorbs]
    depthwise = [layer for layer in conversion.plan.kept if layer.geometry.groups > 1]
    assert (len(pairs), len(depthwise)) == (taken, kept_depthwise)
    assert all(layer.reason.startswith("depthwise, no pair: ") for layer in depthwise)
    with torch.no_grad():
        assert conversion.model(images).shape == model(images).shape


def test_mobilenet_p32_has_13_hetconvs_and_no_depthwise_and_trains():
    model = build(resolve("mobilenet_cifar")).model
    conversion = converted(model, 32, torch.randn(2, 3, 32, 32), transfer="fresh")
    layers = list(conversion.model.modules())
    assert sum(isinstance(layer, HetConv2d) for layer in layers) == 13
    assert not any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers if layer not in inner(layers))
    conversion.model.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in conversion.model.parameters())


def inner(layers):
    return {part for layer in layers if isinstance(layer, HetConv2d) for part in layer.modules()}


def test_counts_of_a_pair_are_those_of_both_convolutions():
    report = analyze(pair_of_layers(), IMAGES, p=[4], pairs=True)
    standard, variant = report.variants
    positions = 2 * 16
    assert standard.macs.analytic == standard.macs.dispatcher == positions * (8 * 9 + 8 * 12)
    assert variant.macs.analytic == variant.macs.dispatcher == positions * 12 * (2 * 9 + 6)
    assert variant.ratio.by_equation == pytest.approx(variant.ratio.measured)
    assert variant.ratio.analytic == variant.ratio.measured == (12 * 24) / (8 * 21)
    assert variant.kept_layers == 0
    assert "1 depthwise + pointwise pairs are one convolution each" in " ".join(variant.notes)
