"""What is timed is checked first; rows say what was promised and what was reached."""

import pytest
import torch
from torch import nn

from hetconv_cli.bench import run
from hetconv_cli.bench.run import Settings, bench
from hetconv_cli.bench.runtimes import check_runtime
from hetconv_cli.bench.subjects import layer_contests, network_contest
from hetconv_cli.conversion.convert import make_wish
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.measure.network import prepare
from hetconv_cli.models.example import ExampleSpec

EXAMPLE = ExampleSpec(((1, 3, 10, 10),))
QUICK = {"batches": (2,), "rounds": 1, "seconds": 1e-3}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    conv = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*conv, nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def network(net):
    return prepare(lambda place: meta_copy(net) if place == "meta" else net, EXAMPLE)


@pytest.fixture(scope="module")
def contest(net, network):
    return network_contest(net, network, [make_wish(4), make_wish(variant="dwc")], EXAMPLE)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_rows_hold_what_the_macs_promise_and_what_the_clock_gave(contest, runtime):
    report = bench("net", [contest], Settings(runtimes=(runtime,), **QUICK))
    standard, hetconv, dwc = report.rows
    # image stem 3*32*9, two convolutions 32*32*9, over 100 pixels; P = 4 leaves a third of the two, DWC 32*(9 + 32)
    stem, two = 100 * 864, 100 * 2 * 9216
    assert hetconv.promised == pytest.approx((stem + two) / (stem + two / 3))
    assert dwc.promised == pytest.approx((stem + two) / (stem + 100 * 2 * 32 * 41))
    assert standard.speedup == standard.promised == 1
    for row in report.rows:
        assert row.share == pytest.approx(row.speedup / row.promised)
        assert row.images_per_s == pytest.approx(2000 / row.median_ms)
        assert row.error < 1e-5
    assert [row.variant for row in report.rows] == ["standard", "hetconv", "dwc"]


def test_each_different_layer_is_timed_once(net, network):
    contests = layer_contests(net, network, [make_wish(4)])
    assert [contest.layer for contest in contests] == ["2"]  # the second has the same geometry and input
    (contest,) = contests
    assert contest.promised(contest.subjects[1]) == pytest.approx(3)
    assert bench("net", contests, Settings(**QUICK)).rows[1].layer == "2"


def test_no_time_is_given_for_a_wrong_result(contest, monkeypatch):
    difference = run._difference
    monkeypatch.setattr(run, "_difference", lambda got, want: difference(got, 1.01 * want))
    with pytest.raises(HetconvError, match="no time is given for a wrong result"):
        bench("net", [contest], Settings(**QUICK))


def test_int8_runs_in_onnxruntime_and_is_refused_elsewhere(contest):
    rows = bench("net", [contest], Settings(runtimes=("onnxruntime",), dtypes=("int8",), **QUICK)).rows
    assert [row.dtype for row in rows] == ["int8"] * 3
    assert 0 < rows[1].error < 0.5
    with pytest.raises(ArgumentError, match="int8 is measured in onnxruntime and openvino"):
        bench("net", [contest], Settings(runtimes=("torch",), dtypes=("int8",), **QUICK))


def test_a_runtime_that_is_not_here_says_why(monkeypatch):
    monkeypatch.setattr("hetconv_cli.bench.runtimes.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'hetconv-cli\[openvino\]'"):
        check_runtime("openvino", "cpu")
    with pytest.raises(ArgumentError, match="runtime onnxruntime is measured on the CPU only"):
        check_runtime("onnxruntime", "cuda")


def test_a_wish_that_converts_nothing_is_refused(net, network):
    with pytest.raises(ArgumentError, match="nothing to convert"):
        network_contest(net, network, [make_wish(1)], EXAMPLE)
