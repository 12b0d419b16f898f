"""One option a layer: never worse than any other choice, and the bound is one."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli import knapsack
from hetconv_cli.knapsack import Option, least_cost, least_error

options = st.builds(Option, st.integers(0, 30), st.floats(0, 1, width=16))
networks = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=5)


def every_choice(layers):
    for picks in itertools.product(*layers):
        yield sum(option.cost for option in picks), math.fsum(option.error for option in picks)


@given(networks, st.integers(0, 100))
def test_no_choice_within_the_budget_has_less_error(layers, budget):
    within = [error for cost, error in every_choice(layers) if cost <= budget]
    found = least_error(layers, budget)
    if not within:
        assert found is None
        return
    assert found.cost <= budget
    assert found.error == pytest.approx(min(within), abs=1e-9)
    assert (found.bound, found.grain) == (found.error, 1)


@given(networks, st.floats(0, 5))
def test_no_choice_within_the_error_costs_less(layers, most):
    within = [cost for cost, error in every_choice(layers) if error <= most]
    found = least_cost(layers, most)
    if not within:
        assert found is None
        return
    assert found.error <= most * (1 + 1e-9)
    assert found.cost == found.bound == min(within)


@given(networks, st.integers(0, 100), st.floats(0, 5))
def test_with_costs_rounded_the_limit_is_kept_and_the_bound_holds(layers, budget, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_STATES", 3)
        cheap, near = least_error(layers, budget), least_cost(layers, most)
    within = [error for cost, error in every_choice(layers) if cost <= budget]
    assert (cheap is None) == (not within)
    if cheap:
        assert cheap.cost <= budget
        assert cheap.bound - 1e-9 <= min(within) <= cheap.error + 1e-9
    fitting = [cost for cost, error in every_choice(layers) if error <= most]
    if near:
        assert near.bound <= min(fitting, default=math.inf)
        assert near.error <= most * (1 + 1e-9)


def test_costs_that_share_a_divisor_are_counted_in_it():
    layers = [[Option(1_000_000 * cost, 1 / (1 + cost)) for cost in range(5)] for _ in range(40)]
    found = least_error(layers, 80_000_000)
    assert found.grain == 1
    assert found.cost <= 80_000_000
    assert found.error == found.bound
