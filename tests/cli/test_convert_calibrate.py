"""hetconv convert --calibrate, --transfer and --budget, from the command line."""

import json

import numpy as np
import pytest
import torch

from hetconv_cli.cli.main import main

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)), torch.randn(1, 8, 9, 9)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "images").mkdir()
    for index in range(10):
        np.save(tmp_path / "images" / f"{index}.npy", np.random.default_rng(index).normal(size=(8, 9, 9)))
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["convert", "net.py:build", *arguments])
    said = capsys.readouterr()
    return stop.value.code or 0, said.out, said.err


def test_calibrated_weights_are_reported_written_and_the_same_each_time(here, capsys):
    files = []
    for name, memory in (("a", "2"), ("b", "0")):
        arguments = ["--calibrate", "images", "--memory", memory, "--json", "-o", f"{name}.safetensors"]
        status, out, err = run(capsys, *arguments)
        assert (status, "wrote" in err) == (0, True)
        files.append((here / f"{name}.safetensors").read_bytes())
        report = json.loads(out)
        assert report["weights"] == "from net.py:build, calibrated on 10 images"
        assert [layer["name"] for layer in report["calibration"]["layers"]] == ["0", "2"]
        assert report["calibration"]["rerun_images"] == (0 if name == "a" else 10)
        assert report["calibration"]["calibrated"]["relative_error"] < report["calibration"]["center"]["relative_error"]
    assert files[0] == files[1]
    status, out, _ = run(capsys, "--calibrate", "images", "--force", "-o", "a.safetensors")
    assert status == 0
    assert "whole network, calibrated:" in out


def test_sums_of_taps_are_carried_over(here, capsys):
    assert run(capsys, "--transfer", "sum", "--json")[0] == 0
    import hetconv_cli as hc
    from hetconv_cli.models.build import build
    from hetconv_cli.models.source import resolve

    dense = build(resolve("net.py:build")).model
    layer = hc.load("build-p4.safetensors", dense).model[0]
    assert torch.allclose(layer.dense_weight()[0, 7].sum(), dense[0].weight[0, 7].sum(), atol=1e-6)


def test_a_budget_writes_a_plan_that_config_takes_back(here, capsys):
    status, out, err = run(capsys, "--budget", "0.5", "--calibrate", "images", "--json")
    assert (status, "wrote build-budget0.5.plan.yaml" in err) == (0, True)
    chosen = json.loads(out)
    assert chosen["choice"]["cost"] == chosen["macs"]["after"] <= 0.5 * chosen["macs"]["before"]
    assert chosen["choice"]["error"] == chosen["choice"]["bound"]
    status, out, _ = run(capsys, "--config", "build-budget0.5.plan.yaml", "--json", "-o", "again.safetensors")
    again = json.loads(out)
    assert status == 0
    assert [again[key] for key in ("macs", "converted", "p")] == [chosen[key] for key in ("macs", "converted", "p")]


def test_a_dry_run_shows_the_choice_and_writes_nothing(here, capsys):
    before = sorted(here.iterdir())
    status, out, _ = run(capsys, "--max-error", "0.9", "--dry-run")
    assert status == 0
    assert "max error 0.9: P chosen layer by layer; errors: energy of the weights that go" in out
    assert sorted(path for path in here.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--calibrate none", "--calibrate none: no such folder"),
        ("--calibrate empty", "no images in it"),
        ("--calibrate bad", "bad/a.npy: cannot be read as a tensor"),
        ("--calibrate channels", "expected the channels of 8x9x9 as the model takes, got 3x9x9"),
        ("--calibrate nan", "calibration image 0 holds NaN"),
        ("--transfer calibrated", "--transfer calibrated needs images"),
        ("--transfer sum --calibrate images", "--calibrate is for --transfer calibrated"),
        ("--mean 0.5 --calibrate images", "--mean and --std go together"),
        ("--memory 4", "--memory is for calibration images"),
        ("--calibrate images --memory inf", "--memory: expected a number of GB, got inf"),
        ("--mean 0.5 --std 1", "--mean is for calibration images"),
        ("--calibrate images --variant dwc", "for HetConv layers alone"),
        ("--budget 0.5 --max-error 1", "give one of"),
        ("--budget 0.01", "out of reach"),
        ("--plan p.yaml", "--plan is written for --budget"),
    ],
)
def test_what_will_not_do_is_one_line_and_nothing_is_written(here, capsys, arguments, said):
    for name in ("empty", "bad", "channels", "nan"):
        (here / name).mkdir()
    (here / "bad" / "a.npy").write_bytes(b"damaged")
    np.save(here / "channels" / "a.npy", np.zeros((3, 9, 9)))
    np.save(here / "nan" / "a.npy", np.full((8, 9, 9), np.nan))
    status, out, err = run(capsys, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not list(here.glob("*.safetensors*"))
    assert not list(here.glob("*.yaml"))


def test_interrupted_half_way_leaves_nothing(here, capsys, monkeypatch):
    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("hetconv_cli.conversion.calibration.calibrate.fit", interrupt)
    status, out, err = run(capsys, "--calibrate", "images")
    assert (status, out, err) == (130, "", "hetconv: interrupted; nothing was written\n")
    assert not list(here.glob("*safetensors*"))


def test_reordered_channels_are_reported_written_and_the_same_each_time(here, capsys):
    files = []
    for name in ("a", "b"):
        arguments = ["--calibrate", "images", "--reorder", "--json", "-o", f"{name}.safetensors"]
        status, out, err = run(capsys, *arguments)
        assert (status, "wrote" in err) == (0, True)
        files.append((here / f"{name}.safetensors").read_bytes())
        report = json.loads(out)["reorder"]
        assert report["after"] > report["before"]
        assert [layer["name"] for layer in report["layers"]] == ["0", "2"]
        assert [stream["pinned"] for stream in report["streams"]] == [None, "reaches the network's output"]
    assert files[0] == files[1]
    status, out, _ = run(capsys, "--reorder", "--budget", "0.5", "-o", "c.safetensors")
    assert status == 0
    assert "energy kept in the classes: " in out
    assert "kept in its order: reaches the network's output" in out
    status, out, _ = run(capsys, "-o", "d.safetensors", "--json")
    assert json.loads(out)["reorder"] is None


def test_there_is_no_order_for_what_has_no_classes(here, capsys):
    for arguments, says in (
        (["--reorder", "--variant", "dwc"], "reorder is for HetConv layers alone, but 0 becomes DWC+PWC"),
        (["--reorder", "--se"], "reorder is for HetConv layers alone"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert says in err
        assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"images", "net.py"}
    with pytest.raises(SystemExit) as stop:
        main(["convert", "resnet18", "--reorder"])
    assert stop.value.code == 2
    assert "--reorder needs trained weights: --weights DEFAULT" in capsys.readouterr().err


def test_a_device_that_is_not_here_is_refused_before_anything_is_built(here, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(capsys, "--device", "cuda")
    assert (status, out) == (2, "")
    assert err == "hetconv: --device cuda: torch sees no CUDA GPU here\n"
