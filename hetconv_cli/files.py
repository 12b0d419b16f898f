"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hetconv_cli.errors import ArgumentError, HetconvError


def check_target(target: Path, overwrite: bool) -> None:
    """Raises ArgumentError unless `target` can be written: folder there and writable, no file unless `overwrite`."""
    folder = target.parent
    try:
        if target.is_dir():
            raise ArgumentError(f"{target}: is a folder; name a file")
        if target.exists() and not overwrite:
            raise ArgumentError(f"{target} exists: pass --force to replace it, or name another file")
        if not folder.is_dir():
            raise ArgumentError(f"{target}: no such folder: {folder}")
        with tempfile.TemporaryFile(dir=folder):  # what permissions say is not what a root user may do
            pass
    except OSError as error:
        raise ArgumentError(f"{target}: cannot write in {folder}: {error.strerror}") from None


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its name when the block succeeds, and is gone when it does not."""
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=".hetconv-", suffix=".tmp", dir=target.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(target)
    except OSError as error:
        raise HetconvError(f"{target}: could not be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
