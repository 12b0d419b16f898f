"""Orders that keep more: never less than before, whole, the same for a seed, and the hidden classes found again."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli.arrangement import classes
from hetconv_cli.conversion.reorder.classes import LayerEnergy, Segment, Side, identity, value
from hetconv_cli.conversion.reorder.search import best_orders

STREAM = {0: 8, 1: 12, 2: 4}  # channels


def side(segments, p, arrangement="blocked"):
    size = sum(segment.channels * segment.repeat for segment in segments)
    return Side(tuple(segments), np.array(classes(size, p, arrangement)))


def layer(random, filters, channels, p, arrangement="blocked", weight=1.0):
    rows, columns = side(filters, p, arrangement), side(channels, p, arrangement)
    energies = random.random((len(rows.classes), len(columns.classes))) ** 4
    return LayerEnergy(energies, rows, columns, p, weight)


def segment(stream):
    return Segment(stream, STREAM[stream])


@st.composite
def networks(draw):
    """Concatenations, several parts, a fixed axis, channels in twos, a stream that meets itself."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    sides = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3)
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        channels = [segment(stream) for stream in draw(sides)] or [Segment(None, 4)]
        filters = [Segment(2, 4, repeat=2)] if draw(st.booleans()) else [segment(stream) for stream in draw(sides)]
        if draw(st.booleans()):
            filters.append(Segment(None, 4))
        arrangement = draw(st.sampled_from(["blocked", "shifted"]))
        layers.append(layer(random, filters, channels, draw(st.sampled_from([1, 2, 4])), arrangement, random.random()))
    return layers, draw(st.sets(st.sampled_from([0, 1, 2]))), draw(st.integers(0, 9))


@given(networks())
def test_orders_are_whole_the_same_each_time_and_never_keep_less(network):
    layers, free, seed = network
    orders = best_orders(layers, list(STREAM.values()), sorted(free), seed)
    assert [sorted(order) for order in orders] == [list(range(size)) for size in STREAM.values()]
    assert all(np.array_equal(orders[stream], np.arange(STREAM[stream])) for stream in set(STREAM) - free)
    first = identity(list(STREAM.values()))
    assert value(layers, orders) >= value(layers, first)
    again = best_orders(layers, list(STREAM.values()), sorted(free), seed)
    assert all(np.array_equal(one, other) for one, other in zip(orders, again, strict=True))


@given(st.integers(0, 10**6))
def test_one_small_stream_gets_the_best_order_of_all(seed):
    random = np.random.default_rng(seed)
    fixed = LayerEnergy(random.random((6, 4)), side([Segment(None, 6)], 2), side([Segment(0, 4)], 2), 2)
    found = value([fixed], best_orders([fixed], [4], [0]))
    assert found == pytest.approx(max(value([fixed], [np.array(o)]) for o in itertools.permutations(range(4))))


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("anchored", [True, False])
def test_hidden_classes_are_found_again(p, anchored):
    """A chain of layers with energy in the classes only, seen through random orders of the streams between them."""
    random = np.random.default_rng(0)
    sizes = [16, 24, 32, 16, 16]
    hidden = [random.permutation(size) for size in sizes]
    layers = []
    for i, (m, n) in enumerate(itertools.pairwise(sizes)):
        rows, columns = side([Segment(i + 1, n)], p), side([Segment(i, m)], p)
        own = rows.classes[:, None] == columns.classes
        layers.append(LayerEnergy((random.random((n, m)) * own)[hidden[i + 1]][:, hidden[i]], rows, columns, p))
    free = list(range(len(sizes)))
    if anchored:  # the last axis is in fixed order, and that is the one of its hidden classes
        last = layers[-1]
        energies = last.energies[np.argsort(hidden[-1])]
        layers[-1] = LayerEnergy(energies, side([Segment(None, sizes[-1])], p), last.channels, p)
        free.pop()
    orders = best_orders(layers, sizes, free)
    assert value(layers, orders) == pytest.approx(sum(layer.energies.sum() for layer in layers))
