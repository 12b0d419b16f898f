"""Channels to classes: balanced, the best there is, the same each time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli.conversion.reorder.assignment import assign


@st.composite
def problems(draw, most_channels=40):
    """Benefits, whole numbers so that there are ties, and capacities that hold all channels."""
    capacities = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda c: sum(c) <= most_channels))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([1, 3, 1000]))
    return random.integers(-scale, scale + 1, (sum(capacities), len(capacities))).astype(float), capacities


def total(benefits, chosen):
    return benefits[np.arange(len(chosen)), chosen].sum()


@given(problems())
def test_every_class_is_full_and_no_exchange_is_better(problem):
    benefits, capacities = problem
    chosen = assign(benefits, capacities)
    assert np.bincount(chosen, minlength=len(capacities)).tolist() == capacities
    assert np.array_equal(chosen, assign(benefits, capacities))
    first = np.repeat(np.arange(len(capacities)), capacities)
    assert total(benefits, chosen) >= total(benefits, first)
    for one, other in itertools.combinations(range(len(chosen)), 2):
        swapped = chosen.copy()
        swapped[[one, other]] = chosen[[other, one]]
        assert total(benefits, swapped) <= total(benefits, chosen)


@given(problems(most_channels=7))
def test_it_is_the_best_of_all_assignments(problem):
    benefits, capacities = problem
    places = np.repeat(np.arange(len(capacities)), capacities)
    best = max(total(benefits, np.array(order)) for order in set(itertools.permutations(places.tolist())))
    assert total(benefits, assign(benefits, capacities)) == pytest.approx(best)


def test_one_class_for_each_channel_is_the_plain_assignment_problem():
    benefits = np.eye(50)[np.random.default_rng(0).permutation(50)]
    assert total(benefits, assign(benefits, [1] * 50)) == 50
