"""Rules -> plan: which rule decides, and the reason for every convolution that stays."""

import dataclasses

import pytest

from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import Geometry
from hetconv_cli.plan import Candidate, Change, LayerPlan, Plan, Rules, Wish, in_kind, make_plan, stem


def conv(name: str, m: int = 64, n: int = 64, kernel: tuple[int, int] = (3, 3), **facts) -> Candidate:
    about = {key: facts.pop(key) for key in ("obstacle", "aliases", "reads_concatenation") if key in facts}
    return Candidate(name, Geometry(m, n, kernel, **facts), **about)


P4 = Wish(p=4)


def only(candidate: Candidate, wish: Wish | str = P4, **rules) -> LayerPlan:
    """The plan of one layer, beside one that any wish here fits."""
    plan = make_plan([candidate, conv("other", 5040)], Rules(wish, **rules))
    return plan.layers[0]


# --- which rule decides ---


def test_an_exact_name_is_stronger_than_a_pattern_and_a_pattern_than_the_default():
    rules = Rules(Wish(p=2), {"a.conv1": Wish(p=8)}, (("a\\..*", Wish(p=4)),))
    plan = make_plan([conv("a.conv1"), conv("a.conv2"), conv("b.conv1")], rules)
    assert [layer.change.p for layer in plan.layers] == [8, 4, 2]


def test_the_first_pattern_that_matches_wins():
    first, second = ("a.*", Wish(p=8)), (".*", Wish(p=4))
    assert only(conv("ab"), patterns=(first, second)).change.p == 8
    assert only(conv("ab"), patterns=(second, first)).change.p == 4


def test_a_pattern_must_match_the_whole_name():
    rules = Rules(Wish(p=2), patterns=(("layer1", Wish(p=4)), ("layer1\\.0", Wish(p=8))))
    plan = make_plan([conv("layer1"), conv("layer1.0"), conv("layer1.01"), conv("xlayer1.0")], rules)
    assert [layer.change.p for layer in plan.layers] == [4, 8, 2, 2]


@pytest.mark.parametrize(
    ("rules", "origin"),
    [
        (Rules(Wish(), {"a": "keep"}), "name"),
        (Rules(Wish(), patterns=(("a", "keep"),)), "pattern"),
        (Rules("keep"), "default"),
    ],
)
def test_keep_leaves_a_layer_alone_and_says_which_rule_asked(rules, origin):
    layer = make_plan([conv("a")], rules).layers[0]
    assert (layer.change, layer.reason) == (None, f"kept by rule ({origin})")


def test_an_exact_name_overrules_keep_as_the_default():
    plan = make_plan([conv("a"), conv("b")], Rules("keep", {"b": Wish(p=4)}))
    assert [layer.name for layer in plan.converted] == ["b"]
    assert [layer.name for layer in plan.kept] == ["a"]


def test_the_plan_keeps_the_networks_order_and_every_convolution():
    names = ["z", "a", "m", "b"]
    plan = make_plan([conv(name, 3 if name == "a" else 64) for name in names], Rules())
    assert [layer.name for layer in plan.layers] == names
    assert [layer.name for layer in plan.converted] == ["z", "m", "b"]


def test_no_convolution_at_all_is_an_empty_plan():
    assert make_plan([], Rules()) == Plan(())


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="change"):
        only(conv("a")).change = None


# --- what a wish becomes ---


@pytest.mark.parametrize(
    ("wish", "change"),
    [
        (Wish(p=4), Change("hetconv", p=4, arrangement="blocked")),
        (Wish(p=64, arrangement="shifted"), Change("hetconv", p=64, arrangement="shifted")),
        (Wish(p="pc"), Change("hetconv", p=48, arrangement="blocked")),
        (Wish(p=2, se=16), Change("hetconv", p=2, arrangement="blocked", se=16)),
        (Wish("dwc", p=7), Change("dwc")),
        (Wish("dwc", se=8), Change("dwc", se=8)),
        (Wish("gwc", p=7, groups=3), Change("gwc", groups=3)),
        (Wish("gwc", groups=1), Change("gwc", groups=1)),
        (Wish("standard", se=16), Change("standard", se=16)),
    ],
)
def test_every_number_of_a_change_is_resolved(wish, change):
    layer = only(conv("a", 192 if wish.p == 64 else 48, 80), wish)
    assert (layer.change, layer.reason, layer.remark) == (change, None, None)


def test_pc_is_each_layers_own_channels():
    plan = make_plan([conv("a", 48), conv("b", 7)], Rules(Wish(p="pc")))
    assert [layer.change.p for layer in plan.layers] == [48, 7]


def test_a_layer_that_reads_a_concatenation_is_shifted_with_a_remark():
    layer = only(conv("a", reads_concatenation=True), Wish(p=4))
    assert layer.change == Change("hetconv", p=4, arrangement="shifted")
    assert layer.remark == "reads a concatenation: shifted, so that each class sees every source"


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
def test_an_arrangement_that_was_asked_for_holds_after_a_concatenation_too(arrangement):
    layer = only(conv("a", reads_concatenation=True), Wish(p=4, arrangement=arrangement))
    assert (layer.change.arrangement, layer.remark) == (arrangement, None)


@pytest.mark.parametrize("variant", ["dwc", "gwc"])
def test_a_concatenation_is_nothing_to_the_other_variants(variant):
    layer = only(conv("a", reads_concatenation=True), Wish(variant))
    assert (layer.change.arrangement, layer.remark) == (None, None)


def test_filters_need_not_be_divisible():
    assert only(conv("a", 64, 91), Wish(p=4)).change.p == 4


def test_aliases_and_geometry_are_carried_over():
    layer = only(conv("a", 8, 6, (1, 7), padding=(0, 3), aliases=("b", "c")), Wish(p=4))
    assert layer.aliases == ("b", "c")
    assert layer.geometry == Geometry(8, 6, (1, 7), padding=(0, 3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change("hetconv", p=4, arrangement="shifted"), "HetConv P=4 shifted"),
        (Change("dwc", se=16), "DWC+PWC + SE16"),
        (Change("standard", se=8), "standard + SE8"),
        (Change("gwc", groups=8), "GWC8+PWC"),
    ],
)
def test_a_change_reads_as_what_it_is(change, text):
    assert str(change) == text


# --- why a layer stays ---

KEPT = [
    (conv("a", obstacle="has hooks"), Wish(), "has hooks"),
    (conv("a", groups=64), Wish(), "depthwise"),
    (conv("a", 64, 128, groups=64), Wish(), "depthwise"),
    (conv("a", groups=32), Wish(), "grouped (32 groups)"),
    (conv("a", kernel=(1, 1)), Wish(), "1x1: nothing to save"),
    (conv("a", kernel=(2, 2)), Wish(), "even kernel 2x2: no centre tap"),
    (conv("a", kernel=(3, 4)), Wish(), "even kernel 3x4: no centre tap"),
    (conv("a", 3), Wish(p="pc"), "image stem, 3 channels"),
    (conv("a", 1), Wish("dwc"), "image stem, 1 channel"),
    (conv("a", 4), Wish(p=4), "image stem, 4 channels"),
    (conv("a", 242), Wish(p=4), "242 input channels not divisible by p = 4"),
    (conv("a", 8), Wish(p=16), "8 input channels not divisible by p = 16"),
    (conv("a", 242), Wish("gwc", groups=4), "242 input channels not divisible by 4 groups"),
    (conv("a", 64), Wish(p=1), "p = 1 is the standard convolution"),
    (conv("a", 64), Wish("standard"), "stays the standard convolution"),
]


@pytest.mark.parametrize(("candidate", "wish", "reason"), KEPT, ids=[reason for *_, reason in KEPT])
def test_a_kept_layer_says_why(candidate, wish, reason):
    layer = only(candidate, wish)
    assert (layer.change, layer.reason) == (None, reason)


def test_five_channels_are_no_stem():
    assert stem(Geometry(5, 64, (3, 3))) is None
    assert only(conv("a", 5), Wish(p=5)).change.p == 5


def test_kind_says_nothing_of_an_ordinary_convolution():
    assert in_kind(Geometry(64, 64, (1, 7))) is None
    assert in_kind(Geometry(3, 64, (3, 3))) is None  # a stem is of a convertible kind


def test_an_exact_name_converts_a_stem_and_a_pattern_does_not():
    assert only(conv("a", 3), exact={"a": Wish(p=3)}).change.p == 3
    assert only(conv("a", 3), Wish(p=3), patterns=((".*", Wish(p=3)),)).reason == "image stem, 3 channels"


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (conv("a", obstacle="parametrized"), "parametrized"),
        (conv("a", groups=64), "depthwise"),
        (conv("a", kernel=(1, 1)), "1x1: nothing to save"),
        (conv("a", kernel=(2, 2)), "even kernel 2x2: no centre tap"),
    ],
)
def test_an_exact_name_cannot_convert_what_cannot_be(candidate, reason):
    assert only(candidate, exact={"a": Wish()}).reason == reason


def test_an_obstacle_is_named_before_anything_else():
    assert only(conv("a", 3, groups=3, kernel=(1, 1), obstacle="has hooks")).reason == "has hooks"


# --- rules that are mistakes ---


def test_an_exact_name_that_is_none_is_answered_with_near_names():
    candidates = [conv("layer1.0.conv1"), conv("layer1.0.conv2"), conv("head")]
    with pytest.raises(ArgumentError, match=r"'layer1\.0\.conv3'.*no Conv2d.*did you mean layer1\.0\.conv[12], layer1"):
        make_plan(candidates, Rules(exact={"layer1.0.conv3": "keep"}))


def test_a_name_near_nothing_is_answered_without_a_guess():
    with pytest.raises(ArgumentError, match=r"'zzz', which is no Conv2d of this model$"):
        make_plan([conv("layer1.0.conv1")], Rules(exact={"zzz": "keep"}))


def test_a_pattern_that_matches_nothing_is_an_error_even_where_it_would_match_a_part():
    with pytest.raises(ArgumentError, match=r"'re:layer' matches no Conv2d"):
        make_plan([conv("layer1.0.conv1")], Rules(patterns=(("layer", "keep"),)))


def test_a_pattern_that_matches_only_what_stronger_rules_take_is_no_error():
    plan = make_plan([conv("a")], Rules(exact={"a": Wish(p=8)}, patterns=(("a", "keep"),)))
    assert plan.layers[0].change.p == 8


def test_a_part_that_fits_nowhere_names_the_channels_and_what_would_fit():
    candidates = [conv("stem", 3), conv("a", 16), conv("b", 24), conv("c", 16), conv("d", 64, kernel=(1, 1))]
    with pytest.raises(
        ArgumentError, match=r"p = 7 divides .* none of the 3 convolutions .* \(16, 24\); choose 2, 4, 8 or pc$"
    ):
        make_plan(candidates, Rules(Wish(p=7)))


def test_groups_that_fit_nowhere_are_not_answered_with_pc():
    with pytest.raises(ArgumentError, match=r"7 groups divides .* \(16\); choose 2, 4, 8(,| or) 16$"):
        make_plan([conv("a", 16)], Rules(Wish("gwc", groups=7)))


def test_channels_without_a_common_divisor_are_answered_with_pc_at_most():
    with pytest.raises(ArgumentError, match=r"p = 7 .* \(8, 9\)(; choose pc)?$"):
        make_plan([conv("a", 8), conv("b", 9)], Rules(Wish(p=7)))


def test_only_the_first_channels_are_listed():
    with pytest.raises(ArgumentError, match=r"\(8, 16, 24, 32, 40, 48, \.\.\.\)"):
        make_plan([conv(f"c{m}", m) for m in range(8, 64, 8)], Rules(Wish(p=11)))


def test_a_part_that_fits_somewhere_is_no_error():
    plan = make_plan([conv("a", 242), conv("b", 64)], Rules(Wish(p=4)))
    assert [layer.name for layer in plan.converted] == ["b"]


@pytest.mark.parametrize(
    ("candidates", "rules"),
    [
        ([conv("a", 3), conv("b", kernel=(1, 1)), conv("c", groups=64)], Rules(Wish(p=7))),
        ([conv("a", 16)], Rules("keep")),
        ([conv("a", 16)], Rules(Wish(p=1))),
        ([conv("a", 16)], Rules(Wish(p=7), {"a": "keep"})),
    ],
)
def test_nothing_to_convert_is_no_error(candidates, rules):
    assert make_plan(candidates, rules).converted == ()
