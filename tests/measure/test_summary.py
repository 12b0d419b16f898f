"""What a conversion does, stage by stage."""

import pytest
import torch
import torchvision
from small_networks import conv
from torch import nn

from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.measure.network import Network, prepare
from hetconv_cli.measure.summary import Stage, Summary, group_by_stage, summarize
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Rules, Wish, make_plan


def network(model: nn.Module, *shape: int) -> Network:
    return prepare(lambda place: model.to(place), ExampleSpec((shape,)))


def summary(model: nn.Module, *shape: int, rules: Rules) -> Summary:
    prepared = network(model, *shape)
    return summarize(prepared, make_plan(find_candidates(prepared.model, prepared.trace), rules))


def two_stages() -> nn.Module:
    model = nn.Sequential()
    model.stem = conv(3, 8)
    model.one = nn.Sequential(conv(), nn.BatchNorm2d(8), conv())
    model.two = nn.Sequential(conv(8, 16), nn.Conv2d(16, 16, 1))
    model.flat, model.fc = nn.Flatten(), nn.Linear(576, 10)
    return model


def test_each_row_by_hand():
    found = summary(two_stages(), 1, 3, 6, 6, rules=Rules(Wish(p=4)))
    one, two = 36 * 8 * 24, 36 * 16 * 24
    assert found.stages == (
        Stage("one", 2, 2 * 20_736, 2 * one, 2 * 584, 2 * (8 * 24 + 8)),
        Stage("two", 1, 2 * 20_736, two, 1168, 16 * 24 + 16),
    )
    stem, point = 36 * 8 * 27, 36 * 256
    assert found.kept == Stage("kept", 2, stem + point, stem + point, 224 + 272, 224 + 272)
    assert found.others == Stage("other layers", 0, 5760, 5760, 5770 + 16, 5770 + 16)
    assert found.total == Stage(
        "total",
        5,
        4 * 20_736 + stem + point + 5760,
        2 * one + two + stem + point + 5760,
        2 * 584 + 1168 + 224 + 272 + 5786,
        2 * 200 + 400 + 224 + 272 + 5786,
    )
    assert found.converted_macs == 2 * one + two
    assert found.executed == 2 * 36 * 8 * 26 + 36 * 16 * 26


def test_rows_add_up_to_the_total():
    found = summary(two_stages(), 2, 3, 6, 6, rules=Rules(Wish(p=2), {"two.0": Wish("gwc", groups=2, se=4)}))
    rows = [*found.stages, found.kept, found.others]
    for number in ("convs", "macs_before", "macs_after", "params_before", "params_after"):
        assert sum(getattr(row, number) for row in rows) == getattr(found.total, number)


def test_a_squeeze_and_excitation_belongs_to_its_layer():
    (stage,) = summary(nn.Sequential(conv()), 1, 8, 6, 6, rules=Rules(Wish("dwc", se=4))).stages
    assert stage == Stage("0", 1, 20_736, 36 * 8 * 17 + 32, 584, 72 + 64 + 8 + (16 + 2 + 16 + 8))


def test_a_layer_called_often_counts_as_often():
    shared = conv()
    found = summary(nn.Sequential(shared, nn.MaxPool2d(2), shared), 1, 8, 6, 6, rules=Rules(Wish(p=4)))
    assert (found.total.convs, found.total.macs_before, found.total.macs_after) == (1, 576 * 45, 192 * 45)
    assert (found.total.params_before, found.total.params_after) == (584, 200)
    assert (found.converted_macs, found.executed) == (192 * 45, 208 * 45)


def test_nothing_converted_is_a_summary_without_stages():
    found = summary(nn.Sequential(nn.Conv2d(8, 8, 1)), 1, 8, 6, 6, rules=Rules(Wish(p=4)))
    assert (found.stages, found.converted_macs, found.executed) == ((), 0, 0)
    assert found.total == Stage("total", 1, 2304, 2304, 72, 72)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([], []),
        (["conv"], [("conv", ["conv"])]),
        (["a.x", "a.y", "b.x"], [("a", ["a.x", "a.y"]), ("b", ["b.x"])]),
        (["m.a.x", "m.a.y", "m.b.x"], [("m.a", ["m.a.x", "m.a.y"]), ("m.b", ["m.b.x"])]),
        (["features.0", "features.2"], [("features.0", ["features.0"]), ("features.2", ["features.2"])]),
    ],
)
def test_stages_are_the_first_parts_of_names_that_tell_layers_apart(names, groups):
    assert group_by_stage(names) == groups


def test_stages_that_would_be_too_many_stay_together():
    names = [f"features.{index}" for index in range(17)]
    assert group_by_stage(names) == [("features", names)]
    assert len(group_by_stage(names[:16])) == 16


def test_resnet34_as_in_the_issue():
    with torch.device("meta"):
        model = torchvision.models.resnet34()
    found = summary(model, 1, 3, 224, 224, rules=Rules(Wish(p=4)))
    # layer1: six of 64 -> 64 on 56 x 56, and so on; after: a third
    before = [
        6 * 56**2 * 64**2 * 9,
        28**2 * 9 * (64 * 128 + 7 * 128**2),
        14**2 * 9 * (128 * 256 + 11 * 256**2),
        7**2 * 9 * (256 * 512 + 5 * 512**2),
    ]
    weights = [221_184, 1_105_920, 6_782_976, 12_976_128]
    assert found.stages == tuple(
        Stage(f"layer{index}", convs, macs, macs // 3, weight, weight // 3)
        for index, (convs, macs, weight) in enumerate(zip((6, 8, 12, 6), before, weights, strict=True), start=1)
    )
    assert (found.kept.convs, found.kept.params_before) == (4, 181_440)
    assert round(found.kept.macs_before / 1e6, 1) == 137.3
    assert (found.others.macs_before, found.others.params_before) == (512_000, 530_024)
    assert found.total == Stage("total", 36, 3_663_761_408, 1_313_116_160, 21_797_672, 7_740_200)
    assert found.executed == found.converted_macs * 13 // 12
    rest = found.total.macs_after - found.converted_macs
    assert round((rest + found.executed) / 1e9, 3) == 1.411
