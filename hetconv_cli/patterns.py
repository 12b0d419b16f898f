"""The regular expressions of a plan, matched with a limit: those of Python may take exponentially long."""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from hetconv_cli.errors import ArgumentError

SECONDS = 2.0  # of processor time; a name takes microseconds


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern`, a regular expression, matches the whole of a layer's `name`.

    Raises:
        ArgumentError: that is not known after `SECONDS`. Only a program's main thread can be stopped so, and not on
            Windows; elsewhere it takes as long as it takes.
    """
    with _limited(f"the plan's pattern 're:{pattern}' takes too long on {name!r}"):
        return re.fullmatch(pattern, name) is not None


@contextlib.contextmanager
def _limited(what: str) -> Iterator[None]:
    """Ends what runs inside after `SECONDS`: while it matches, `re` looks for signals now and then."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise ArgumentError(
            f"{what}, more than {SECONDS:g} s: expected one that says in a single way what it matches;"
            " take out repetition inside repetition, such as (a+)+"
        )

    handler = signal.signal(signal.SIGVTALRM, give_up)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
