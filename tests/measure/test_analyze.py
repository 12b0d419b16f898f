"""analyze(): every variant counted in every way, each way on its own, differences explained."""

import inspect
from fractions import Fraction

import pytest
import torch
import torchvision
from small_networks import conv
from torch import nn

from hetconv_cli import equations
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure import analyze as analyze_module
from hetconv_cli.measure import counters
from hetconv_cli.measure.analyze import analyze, wishes_for
from hetconv_cli.measure.report import ConvertedMacs, FlopsReport, LayerReport, Macs, Ratio, VariantReport
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Wish


def image(m=8, batch=1) -> torch.Tensor:
    return torch.ones(batch, m, 6, 6)


class Small(nn.Module):
    """A stem, two convertible convolutions, a 1 x 1, statistics, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(), nn.Conv2d(8, 16, (1, 5), stride=(2, 1), padding=(0, 2))
        self.point, self.norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.norm(self.point(self.b(self.a(self.stem(x))))).mean((2, 3)))


STEM, A, B, POINT, HEAD = 36 * 8 * 27, 36 * 8 * 72, 18 * 16 * 40, 18 * 256, 160
NORM = 18 * 16 * 4  # thop: four operations for each number
WHOLE = STEM + A + B + POINT + HEAD


def variant(report: FlopsReport, name: str, p=None, groups=None) -> VariantReport:
    (found,) = [v for v in report.variants if (v.name, v.p, v.groups) == (name, p, groups)]
    return found


@pytest.fixture(scope="module")
def small() -> FlopsReport:
    return analyze(Small(), torch.ones(1, 3, 6, 6), p=[2, 4, 8, "pc"], compare=["dwc", "gwc:2"])


# --- by hand ---


def test_the_report_says_what_was_counted(small):
    assert (small.model, small.input, small.replayed) == ("Small", ((1, 3, 6, 6),), False)
    assert [(v.name, v.p, v.groups, v.se) for v in small.variants] == [
        ("standard", None, None, False),
        ("hetconv", 2, None, False),
        ("hetconv", 4, None, False),
        ("hetconv", 8, None, False),
        ("hetconv", "pc", None, False),
        ("dwc", None, None, False),
        ("gwc", None, 2, False),
    ]


def test_the_standard_network_by_hand(small):
    standard = small.variants[0]
    assert standard.macs == Macs(analytic=WHOLE, thop=WHOLE + NORM, dispatcher=WHOLE, executed=WHOLE)
    assert standard.converted_macs == ConvertedMacs(0, 0, 0)
    assert standard.ratio == Ratio(None, None, None, None)
    assert (standard.converted_layers, standard.kept_layers) == (0, 4)
    assert (standard.macs_reduced_pct, standard.params_reduced_pct) == (0, 0)
    # weights and biases: stem, a, b, point, norm, head
    assert standard.params == (216 + 8) + (576 + 8) + (640 + 16) + (256 + 16) + 32 + (160 + 10)


@pytest.mark.parametrize("p", [2, 4, 8, "pc"])
def test_a_hetconv_by_hand_in_every_column(small, p):
    found, part = variant(small, "hetconv", p), 8 if p == "pc" else p
    own = 8 // part
    a, b = 36 * 8 * (own * 9 + 8 - own), 18 * 16 * (own * 5 + 8 - own)
    rest = STEM + POINT + HEAD
    more = own * (36 * 8 + 18 * 16)  # the grouped form multiplies the centre tap twice
    assert found.macs == Macs(rest + a + b, rest + a + b + NORM, rest + a + b, rest + a + b + more)
    assert found.converted_macs == ConvertedMacs(a + b, a + b, a + b + more)
    assert (found.converted_layers, found.kept_layers) == (2, 2)
    by_equation = (A * (1 / part + (1 - 1 / part) / 9) + B * (1 / part + (1 - 1 / part) / 5)) / (A + B)
    assert found.ratio.equation == 3
    assert found.ratio.by_equation == pytest.approx(by_equation, rel=1e-12)
    assert found.ratio.analytic == found.ratio.measured == (a + b) / (A + B)
    assert found.ratio.by_equation == pytest.approx(found.ratio.measured, rel=1e-12)  # equation (3) is exact
    assert found.macs_reduced_pct == pytest.approx(100 * (A + B - a - b) / WHOLE)
    weights = 8 * (own * 9 + 8 - own) + 16 * (own * 5 + 8 - own)
    assert found.params == small.variants[0].params - 576 - 640 + weights
    assert found.params_reduced_pct == pytest.approx(100 * (576 + 640 - weights) / small.variants[0].params)


@pytest.mark.parametrize(
    ("key", "spatial", "equation", "ratio"),
    [
        (("dwc", None, None), (36 * 8 * 9, 18 * 8 * 5), 5, ((1 / 8 + 1 / 9), (1 / 16 + 1 / 5))),
        (("gwc", None, 2), (36 * 8 * 36, 18 * 8 * 20), 8, ((1 / 2 + 1 / 9), (1 / 2 + 1 / 5))),
    ],
)
def test_a_pair_by_hand_in_every_column(small, key, spatial, equation, ratio):
    found = variant(small, *key)
    a, b = spatial[0] + 36 * 64, spatial[1] + 18 * 128
    rest = STEM + POINT + HEAD
    assert found.macs == Macs(rest + a + b, rest + a + b + NORM, rest + a + b, rest + a + b)
    assert found.converted_macs == ConvertedMacs(a + b, a + b, a + b)
    assert found.ratio.equation == equation
    assert found.ratio.by_equation == pytest.approx((A * ratio[0] + B * ratio[1]) / (A + B), rel=1e-12)
    assert found.ratio.measured == (a + b) / (A + B)


def test_layers_of_the_standard_network(small):
    assert small.layers == (
        LayerReport("stem", 3, 8, (3, 3), (1, 1), (6, 6), 1, STEM, 224, True, "image stem, 3 channels"),
        LayerReport("a", 8, 8, (3, 3), (1, 1), (6, 6), 1, A, 584, True, None),
        LayerReport("b", 8, 16, (1, 5), (2, 1), (3, 6), 1, B, 656, True, None),
        LayerReport("point", 16, 16, (1, 1), (1, 1), (3, 6), 1, POINT, 272, False, "1x1: nothing to save"),
    )


def test_counts_are_python_integers(small):
    for found in small.variants:
        for counts in (found.macs, found.converted_macs):
            assert {type(value) for value in vars(counts).values()} == {int}


@pytest.mark.parametrize(("m", "n", "p"), [(8, 12, 4), (8, 6, 4), (8, 3, 8), (6, 5, 3), (10, 7, "pc")])
def test_the_dispatcher_counts_what_the_equation_says_where_filters_do_not_divide(m, n, p):
    found = analyze(nn.Sequential(conv(m, n)), image(m, 2), p=[p]).variants[1]
    own = 1 if p == "pc" else m // p
    macs = 2 * 36 * n * (own * 9 + m - own)
    assert (found.macs.analytic, found.macs.dispatcher, found.macs.thop) == (macs, macs, macs)
    assert found.macs.executed > macs


def test_at_part_4_the_form_that_runs_does_a_twelfth_more():
    model = nn.Sequential(conv(16, 32), conv(32, 16))
    found = analyze(model, image(16), p=[2, 4]).variants
    assert Fraction(found[2].converted_macs.executed, found[2].converted_macs.measured) == 1 + Fraction(1, 12)
    assert Fraction(found[1].converted_macs.executed, found[1].converted_macs.measured) == 1 + Fraction(1, 10)


def test_the_arrangement_changes_no_count():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv(16, 8)

        def forward(self, x):
            return self.b(torch.cat((x, self.a(x)), 1))

    found = analyze(Joined(), image(), p=[4]).variants[1]  # a blocked, b shifted
    assert found.macs == Macs(*[36 * 8 * (18 + 6 + 36 + 12)] * 3, executed=36 * 8 * (18 + 8 + 36 + 16))


# --- columns are independent ---

MEASURED = ("thop", "dispatcher", "executed")
ARITHMETIC = [name for name, value in vars(equations).items() if inspect.isfunction(value) and name[0] != "_"]


def columns(report: FlopsReport, *names: str) -> list[list[int]]:
    return [[getattr(found.macs, name) for name in names] for found in report.variants]


def count_small() -> FlopsReport:
    return analyze(Small(), torch.ones(1, 3, 6, 6), p=[2, 4], compare=["dwc", "gwc:2"], se=4)


def test_wrong_equations_move_no_measured_count(monkeypatch):
    right = count_small()
    for name in ARITHMETIC:
        monkeypatch.setattr(equations, name, lambda *_, **__: 7)
    wrong = count_small()
    assert len(ARITHMETIC) >= 13
    assert columns(wrong, *MEASURED) == columns(right, *MEASURED)
    assert [found.converted_macs.measured for found in wrong.variants] == [
        v.converted_macs.measured for v in right.variants
    ]
    assert [found.ratio.measured for found in wrong.variants] == [found.ratio.measured for found in right.variants]
    for now, before in zip(wrong.variants, right.variants, strict=True):
        assert now.macs.analytic < before.macs.analytic
        assert now.params == before.params


@pytest.mark.parametrize("name", ["standard_macs", "hetconv_macs", "dwc_macs", "gwc_table_macs"])
def test_each_equation_that_is_used_moves_the_analytic_count(monkeypatch, name):
    right = count_small()
    monkeypatch.setattr(equations, name, lambda *_, **__: 7)
    assert columns(count_small(), "analytic") != columns(right, "analytic")


def test_broken_counters_move_no_analytic_count(monkeypatch):
    right = count_small()
    monkeypatch.setattr(analyze_module, "count", lambda *_: counters.Counts({"a": 5}, {"a": 6}))
    monkeypatch.setattr(analyze_module, "count_dispatched", lambda *_: {"a": 7})
    wrong = count_small()
    assert columns(wrong, "analytic") == columns(right, "analytic")
    assert columns(wrong, *MEASURED)[1] == [6, 5, 7]
    assert [found.ratio.by_equation for found in wrong.variants] == [
        found.ratio.by_equation for found in right.variants
    ]


def test_a_layer_that_does_less_work_moves_the_dispatcher_alone(monkeypatch):
    model = nn.Sequential(conv())
    right = analyze(model, image(), p=[4]).variants[1].macs
    monkeypatch.setattr(HetConv2d, "forward", lambda self, x: x + 0)
    wrong = analyze(model, image(), p=[4]).variants[1].macs
    assert (wrong.dispatcher, wrong.executed) == (0, 0)
    assert (wrong.analytic, wrong.thop) == (right.analytic, right.thop)


# --- notes ---


def test_where_all_columns_agree_there_is_nothing_to_say():
    standard, dwc = analyze(nn.Sequential(conv()), image(), p=[], compare=["dwc"]).variants
    assert standard.notes == dwc.notes == ()


def test_notes_name_what_makes_each_difference(small):
    thop = f"thop: + {NORM:,} in BatchNorm2d: element-wise work that thop counts and the others do not"
    assert small.variants[0].notes == (thop,)
    notes = variant(small, "hetconv", 4).notes
    assert notes[0] == thop
    assert len(notes) == 2
    assert notes[1].startswith(
        "executed: more in the converted layers, where the grouped K x K multiplies zero centre taps"
    )


def test_a_note_says_where_equation_8_does_not_hold(small):
    assert any("equation (8) holds only for M = N; in 1 layer" in note for note in variant(small, "gwc", None, 2).notes)
    same = analyze(nn.Sequential(conv()), image(), p=[], compare=["gwc:2"]).variants[1]
    assert same.notes == ()


def test_a_note_names_products_that_no_module_tells():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.weight = conv(), nn.Parameter(torch.ones(288, 10))

        def forward(self, x):
            return self.a(x).flatten(1) @ self.weight

    standard = analyze(Outside(), image(), p=[]).variants[0]
    assert standard.macs == Macs(analytic=20_736, thop=20_736, dispatcher=20_736 + 2880, executed=20_736 + 2880)
    assert len(standard.notes) == 2
    assert standard.notes[0].startswith("thop: - 2,880 in Outside: ")
    assert standard.notes[1].startswith("analytic: - 2,880 in Outside: ")


def test_a_note_names_layers_that_a_part_does_not_fit():
    found = analyze(nn.Sequential(conv(8, 6), conv(6, 8), conv(8, 8)), image(), p=[4]).variants[1]
    assert found.converted_layers == 2
    assert "kept: 1 with 6 input channels not divisible by p = 4" in found.notes


class Parent(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.c = shared

    def forward(self, x):
        return self.c(x)


class OtherParent(Parent):
    pass


class Sharing(nn.Module):
    """One convolution under two parents of different classes."""

    def __init__(self):
        super().__init__()
        shared = conv()
        self.a, self.b = Parent(shared), OtherParent(shared)

    def forward(self, x):
        return self.b(self.a(x))


def test_a_module_shared_by_two_parents_is_counted_where_it_stands():
    standard, hetconv = analyze(Sharing(), image(), p=[4]).variants
    assert (standard.macs.analytic, standard.macs.dispatcher) == (2 * 20_736, 2 * 20_736)
    assert (hetconv.macs.analytic, hetconv.macs.dispatcher) == (2 * 6912, 2 * 6912)
    assert hetconv.converted_macs == ConvertedMacs(2 * 6912, 2 * 6912, 2 * 36 * 8 * (18 + 8))
    assert not any(note.startswith("analytic") for found in (standard, hetconv) for note in found.notes)
    assert not any("Parent" in note for note in hetconv.notes if note.startswith("executed"))


def test_what_thop_counts_twice_over_is_not_called_element_wise_work():
    standard = analyze(Sharing(), image(), p=[]).variants[0]  # there is no element-wise work in it
    assert not any("element-wise" in note for note in standard.notes)


# --- which variants ---


def test_parts_and_comparisons_in_the_order_they_were_asked_for():
    assert wishes_for([4, "pc"], ["gwc:8", "dwc"]) == [
        Wish(p=4),
        Wish(p="pc", groups=4),
        Wish("gwc", p=4, groups=8),
        Wish("dwc", p=4, groups=4),
    ]


@pytest.mark.parametrize(("p", "groups"), [([8], 8), ([2, 4], 2), (["pc", 2], 2), ([], 4), (["pc"], 4)])
def test_groups_are_the_first_part_that_was_given_or_4(p, groups):
    assert wishes_for(p, ["gwc"])[-1].groups == groups


@pytest.mark.parametrize(
    "word", ["", "hetconv", "DWC", "dwc:4", "gwc:", "gwc:0", "gwc:pc", "gwc:4:4", "gwc-4", "standard"]
)
def test_a_comparison_that_is_none_is_refused(word):
    with pytest.raises(
        ArgumentError, match=r"expected dwc, gwc or gwc:GROUPS, got|must be a positive integer"
    ) as caught:
        wishes_for([4], [word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("p", [0, -1, 1.5, True, "four", None])
def test_a_part_that_is_none_is_refused(p):
    with pytest.raises(ArgumentError, match="p must be a positive integer or 'pc'"):
        analyze(nn.Sequential(conv()), image(), p=[p])


def test_a_part_that_fits_nowhere_is_refused():
    with pytest.raises(ArgumentError, match=r"p = 7 .* \(8\); choose 2, 4, 8 or pc"):
        analyze(nn.Sequential(conv()), image(), p=[4, 7])


def test_part_4_is_what_is_counted_unless_told_otherwise():
    assert [(v.name, v.p) for v in analyze(nn.Sequential(conv()), image()).variants] == [
        ("standard", None),
        ("hetconv", 4),
    ]


def test_part_one_converts_nothing_and_is_left_out():
    assert len(analyze(nn.Sequential(conv()), image(), p=[1]).variants) == 1


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)),
        nn.Sequential(conv(groups=8)),
    ],
)
def test_where_nothing_is_convertible_there_is_the_standard_network_alone(model):
    report = analyze(model, image(), p=[2, 4, "pc"], compare=["dwc", "gwc"])
    assert [found.name for found in report.variants] == ["standard"]
    assert report.variants[0].macs.dispatcher == report.variants[0].macs.analytic > 0
    assert not report.replayed


def test_a_model_without_parameters_needs_no_replay():
    report = analyze(nn.Sequential(nn.ReLU()), image())
    assert report.variants[0].macs == Macs(0, 0, 0, 0)
    assert not report.replayed


def test_squeeze_and_excitation_is_counted_in_every_variant_and_alone():
    report = analyze(nn.Sequential(conv()), image(), p=[4], compare=["dwc"], se=4)
    assert [(v.name, v.se) for v in report.variants] == [
        ("standard", False),
        ("standard", True),
        ("hetconv", True),
        ("dwc", True),
    ]
    core = [20_736, 20_736, 6912, 36 * 8 * 17]
    squeeze = [0, 32, 32, 32]  # 8 -> 2 -> 8 on one pixel
    assert [v.macs.analytic for v in report.variants] == [c + s for c, s in zip(core, squeeze, strict=True)]
    assert [v.macs.dispatcher for v in report.variants] == [c + s for c, s in zip(core, squeeze, strict=True)]
    assert [v.converted_macs.measured for v in report.variants] == [0, *core[1:]]
    assert report.variants[2].params == 8 * 24 + 8 + (16 + 2 + 16 + 8)


def test_progress_is_told_before_each_variant():
    told = []
    analyze(
        nn.Sequential(conv()), image(), p=[4, "pc"], compare=["dwc", "gwc"], progress=lambda *step: told.append(step)
    )
    assert told == [("standard", 0, 5), ("P=4", 1, 5), ("PC", 2, 5), ("DWC+PWC", 3, 5), ("GWC4+PWC", 4, 5)]


def test_the_name_is_the_class_unless_one_is_given():
    assert analyze(nn.Sequential(conv()), image(), p=[]).model == "Sequential"
    assert analyze(nn.Sequential(conv()), image(), p=[], name="mine").model == "mine"


# --- inputs and models ---


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(16, 8), nn.Linear(4, 8)

    def forward(self, x, y, z):
        return self.a(torch.cat((x, y), 1)) + self.b(z)[..., None, None]


def test_a_model_with_several_inputs():
    report = analyze(TwoInputs(), (image(), image(), torch.ones(1, 4)), p=[4])
    assert report.input == ((1, 8, 6, 6), (1, 8, 6, 6), (1, 4))
    assert [v.macs.dispatcher for v in report.variants] == [36 * 8 * 144 + 32, 36 * 8 * (36 + 12) + 32]
    assert [v.macs.analytic for v in report.variants] == [v.macs.dispatcher for v in report.variants]


def test_a_spec_is_an_example_too():
    spec = ExampleSpec(((3, 8, 6, 6),))
    assert analyze(nn.Sequential(conv()), spec, p=[]).variants[0].macs.dispatcher == 3 * 20_736


def test_the_batch_counts():
    one, four = (analyze(nn.Sequential(conv()), image(batch=n), p=[4]).variants[1].macs for n in (1, 4))
    assert [4 * value for value in vars(one).values()] == list(vars(four).values())


def test_an_input_that_the_model_does_not_take_is_one_line():
    with pytest.raises(HetconvError, match="does not run on this input") as caught:
        analyze(nn.Sequential(conv()), image(5))
    assert "\n" not in str(caught.value)


def test_the_model_is_left_as_it_was_and_counts_are_the_same_again():
    model = Small().train()
    model.norm.eval()
    state, flags = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    numbers = torch.get_rng_state()
    first = analyze(model, torch.ones(2, 3, 6, 6), p=[4], compare=["dwc"])
    assert analyze(model, torch.ones(2, 3, 6, 6), p=[4], compare=["dwc"]) == first
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), numbers)


def test_counts_beyond_64_bits_are_exact():
    side, batch = 2**21 - 1, 2**22
    model = nn.Sequential(nn.Linear(side, side, bias=False, device="meta"))
    found = analyze(model, torch.empty(batch, side, device="meta"), p=[]).variants[0].macs
    assert found.dispatcher == found.analytic == batch * side**2  # a float holds this one too, the next not
    assert found.dispatcher > 2**63
    odd = analyze(model, torch.empty(batch - 1, side, device="meta"), p=[]).variants[0].macs
    assert odd.dispatcher == odd.analytic == (batch - 1) * side**2
    assert int(float(odd.dispatcher)) != odd.dispatcher


# --- where calls depend on values ---


class Detector(nn.Module):
    """Finds what is bright, then looks at each find: how often the head runs depends on what the body computes."""

    def __init__(self):
        super().__init__()
        self.body, self.head = conv(3, 8), conv(8, 16)
        self.other = conv(16, 16)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.01)

    def forward(self, x):
        features = self.body(x)
        bright = (features.amax(1) > 0.1).flatten().nonzero().flatten().tolist()
        found = [self.head(features[..., : 2 + index % 2, :]) for index in bright]
        return self.other(found[0]), len(bright)


def bright_corner() -> torch.Tensor:
    x = torch.zeros(1, 3, 6, 6)
    x[:, :, 0, 0] = 10  # 3 * 0.01 * 10 + 0.01 under each of the four windows that see it
    return x


def test_a_network_whose_calls_depend_on_values_is_counted_on_one_trace():
    # bright at 0, 1, 6, 7: two calls on 2 x 6, two on 3 x 6; then once 2 x 6
    head, other = 2 * (12 + 18), 12
    report = analyze(Detector(), bright_corner(), p=[2, "pc"], compare=["dwc", "gwc:2"])
    assert report.replayed
    stem = 36 * 8 * 27
    expected = {
        ("standard", None): head * 16 * 72 + other * 16 * 144,
        ("hetconv", 2): head * 16 * (36 + 4) + other * 16 * (72 + 8),
        ("hetconv", "pc"): head * 16 * (9 + 7) + other * 16 * (9 + 15),
        ("dwc", None): head * (72 + 128) + other * (144 + 256),
        ("gwc", None): head * (8 * 36 + 128) + other * (16 * 72 + 256),
    }
    for found in report.variants:
        macs = stem + expected[found.name, found.p]
        assert (found.macs.analytic, found.macs.dispatcher, found.macs.thop) == (macs, macs, macs), found.name
    assert variant(report, "hetconv", 2).macs.executed == stem + head * 16 * (36 + 8) + other * 16 * (72 + 16)
    assert [(layer.name, layer.calls, layer.output) for layer in report.layers] == [
        ("body", 1, (6, 6)),
        ("head", 4, (3, 6)),
        ("other", 1, (2, 6)),
    ]


def test_counting_on_one_trace_again_gives_the_same():
    model = Detector()
    assert analyze(model, bright_corner(), p=[2]) == analyze(model, bright_corner(), p=[2])


def test_a_layer_that_is_never_called_costs_nothing():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.idle = conv(), conv(8, 16)

        def forward(self, x):
            return self.a(x)

    report = analyze(Idle(), image(), p=[4])
    assert report.variants[1].macs.dispatcher == 6912
    assert report.variants[1].converted_layers == 2
    assert (report.layers[1].calls, report.layers[1].output, report.layers[1].macs) == (0, None, 0)


# --- the networks of the issue ---

IMAGE = ExampleSpec(((1, 3, 224, 224),))


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(torchvision.models, name)()


# VGG-16: (M, N, side of the map)
VGG16 = [(64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56)]
VGG16 += [(256, 512, 28), (512, 512, 28), (512, 512, 28)] + [(512, 512, 14)] * 3
VGG16_REST = 224**2 * 64 * 27 + 25_088 * 4096 + 4096 * 4096 + 4096 * 1000  # the stem, and three linear layers
VGG16_POOL = 512 * 49 * 2  # thop: a mean of one number for each output


@pytest.fixture(scope="module")
def vgg16() -> FlopsReport:
    return analyze(on_meta("vgg16"), IMAGE, p=[4, "pc"], compare=["dwc", "gwc"], name="vgg16")


def test_vgg16_by_hand(vgg16):
    standard = sum(m * n * 9 * side**2 for m, n, side in VGG16)
    assert standard == 15_259_926_528
    assert vgg16.variants[0].macs.analytic == standard + VGG16_REST == 15_470_264_320
    assert vgg16.variants[0].macs.dispatcher == vgg16.variants[0].macs.executed == 15_470_264_320
    assert vgg16.variants[0].params == 138_357_544
    assert vgg16.variants[0].macs.thop == 15_470_264_320 + VGG16_POOL
    (note,) = vgg16.variants[0].notes
    assert "50,176 in AdaptiveAvgPool2d" in note


def test_vgg16_at_part_4_by_hand(vgg16):
    found = variant(vgg16, "hetconv", 4)
    converted = sum(n * (m // 4 * 9 + m - m // 4) * side**2 for m, n, side in VGG16)
    assert converted == 15_259_926_528 // 3
    assert (found.converted_layers, found.kept_layers) == (12, 1)
    assert found.converted_macs == ConvertedMacs(converted, converted, converted * 13 // 12)
    assert found.macs.dispatcher == found.macs.analytic == converted + VGG16_REST == 5_296_979_968  # 5.297 G
    assert found.macs.thop == 5_296_979_968 + VGG16_POOL
    assert found.macs.executed == 5_720_866_816  # 5.721 G
    assert found.ratio.by_equation == found.ratio.measured == pytest.approx(1 / 3)
    assert round(found.macs_reduced_pct, 2) == 65.76


def test_vgg16_in_its_other_variants_by_hand(vgg16):
    pc = sum(n * (9 + m - 1) * side**2 for m, n, side in VGG16)
    dwc = sum(m * (9 + n) * side**2 for m, n, side in VGG16)
    gwc = sum(m * (m // 4 * 9 + n) * side**2 for m, n, side in VGG16)
    for key, macs, millions in (
        (("hetconv", "pc"), pc, 1989),
        (("dwc",), dwc, 1986),
        (("gwc", None, 4), gwc, 5374),
    ):
        found = variant(vgg16, *key)
        assert found.converted_macs.measured == found.converted_macs.analytic == macs
        assert round(found.macs.dispatcher / 1e6) == millions
    assert variant(vgg16, "gwc", None, 4).ratio.by_equation == pytest.approx(0.3611, abs=5e-5)
    assert variant(vgg16, "gwc", None, 4).ratio.measured == pytest.approx(0.3384, abs=5e-5)


# ResNet-34: (M, N, side) of its 3 x 3; the first of each stage from the second on halves the map
RESNET34 = [(64, 64, 56)] * 6 + [(64, 128, 28)] + [(128, 128, 28)] * 7
RESNET34 += [(128, 256, 14)] + [(256, 256, 14)] * 11 + [(256, 512, 7)] + [(512, 512, 7)] * 5
RESNET34_REST = 112**2 * 64 * 147 + 28**2 * 64 * 128 + 14**2 * 128 * 256 + 7**2 * 256 * 512 + 512_000


def test_resnet34_by_hand():
    standard, found = analyze(on_meta("resnet34"), IMAGE, p=[4]).variants
    converted = sum(m * n * 9 * side**2 for m, n, side in RESNET34)
    assert standard.macs.dispatcher == standard.macs.analytic == converted + RESNET34_REST == 3_663_761_408
    assert (found.converted_layers, found.kept_layers) == (32, 4)
    assert found.macs.dispatcher == found.macs.analytic == converted // 3 + RESNET34_REST == 1_313_116_160
    assert found.converted_macs.executed == converted // 3 * 13 // 12
    assert (round(found.macs_reduced_pct, 2), round(found.params_reduced_pct, 2)) == (64.16, 64.49)
    assert (standard.params, found.params) == (21_797_672, 7_740_200)


def test_the_figure_in_the_docstring_is_the_real_one():
    assert "5296979968" in (analyze.__doc__ or "")
