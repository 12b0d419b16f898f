"""Who enters: wishes, plans, files and the peer; and which layers are timed alone."""

import pytest
import torch
from torch import nn

from hetconv_cli.bench.run import Settings, bench
from hetconv_cli.bench.subjects import Entrant, entrant, layer_contests, network_contest, with_peers
from hetconv_cli.conversion.convert import convert, make_wish
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.network import prepare
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Rules

EXAMPLE = ExampleSpec(((1, 8, 10, 10),))
QUICK = Settings(batches=(2,), rounds=1, seconds=1e-3)
MIXED = Rules(make_wish(4), {"0": make_wish(2)})


class Concatenating(nn.Module):
    """The second convolution reads a concatenation, so its HetConv is shifted."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, input):
        return self.second(torch.cat((self.first(input), input), 1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()


def traced(net):
    return prepare(lambda place: meta_copy(net) if place == "meta" else net, EXAMPLE)


@pytest.fixture(scope="module")
def network(net):
    return traced(net)


def test_a_plan_of_several_parts_says_them(net, network):
    report = bench("net", [network_contest(net, network, [entrant(network, MIXED, "plan")], EXAMPLE)], QUICK)
    row = report.rows[1]
    assert (row.variant, row.p, row.parts, row.origin) == ("hetconv", None, {2: 1, 4: 1}, "plan")
    # 100 and 64 pixels; weights 8 (M/P 9 + M - M/P) at P = 2 and 4, of 8 * 8 * 9
    assert row.promised == pytest.approx(164 * 576 / (100 * 8 * 40 + 64 * 8 * 24))


def test_a_converted_network_is_timed_as_it_is(net, network):
    conversion = convert(net, 4, example=EXAMPLE)
    one = Entrant(conversion.plan, origin="file", model=conversion.model)
    standard, subject = network_contest(net, network, [one], EXAMPLE).subjects
    assert subject.model is conversion.model
    assert (subject.variant, subject.p, subject.origin) == ("hetconv", 4, "file")
    assert standard.model is net


def test_the_peer_stands_behind_each_hetconv_with_the_same_parts(net, network):
    asked = [
        entrant(network, MIXED, "plan"),
        entrant(network, make_wish(8)),
        entrant(network, make_wish(variant="dwc")),
    ]
    rows = bench("net", [network_contest(net, network, with_peers(asked), EXAMPLE)], QUICK).rows[1:]
    assert [row.variant for row in rows] == ["hetconv", "grouped", "hetconv", "grouped", "dwc"]
    assert [row.parts for row in rows] == [{2: 1, 4: 1}] * 2 + [{8: 2}] * 2 + [{}]
    assert rows[0].promised > rows[1].promised
    assert all(row.error < 1e-5 for row in rows)


def test_the_peer_takes_its_channels_in_blocks():
    net = Concatenating().eval()
    network = traced(net)
    hetconv, peer = network_contest(net, network, with_peers([entrant(network, make_wish(4))]), EXAMPLE).subjects[1:]
    assert hetconv.model.second.arrangement == "shifted"
    assert peer.readable.second.arrangement == "blocked"
    assert not list(peer.model.second.buffers())  # no channel is gathered


def test_the_peer_needs_hetconv_layers(network):
    with pytest.raises(ArgumentError, match="there are none: give --p"):
        with_peers([entrant(network, make_wish(variant="dwc"))])


def test_what_stays_is_said_where_nothing_converts():
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 2))
    with pytest.raises(ArgumentError, match=r"its 2 Conv2d are kept \(1 1x1: nothing to save; 1 even kernel 2x2"):
        entrant(traced(net), make_wish(4))


def test_layers_alone_are_those_of_the_plans(net, network):
    asked = with_peers([entrant(network, MIXED, "plan")])
    first, second = layer_contests(net, network, asked)
    assert [(contest.layer, contest.subjects[1].p) for contest in (first, second)] == [("0", 2), ("3", 4)]
    assert [subject.variant for subject in first.subjects] == ["standard", "hetconv", "grouped"]
    assert first.promised(first.subjects[1]) == pytest.approx(9 * 8 / 40)
    assert len(bench("net", [first, second], QUICK).rows) == 6


def test_layers_of_one_geometry_and_several_parts_are_timed_each():
    conv = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
    net = nn.Sequential(*conv).eval()
    network = traced(net)
    contests = layer_contests(net, network, [entrant(network, Rules(make_wish(4), {"1": make_wish(2)}))])
    assert [(contest.layer, contest.subjects[1].p) for contest in contests] == [("0", 4), ("1", 2)]


def test_a_pair_is_timed_with_all_that_it_stands_for():
    pair = [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1)]
    net = nn.Sequential(*pair).eval()
    conversion = convert(net, 4, example=EXAMPLE, pairs=True)
    asked = [Entrant(conversion.plan, origin="file", model=conversion.model)]
    (contest,) = layer_contests(net, traced(net), asked)
    standard, hetconv = contest.subjects
    assert [type(module) for module in standard.model] == [type(module) for module in pair]
    assert isinstance(hetconv.model[0], HetConv2d)
    assert contest.promised(hetconv) == pytest.approx(8 * (9 + 16) / (16 * (2 * 9 + 6)))
