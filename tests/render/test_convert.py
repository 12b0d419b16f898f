"""The report of `convert` from a plan and a summary made by hand."""

import csv
import io
import json

from hetconv_cli.geometry import Geometry
from hetconv_cli.measure.summary import Stage, Summary
from hetconv_cli.plan import Change, LayerPlan, Plan
from hetconv_cli.render.convert import convert_csv, convert_json, convert_table, nothing_converted
from hetconv_cli.render.table import to_text

HET = Change("hetconv", p=4, arrangement="blocked")
STEM = LayerPlan("stem", Geometry(3, 8, (3, 3)), None, reason="image stem, 3 channels")
PLAN = Plan(
    (
        STEM,
        LayerPlan("a.1", Geometry(8, 16, (3, 3), bias=False), HET),
        LayerPlan(
            "b.1",
            Geometry(16, 16, (3, 3)),
            Change("hetconv", p=4, arrangement="shifted"),
            remark="reads a concatenation: shifted, so that each class sees every source",
        ),
        LayerPlan("b.2", Geometry(16, 8, (1, 1)), None, reason="1x1: nothing to save"),
    )
)
SUMMARY = Summary(
    stages=(Stage("a", 1, 1_000_000, 333_333, 1152, 384), Stage("b", 1, 2_000_000, 666_667, 2320, 784)),
    kept=Stage("kept", 2, 500, 500, 360, 360),
    others=Stage("other layers", 0, 0, 0, 0, 0),
    total=Stage("total", 4, 3_000_500, 1_000_500, 3832, 1528),
    converted_macs=1_000_000,
    executed=1_083_333,
)


def test_json_is_the_documented_structure():
    report = convert_json("net", PLAN, SUMMARY, "net-p4.safetensors", "random")
    assert report | {"pairs": None} == {
        "schema": "hetconv.convert/1",
        "model": "net",
        "output": "net-p4.safetensors",
        "variant": "hetconv",
        "p": 4,
        "groups": None,
        "arrangement": None,  # it differs
        "weights": "random",
        "converted": ["a.1", "b.1"],
        "kept": [
            {"name": "stem", "reason": "image stem, 3 channels"},
            {"name": "b.2", "reason": "1x1: nothing to save"},
        ],
        "remarks": [{"name": "b.1", "remark": PLAN.layers[2].remark}],
        "params": {"before": 3832, "after": 1528},
        "macs": {"before": 3_000_500, "after": 1_000_500},
        "converted_macs": {"analytic": 1_000_000, "executed": 1_083_333},
        "pairs": None,
    }
    assert json.loads(json.dumps(report)) == report


def test_the_table_stage_by_stage():
    assert to_text(convert_table("net", PLAN, SUMMARY, "1x3x8x8", "random")) == (
        "net  1x3x8x8  HetConv, P=4, arrangement blocked/shifted, weights: random\n"
        "\n"
        "stage   convs   MACs before      after   params before      after\n"
        "─────────────────────────────────────────────────────────────────\n"
        "a           1       1.000 M    333,333           1,152        384\n"
        "b           1       2.000 M    666,667           2,320        784\n"
        "kept        2           500        500             360        360\n"
        "total       4       3.001 M    1.000 M           3,832      1,528\n"
        "                              -66.66 %                   -60.13 %\n"
        "  kept: stem (image stem, 3 channels)\n"
        "  kept: b.2 (1x1: nothing to save)\n"
        "  b.1 (converted, reads a concatenation: shifted, so that each class sees every source)\n"
        "  runs here as grouped K x K + 1 x 1: the converted layers execute 1.083 M MAC for 1.000 M on paper"
        " (+8.33 %)\n"
    )


def test_csv_has_a_line_a_layer():
    rows = list(csv.DictReader(io.StringIO(convert_csv(PLAN))))
    assert [(row["layer"], row["becomes"]) for row in rows] == [
        ("stem", ""),
        ("a.1", "HetConv P=4 blocked"),
        ("b.1", "HetConv P=4 shifted"),
        ("b.2", ""),
    ]
    assert rows[1]["convolution"] == "3x3, 8 -> 16, no bias"
    assert rows[0]["reason"] == "image stem, 3 channels"
    assert rows[2]["reason"].startswith("reads a concatenation")


def test_many_layers_with_one_reason_are_not_all_listed():
    plan = Plan(
        tuple(LayerPlan(f"c{i}", Geometry(8, 8, (1, 1)), None, reason="1x1: nothing to save") for i in range(9))
    )
    text = to_text(convert_table("net", plan, SUMMARY, "1x3x8x8", "random"))
    assert "  kept: c0, c1, c2, c3, c4, c5 and 3 more (1x1: nothing to save)\n" in text


def test_a_name_is_no_markup():
    plan = Plan((LayerPlan("[red]x[/red]", Geometry(8, 8, (1, 1)), None, reason="1x1: nothing to save"),))
    text = to_text(convert_table("[b]net", plan, SUMMARY, "1x3x8x8", "random"))
    assert text.startswith("[b]net  1x3x8x8")
    assert "  kept: [red]x[/red] (1x1: nothing to save)\n" in text


def test_nothing_converted_is_one_sentence():
    assert nothing_converted("net", Plan(())) == "net: nothing to convert: it has no Conv2d. No file was written."
    assert nothing_converted("net", Plan((STEM, STEM, PLAN.layers[3]))) == (
        "net: nothing to convert: its 3 Conv2d are kept (2 image stem, 3 channels; 1 1x1: nothing to save)."
        " No file was written."
    )
