"""Choosing parts: limits, spectral errors, branching networks, plans that --config takes back."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hetconv_cli as hc
from hetconv_cli.conversion.calibration.part_errors import divisors
from hetconv_cli.plan import Rules, Wish
from hetconv_cli.plan_file import rules_from_yaml, rules_to_yaml


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 5, padding=2, bias=False)
        self.three = nn.Conv2d(32, 12, 3, stride=2)
        self.unused = nn.Conv2d(16, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = x + self.two(torch.relu(self.one(x)))
        return self.three(torch.cat((x, y), 1))


def residual() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Residual().eval(), torch.randn(16, 3, 10, 10)


def counted(model: nn.Module, x: torch.Tensor) -> int:
    for module in model.modules():
        if isinstance(module, hc.HetConv2d):
            module.implementation = "reference"
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model.eval()(x)
    return flops.get_total_flops() // 2


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_the_choice_beats_the_uniform_part_and_its_macs_are_those_counted(with_images, p):
    model, x = residual()
    images = {"calibration": x} if with_images else {}
    everything = hc.choose_parts(model, x[:1], budget=1, **images)
    uniform = [next(option for option in layer.options if option.p == p) for layer in everything.layers]
    saved = sum(layer.options[0].cost - option.cost for layer, option in zip(everything.layers, uniform, strict=True))
    budget = 1 - saved / everything.cost_before
    choice = hc.choose_parts(model, x[:1], budget=budget, **images)
    assert choice.cost <= everything.cost_before - saved
    assert choice.error == choice.bound <= sum(option.error for option in uniform)
    converted = hc.convert(model, example=x[:1], rules=choice.rules)
    assert converted.plan == choice.plan
    assert counted(converted.model, x[:1]) == choice.cost


def test_without_images_the_error_is_the_energy_of_the_taps_that_go():
    model, x = residual()
    choice = hc.choose_parts(model, x[:1], budget=0.5)
    assert choice.errors_from == "weights"
    (one,) = [layer for layer in choice.layers if layer.name == "one"]
    for option in one.options[1:]:
        dense = hc.convert(model.one, p=option.p).model.dense_weight()
        weight = model.one.weight.detach()
        gone = ((weight - dense) ** 2).sum() / (weight**2).sum()
        assert option.error == pytest.approx(float(gone), rel=1e-5)
    assert [option.p for option in one.options] == [None, *divisors(16)]


def test_a_plan_written_is_the_plan_read():
    model, x = residual()
    choice = hc.choose_parts(model, x[:1], budget=0.4)
    text = rules_to_yaml(choice.rules, "chosen\nfor a test")
    assert text.startswith("# chosen\n# for a test\n")
    assert rules_from_yaml(text, "plan.yaml", Wish(p=7, se=4)) == choice.rules
    several = Rules(Wish(p=3, se=2), {"a": "keep", "b": Wish("gwc", groups=3)}, (("c.*", Wish(p="pc")),))
    assert rules_from_yaml(rules_to_yaml(several), "plan.yaml", Wish()) == several


def test_a_latency_budget_is_kept_by_times_measured_here():
    model, x = residual()
    choice = hc.choose_parts(model, x[:1], latency_budget=1)
    assert all(option.cost > 0 for layer in choice.layers if layer.name != "unused" for option in layer.options)
    assert (choice.error, choice.cost) == (0, choice.cost_before)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({}, "give one of budget, latency budget and maximal error"),
        ({"budget": 0.5, "max_error": 1}, "give one of"),
        ({"budget": 1.5}, "budget: expected a part above 0, at most 1"),
        ({"max_error": -1}, "max error: expected a number above 0"),
        ({"budget": float("nan")}, "budget: expected"),
        ({"budget": 0.01}, "budget 0.01: out of reach"),
    ],
)
def test_limits_that_are_none_are_one_line(limit, said):
    model, x = residual()
    with pytest.raises(hc.ArgumentError, match=said):
        hc.choose_parts(model, x[:1], **limit)


def test_where_nothing_can_be_converted_there_is_nothing_to_choose():
    with pytest.raises(hc.ArgumentError, match="nothing to choose"):
        hc.choose_parts(nn.Conv2d(8, 8, 1), torch.randn(1, 8, 4, 4), budget=0.5)
