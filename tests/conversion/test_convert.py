"""convert() as users call it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from small_networks import conv
from torch import nn
from torch.nn.utils import parametrizations, prune

import hetconv_cli as hc
from hetconv_cli.conversion.convert import convert, make_wish
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Rules, Wish


def image(m=8, size=6) -> torch.Tensor:
    return torch.randn(2, m, size, size, generator=torch.Generator().manual_seed(0))


# --- the public name ---

FRESH_PROCESS = """
import torch
import hetconv_cli as hc
net, x = torch.nn.Conv2d(8, 8, 3), torch.ones(1, 8, 5, 5)
hc.convert(net)
hc.convert(net)
hc.analyze(net, x)
hc.convert(net)
from hetconv_cli import convert
convert(net)
"""


def test_the_public_name_is_the_function_however_often_it_is_used():
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1:] == []
    assert done.returncode == 0


def test_no_folder_hides_a_public_name():
    folders = {path.name for path in Path(hc.__file__).parent.iterdir()}
    assert not folders & set(hc.__all__)
    assert hc.convert is convert


def test_its_signature_is_the_documented_one():
    parameters = inspect.signature(convert).parameters
    documented = {
        "model": inspect.Parameter.empty,
        "p": 4,
        "example": None,
        "arrangement": None,
        "variant": "hetconv",
        "groups": None,
        "se": False,
        "rules": None,
        "transfer": None,
        "pairs": False,
        "calibration": None,
    }
    assert {name: parameters[name].default for name in documented} == documented
    positional = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == ["model", "p"]


def test_the_names_in_the_design_are_there():
    assert {"HetConv2d", "convert", "analyze", "save", "load", "export_onnx"} <= set(hc.__all__)
    assert hc.__all__ == sorted(hc.__all__)
    assert hc.HetConv2d is HetConv2d


# --- arguments ---


@pytest.mark.parametrize("p", [0, -1, 1.5, float("nan"), "1_000", True, None, "four", [4]])
def test_a_part_that_is_none_is_refused(p):
    with pytest.raises(ArgumentError, match="p must be a positive integer or 'pc', got"):
        convert(nn.Sequential(conv()), p=p)


def test_a_part_that_fits_nowhere_is_refused_with_what_would_fit():
    with pytest.raises(ArgumentError, match=r"p = 7 .*\(8\); choose 2, 4, 8 or pc"):
        convert(nn.Sequential(conv()), p=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "conv"}, "variant must be one of standard, hetconv, dwc, gwc; got 'conv'"),
        ({"arrangement": "diagonal"}, "arrangement must be 'blocked' or 'shifted', got 'diagonal'"),
        ({"groups": 0}, "groups must be a positive integer, got 0"),
        ({"groups": 2.0}, r"groups must be a positive integer, got 2\.0"),
        ({"groups": True}, "groups must be a positive integer, got True"),
        ({"se": -1}, "se must be True, False or a reduction such as 16, got -1"),
        ({"se": 0.5}, r"se must be True, False or a reduction such as 16, got 0\.5"),
        ({"transfer": "magic"}, "transfer must be one of center, sum, fresh, calibrated; got 'magic'"),
        ({"rules": Rules(exact={"nope": "keep"})}, "'nope', which is no Conv2d"),
    ],
)
def test_an_argument_out_of_range_is_one_line(arguments, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        convert(nn.Sequential(conv()), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "wish"),
    [
        ({}, Wish()),
        ({"p": "PC"}, Wish(p="pc", groups=4)),
        ({"p": 8}, Wish(p=8, groups=8)),
        ({"variant": "gwc", "p": 2}, Wish("gwc", p=2, groups=2)),
        ({"variant": "gwc", "groups": 8}, Wish("gwc", p=4, groups=8)),
        ({"se": True}, Wish(se=16)),
        ({"se": 8}, Wish(se=8)),
        ({"se": 0}, Wish(se=None)),
        ({"arrangement": "shifted"}, Wish(arrangement="shifted")),
    ],
)
def test_arguments_make_a_wish(arguments, wish):
    assert make_wish(**arguments) == wish


def test_rules_stand_in_place_of_the_other_arguments():
    conversion = convert(nn.Sequential(conv(), conv()), p=2, rules=Rules("keep", {"1": Wish(p=8)}))
    assert [layer.change and layer.change.p for layer in conversion.plan.layers] == [None, 8]


@pytest.mark.parametrize(
    ("example", "spec"),
    [
        (image(), ExampleSpec(((2, 8, 6, 6),))),
        ((image(),), ExampleSpec(((2, 8, 6, 6),))),
        (ExampleSpec(((1, 8, 9, 9),)), ExampleSpec(((1, 8, 9, 9),))),
        (None, None),
    ],
)
def test_the_example_is_remembered_by_its_shapes(example, spec):
    assert convert(nn.Sequential(conv()), example=example).example == spec


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(16, 8)

    def forward(self, x, y):
        return self.a(torch.cat((x, y), 1))


def test_a_tuple_is_several_inputs_and_a_concatenation_makes_shifted():
    conversion = convert(TwoInputs(), example=(image(), image()))
    assert conversion.model.a.arrangement == "shifted"
    assert conversion.example == ExampleSpec(((2, 8, 6, 6), (2, 8, 6, 6)))
    assert convert(TwoInputs()).model.a.arrangement == "blocked"
    assert convert(TwoInputs(), example=(image(), image()), arrangement="blocked").model.a.arrangement == "blocked"


@pytest.mark.parametrize("example", [image(5), "1x8x6x6", [1, 2], (image(), image())])
def test_an_example_that_the_model_does_not_take_is_one_line(example):
    with pytest.raises(HetconvError, match=r"does not run on this input \((Runtime|Type)Error: ") as caught:
        convert(nn.Sequential(conv()), example=example)
    assert "\n" not in str(caught.value)


# --- networks ---


class InAList(nn.Module):
    """Calls its convolution past the module tree."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()
        self.hidden = [self.b]

    def forward(self, x):
        return self.hidden[0](self.a(x))


def test_a_convolution_called_past_the_module_tree_is_an_error_that_names_it():
    with pytest.raises(HetconvError, match=r"^b: the model calls this convolution past its module tree.*keep it"):
        convert(InAList(), example=image())


def test_the_way_out_that_this_error_names_works():
    conversion = convert(InAList(), rules=Rules(exact={"b": "keep"}), example=image())
    assert [layer.name for layer in conversion.plan.converted] == ["a"]


@pytest.mark.parametrize(
    ("variant", "se"),
    [("standard", True), *((variant, se) for variant in ("hetconv", "dwc", "gwc") for se in (False, True))],
)
def test_an_example_is_run_through_every_variant(variant, se):
    conversion = convert(nn.Sequential(conv(), nn.BatchNorm2d(8)), variant=variant, se=se, example=image())
    assert len(conversion.plan.converted) == 1
    assert conversion.model(image()).shape == (2, 8, 6, 6)


def test_a_layer_that_this_forward_does_not_call_is_converted_all_the_same():
    model = InAList()
    model.hidden = [nn.Identity()]
    assert [layer.name for layer in convert(model, example=image()).plan.converted] == ["a", "b"]


def test_a_network_without_convolutions_is_a_copy():
    model = nn.Sequential(nn.Linear(4, 4))
    conversion = convert(model)
    assert conversion.plan.layers == ()
    assert conversion.model is not model


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("example", [None, image()], ids=["untraced", "traced"])
@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        (nn.utils.weight_norm, "its weight is not a Parameter (weight norm or pruning)"),
        (lambda module: prune.l1_unstructured(module, "weight", amount=0.5), "its weight is not a Parameter"),
        (parametrizations.weight_norm, "parametrized"),
        (parametrizations.spectral_norm, "parametrized"),
    ],
    ids=["old_weight_norm", "pruned", "weight_norm", "spectral_norm"],
)
def test_a_guarded_convolution_is_kept_beside_one_that_is_converted(guard, reason, example):
    conversion = convert(nn.Sequential(guard(conv()), conv()), example=example)
    kept, converted = conversion.plan.layers
    assert kept.reason.startswith(reason)
    assert converted.change is not None


def test_resnet18_keeps_its_stem_and_its_1x1_and_converts_the_rest():
    model = torchvision.models.resnet18()
    conversion = convert(model, p=4)
    assert {layer.name: layer.reason for layer in conversion.plan.kept} == {
        "conv1": "image stem, 3 channels",
        "layer2.0.downsample.0": "1x1: nothing to save",
        "layer3.0.downsample.0": "1x1: nothing to save",
        "layer4.0.downsample.0": "1x1: nothing to save",
    }
    assert len(conversion.plan.converted) == 16
    for layer in conversion.plan.converted:
        new, old = conversion.model.get_submodule(layer.name), model.get_submodule(layer.name)
        assert (type(new), new.p, new.arrangement) == (HetConv2d, 4, "blocked")
        # a third of the weights: 1/4 + 3/4 / 9
        assert 3 * sum(p.numel() for p in new.parameters()) == old.weight.numel()
    # 11,689,512 parameters, of which 10,985,472 in those layers
    assert sum(p.numel() for p in conversion.model.parameters()) == 11_689_512 - 2 * 10_985_472 // 3
    assert conversion.model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


def test_a_converted_resnet18_learns():
    torch.manual_seed(0)
    digits = load_digits()
    pictures = torch.tensor(digits.images[:32], dtype=torch.float32)[:, None] / 8 - 1
    x, y = F.interpolate(pictures, 32).repeat(1, 3, 1, 1), torch.tensor(digits.target[:32])
    conversion = convert(torchvision.models.resnet18(num_classes=10), p=4, transfer="fresh")
    model = conversion.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    # all learn, but what on a map of 1 x 1 pixel only ever sees padding
    assert still == {f"layer4.{name}.weight_ring" for name in ("0.conv2", "1.conv1", "1.conv2")}


@pytest.mark.parametrize(("name", "kind"), [("resnetv2_50x1_bit", "StdConv2d"), ("tf_efficientnetv2_b0", "Conv2dSame")])
def test_timms_convolutions_of_their_own_kind_are_kept(name, kind):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = convert(model, p=4).plan
    own = [layer for layer in plan.layers if type(model.get_submodule(layer.name)).__name__ == kind]
    assert own
    assert {layer.reason for layer in own} == {f"a subclass of Conv2d ({kind})"}


def test_a_timm_network_of_plain_convolutions_is_converted_and_runs():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5)
    conversion = convert(model, p=4, example=torch.randn(1, 3, 64, 64))
    assert len(conversion.plan.converted) == 10  # 8 in blocks, the second and third of the deep stem
    assert conversion.model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
