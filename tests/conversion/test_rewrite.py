"""A plan applied: a copy with new layers in every place, everything else as it was."""

import copy

import pytest
import torch
from small_networks import conv
from torch import nn
from torchvision.ops import SqueezeExcitation

from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.convert import convert
from hetconv_cli.conversion.rewrite import apply_plan, core_name
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.geometry import Geometry
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.plan import Change, LayerPlan, Plan, Rules, Wish, make_plan

P4 = Wish(p=4)


def rewrite(model: nn.Module, wish: Wish = P4, **more) -> nn.Module:
    return apply_plan(model, make_plan(find_candidates(model), Rules(wish)), **more)


def image(**more) -> torch.Tensor:
    return torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0), **more)


# --- where new layers go ---


def test_a_bare_convolution_gives_the_new_layer_itself():
    new = rewrite(conv())
    assert type(new) is HetConv2d
    assert new(image()).shape == (2, 8, 6, 5)


def test_a_bare_convolution_that_is_kept_stays_one():
    model = conv(3)
    new = rewrite(model)
    assert type(new) is nn.Conv2d
    assert new is not model


def test_a_module_under_several_names_is_replaced_by_one_new_module_everywhere():
    shared = conv()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared), "c": nn.ModuleList([shared, shared])})
    model["d"] = shared
    new = rewrite(model)
    places = [new["a"], new["b"][1], new["c"][0], new["c"][1], new["d"]]
    assert type(places[0]) is HetConv2d
    assert all(place is places[0] for place in places)
    assert not any(isinstance(module, nn.Conv2d) for module in new.modules())


def test_a_block_with_two_names_stays_one_block():
    block = nn.Sequential(conv())
    new = rewrite(nn.Sequential(block, nn.ReLU(), block))
    assert new[0] is new[2]
    assert type(new[0][0]) is HetConv2d


def test_two_names_in_one_parent_are_both_replaced():
    model = nn.Module()
    model.a = model.b = conv()
    new = rewrite(model)
    assert type(new.a) is HetConv2d
    assert new.a is new.b


class Odd(nn.Module):
    """Slots, a property over a submodule, a dictionary and lists of modules, a child that is None."""

    __slots__ = ()

    def __init__(self):
        super().__init__()
        self.scale = 2.0
        self.inner = conv()
        self.by_name = nn.ModuleDict({"0": conv(), "x-y": conv()})
        self.in_order = nn.ModuleList([conv(), nn.ModuleList([conv()])])
        self.nothing = None
        self.register_module("empty", None)

    @property
    def first(self):
        return self.inner

    def forward(self, x):
        x = self.first(x) * self.scale
        for module in (*self.by_name.values(), self.in_order[0], self.in_order[1][0]):
            x = module(x)
        return x


def test_containers_slots_and_properties_are_no_obstacle():
    model = Odd()
    new = rewrite(model)
    assert sum(isinstance(module, HetConv2d) for module in new.modules()) == 5
    assert type(new.first) is HetConv2d
    assert list(new.by_name) == ["0", "x-y"]
    assert new.scale == 2.0
    assert new(image()).shape == (2, 8, 6, 5)
    assert [name for name, _ in new.named_modules()] == [name for name, _ in model.named_modules()]


def test_the_order_of_children_stays():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(), nn.ReLU())
    assert [type(child) for child in rewrite(model)] == [HetConv2d, nn.BatchNorm2d, HetConv2d, nn.ReLU]


@pytest.mark.parametrize(
    ("wish", "kind"),
    [(Wish(p=2), HetConv2d), (Wish("dwc"), DepthwisePointwise), (Wish("gwc", groups=2), GroupwisePointwise)],
)
def test_each_variant_has_its_layer_with_the_convolutions_geometry(wish, kind):
    facts = {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1), "bias": False, "padding_mode": "reflect"}
    model = nn.Sequential(nn.Conv2d(8, 12, (5, 3), **facts))
    (layer,) = rewrite(model, wish)
    assert type(layer) is kind
    assert layer.geometry == Geometry(8, 12, (5, 3), (2, 1), (2, 1), (2, 1), 1, False, "reflect")
    x = torch.randn(1, 8, 13, 9)
    assert layer(x).shape == model(x).shape


def test_a_part_of_its_own_for_each_layer_reaches_it():
    model = nn.Sequential(conv(), conv(), conv())
    plan = make_plan(find_candidates(model), Rules(Wish(p=2), {"1": Wish(p=8, arrangement="shifted"), "2": "keep"}))
    new = apply_plan(model, plan)
    assert (new[0].p, new[0].arrangement) == (2, "blocked")
    assert (new[1].p, new[1].arrangement) == (8, "shifted")
    assert type(new[2]) is nn.Conv2d


# --- what new layers take over ---


@pytest.mark.parametrize(
    "wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2), Wish(p=4, se=4), Wish("standard", se=4)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_training_flag_are_the_convolutions(wish, dtype):
    model = nn.Sequential(conv(), conv()).to(dtype)
    model[1].eval()
    new = rewrite(model, wish)
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}
    assert all(module.training for module in new[0].modules())
    assert not any(module.training for module in new[1].modules())


@pytest.mark.parametrize("wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2)])
def test_frozen_layers_stay_frozen(wish):
    model = nn.Sequential(conv().requires_grad_(False), conv())
    frozen, free = rewrite(model, wish)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in free.parameters())


def test_a_bias_that_alone_is_frozen_stays_frozen_alone():
    model = nn.Sequential(conv())
    model[0].bias.requires_grad_(False)
    (layer,) = rewrite(model)
    assert layer.weight_1x1.requires_grad
    assert layer.weight_ring.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2), Wish(p=4, se=4)])
def test_on_meta_nothing_is_allocated(wish):
    new = rewrite(nn.Sequential(conv(), nn.BatchNorm2d(8)).to("meta"), wish)
    assert all(tensor.is_meta for tensor in new.state_dict().values())


@pytest.mark.gpu
@pytest.mark.parametrize("wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2), Wish(p=4, se=4)])
def test_on_a_gpu_new_layers_are_there_too(wish):
    new = rewrite(nn.Sequential(conv()).cuda(), wish)
    assert {parameter.device.type for parameter in new.parameters()} == {"cuda"}
    assert new(image().cuda()).shape == (2, 8, 6, 5)


def test_every_weight_is_set_and_every_kept_one_is_equal():
    model = nn.Sequential(conv(3), conv(), nn.BatchNorm2d(8), nn.Linear(4, 4))
    for wish in (Wish(p=4), Wish("dwc"), Wish("gwc", groups=2)):
        new = rewrite(model, wish)
        assert all(tensor.isfinite().all() for tensor in new.state_dict().values())
        state = new.state_dict()
        assert all(
            torch.equal(state[name], old) for name, old in model.state_dict().items() if not name.startswith("1.")
        )


# --- the model that was passed in ---


@pytest.mark.parametrize(
    "wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2), Wish(p=4, se=4), Wish("standard", se=4)]
)
def test_the_callers_model_is_untouched(wish):
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Sequential(conv(), nn.ReLU())).train()
    model[2].eval()
    modules, flags = list(model.modules()), [module.training for module in model.modules()]
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    new = convert(model, rules=Rules(wish), example=image()).model
    assert all(now is before for now, before in zip(model.modules(), modules, strict=True))
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in new.parameters()}
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Counting(nn.Module):
    """Counts its calls in a buffer, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x)


def test_a_buffer_that_every_forward_changes_is_untouched_too():
    model = Counting()
    new = convert(model, p=4, example=image()).model
    assert model.calls == 0
    assert new.calls == 0


@pytest.mark.parametrize("wish", [Wish(p=4), Wish("dwc"), Wish("gwc", groups=2)])
@pytest.mark.parametrize("transfer", ["center", "fresh"])
def test_random_numbers_are_where_they_were_unless_fresh_ones_are_needed(wish, transfer):
    model, before = nn.Sequential(conv(), nn.Dropout()), torch.get_rng_state()
    convert(model, rules=Rules(wish), example=image(), transfer=transfer)
    drawn = not torch.equal(torch.get_rng_state(), before)
    assert drawn == (wish.variant != "hetconv" and transfer == "fresh")


class Uncopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def __deepcopy__(self, memo):
        raise RuntimeError("cannot be\ncopied")


def test_a_model_that_cannot_be_copied_is_one_line():
    with pytest.raises(HetconvError, match=r"the model cannot be copied \(cannot be\); copy it before") as caught:
        rewrite(Uncopied())
    assert "\n" not in str(caught.value)


# --- squeeze-and-excitation ---


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (Wish(p=4, se=4), HetConv2d),
        (Wish("dwc", se=4), DepthwisePointwise),
        (Wish("gwc", groups=2, se=4), GroupwisePointwise),
        (Wish("standard", se=4), nn.Conv2d),
    ],
)
def test_torchvisions_squeeze_and_excitation_stands_behind_the_layer(wish, kind):
    (pair,) = rewrite(nn.Sequential(conv(8, 16)), wish)
    assert [name for name, _ in pair.named_children()] == ["conv", "se"]
    assert type(pair.conv) is kind
    assert type(pair.se) is SqueezeExcitation
    assert pair.se.fc1.weight.shape == (4, 16, 1, 1)  # 16 / 4
    assert pair.se.fc2.weight.shape == (16, 4, 1, 1)
    x = image()
    torch.testing.assert_close(pair(x), pair.se(pair.conv(x)), rtol=0, atol=0)


def test_a_reduction_beyond_the_filters_leaves_one_channel():
    (pair,) = rewrite(nn.Sequential(conv(8, 6)), Wish(p=4, se=16))
    assert pair.se.fc1.weight.shape == (1, 6, 1, 1)


def test_with_a_squeeze_and_excitation_alone_the_convolution_is_the_same():
    model = nn.Sequential(conv())
    (pair,) = rewrite(model, Wish("standard", se=4))
    assert torch.equal(pair.conv.weight, model[0].weight)
    assert torch.equal(pair.conv(image()), model(image()))


@pytest.mark.parametrize(
    ("name", "se", "core"), [("a.b", None, "a.b"), ("a.b", 16, "a.b.conv"), ("", 16, "conv"), ("", None, "")]
)
def test_the_core_of_a_layer_by_name(name, se, core):
    assert core_name(LayerPlan(name, Geometry(8, 8, (3, 3)), Change("dwc", se=se))) == core


def test_a_bare_convolution_with_squeeze_and_excitation_is_a_pair():
    pair = rewrite(conv(), Wish(p=4, se=4))
    assert [type(module) for module in pair] == [HetConv2d, SqueezeExcitation]


# --- plans that do not fit ---

G = Geometry(8, 8, (3, 3), padding=(1, 1))
HET = Change("hetconv", p=4, arrangement="blocked")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPlan("nowhere", G, HET), "'nowhere', but the model has no Conv2d of that name"),
        (LayerPlan("1", G, HET), "'1', but the model has no Conv2d of that name"),
        (
            LayerPlan("0", Geometry(8, 16, (3, 3)), HET),
            "0: the plan was made for 3x3, 8 -> 16; the model has 3x3, 8 -> 8, padding 1x1",
        ),
        (
            LayerPlan("0", Geometry(8, 8, (3, 3)), HET),
            "0: the plan was made for 3x3, 8 -> 8; the model has 3x3, 8 -> 8, padding 1x1",
        ),
        (LayerPlan("0", G, Change("hetconv", p=3)), "8 input channels must be divisible by 3"),
        (LayerPlan("0", G, Change("gwc", groups=3)), "8 input channels must be divisible by 3"),
        (LayerPlan("2", Geometry(8, 8, (2, 2)), HET), "even kernel 2x2: no centre tap"),
        (LayerPlan("3", Geometry(8, 8, (3, 3), padding=(1, 1), groups=2), HET), "3: .*group"),
        (LayerPlan("3", Geometry(8, 8, (3, 3), padding=(1, 1), groups=2), Change("dwc")), "3: .*group"),
    ],
)
def test_a_plan_for_another_network_is_refused(layer, message):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(8, 8, 2), conv(groups=2))
    with pytest.raises(ArgumentError, match=message) as caught:
        apply_plan(model, Plan((layer,)))
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_padding_says_what_differs():
    with pytest.raises(ArgumentError, match=r"0: .*padding"):
        apply_plan(nn.Sequential(conv()), Plan((LayerPlan("0", Geometry(8, 8, (3, 3)), HET),)))


def test_a_plan_that_converts_nothing_gives_a_copy():
    model = nn.Sequential(conv())
    new = apply_plan(model, Plan(()))
    assert new is not model
    assert type(new[0]) is nn.Conv2d
    assert torch.equal(new[0].weight, model[0].weight)
