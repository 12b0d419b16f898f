"""Rules and plans as text: what is written comes back equal, what is wrong is refused in one line."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hetconv_cli import strict_yaml
from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import PADDING_MODES, Geometry
from hetconv_cli.plan import VARIANTS, Change, LayerPlan, Plan, Rules, Wish
from hetconv_cli.plan_file import parse_part, plan_from_data, plan_to_data, rules_from_yaml

# --- parts ---


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1", 1),
        ("4", 4),
        (" 4 ", 4),
        ("64", 64),
        ("999999999", 999_999_999),
        ("pc", "pc"),
        ("PC", "pc"),
        (" Pc\n", "pc"),
    ],
)
def test_a_part_is_a_positive_integer_or_pc(text, part):
    assert parse_part(text) == part


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0",
            "-1",
            "+4",
            "1.5",
            "4.0",
            "nan",
            "inf",
            "1_000",
            "1,000",
            "1e3",
            "0x4",
            "04",
            "",
            " ",
            "p",
            "pc4",
            "4 4",
        ),
        *("\uff17", "\u0664", "\u00b2", "4\x00", "True", "None", "1000000000", "9" * 5000),  # \uff17: a full-width 7
    ],
)
def test_anything_else_is_no_part(text):
    with pytest.raises(ArgumentError, match="p must be a positive integer or 'pc', got ") as caught:
        parse_part(text)
    assert "\n" not in str(caught.value)


# --- plan.yaml ---


P4 = Wish(p=4)


def rules(text: str, base: Wish = P4) -> Rules:
    return rules_from_yaml(text, "plan.yaml", base)


def test_the_file_of_the_readme_is_read():
    text = """
hetconv: 1
default: {p: 4}
layers:
  layer4.2.conv2: {p: 2}
  "re:layer1\\\\..*": keep
"""
    assert rules(text) == Rules(Wish(p=4), {"layer4.2.conv2": Wish(p=2)}, (("layer1\\..*", "keep"),))


def test_what_the_default_leaves_open_comes_from_the_command_line_and_what_a_layer_leaves_open_from_the_default():
    base = Wish("gwc", p=8, groups=2, arrangement="shifted", se=4)
    read = rules("hetconv: 1\ndefault: {p: 16}\nlayers: {a: {variant: dwc}, b: {groups: 32, p: PC}}", base)
    assert read.default == Wish("gwc", p=16, groups=2, arrangement="shifted", se=4)
    assert read.exact["a"] == Wish("dwc", p=16, groups=2, arrangement="shifted", se=4)
    assert read.exact["b"] == Wish("gwc", p="pc", groups=32, arrangement="shifted", se=4)


def test_a_layer_inherits_from_the_command_line_where_the_default_is_keep():
    assert rules("hetconv: 1\ndefault: keep\nlayers: {a: {se: 8}}", Wish(p=2)) == Rules("keep", {"a": Wish(p=2, se=8)})


def test_the_shortest_file_is_the_command_line():
    assert rules("hetconv: 1", Wish(p=32)) == Rules(Wish(p=32))
    assert rules("hetconv: 1\nlayers:\n", Wish(p=32)) == Rules(Wish(p=32))


def test_patterns_keep_the_files_order():
    read = rules('hetconv: 1\nlayers: {"re:b": keep, a: keep, "re:a": keep}')
    assert read.patterns == (("b", "keep"), ("a", "keep"))
    assert set(read.exact) == {"a"}


@pytest.mark.parametrize(("text", "se"), [("true", 16), ("false", None), ("null", None), ("8", 8)])
def test_squeeze_and_excitation_is_a_flag_or_a_reduction(text, se):
    assert rules(f"hetconv: 1\ndefault: {{se: {text}}}", Wish(se=4)).default.se == se


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with names as keys, got NoneType"),
        ("just text", "expected a mapping with names as keys, got str"),
        ("- hetconv: 1", "expected a mapping with names as keys, got list"),
        ("1: 2", "expected a mapping with names as keys"),
        ("layers: {}", "expected 'hetconv: 1'.*got None"),
        ("hetconv: 2", "expected 'hetconv: 1'.*got 2"),
        ("hetconv: '1'", "expected 'hetconv: 1'.*got '1'"),
        ("hetconv: true", "expected 'hetconv: 1'.*got True"),
        ("hetconv: 1.0", "expected 'hetconv: 1'.*got 1.0"),
        ("hetconv: 1\nlayer: {}", "unknown key 'layer'; expected hetconv, default, layers"),
        ("hetconv: 1\nlayers: [a]", "layers: expected a mapping from names to rules"),
        ("hetconv: 1\nlayers: text", "layers: expected a mapping from names to rules"),
        ("hetconv: 1\nlayers: {1: keep}", "layers: expected a mapping from names to rules"),
        ("hetconv: 1\nlayers: {a: 4}", "layers: a: expected 'keep' or a mapping"),
        ("hetconv: 1\nlayers: {a: Keep}", "layers: a: expected 'keep' or a mapping.*got 'Keep'"),
        ("hetconv: 1\nlayers: {a: [p, 4]}", "layers: a: expected 'keep' or a mapping"),
        ("hetconv: 1\ndefault:\n", "default: expected 'keep' or a mapping.*got None"),
        ("hetconv: 1\ndefault: {q: 4}", "default: unknown key 'q'; expected variant, p, groups, arrangement, se"),
        ("hetconv: 1\ndefault: {4: 4}", "default: unknown key 4"),
        (
            "hetconv: 1\ndefault: {variant: conv}",
            "default: variant: expected one of standard, hetconv, dwc, gwc; got 'conv'",
        ),
        ("hetconv: 1\ndefault: {variant: [dwc]}", r"variant: expected one of .*got \['dwc'\]"),
        ("hetconv: 1\ndefault: {arrangement: diagonal}", "arrangement: expected one of blocked, shifted"),
        ("hetconv: 1\ndefault: {groups: 0}", "groups: expected an integer >= 1, got 0"),
        ("hetconv: 1\ndefault: {groups: true}", "groups: expected an integer >= 1, got True"),
        ("hetconv: 1\ndefault: {groups: 4.0}", r"groups: expected an integer >= 1, got 4\.0"),
        ("hetconv: 1\ndefault: {se: 0}", "se: expected true, false or a reduction such as 16, got 0"),
        ("hetconv: 1\ndefault: {se: -1}", "se: expected true, false or a reduction such as 16, got -1"),
        ("hetconv: 1\ndefault: {se: much}", "se: expected true, false or a reduction such as 16, got 'much'"),
        ('hetconv: 1\nlayers: {"re:(": keep}', "'re:\\(' is no regular expression: missing \\)"),
        ('hetconv: 1\nlayers: {"re:*": keep}', "'re:\\*' is no regular expression: nothing to repeat"),
        ('hetconv: 1\nlayers: {"re:a{99999999999}": keep}', "is no regular expression: the repetition number"),
    ],
)
def test_a_mistyped_file_is_refused_with_what_was_expected_and_got(text, message):
    with pytest.raises(ArgumentError, match=f"plan.yaml: .*{message}|plan.yaml: {message}") as caught:
        rules(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "0", "false", "''"])
def test_layers_that_are_empty_but_no_mapping_are_refused(text):
    with pytest.raises(ArgumentError, match="layers: expected a mapping from names to rules"):
        rules(f"hetconv: 1\nlayers: {text}")


@pytest.mark.parametrize("p", ["0", "-1", "1.5", ".nan", "true", "null", "[4]", "{}", "'1_000'", "seven", "2020-01-01"])
def test_a_part_in_the_file_is_held_as_on_the_command_line(p):
    with pytest.raises(ArgumentError, match=r"plan.yaml: layers: a: p: p must be a positive integer or 'pc', got "):
        rules(f"hetconv: 1\nlayers: {{a: {{p: {p}}}}}")


@pytest.mark.parametrize(
    "text",
    [
        'hetconv: 1\nlayers: {"a\\nb": 3}',
        'hetconv: 1\nlayers: {"a\\x1b[31mb": 3}',
        'hetconv: 1\nlayers: {"re:(\\nb": keep}',
        'hetconv: "1\\n2"',
        'hetconv: 1\n"x\\ny": 1',
    ],
)
def test_control_characters_in_a_file_do_not_reach_the_message(text):
    with pytest.raises(ArgumentError, match=r"plan.yaml: ") as caught:
        rules(text)
    assert str(caught.value).isprintable()


def test_a_long_value_does_not_make_a_long_message():
    with pytest.raises(ArgumentError, match=r"plan.yaml: layers: a: expected") as caught:
        rules(f"hetconv: 1\nlayers: {{a: {'x' * 100_000}}}")
    assert len(str(caught.value)) < 200
    with pytest.raises(ArgumentError, match=r"plan.yaml: expected 'hetconv: 1'") as caught:
        rules(f"hetconv: {'x' * 100_000}")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("key", ["p: ", "groups: -", "se: -"])
def test_a_number_too_long_to_print_is_refused(key):
    with pytest.raises(ArgumentError, match=r"plan.yaml"):
        rules(f"hetconv: 1\ndefault: {{{key}0x{'f' * 5000}}}")


# --- the plan of a converted file ---

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
positive = st.integers(1, 2**70)
pairs = st.tuples(st.integers(1, 99), st.integers(1, 99))
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
geometries = st.builds(
    Geometry,
    in_channels=positive,
    out_channels=positive,
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    dilation=pairs,
    groups=positive,
    bias=st.booleans(),
    padding_mode=st.sampled_from(PADDING_MODES),
)
changes = st.builds(
    Change,
    variant=st.sampled_from(VARIANTS),
    p=st.none() | positive,
    groups=st.none() | positive,
    arrangement=st.none() | st.sampled_from(ARRANGEMENTS),
    se=st.none() | positive,
)
layers = st.builds(
    LayerPlan,
    name=names,
    geometry=geometries,
    change=st.none() | changes,
    reason=texts,
    aliases=st.lists(names, max_size=3).map(tuple),
    remark=texts,
    absorbs=st.lists(names, max_size=3).map(tuple),
)


def made_possible(layer: LayerPlan) -> LayerPlan:
    """The layer with channels and a kernel that its change can be made to."""
    if layer.change is None:
        return layer
    p, groups, g = layer.change.p or 1, layer.change.groups or 1, layer.geometry
    kernel = (g.kernel[0] | 1, g.kernel[1] | 1)
    fitting = replace(g, in_channels=g.in_channels * p * groups, groups=1, kernel=kernel)
    return replace(layer, geometry=fitting, change=replace(layer.change, p=p, groups=groups))


plans = st.lists(layers.map(made_possible), max_size=4).map(lambda entries: Plan(tuple(entries)))


@given(plans)
@example(Plan((LayerPlan("a\x85b", Geometry(8, 8, (3, 3)), None),)))
@settings(max_examples=100)
def test_a_plan_comes_back_equal_through_yaml(plan):
    text = strict_yaml.write({"plan": plan_to_data(plan)})
    assert plan_from_data(strict_yaml.read_mapping(text, "x")["plan"], "x") == plan


def test_a_plan_is_written_without_what_is_empty():
    plan = Plan((LayerPlan("a", Geometry(8, 6, (1, 7), bias=False), None, "has hooks"),))
    geometry = {
        "in_channels": 8,
        "out_channels": 6,
        "kernel": [1, 7],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "bias": False,
        "padding_mode": "zeros",
    }
    assert plan_to_data(plan) == [{"name": "a", "geometry": geometry, "reason": "has hooks"}]


GEOMETRY = {"in_channels": 8, "out_channels": 6, "kernel": [3, 3]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "plan: expected a list of layers, got NoneType"),
        ({"a": 1}, "plan: expected a list of layers, got dict"),
        (["a"], "plan, layer 0: expected a mapping, got 'a'"),
        ([{}], "plan, layer 0: name is missing"),
        ([{"name": "a"}], "plan, layer 0: geometry is missing"),
        ([{"name": 4, "geometry": GEOMETRY}], "name: expected text, got 4"),
        ([{"name": "a", "geometry": GEOMETRY, "code": "x"}], "unknown key 'code'"),
        ([{"name": "a", "geometry": GEOMETRY, "aliases": "b"}], "aliases: expected a list of names, got 'b'"),
        ([{"name": "a", "geometry": GEOMETRY, "aliases": [1]}], "aliases: expected text, got 1"),
        ([{"name": "a", "geometry": GEOMETRY, "reason": 1}], "reason: expected text, got 1"),
        ([{"name": "a", "geometry": [8, 6]}], r"expected a mapping, got \[8, 6\]"),
        ([{"name": "a", "geometry": {"in_channels": 8}}], "out_channels is missing"),
        ([{"name": "a", "geometry": GEOMETRY | {"kernel": 3}}], "kernel: expected two integers, got 3"),
        ([{"name": "a", "geometry": GEOMETRY | {"kernel": [3, 0]}}], "kernel: expected an integer >= 1, got 0"),
        ([{"name": "a", "geometry": GEOMETRY | {"kernel": [3, 3, 3]}}], "kernel: expected two integers"),
        ([{"name": "a", "geometry": GEOMETRY | {"padding": [-1, 0]}}], "padding: expected an integer >= 0, got -1"),
        ([{"name": "a", "geometry": GEOMETRY | {"in_channels": "8"}}], "in_channels: expected an integer >= 1"),
        ([{"name": "a", "geometry": GEOMETRY | {"bias": 1}}], "bias: expected true or false, got 1"),
        ([{"name": "a", "geometry": GEOMETRY | {"padding_mode": "mirror"}}], "padding_mode: expected one of zeros"),
        ([{"name": "a", "geometry": GEOMETRY | {"x": 1}}], "unknown key 'x'"),
        ([{"name": "a", "geometry": GEOMETRY, "change": "hetconv"}], "expected a mapping, got 'hetconv'"),
        ([{"name": "a", "geometry": GEOMETRY, "change": {"p": 4}}], "variant is missing"),
        ([{"name": "a", "geometry": GEOMETRY, "change": {"variant": "hetconv", "p": "pc"}}], "p: expected an integer"),
        ([{"name": "a", "geometry": GEOMETRY, "change": {"variant": "hetconv", "p": True}}], "p: expected an integer"),
        (
            [{"name": "a", "geometry": GEOMETRY, "change": {"variant": "gwc", "groups": 0}}],
            "groups: expected an integer",
        ),
        (
            [{"name": "a", "geometry": GEOMETRY, "change": {"variant": "os.system"}}],
            "variant: expected one of standard",
        ),
    ],
)
def test_a_plan_that_was_not_written_by_us_is_refused(data, message):
    with pytest.raises(ArgumentError, match=f"^net: plan.*{message}|^net: {message}") as caught:
        plan_from_data(data, "net")
    assert "\n" not in str(caught.value)


def test_the_smallest_plan_that_is_read():
    data = [{"name": "a", "geometry": GEOMETRY, "change": {"variant": "dwc"}}]
    assert plan_from_data(data, "x") == Plan((LayerPlan("a", Geometry(8, 6, (3, 3)), Change("dwc")),))


@pytest.mark.parametrize(
    ("change", "geometry", "problem"),
    [
        (Change("hetconv", p=3), Geometry(8, 8, (3, 3)), "8 input channels must be divisible by 3"),
        (Change("hetconv"), Geometry(8, 8, (3, 3)), "its part or its groups are missing"),
        (Change("gwc", groups=3), Geometry(8, 8, (3, 3)), "8 input channels must be divisible by 3"),
        (Change("hetconv", p=4), Geometry(8, 8, (2, 2)), "even kernel 2x2: no centre tap"),
        (Change("dwc"), Geometry(8, 8, (3, 3), groups=2), "grouped"),
    ],
)
def test_a_change_that_no_plan_of_ours_makes_is_refused(change, geometry, problem):
    data = plan_to_data(Plan((LayerPlan("a", geometry, change),)))
    with pytest.raises(ArgumentError, match=f"x: plan, layer 0: a change to .* is not possible: {problem}"):
        plan_from_data(data, "x")
