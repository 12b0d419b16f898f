"""Running the command line: in this process, in a fresh one, and where it must refuse."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hetconv_cli.cli.main import main

# A stem (kept), a convolution without and one with bias (converted at any P that divides 8), a pointwise one (kept).
NET = """\
import torch
from torch import nn


def build():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    return model, torch.randn(1, 3, 12, 12)


def pointwise():
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 2)), torch.randn(1, 8, 6, 6)


def without_conv2d():
    return nn.Linear(4, 2), torch.randn(1, 4)
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind: exit status and both streams."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def net(folder):
    """A small network in net.py; the MODEL argument that names it."""
    (folder / "net.py").write_text(NET)
    return "net.py:build"


@pytest.fixture
def run(folder, capsys):
    """Runs `hetconv ...` in this process, in an empty folder."""

    def run_here(*arguments: object) -> Done:
        capsys.readouterr()
        status = None
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        assert isinstance(status, int)
        return Done(status, *capsys.readouterr())

    return run_here


@pytest.fixture
def fresh(folder):
    """Runs `hetconv ...` in a process of its own, with variables of the environment set."""

    def run_fresh(*arguments: str, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "hetconv_cli", *arguments],
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run_fresh


@pytest.fixture
def refuse(run, folder):
    """Runs `hetconv ...`, which must fail with one line on stderr, nothing on stdout, and every file as it was."""

    def run_and_see(*arguments: object, status: int, says: str) -> None:
        before = contents(folder)
        done = run(*arguments)
        assert (done.status, done.stdout) == (status, "")
        assert done.stderr.startswith("hetconv: ")
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith("\n")
        assert "Traceback" not in done.stderr
        assert re.search(says, done.stderr), done.stderr
        assert contents(folder) == before

    return run_and_see


def contents(folder):
    """Every file below a folder with its bytes, hidden ones too; Python's own caches apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }
