"""The Conv2d modules of a network: their geometry, their names, and what stands in the way of replacing one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from hetconv_cli.convert.candidates import find_candidates
from hetconv_cli.convert.trace import trace
from hetconv_cli.geometry import Geometry


def conv(m=8, n=8, kernel=3, **more) -> nn.Conv2d:
    return nn.Conv2d(m, n, kernel, **more)


def obstacle(module: nn.Module) -> str | None:
    (candidate,) = find_candidates(nn.Sequential(module))
    return candidate.obstacle


def test_every_convolution_is_found_in_the_networks_order_and_nothing_else():
    model = nn.Sequential(
        conv(), nn.Sequential(nn.Linear(2, 2), conv(), nn.ConvTranspose2d(8, 8, 3)), nn.Conv1d(8, 8, 3)
    )
    model.append(conv())
    assert [candidate.name for candidate in find_candidates(model)] == ["0", "1.1", "3"]


def test_an_ordinary_convolution_has_no_obstacle():
    assert obstacle(conv()) is None
    assert obstacle(conv().to(torch.bfloat16)) is None
    assert obstacle(conv().requires_grad_(False)) is None
    assert obstacle(conv(device="meta")) is None


@pytest.mark.parametrize(
    ("module", "geometry"),
    [
        (nn.Conv2d(3, 8, 5), Geometry(3, 8, (5, 5))),
        (
            nn.Conv2d(6, 8, (1, 7), (2, 1), (0, 3), (1, 2), 2, False, "circular"),
            Geometry(6, 8, (1, 7), (2, 1), (0, 3), (1, 2), 2, False, "circular"),
        ),
        (nn.Conv2d(4, 4, 3, padding="valid"), Geometry(4, 4, (3, 3))),
        (nn.Conv2d(4, 4, (5, 3), padding="same", dilation=2), Geometry(4, 4, (5, 3), padding=(4, 2), dilation=(2, 2))),
        (nn.Conv2d(4, 4, 4, padding="same"), Geometry(4, 4, (4, 4), padding=(1, 1))),  # 1 before, 2 behind
        (nn.Conv2d(4, 4, (2, 3), padding="same"), Geometry(4, 4, (2, 3), padding=(0, 1))),
    ],
)
def test_geometry_is_the_modules(module, geometry):
    (candidate,) = find_candidates(nn.Sequential(module))
    assert candidate.geometry == geometry


class Wider(nn.Conv2d):
    pass


class SameWithStride(nn.Conv2d):
    """As some libraries have it: attributes that Conv2d itself would refuse."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.padding = "same"


class FourSides(nn.Conv2d):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.padding = (1, 0, 1, 0)


def test_a_subclass_may_compute_anything():
    assert obstacle(Wider(8, 8, 3)) == "a subclass of Conv2d (Wider)"


@pytest.mark.parametrize("kind", [SameWithStride, FourSides])
def test_a_subclass_with_attributes_of_its_own_is_kept_too(kind):
    assert obstacle(kind(8, 8, 3, stride=2)) == f"a subclass of Conv2d ({kind.__name__})"


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_would_be_lost(register):
    module = conv()
    handle = getattr(module, register)(lambda *_: None)
    assert obstacle(module) == "has hooks"
    handle.remove()
    assert obstacle(module) is None


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrization_would_be_lost():
    module = conv()
    parametrize.register_parametrization(module, "weight", Double())
    assert obstacle(module) == "parametrized"
    assert obstacle(parametrizations.weight_norm(conv())) == "parametrized"
    assert obstacle(parametrizations.spectral_norm(conv())) == "parametrized"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_an_old_weight_norm_would_be_lost():
    assert obstacle(nn.utils.weight_norm(conv())) == "its weight is not a Parameter (weight norm or pruning)"


def test_pruning_would_be_lost():
    module = prune.l1_unstructured(conv(), "weight", amount=0.5)
    assert obstacle(module) == "its weight is not a Parameter (weight norm or pruning)"


def test_a_lazy_convolution_has_no_channels_yet():
    assert obstacle(nn.LazyConv2d(8, 3)) == "lazy: not initialised yet"


def test_a_lazy_convolution_that_has_run_is_an_ordinary_one():
    model = nn.Sequential(nn.LazyConv2d(8, 3))
    model(torch.ones(1, 5, 4, 4))
    (candidate,) = find_candidates(model)
    assert (candidate.obstacle, candidate.geometry) == (None, Geometry(5, 8, (3, 3)))


def test_a_replaced_forward_would_be_lost():
    module = conv()
    module.forward = lambda x: x
    assert obstacle(module) == "its forward was replaced"


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "int8"), (torch.complex64, "complex64")])
def test_weights_that_are_no_real_numbers_stay(dtype, name):
    module = conv()
    module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
    assert obstacle(module) == f"weights of type {name}"


def test_two_convolutions_that_share_a_weight_both_stay():
    model = nn.Sequential(conv(), conv(), conv())
    model[2].weight = model[0].weight
    reason = "shares its weight with another module"
    assert [candidate.obstacle for candidate in find_candidates(model)] == [reason, None, reason]


def test_a_shared_bias_counts_too_and_so_does_another_kind_of_module():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    model[1].bias = model[0].bias
    assert find_candidates(model)[0].obstacle == "shares its weight with another module"


def test_one_module_under_several_names_is_one_candidate_without_obstacle():
    shared = conv()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(conv(), shared), "c": shared})
    first, second = find_candidates(model)
    assert (first.name, first.aliases, first.obstacle) == ("a", ("b.1", "c"), None)
    assert (second.name, second.aliases) == ("b.0", ())


def test_a_convolution_inside_a_module_with_two_names_has_an_alias_too():
    block = nn.Sequential(conv())
    (candidate,) = find_candidates(nn.ModuleDict({"a": block, "b": block}))
    assert (candidate.name, candidate.aliases) == ("a.0", ("b.0",))


def test_an_even_kernel_with_same_padding_is_kept_by_its_kind_not_by_an_error():
    (candidate,) = find_candidates(nn.Sequential(nn.Conv2d(8, 8, 4, padding="same")))
    assert (candidate.obstacle, candidate.geometry.is_odd) == (None, False)


def test_a_bare_convolution_is_a_candidate_without_a_name():
    (candidate,) = find_candidates(conv())
    assert (candidate.name, candidate.aliases, candidate.obstacle) == ("", (), None)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(padding=1), conv(16, 8)

    def forward(self, x):
        return self.b(torch.cat((x, self.a(x)), 1))


def test_the_trace_tells_which_one_reads_a_concatenation():
    model = Joined()
    seen = trace(model, (torch.ones(1, 8, 5, 5),))
    assert [candidate.reads_concatenation for candidate in find_candidates(model, seen)] == [False, True]
    assert [candidate.reads_concatenation for candidate in find_candidates(model)] == [False, False]
