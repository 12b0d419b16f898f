"""Counts do not depend on where a network ran, and a proof on the GPU holds the file that the CPU's proof holds."""

import json

import pytest
import torch

from hetconv_cli.cli.main import main

pytestmark = pytest.mark.gpu

# What `careful` does depends on values, so that it cannot run on the meta device.
NETWORK = """
import torch
from torch import nn

class Careful(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.abs().sum() > 0 else x + 1)

def layers():
    torch.manual_seed(0)
    return [nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 3)]

def careful():
    return Careful(*layers()), torch.randn(1, 8, 9, 9)

def plain():
    return nn.Sequential(*layers()), torch.randn(1, 8, 9, 9)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `hetconv ... --json` where net.py is; what it reports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)

    def run_here(*words: str) -> dict:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--json"])
        said = capsys.readouterr()
        assert not stop.value.code, said.err
        return json.loads(said.out)

    return run_here


def test_counts_of_a_network_that_must_run_are_those_of_the_cpu(run):
    reports = {place: run("flops", "net.py:careful", "--p", "4", "--device", place) for place in ("cpu", "cuda")}
    assert reports["cuda"]["replayed"] is True
    assert reports["cuda"] == reports["cpu"]


def test_a_network_that_needs_no_values_is_counted_on_no_device(run):
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    assert run("flops", "net.py:plain", "--p", "4", "--device", "cuda")["replayed"] is False
    assert torch.cuda.memory_stats().get("allocation.all.allocated", 0) == before


def test_torch_s_side_of_the_proof_runs_on_the_gpu_without_tf32(run):
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    report = run("export", "net.onnx", "net.py:plain", "--p", "4", "--device", "cuda")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > before
    assert (report["verified"], report["device"]) == (True, "cuda")
    assert report["max_rel_diff"] < 1e-5
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
