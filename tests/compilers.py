"""Which compiler the CPU kernel is made with, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library


@contextmanager
def compiler(command: str | None) -> Iterator[None]:
    """The library is looked for anew inside, with HETCONV_CXX=`command` (None: not set), and again behind."""
    with pytest.MonkeyPatch.context() as patch:
        if command is None:
            patch.delenv("HETCONV_CXX", raising=False)
        else:
            patch.setenv("HETCONV_CXX", command)
        cpu_library.cache_clear()
        try:
            yield
        finally:
            cpu_library.cache_clear()
