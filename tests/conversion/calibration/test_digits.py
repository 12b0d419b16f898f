"""On real images: what a trained network still knows after its conversion, and what a good choice of parts is worth."""

import re
from pathlib import Path
from typing import Any

import digits as data
import torch
from torch.utils.flop_counter import FlopCounterMode

import hetconv_cli as hc
from hetconv_cli.plan import Rules

DOCS = Path(__file__).parents[3] / "docs" / "pretrained.md"


def counted(model: torch.nn.Module, x: torch.Tensor) -> int:
    """MACs as torch's dispatcher sees them in the class-by-class form."""
    for module in model.modules():
        if isinstance(module, hc.HetConv2d):
            module.implementation = "reference"
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model.eval()(x)
    return flops.get_total_flops() // 2


def test_calibrated_is_more_accurate_than_centre_taps_and_sums_everywhere():
    original = data.accuracy(data.trained())
    assert original > 0.98
    for p in data.PARTS:
        row = data.row(p)
        calibrated = [row[str(count)] for count in data.IMAGES]
        assert min(calibrated) > max(row["center"], row["sum"])
        assert calibrated[0] <= calibrated[-1] + 0.005
        assert calibrated[-1] > original - 0.06


def test_an_order_that_suits_the_classes_is_worth_most_where_least_is_kept():
    plain, reordered = data.row(8), data.row(8, reorder=True)
    assert all(reordered[str(count)] > plain[str(count)] + 0.01 for count in data.IMAGES)


def test_a_budget_beats_the_uniform_part_of_the_same_macs():
    images, _ = data.digits()
    model, x, calibration = data.trained(), images[:1], images[:128]
    choice = hc.choose_parts(model, x, budget=1, calibration=calibration)
    assert (choice.error, choice.cost) == (0, choice.cost_before)
    for p in (2, 8):
        uniform = [next(option for option in layer.options if option.p == p) for layer in choice.layers]
        saved = sum(layer.options[0].cost - option.cost for layer, option in zip(choice.layers, uniform, strict=True))
        same = 1 - saved / choice.cost_before
        best = hc.choose_parts(model, x, budget=same, calibration=calibration)
        assert best.cost <= choice.cost_before - saved
        assert best.error == best.bound < sum(option.error for option in uniform)
        assert counted(hc.convert(model, rules=best.rules, example=x).model, x) == best.cost


def test_the_part_chosen_fits_the_errors_that_are_allowed():
    images, _ = data.digits()
    choice = hc.choose_parts(data.trained(), images[:1], max_error=0.3, calibration=images[:64])
    assert 0 < choice.error <= 0.3
    assert choice.cost == choice.bound < choice.cost_before
    assert isinstance(choice.rules, Rules)


def test_the_training_loop_of_the_docs_brings_accuracy_back():
    text = DOCS.read_text("utf-8")
    names: dict[str, Any] = {"torch": torch, "hc": hc}
    exec(re.search(r"```python\n(def distill.*?)```", text, re.DOTALL)[1], names)
    images, _ = data.digits()
    batches = images[: data.TRAINED_ON].split(64)
    untrained = hc.convert(data.trained(), p=8, calibration=batches).model
    assert data.accuracy(names["distill"](data.trained(), batches, p=8)) > data.accuracy(untrained)
