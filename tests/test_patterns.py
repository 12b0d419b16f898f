"""A plan's regular expressions: they match whole names, and none takes for ever."""

import signal
import threading
import time

import pytest

from hetconv_cli import patterns
from hetconv_cli.errors import ArgumentError
from hetconv_cli.patterns import matches

ENDLESS, NAME = r"([a-z0-9.]+)+x", "layer4.2.conv2.depthwise.branch.0"  # 2 to the power of 33 ways to say no


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"layer1\..*", "layer1.0.conv1", True),
        (r"layer1", "layer1.0.conv1", False),
        (r"(?:[^.]+\.)+conv1", "layer1.0.conv1", True),  # repetition in repetition that says what it matches
        (r".*", "", True),
    ],
)
def test_a_pattern_matches_a_whole_name(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_a_pattern_that_takes_for_ever_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    with pytest.raises(ArgumentError, match=r"pattern 're:\(\[a-z.*takes too long on 'layer4.*than 0.05 s") as error:
        matches(ENDLESS, NAME)
    assert "repetition inside repetition" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_program_s_own_timer_and_handler_come_back(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    before = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0)
    try:
        assert matches("a", "a")
        with pytest.raises(ArgumentError):
            matches(ENDLESS, NAME)
        assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_IGN
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == pytest.approx(1000, abs=1)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_in_another_thread_it_matches_without_a_limit(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 1e-6)
    found = []
    thread = threading.Thread(target=lambda: found.append(matches("(a+)+", "a" * 20)))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_limit_costs_little():
    started = time.process_time()
    for _ in range(1000):
        matches(r"layer1\..*", "layer1.0.conv1")
    assert time.process_time() - started < 1
