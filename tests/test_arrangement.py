"""Which filter has K x K kernels on which channels, against the definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli.arrangement import ARRANGEMENTS, classes, members, shifted_as_blocked

parts = st.integers(1, 12)
counts = st.integers(1, 40)


def test_the_two_arrangements():
    assert ARRANGEMENTS == ("blocked", "shifted")


def test_figure_3_of_the_paper_shifts_by_one_channel_from_filter_to_filter():
    # M = 8, P = 4: the first filter on channels 0 and 4, the second on 1 and 5, the fifth as the first
    of_channel, of_filter = classes(8, 4, "shifted"), classes(6, 4, "shifted")
    own = [[m for m in range(8) if of_channel[m] == of_filter[n]] for n in range(6)]
    assert own == [[0, 4], [1, 5], [2, 6], [3, 7], [0, 4], [1, 5]]


def test_blocked_keeps_neighbours_together():
    of_channel, of_filter = classes(8, 4, "blocked"), classes(6, 4, "blocked")
    own = [[m for m in range(8) if of_channel[m] == of_filter[n]] for n in range(6)]
    assert own == [[0, 1], [0, 1], [2, 3], [4, 5], [4, 5], [6, 7]]  # floor(4 n / 6): 0 0 1 2 2 3


@given(parts, st.integers(1, 6), counts)
def test_shifted_matches_where_m_minus_n_is_a_multiple_of_p(p, per_class, n):
    m = p * per_class
    of_channel, of_filter = classes(m, p, "shifted"), classes(n, p, "shifted")
    for a in range(n):
        for b in range(m):
            assert (of_filter[a] == of_channel[b]) == ((b - a) % p == 0)


@given(parts, st.integers(1, 6), counts)
def test_blocked_matches_where_both_lie_in_the_same_pth(p, per_class, n):
    m = p * per_class
    of_channel, of_filter = classes(m, p, "blocked"), classes(n, p, "blocked")
    for a in range(n):
        for b in range(m):
            assert (of_filter[a] == of_channel[b]) == (a * p // n == b * p // m)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@given(p=parts, count=counts)
def test_class_sizes_differ_by_at_most_one(arrangement, p, count):
    sizes = [len(mine) for mine in members(count, p, arrangement)]
    assert len(sizes) == p
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@given(p=parts, count=counts)
def test_members_lists_each_index_once_ascending_under_its_class(arrangement, p, count):
    of = classes(count, p, arrangement)
    for of_class, mine in enumerate(members(count, p, arrangement)):
        assert mine == [index for index in range(count) if of[index] == of_class]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_with_fewer_filters_than_classes_some_classes_are_empty(arrangement):
    sizes = [len(mine) for mine in members(3, 8, arrangement)]
    assert sorted(sizes) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_relabelling_by_hand():
    # 8 channels, P = 4: class 0 is {0, 4}, class 1 {1, 5}, ...; side by side they stand 0 4 1 5 2 6 3 7
    assert shifted_as_blocked(8, 4) == [0, 2, 4, 6, 1, 3, 5, 7]


@given(parts, st.integers(1, 6))
def test_relabelling_turns_shifted_classes_into_blocked_ones(p, per_class):
    channels = p * per_class
    place = shifted_as_blocked(channels, p)
    assert sorted(place) == list(range(channels))
    blocked = classes(channels, p, "blocked")
    assert [blocked[place[m]] for m in range(channels)] == classes(channels, p, "shifted")


@given(parts, st.integers(1, 6))
def test_relabelling_keeps_the_order_within_a_class(p, per_class):
    place = shifted_as_blocked(p * per_class, p)
    for mine in members(p * per_class, p, "shifted"):
        assert [place[m] for m in mine] == sorted(place[m] for m in mine)
