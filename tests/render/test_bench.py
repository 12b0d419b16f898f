"""The bench report as tables, JSON, CSV and a picture."""

import csv
import json
from dataclasses import replace

import pytest

from hetconv_cli.bench.int8_graph import Int8Graph
from hetconv_cli.bench.report import BenchReport, Row
from hetconv_cli.render.bench import bench_csv, bench_json, bench_tables, plot_bench, title
from hetconv_cli.render.table import to_text

STANDARD = Row(
    layer=None,
    variant="standard",
    p=None,
    parts={},
    origin=None,
    groups=None,
    runtime="torch",
    dtype="float32",
    batch=8,
    form="channels_last",
    median_ms=300.0,
    iqr_ms=1.5,
    images_per_s=26.67,
    speedup=1.0,
    promised=1.0,
    share=1.0,
    error=0.0,
)
HETCONV = replace(
    STANDARD, variant="hetconv", p=4, parts={4: 32}, median_ms=150.0, speedup=2.0, promised=2.5, share=0.8
)
MIXED = replace(HETCONV, p=None, parts={2: 12, 4: 20}, origin="file")
GROUPED = replace(MIXED, variant="grouped", speedup=0.9)


def report(*rows):
    return BenchReport("resnet34", ((1, 3, 224, 224),), "some CPU", 2, {"torch": "2.15.0"}, rows)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (STANDARD, "standard"),
        (HETCONV, "P=4"),
        (replace(HETCONV, p="pc"), "PC"),
        (MIXED, "P mixed (file)"),
        (replace(HETCONV, origin="plan"), "P=4 (plan)"),
        (GROUPED, "grouped P mixed (file)"),
        (replace(STANDARD, variant="gwc", groups=8), "GWC8+PWC"),
        (replace(STANDARD, variant="gwc", origin="file"), "GWC+PWC (file)"),
        (replace(STANDARD, variant="dwc"), "DWC+PWC"),
        (replace(STANDARD, variant="mixed", origin="plan"), "mixed (plan)"),
    ],
)
def test_every_row_has_a_name(row, name):
    assert title(row) == name


def test_what_is_the_same_in_all_rows_stands_above_them():
    (table,) = bench_tables(report(STANDARD, HETCONV))
    assert table.above == ["resnet34  3x224x224  some CPU, 2 threads  (torch 2.15.0)", "torch, batch 8, channels_last"]
    assert table.headers == ["variant", "ms", "+-", "images/s", "speed-up", "promised", "share"]
    assert table.rows[1] == ["P=4", "150.00", "1.50", "26.7", "x2.00", "x2.50", "0.80"]
    assert max(map(len, to_text(replace(table, above=[]), width=80).splitlines())) <= 80


def test_a_table_for_each_runtime_type_and_batch_with_the_layers_in_it():
    layer = replace(HETCONV, layer="layer1.0.conv1", form="contiguous")
    int8 = replace(STANDARD, runtime="onnxruntime", dtype="int8", form="onnx", calibration="random")
    first, second = bench_tables(report(STANDARD, int8, HETCONV, layer))
    assert (second.above, second.headers[0]) == (["onnxruntime int8, batch 8"], "variant")
    assert [row[:2] for row in first.rows] == [["network", "standard"], ["network", "P=4"], ["layer1.0.conv1", "P=4"]]
    assert first.headers[-1] == "form"
    assert [row[-1] for row in first.rows] == ["a", "a", "b"]
    assert second.below[-1] == "  form: a = channels_last; b = contiguous"
    assert first.below == ()


def test_mixed_parts_slower_rows_and_the_peer_are_explained():
    layer = replace(GROUPED, layer="layer1.0.conv1", parts={2: 1}, p=2)
    (table,) = bench_tables(report(STANDARD, MIXED, GROUPED, layer))
    below = "\n".join(table.below)
    assert "  P mixed (file): P=2 in 12 layers, P=4 in 20 layers\n" in below
    assert "grouped: HetConv as public code runs it" in below
    assert "  slower than standard: grouped P mixed (file) in torch, batch 8: network\n" in below
    assert below.endswith("  slower than standard: grouped P=2 (file) in torch, batch 8: layer1.0.conv1")


def test_what_runs_in_float_is_said():
    graph = Int8Graph(36, 1, 16, 0, 2, {"BatchNormalization": 16, "ReduceMean": 1, "Conv": 1})
    int8 = {"runtime": "onnxruntime", "dtype": "int8", "form": "onnx"}
    rows = [replace(row, **int8, calibration="images", int8=graph) for row in (STANDARD, HETCONV)]
    (table,) = bench_tables(replace(report(*rows), images=64))
    left = "36 of 37 convolutions in int8; not in int8: 16 BatchNormalization, 1 ReduceMean, 1 Conv"
    assert table.below[2:] == [
        "  int8: calibrated on 64 images.",
        f"  standard in onnxruntime: {left}",
        f"  P=4 in onnxruntime: {left}",
    ]


def test_json_and_csv_hold_every_row():
    graph = Int8Graph(36, 0, 0, 0, 2, {})
    found = report(STANDARD, replace(MIXED, int8=graph, calibration="images"))
    structure = json.loads(json.dumps(bench_json(found)))
    assert structure["input"] == [1, 3, 224, 224]
    assert structure["rows"][1]["parts"] == {"2": 12, "4": 20}
    assert structure["rows"][1]["int8"]["int8_convolutions"] == 36
    standard, mixed = csv.DictReader(bench_csv(found).splitlines())
    assert (mixed["parts"], mixed["origin"], mixed["int8_convolutions"]) == ("2:12 4:20", "file", "36")
    assert (standard["model"], standard["p"], standard["int8_convolutions"]) == ("resnet34", "", "")


def test_no_label_of_the_picture_is_cut_or_hidden(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    name = "features.denseblock3.denselayer24.conv2.very.deep.inside"
    rows = [replace(row, layer=layer) for layer in (None, name) for row in (STANDARD, HETCONV, GROUPED)]
    plot_bench(replace(report(*rows), device="a processor of many words " * 5), tmp_path / "bench.png")
    figure = plt.gcf()
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in (*axes.get_yticklabels(), figure._suptitle, *axes.texts)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)
    assert not any(figure.legends[0].get_window_extent().overlaps(box) for box in boxes)
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == f"{name}  grouped P mixed (file)"
    monkeypatch.undo()
    plt.close(figure)
