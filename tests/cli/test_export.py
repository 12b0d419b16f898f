"""`hetconv export`: what it exports, what it proves, and what it refuses."""

import json
import os

import onnx
import pytest
import torch

from hetconv_cli.conversion import checkpoint
from hetconv_cli.models import build as builders

# Whatever comes in, ones come out: no weights and no statistics make it react.
CONSTANT = """
class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return torch.sign(self.conv(x).abs().mean((2, 3)) + 1)


def constant():
    return Constant(), torch.randn(1, 8, 6, 6)
"""


@pytest.fixture
def checkpoint_of_net(run, net):
    """build-p4.safetensors, which `convert` wrote from net.py."""
    done = run("convert", net, "--seed", "3")
    assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    return "build-p4.safetensors"


@pytest.fixture
def constant(net, folder):
    (folder / "net.py").write_text((folder / "net.py").read_text() + CONSTANT)
    return "net.py:constant"


def shapes_of(file):
    graph = onnx.load(file).graph
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]


def test_resnet18_from_convert_to_a_verified_file(run, folder):
    converted = run("convert", "resnet18", "--p", "4", "--input", "64")
    assert (converted.status, "total" in converted.stdout) == (0, True)
    assert "wrote resnet18-p4.safetensors" in converted.stderr
    done = run("export", "model.onnx")
    assert (done.status, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "source   resnet18-p4.safetensors (newest here; name another with MODEL)"
    assert "batch dynamic; 16 BatchNorm folded into both branches of a HetConv, no BatchNormalization left" in lines[1]
    assert lines[2].startswith("file     model.onnx  ")
    assert "onnx.checker; ONNX Runtime on CPU against torch, batch 3 (exported at 2)" in lines[3]
    assert lines[-1] == "VERIFIED"
    assert shapes_of("model.onnx") == [["batch", 3, 64, 64], ["batch", 1000]]
    assert {path.name for path in folder.iterdir()} == {"resnet18-p4.safetensors", "model.onnx"}


# mnasnet, which has no odd convolution but in its pairs, loads nothing without its version
@pytest.mark.parametrize(("name", "pairs"), [("mobilenet_v2", 17), ("mnasnet0_5", 17)])
def test_pairs_from_convert_to_a_verified_file(run, name, pairs):
    converted = run("convert", name, "--pairs", "--p", "2", "--input", "64", "-o", "pairs.safetensors")
    assert (converted.status, f"one convolution each ({pairs})" in converted.stdout) == (0, True)
    done = run("export", "model.onnx")
    assert (done.status, done.stderr) == (0, "")
    assert f"{pairs} BatchNorm folded into both branches of a HetConv, no BatchNormalization left" in done.stdout
    assert done.stdout.splitlines()[-1] == "VERIFIED"
    operators = {(node.op_type, node.domain) for node in onnx.load("model.onnx").graph.node}
    assert not {kind for kind, domain in operators if domain or kind in ("BatchNormalization", "Identity")}


def test_the_documented_json(run, checkpoint_of_net, folder):
    done = run("export", "a.onnx", "--source", "net.py:build", "--json")
    assert (done.status, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["schema"], report["output"], report["source"]) == ("hetconv.export/1", "a.onnx", checkpoint_of_net)
    assert report["bytes"] == (folder / "a.onnx").stat().st_size
    assert (report["verified"], report["opset"]) == (True, 18)
    assert report["tolerance"] == {"atol": 0.0, "rtol": 1e-4}
    assert 0 <= report["max_rel_diff"] <= 1e-4
    assert report["max_abs_diff"] >= 0
    assert (report["bn_folded"], report["bn_left"]) == (1, 0)


def test_a_gpu_that_is_not_there_is_said_before_any_work(refuse, checkpoint_of_net, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("loaded"))
    refuse("export", "a.onnx", "--device", "cuda", status=2, says="--device cuda: torch sees no CUDA GPU here")
    refuse("export", "a.onnx", "--device", "gpu", status=2, says="--device: expected cpu, cuda; got 'gpu'")


def test_the_report_says_where_torch_ran(run, net):
    done = run("export", "a.onnx", net, "--p", "4", "--device", "cpu", "--json")
    assert (done.status, json.loads(done.stdout)["device"]) == (0, "cpu")


def test_without_a_model_the_newest_file_of_convert_is_taken(run, net, folder):
    for p in (2, 4, 8):
        done = run("convert", net, "--p", p)
        assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    for age, name in enumerate(["build-p2.safetensors", "build-p8.safetensors", "build-p4.safetensors"]):
        os.utime(name, (1_900_000_000 - age, 1_900_000_000 - age))
    (folder / "newer.safetensors").write_bytes(b"not one of convert's")
    done = run("export", "a.onnx", "--source", net)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith("source   build-p2.safetensors (newest here; name another with MODEL)\n")
    done = run("export", "b.onnx", "build-p8.safetensors", "--source", net, "--format", "csv")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("build-p8.safetensors,b.onnx,18,")


def test_a_name_or_file_is_converted_on_the_way_where_p_is_given(run, net):
    def convolutions(*options):
        done = run("export", "a.onnx", net, "--force", "--json", *options)
        assert (done.status, done.stderr) == (0, "")
        report = json.loads(done.stdout)
        assert report["verified"]
        return report["nodes"]["Conv"]

    assert convolutions() == 4
    assert convolutions("--p", "4") == 6, "two of them are a grouped and a pointwise one now"


def test_a_static_batch_is_the_inputs(run, net):
    done = run("export", "a.onnx", net, "--static-batch", "--input", "5x3x9x9")
    assert (done.status, done.stderr) == (0, "")
    assert "batch fixed at 5" in done.stdout
    assert shapes_of("a.onnx") == [[5, 3, 9, 9], [5, 10]]


def test_the_opset_is_what_was_asked_for(run, refuse, net):
    done = run("export", "a.onnx", net, "--opset", "20", "--json")
    assert (done.status, done.stderr, json.loads(done.stdout)["opset"]) == (0, "", 20)
    assert [entry.version for entry in onnx.load("a.onnx").opset_import if not entry.domain] == [20]
    refuse("export", "b.onnx", net, "--opset", "999", status=2, says="opset must be an integer from 1 to")


def test_a_network_that_never_reacts_is_not_proven(refuse, constant):
    says = "not proven: outputs do not react to the input.*--no-verify keeps the file"
    refuse("export", "a.onnx", constant, status=3, says=says)


def test_no_verify_keeps_what_cannot_be_proven(run, constant, folder):
    done = run("export", "a.onnx", constant, "--no-verify")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.endswith("NOT VERIFIED (--no-verify)\n")
    assert (folder / "a.onnx").stat().st_size > 0
    done = run("export", "b.onnx", constant, "--no-verify", "--json")
    assert (done.status, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["verified"], report["max_abs_diff"], report["max_rel_diff"]) == (False, None, None)


def test_a_tolerance_that_is_missed_is_not_proven_and_spares_the_old_file(refuse, net, folder):
    (folder / "a.onnx").write_text("old")
    refuse("export", "a.onnx", net, "--force", "--rtol", "0", status=3, says="not equal: output.* limit 0 ")


@pytest.mark.parametrize(("option", "value"), [("--rtol", "-1"), ("--atol", "nan"), ("--rtol", "inf")])
def test_a_tolerance_that_is_none_is_refused(refuse, net, option, value):
    refuse("export", "a.onnx", net, option, value, status=2, says=f"{option[2:]} must be a number >= 0")


def test_with_nothing_to_export_it_says_how_to_make_something(refuse):
    refuse("export", "a.onnx", status=2, says="make one with `hetconv convert resnet34 --p 4`, or name a MODEL")


def test_code_of_ones_own_is_not_run_because_a_file_names_it(refuse, checkpoint_of_net, folder):
    (folder / "net.py").write_text("import pathlib; pathlib.Path('pwned').mkdir()")
    refuse("export", "a.onnx", status=2, says=r"code of your own.*pass it: --source FILE\.py:CALLABLE")


def test_the_original_must_be_the_one(refuse, checkpoint_of_net):
    refuse(
        "export",
        "a.onnx",
        "--source",
        "net.py:pointwise",
        status=2,
        says="the plan was made for 3x3.*the model has 2x2",
    )


def test_a_converted_file_has_its_part_and_weights(refuse, checkpoint_of_net):
    for option in (("--p", "4"), ("--weights", "none.pt")):
        refuse("export", "a.onnx", checkpoint_of_net, *option, status=2, says="is converted and has its weights")


def test_an_existing_file_is_refused_before_any_work(refuse, checkpoint_of_net, folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the file was read"))
    monkeypatch.setattr(builders, "build", lambda *_: pytest.fail("the network was built"))
    (folder / "a.onnx").write_text("old")
    refuse("export", "a.onnx", status=2, says=r"a\.onnx exists: pass --force to replace it")
    refuse("export", "nowhere/a.onnx", status=2, says="no such folder: nowhere")


def test_force_replaces_an_existing_file(run, net, folder):
    (folder / "a.onnx").write_text("old")
    done = run("export", "a.onnx", net, "--force")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.endswith("VERIFIED\n")
    onnx.checker.check_model(str(folder / "a.onnx"))


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64])
def test_a_checkpoint_that_is_none_is_one_line(refuse, folder, content):
    (folder / "bad.safetensors").write_bytes(content)
    refuse("export", "a.onnx", "bad.safetensors", status=2, says=r"bad\.safetensors")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.onnx", "resnet43"), "unknown model 'resnet43': did you mean resnet34"),
        (("a.onnx", "net.py:build", "--p", "0"), "p must be a positive integer or 'pc', got '0'"),
        (("a.onnx", "net.py:build", "--p", "7"), "p = 7 divides the input channels of none"),
        (("a.onnx", "net.py:build", "--input", "1x4x9x9"), "expected 3 channels"),
        (("a.onnx", "net.py:build", "--opset", "x"), "Invalid value for '--opset': .*integer"),
        ((), "Missing argument 'OUT.onnx'"),
    ],
)
def test_a_bad_argument_is_one_line(refuse, net, arguments, says):
    refuse("export", *arguments, status=2, says=says)
