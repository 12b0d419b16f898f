"""Counts by shapes and equations: by hand on tiny networks, and equal to what is counted where both see everything."""

import pytest
import torch
from small_networks import Net, conv
from torch import nn

from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.trace import trace
from hetconv_cli.geometry import Geometry
from hetconv_cli.measure.analytic import analytic_macs, changed_macs, equation_ratio, ratio_by_equation
from hetconv_cli.measure.counters import count_dispatched
from hetconv_cli.plan import Change, Rules, Wish, make_plan


def analytic(model: nn.Module, *inputs: torch.Tensor, wish: Wish | None = None) -> dict[str, int]:
    seen = trace(model, inputs)
    plan = make_plan(find_candidates(model, seen), Rules(wish)) if wish else None
    return analytic_macs(model, seen, plan)


# --- the standard network ---

PRODUCTS = [
    (conv(3, 8), (2, 3, 6, 5), 2 * 30 * 8 * 27),
    (conv(3, 8), (3, 6, 5), 30 * 8 * 27),  # without a batch
    (nn.Conv2d(8, 4, (1, 7), stride=(2, 1)), (1, 8, 9, 9), 15 * 4 * 56),
    (nn.Conv2d(8, 6, 3, padding="same", dilation=2, padding_mode="reflect"), (1, 8, 9, 9), 81 * 6 * 72),
    (conv(groups=2), (1, 8, 6, 6), 36 * 8 * 4 * 9),
    (conv(8, 16, groups=8), (1, 8, 6, 6), 36 * 16 * 9),
    (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9), 2 * 7 * 6 * 2 * 3),
    (nn.Conv1d(4, 6, 3), (4, 9), 7 * 6 * 12),
    (nn.Conv3d(4, 6, (1, 2, 3)), (1, 4, 5, 5, 5), 5 * 4 * 3 * 6 * 4 * 6),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9), 2 * 9 * 4 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3), 27 * 4 * 6 * 8),
    (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 35),
    (nn.Linear(5, 7), (5,), 35),
    (conv(), (0, 8, 6, 6), 0),
]


@pytest.mark.parametrize(("module", "shape", "macs"), PRODUCTS)
def test_a_module_by_its_shapes_by_hand_and_by_the_dispatcher(module, shape, macs):
    model = nn.Sequential(module)
    assert analytic(model, torch.ones(shape)) == {"0": macs}
    assert sum(count_dispatched(model, (torch.ones(shape),)).values()) == macs


# queries L = 5, keys S = 9, E = 16, two samples unless unbatched
ATTENTION = 2 * (2 * 5 * 256 + 2 * 9 * 256 + 2 * 5 * 9 * 16)


@pytest.mark.parametrize(
    ("more", "query", "key", "macs"),
    [
        ({"batch_first": True}, (2, 5, 16), (2, 9, 16), ATTENTION),
        ({"batch_first": False}, (5, 2, 16), (9, 2, 16), ATTENTION),
        ({"batch_first": True}, (5, 16), (9, 16), ATTENTION // 2),
        ({"batch_first": False}, (5, 16), (9, 16), ATTENTION // 2),
        ({"batch_first": True, "bias": False}, (2, 5, 16), (2, 9, 16), ATTENTION),
        ({"batch_first": True, "kdim": 12, "vdim": 12}, (2, 5, 16), (2, 9, 12), ATTENTION - 2 * 2 * 9 * 4 * 16),
    ],
)
def test_attention_by_its_shapes_by_hand_and_by_the_dispatcher(more, query, key, macs):
    model = Net(lambda self, q, k: self.m(q, k, k)[0], m=nn.MultiheadAttention(16, 2, **more))
    inputs = (torch.ones(query), torch.ones(key))
    assert analytic(model, *inputs) == {"m": macs}
    assert count_dispatched(model, inputs) == {"m": macs}


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_to_itself(batch_first):
    model = Net(lambda self, x: self.m(x, x, x)[0], m=nn.MultiheadAttention(16, 2, batch_first=batch_first))
    x = torch.ones(2, 5, 16) if batch_first else torch.ones(5, 2, 16)
    assert analytic(model, x) == {"m": 2 * (4 * 5 * 256 + 2 * 25 * 16)} == count_dispatched(model, (x,))


@pytest.mark.parametrize(
    "call",
    [
        lambda self, q, k: self.m(query=q, key=k, value=k)[0],
        lambda self, q, k: self.m(key=k, value=k, query=q)[0],
        lambda self, q, k: self.m(q, value=k, key=k)[0],
        lambda self, q, k: self.m(q, k, k, torch.zeros(2, 9))[0],
    ],
    ids=["by_name", "key_first", "value_first", "with_mask"],
)
def test_attention_however_it_is_called(call):
    model = Net(call, m=nn.MultiheadAttention(16, 2, batch_first=True))
    inputs = (torch.ones(2, 5, 16), torch.ones(2, 9, 16))
    assert analytic(model, *inputs) == {"m": ATTENTION} == count_dispatched(model, inputs)


def test_calls_add_up_under_the_first_name():
    shared = conv()
    model = Net(lambda self, x: self.b(self.a(x)[..., ::2, ::2]), a=shared, b=shared)
    assert analytic(model, torch.ones(1, 8, 6, 6)) == {"a": 576 * (36 + 9)}


def test_products_outside_of_modules_are_not_in_it():
    model = Net(lambda self, x: self.a(x).flatten(1) @ self.weight, a=conv())
    model.weight = nn.Parameter(torch.ones(288, 10))
    assert analytic(model, torch.ones(1, 8, 6, 6)) == {"a": 20_736}


# --- with a plan ---


@pytest.mark.parametrize(
    ("wish", "macs"),
    [
        (Wish(p=1), {"0": 20_736}),
        (Wish(p=2), {"0": 36 * 8 * (4 * 9 + 4)}),
        (Wish(p=4), {"0": 36 * 8 * (2 * 9 + 6)}),
        (Wish(p="pc"), {"0": 36 * 8 * (9 + 7)}),
        (Wish(p=4, arrangement="shifted"), {"0": 36 * 8 * (2 * 9 + 6)}),
        (Wish("dwc"), {"0": 36 * 8 * (9 + 8)}),
        (Wish("gwc", groups=2), {"0": 36 * 8 * (4 * 9 + 8)}),
        (Wish(p=4, se=4), {"0": 36 * 8 * (2 * 9 + 6), "0.se": 2 * 8 * 2}),
        (Wish("standard", se=16), {"0": 20_736, "0.se": 2 * 8}),
    ],
)
def test_each_variant_by_hand(wish, macs):
    assert analytic(nn.Sequential(conv()), torch.ones(1, 8, 6, 6), wish=wish) == macs
    twice = analytic(nn.Sequential(conv()), torch.ones(2, 8, 6, 6), wish=wish)
    assert twice == {name: 2 * number for name, number in macs.items()}


def test_a_pair_is_counted_as_it_can_be_built_not_as_equation_7_is_printed():
    # M = 8, N = 16, G = 2: K x K on M -> M, not on M -> N
    assert analytic(nn.Sequential(conv(8, 16)), torch.ones(1, 8, 6, 6), wish=Wish("gwc", groups=2)) == {
        "0": 36 * (8 * 4 * 9 + 8 * 16)
    }


def test_kept_layers_count_as_they_are():
    model = nn.Sequential(conv(3, 8), conv(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 10))
    macs = analytic(model, torch.ones(1, 3, 6, 6), wish=Wish(p=4))
    assert macs == {"0": 36 * 8 * 27, "1": 6912, "2": 36 * 64, "4": 2880}


def test_an_unbatched_image_is_one_sample():
    assert analytic(nn.Sequential(conv()), torch.ones(8, 6, 6), wish=Wish(p=4)) == {"0": 6912}


@pytest.mark.parametrize("change", [None, Change("standard", se=16)])
def test_no_change_is_equation_1_within_groups(change):
    assert changed_macs(Geometry(8, 12, (3, 3), groups=4), change, (6, 6)) == 36 * 12 * 2 * 9


def test_numbers_of_any_size_are_exact():
    m = 2**40 + 1
    g = Geometry(m, m, (3, 5))
    assert changed_macs(g, None, (m, m)) == m**4 * 15
    assert changed_macs(g, Change("hetconv", p=m), (m, m)) == m**3 * (15 + m - 1)
    assert changed_macs(g, Change("dwc"), (m, m)) == m**3 * (15 + m)


# --- ratios ---


def test_a_ratio_is_the_equations():
    g = Geometry(8, 16, (3, 3))
    assert equation_ratio(g, Change("hetconv", p=4)) * 36 == 12  # 1/4 + 3/4 / 9
    assert equation_ratio(g, Change("dwc")) * 144 == 25  # 1/16 + 1/9
    assert equation_ratio(g, Change("gwc", groups=4)) * 36 == 13  # 1/4 + 1/9
    assert equation_ratio(g, Change("standard", se=16)) == 1


def test_over_several_layers_each_counts_by_its_standard_macs():
    model = nn.Sequential(conv(), conv(8, 16), nn.MaxPool2d(2), nn.Conv2d(16, 8, 5, padding=2))
    inputs = (torch.ones(1, 8, 6, 6),)
    seen = trace(model, inputs)
    plan = make_plan(find_candidates(model, seen), Rules(Wish(p=4)))
    standard = [36 * 8 * 72, 36 * 16 * 72, 9 * 8 * 400]
    ratios = [1 / 3, 1 / 3, 1 / 4 + 3 / 4 / 25]
    expected = sum(s * r for s, r in zip(standard, ratios, strict=True)) / sum(standard)
    assert ratio_by_equation(plan, seen) == pytest.approx(expected, rel=1e-15)


def test_there_is_no_ratio_where_no_converted_layer_runs():
    model = Net(lambda self, x: x, a=conv())
    seen = trace(model, (torch.ones(1, 8, 6, 6),))
    assert ratio_by_equation(make_plan(find_candidates(model), Rules(Wish(p=4))), seen) is None
