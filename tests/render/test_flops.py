"""The report of `flops` from counts made up by hand."""

import csv
import io
import json
from dataclasses import replace

import pytest

from hetconv_cli.measure.report import ConvertedMacs, FlopsReport, LayerReport, Macs, Ratio, VariantReport
from hetconv_cli.render.flops import flops_csv, flops_json, flops_table, layers_csv, layers_table, letter, title
from hetconv_cli.render.table import to_markdown, to_text

STANDARD = VariantReport(
    name="standard",
    p=None,
    groups=None,
    se=False,
    converted_layers=0,
    kept_layers=2,
    macs=Macs(3_000_000, 3_000_100, 3_000_000, 3_000_000),
    converted_macs=ConvertedMacs(0, 0, 0),
    ratio=Ratio(None, None, None, None),
    params=2_000_000,
    macs_reduced_pct=0.0,
    params_reduced_pct=0.0,
    notes=("thop counts pooling",),
)
AT_4 = replace(
    STANDARD,
    name="hetconv",
    p=4,
    converted_layers=1,
    kept_layers=1,
    macs=Macs(1_000_000, 1_000_100, 1_000_000, 1_083_333),
    converted_macs=ConvertedMacs(900_000, 900_000, 975_000),
    ratio=Ratio(3, 1 / 3, 1 / 3, 1 / 3),
    params=700_000,
    macs_reduced_pct=200 / 3,
    params_reduced_pct=65.0,
    notes=("thop counts pooling", "executed: more"),
)
STEM = LayerReport("stem", 3, 8, (3, 3), (2, 2), (4, 4), 1, 3456, 224, True, "image stem, 3 channels")
BODY = LayerReport("body", 8, 8, (3, 3), (1, 1), (4, 4), 2, 18432, 584, True, None)
NEVER = LayerReport("aux", 8, 8, (1, 7), (1, 1), None, 0, 0, 456, True, None)
REPORT = FlopsReport("net", ((1, 3, 8, 8),), (STANDARD, AT_4), (STEM, BODY), replayed=False)


def test_json_is_the_documented_structure():
    report = flops_json(REPORT, "mac")
    assert json.loads(json.dumps(report)) == json.loads(
        json.dumps({**report, "schema": "hetconv.flops/1", "model": "net", "input": [1, 3, 8, 8], "unit": "MAC"})
    )
    assert report["variants"][1]["macs"] == {
        "analytic": 1_000_000,
        "thop": 1_000_100,
        "dispatcher": 1_000_000,
        "executed": 1_083_333,
    }
    assert report["variants"][1]["converted_macs"] == {"analytic": 900_000, "measured": 900_000, "executed": 975_000}
    assert report["variants"][0]["ratio"] == dict.fromkeys(("equation", "by_equation", "analytic", "measured"))
    assert list(report["layers"][1].values()) == ["body", 8, 8, (3, 3), (1, 1), (4, 4), 2, 18432, 584, True, None, None]


def test_several_inputs_are_a_list_of_shapes():
    assert flops_json(replace(REPORT, input=((1, 3, 8, 8), (1, 2))), "mac")["input"] == [[1, 3, 8, 8], [1, 2]]


def test_integers_of_any_size_stay_exact():
    huge = replace(STANDARD, macs=Macs(*[10**30 + 1] * 4))
    report = replace(REPORT, variants=(huge,))
    assert flops_json(report, "mac")["variants"][0]["macs"]["thop"] == 10**30 + 1
    assert flops_json(report, "flops")["variants"][0]["macs"]["thop"] == 2 * 10**30 + 2
    assert str(10**30 + 1) in flops_csv(report, "mac")


def test_flops_are_two_for_each_mac():
    report = flops_json(REPORT, "flops")
    assert report["unit"] == "FLOPs"
    assert report["variants"][1]["macs"]["executed"] == 2_166_666
    assert report["variants"][1]["converted_macs"]["measured"] == 1_800_000
    assert report["variants"][1]["params"] == 700_000
    assert report["layers"][0]["macs"] == 6912
    assert next(csv.DictReader(io.StringIO(flops_csv(REPORT, "flops"))))["dispatcher"] == "6000000"
    assert next(csv.DictReader(io.StringIO(layers_csv(REPORT, "flops"))))["macs"] == "6912"
    assert "unit FLOPs (2 x MACs)" in to_text(flops_table(REPORT, "flops"))


def test_csv_leaves_empty_what_is_not_there():
    standard, at_4 = csv.DictReader(io.StringIO(flops_csv(REPORT, "mac")))
    assert (standard["p"], standard["equation"], standard["by_equation"]) == ("", "", "")
    assert (at_4["variant"], at_4["p"], at_4["equation"], at_4["unit"]) == ("hetconv", "4", "3", "MAC")
    assert float(at_4["by_equation"]) == 1 / 3


def test_csv_of_layers():
    rows = list(csv.DictReader(io.StringIO(layers_csv(replace(REPORT, layers=(STEM, NEVER)), "mac"))))
    assert (rows[0]["kernel"], rows[0]["stride"], rows[0]["output"]) == ("3x3", "2x2", "4x4")
    assert (rows[1]["kernel"], rows[1]["output"], rows[1]["calls"], rows[1]["reason"]) == ("1x7", "", "0", "")


def test_the_table_with_its_notes():
    assert to_text(flops_table(REPORT, "mac")).splitlines() == [
        "net  1x3x8x8  unit MAC (FLOPs = 2 x MACs)  1 of 2 Conv2d can be converted",
        "",
        "variant    analytic MMAC   counted    thop   executed   by equation   counted   params M       MACs   notes",
        "───────────────────────────────────────────────────────────────────────────────────────────────────────────",
        "standard           3.000     3.000   3.000      3.000             -         -       2.00          -   a",
        "P=4                1.000     1.000   1.000      1.083    (3) 0.3333    0.3333       0.70   -66.67 %   a b",
        "  [a] thop counts pooling",
        "  [b] executed: more",
        "  analytic: the paper's equations and shapes. counted: torch's dispatcher over the class-by-class form."
        " executed: the form that runs here.",
    ]


def test_the_table_of_layers():
    assert to_text(layers_table(replace(REPORT, layers=(STEM, BODY, NEVER)), "mac")) == (
        "layer   channels   kernel   stride      output   calls     kMAC   params   HetConv\n"
        "─────────────────────────────────────────────────────────────────────────────────────────────────\n"
        "stem    3 -> 8        3x3      2x2         4x4       1    3.456      224   image stem, 3 channels\n"
        "body    8 -> 8        3x3      1x1         4x4       2   18.432      584   convertible\n"
        "aux     8 -> 8        1x7      1x1   never ran       0    0.000      456   convertible\n"
    )


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (1, "3 of 4 Conv2d can be converted (2 as 1 pair)"),
        (2, "5 of 6 Conv2d can be converted (4 as 2 pairs)"),
    ],
)
def test_the_headline_counts_both_convolutions_of_a_pair(pairs, said):
    depthwise = replace(BODY, name="depthwise", pair="pointwise")
    pointwise = replace(BODY, name="pointwise", kernel=(1, 1), pair="depthwise")
    report = replace(REPORT, layers=(STEM, BODY, *[depthwise, pointwise] * pairs))
    assert to_text(flops_table(report, "mac")).splitlines()[0].endswith(f"  {said}")
    last_words = [line.split("   ")[-1] for line in to_text(layers_table(report, "mac")).splitlines()]
    assert last_words[-2:] == ["pair with pointwise", "pair with depthwise"]


def test_a_network_counted_on_one_run_says_so():
    assert "counted on the calls of ONE run" in to_text(flops_table(replace(REPORT, replayed=True), "mac"))
    assert "ONE run" not in to_text(flops_table(REPORT, "mac"))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ((), "Nothing to convert: this network has no Conv2d."),
        ((STEM, STEM), "Nothing to convert: its 2 Conv2d are kept (image stem, 3 channels)."),
    ],
)
def test_a_network_with_nothing_to_convert_says_why(layers, sentence):
    table = flops_table(replace(REPORT, variants=(STANDARD,), layers=layers), "mac")
    assert to_text(table).splitlines()[-1] == f"  {sentence}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "P=4"),
        ({"p": "pc"}, "PC (P=M)"),
        ({"p": None}, "as saved"),
        ({"se": True}, "P=4 + SE"),
        ({"name": "dwc", "p": None}, "DWC+PWC"),
        ({"name": "gwc", "p": None, "groups": 8}, "GWC8+PWC"),
        ({"name": "standard", "p": None, "se": True}, "standard + SE"),
    ],
)
def test_what_a_variant_is_called(changes, expected):
    assert title(replace(AT_4, **changes)) == expected


def test_notes_have_letters_without_end():
    assert [letter(index) for index in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        *("a", "z", "aa", "ab", "az", "ba", "zz", "aaa"),
    ]


def test_names_are_no_markup_and_pipes_are_escaped():
    layers = (replace(STEM, name="[red]x[/red]"), replace(BODY, name="a|b"))
    report = replace(REPORT, model="[b]net", layers=layers)
    assert to_text(flops_table(report, "mac")).startswith("[b]net  1x3x8x8")
    assert "\n[red]x[/red] " in to_text(layers_table(report, "mac"))
    assert "\n| a\\|b |" in to_markdown(layers_table(report, "mac"))
