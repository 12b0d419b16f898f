"""The CPU kernel, compiled for this processor when it is first needed and kept in the user's cache folder.

Needs a C++ compiler with OpenMP: $HETCONV_CXX, else $CXX, else c++. `HETCONV_CXX=` (empty) forbids compiling. Where
none works, layers run as two convolutions of oneDNN.
"""

import contextlib
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


@lru_cache
def cpu_library() -> Built:
    """The kernel's library, looked for once in a process; compiled in a second or two where none is kept.

    Once, because packed weights fit one library: the environment may change between packing and running.
    """
    compiler = os.environ.get("HETCONV_CXX", os.environ.get("CXX") or "c++")
    try:
        command = [compiler] if shutil.which(compiler) else shlex.split(compiler)
        if not command or shutil.which(command[0]) is None:
            found = f"no program {command[0]!r} is on PATH" if command else "HETCONV_CXX is empty"
            return Built(None, f"no C++ compiler: {found}")
        return Built(_kept_or_compiled(command))
    except subprocess.CalledProcessError as error:
        return Built(None, f"{compiler} failed: {_first_error(error.stderr)}")
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:  # no home, an open quote
        return Built(None, f"{compiler}: {error}")


def _kept_or_compiled(command: list[str]) -> ctypes.CDLL:
    """The library from the cache folder; its file is named after all that it was made of, so it is never stale."""
    made_of = SOURCE.read_bytes() + " ".join((*command, *_OPTIONS)).encode() + _processor(command)
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"cpu_kernel-{hashlib.sha256(made_of).hexdigest()[:24]}.so"
    if file.exists():
        _check_owner(folder)
        _check_owner(file)
        with contextlib.suppress(OSError):  # damaged
            return _loaded(file)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        new = Path(fresh, file.name)
        _run([*command, *_OPTIONS, str(SOURCE), "-o", str(new)])
        new.replace(file)  # at once: another process may be doing the same
    return _loaded(file)


def _check_owner(path: Path) -> None:
    """Raises OSError where somebody else may have written what is to be loaded."""
    found = path.stat()
    if hasattr(os, "getuid") and (found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022):
        raise OSError(f"{path} can be written by others; remove it, or set XDG_CACHE_HOME to a folder of yours")


def _loaded(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    for function in (library.hetconv_lanes, library.hetconv_packed_floats, library.hetconv_forward):
        function.restype = ctypes.c_int64
    return library


def _processor(command: list[str]) -> bytes:
    """What the compiler defines for this processor, its own version included: one cache may serve many machines."""
    return _run([*command, *_OPTIONS[:2], "-dM", "-E", "-x", "c++", os.devnull])


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS).stdout


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/hetconv"
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))  # which must be absolute
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "hetconv"


def _first_error(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
