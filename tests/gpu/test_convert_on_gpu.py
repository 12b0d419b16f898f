"""A conversion whose work is done on a GPU is the one that the CPU makes, and its file is for any device."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hetconv_cli.cli.main import main

pytestmark = pytest.mark.gpu

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)), torch.randn(1, 8, 9, 9)
"""


@pytest.mark.parametrize("more", [["--reorder"], ["--latency-budget", "0.9"]], ids=["reordered", "by time"])
def test_the_file_is_that_of_the_cpu(tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "images").mkdir()
    for index in range(10):
        np.save(tmp_path / "images" / f"{index}.npy", np.random.default_rng(index).normal(size=(8, 9, 9)))
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    found = {}
    for device in ("cpu", "cuda"):
        file = f"{device}.safetensors"
        words = ["convert", "net.py:build", "--calibrate", "images", "-o", file, "--device", device, *more]
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code, capsys.readouterr().err
        found[device] = load_file(file)
    if more == ["--reorder"]:
        for name, value in found["cpu"].items():
            torch.testing.assert_close(found["cuda"][name], value, rtol=1e-3, atol=1e-4)
