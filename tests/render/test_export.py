"""The report of `export` from facts made up by hand."""

import csv
import io
import json
from dataclasses import asdict, replace

from hetconv_cli.export.onnx_file import ExportReport
from hetconv_cli.render.export import export_csv, export_json, export_text

REPORT = ExportReport(
    output="model.onnx",
    opset=18,
    bytes=33_512_345,
    dynamic_batch=True,
    exporter="dynamo",
    bn_folded=32,
    bn_left=0,
    nodes={"Conv": 68, "Relu": 33, "Add": 48, "MaxPool": 1, "Gemm": 1},
    verified=True,
    max_abs_diff=1.5e-6,
    max_rel_diff=2.3e-6,
    reaction=0.6,
    tolerance={"atol": 0.0, "rtol": 1e-4},
    proof_batch=3,
    example_batch=2,
    notes=(),
)
UNVERIFIED = replace(REPORT, verified=False, max_abs_diff=None, max_rel_diff=None, reaction=None)


def test_json_is_the_documented_structure():
    report = export_json(REPORT, "resnet34-p4.safetensors")
    expected = {"schema": "hetconv.export/1", "source": "resnet34-p4.safetensors", "output": "model.onnx", "opset": 18}
    expected |= {"bytes": 33_512_345, "verified": True, "max_abs_diff": 1.5e-6, "max_rel_diff": 2.3e-6}
    expected |= {"tolerance": {"atol": 0.0, "rtol": 1e-4}}
    assert {key: report[key] for key in expected} == expected
    assert set(report) == {"schema", "source", *asdict(REPORT)}
    assert json.loads(json.dumps(report))["notes"] == []


def test_text_says_source_graph_file_proof_and_verdict():
    assert export_text(REPORT, "resnet34-p4.safetensors") == (
        "source   resnet34-p4.safetensors\n"
        "graph    opset 18, batch dynamic; 32 BatchNorm folded into both branches of a HetConv, no BatchNormalization"
        " left; 68 Conv, 33 Relu, 48 Add, 1 MaxPool; standard operators only\n"
        "file     model.onnx  33.5 MB\n"
        "proof    onnx.checker; ONNX Runtime on CPU against torch, batch 3 (exported at 2): largest difference 2.3e-06"
        " of the output's scale (limit 0.0001)\n"
        "         the output moves by 60 % of its scale when the input does: the proof has meaning\n"
        "VERIFIED\n"
    )


def test_a_proof_on_a_gpu_says_so():
    assert "ONNX Runtime on CPU against torch on CUDA, batch 3" in export_text(replace(REPORT, device="cuda"), "net.py")


def test_what_is_not_verified_says_so():
    text = export_text(UNVERIFIED, "net.py:build")
    assert text.endswith("proof    none was asked for\nNOT VERIFIED (--no-verify)\n")
    assert export_json(UNVERIFIED, "net.py:build")["verified"] is False


def test_a_fixed_batch_what_is_left_and_notes_are_said():
    report = replace(REPORT, dynamic_batch=False, bn_folded=0, bn_left=2, notes=("proven on a twin",))
    lines = export_text(report, "x").splitlines()
    assert lines[1].startswith("graph    opset 18, batch fixed at 2; 2 BatchNormalization left; ")
    assert lines[-2] == "         proven on a twin"


def test_csv_is_one_line():
    (row,) = csv.DictReader(io.StringIO(export_csv(REPORT, "a.safetensors")))
    assert (row["source"], row["output"], row["verified"], row["bytes"]) == (
        "a.safetensors",
        "model.onnx",
        "True",
        "33512345",
    )
    (row,) = csv.DictReader(io.StringIO(export_csv(UNVERIFIED, "a.safetensors")))
    assert (row["verified"], row["max_rel_diff"]) == ("False", "")
