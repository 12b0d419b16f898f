"""Blocks alternate, one runner is open at a time, and the spread is the interquartile range."""

import contextlib

from hetconv_cli.bench.clock import time_alternately


def test_runners_take_turns_and_only_one_is_open():
    seen, is_open = [], []

    def runner(name):
        @contextlib.contextmanager
        def opened():
            assert not is_open, "two runners open at once"
            is_open.append(name)
            seen.append(name)
            yield lambda: None
            is_open.clear()

        return opened

    timings = time_alternately([runner("a"), runner("b")], rounds=3, seconds=1e-4, threads=1)
    assert seen == ["a", "b"] * 3
    assert len(timings) == 2


def test_every_block_warms_up_before_it_is_timed():
    calls = []

    @contextlib.contextmanager
    def opened():
        calls.clear()
        yield lambda: calls.append(1)

    (timing,) = time_alternately([opened], rounds=1, seconds=1e-4, threads=1)
    assert len(calls) >= 2
    assert timing.median_ms > 0
