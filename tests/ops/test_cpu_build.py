"""The CPU kernel is compiled once, kept, and its absence is a reason in one line and no error."""

import shutil

import pytest
import torch

from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.ops.hetconv2d import cpu_build, cpu_kernel
from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("HETCONV_CXX", raising=False)
    cpu_library.cache_clear()
    yield
    cpu_library.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that notes its calls; the file with the notes."""
    if cpu_library().problem:
        pytest.skip(cpu_library().problem)
    cpu_library.cache_clear()
    shutil.rmtree(tmp_path / "cache")
    notes, script = tmp_path / "calls", tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\necho "$@" >> {notes}\nexec c++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("HETCONV_CXX", str(script))
    return notes


def compilations(notes):
    return sum("-shared" in line for line in notes.read_text().splitlines())


def test_it_is_compiled_once_and_loaded_from_the_cache_afterwards(compiler, tmp_path):
    assert cpu_library().library is not None
    assert cpu_library() is cpu_library()
    assert compilations(compiler) == 1
    cpu_library.cache_clear()  # as another process would find it
    assert cpu_library().library is not None
    assert compilations(compiler) == 1
    (file,) = (tmp_path / "cache/hetconv").iterdir()  # and nothing half-written
    assert file.suffix == ".so"


def test_a_damaged_file_is_compiled_anew(compiler, tmp_path, monkeypatch):
    cpu_library()
    moved = (tmp_path / "cache").rename(tmp_path / "moved")  # a path that this process has loaded is not read again
    monkeypatch.setenv("XDG_CACHE_HOME", str(moved))
    (file,) = (moved / "hetconv").iterdir()
    file.write_bytes(b"")
    cpu_library.cache_clear()
    assert cpu_library().library is not None
    assert compilations(compiler) == 2


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_have_written_is_not_loaded(what, compiler, tmp_path):
    cpu_library()
    folder = tmp_path / "cache/hetconv"
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder if what == "folder" else next(folder.iterdir())).chmod(0o777)
    cpu_library.cache_clear()
    assert "can be written by others" in cpu_library().problem


def test_a_relative_cache_folder_is_not_one(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cpu_library().library is not None
    assert list((tmp_path / "home/.cache/hetconv").iterdir())


def test_another_processor_gets_a_kernel_of_its_own(compiler, tmp_path, monkeypatch):
    cpu_library()
    monkeypatch.setattr(cpu_build, "_processor", lambda command: b"another")
    cpu_library.cache_clear()
    assert cpu_library().library is not None
    assert len(list((tmp_path / "cache/hetconv").iterdir())) == 2


def test_an_empty_cxx_is_none_and_hetconvs_own_goes_first(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert "HETCONV_CXX" not in str(cpu_library().problem)
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu_library.cache_clear()
    assert "no-such-compiler" in cpu_library().problem


def test_a_changed_kernel_is_compiled_anew(compiler, tmp_path, monkeypatch):
    cpu_library()
    changed = tmp_path / "changed.cpp"
    changed.write_text(cpu_build.SOURCE.read_text() + "// changed\n")
    monkeypatch.setattr(cpu_build, "SOURCE", changed)
    cpu_library.cache_clear()
    assert cpu_library().library is not None
    assert compilations(compiler) == 2


@pytest.mark.parametrize(
    ("compiler", "problem"),
    [
        ("", "no C++ compiler: HETCONV_CXX is empty"),
        ("no-such-compiler", "no C++ compiler: no program 'no-such-compiler' is on PATH"),
        ("false", "false failed: it said nothing"),
        ("sh -c 'echo fatal error: no room >&2; exit 1'", "failed: fatal error: no room"),
        ("c++ 'open", "No closing quotation"),
    ],
)
def test_without_a_working_compiler_it_says_why_and_layers_run_by_onednn(compiler, problem, monkeypatch):
    monkeypatch.setenv("HETCONV_CXX", compiler)
    assert cpu_library().library is None
    assert problem in cpu_library().problem
    assert "\n" not in cpu_library().problem
    layer = HetConv2d(8, 8, 3, padding=1, p=4)
    fused = FusedHetConv2d(layer)
    assert fused.runs_as == "oneDNN"
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(fused(x), layer(x))
    with pytest.raises(HetconvError, match="the CPU kernel cannot run here"):
        cpu_kernel.pack(layer.weight_1x1, layer.weight_ring, layer.spec)


def test_a_cache_folder_that_cannot_be_made_is_a_reason_too(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "file" in cpu_library().problem


def test_a_compiler_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(cpu_build, "_SECONDS", 0.1)
    monkeypatch.setenv("HETCONV_CXX", "sh -c 'sleep 5'")
    assert "timed out" in cpu_library().problem
