"""The CPU kernel, compiled for this processor when it is first needed and kept in the user's cache folder.

Needs a C++ compiler with OpenMP: $HETCONV_CXX, else $CXX, else c++. `HETCONV_CXX=` (empty) forbids compiling. Where
none works, layers run as two convolutions of oneDNN.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_kernel.cpp")
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared", "-fopenmp")
_SECONDS = 120  # a compiler that takes longer is not waiting for us


@dataclass(frozen=True)
class Built:
    """The loaded library, or in one line why there is none."""

    library: ctypes.CDLL | None
    problem: str | None = None


def cpu_library() -> Built:
    """The kernel's library; compiled at most once in a process, a second or two, and once for all later ones."""
    return _built(os.environ.get("HETCONV_CXX", os.environ.get("CXX", "c++")))


@lru_cache
def _built(compiler: str) -> Built:
    try:
        command = shlex.split(compiler)
        if not command or shutil.which(command[0]) is None:
            found = f"no program {command[0]!r} is on PATH" if command else "HETCONV_CXX is empty"
            return Built(None, f"no C++ compiler: {found}")
        return Built(_loaded(_compiled(command)))
    except subprocess.CalledProcessError as error:
        return Built(None, f"{compiler} failed: {_first_error(error.stderr)}")
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:  # no home, an open quote
        return Built(None, f"{compiler}: {error}")


def _loaded(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    library.hetconv_lanes.restype = library.hetconv_packed_floats.restype = ctypes.c_int64
    library.hetconv_forward.restype = None
    return library


def _compiled(command: list[str]) -> Path:
    """The compiled library's file; named after all that it was made of, so that a stale one is never loaded."""
    made_of = SOURCE.read_bytes() + " ".join((*command, *_OPTIONS)).encode() + _processor(command)
    file = _cache() / f"cpu_kernel-{hashlib.sha256(made_of).hexdigest()[:24]}.so"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            fresh = Path(folder, file.name)
            _run([*command, *_OPTIONS, str(SOURCE), "-o", str(fresh)])
            fresh.replace(file)  # at once: another process may be doing the same
    return file


def _processor(command: list[str]) -> bytes:
    """What the compiler defines for this processor, its own version included: one cache may serve many machines."""
    return _run([*command, *_OPTIONS[:2], "-dM", "-E", "-x", "c++", os.devnull])


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS).stdout


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/hetconv"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetconv"


def _first_error(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
