"""The facts of one convolution against hand-computed values and the definition of a sliding window."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hetconv_cli.geometry import PADDING_MODES, Geometry, resolve_padding


def test_the_smallest_description_is_a_convolution_without_padding():
    g = Geometry(3, 8, (3, 3))
    assert (g.stride, g.padding, g.dilation, g.groups, g.bias, g.padding_mode) == (
        (1, 1),
        (0, 0),
        (1, 1),
        1,
        True,
        "zeros",
    )


def test_a_geometry_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="stride"):
        Geometry(3, 8, (3, 3)).stride = (2, 2)


def test_equal_facts_are_equal_and_hash_alike():
    assert Geometry(3, 8, (3, 3)) == Geometry(3, 8, (3, 3))
    assert len({Geometry(3, 8, (3, 3)), Geometry(3, 8, (3, 3)), Geometry(3, 8, (3, 1))}) == 2


def test_padding_modes_are_conv2ds():
    assert PADDING_MODES == ("zeros", "reflect", "replicate", "circular")


@pytest.mark.parametrize(("kernel", "taps", "odd"), [((3, 3), 9, True), ((1, 7), 7, True), ((2, 3), 6, False)])
def test_taps_and_whether_the_window_has_a_centre(kernel, taps, odd):
    g = Geometry(4, 6, kernel)
    assert (g.taps, g.is_odd) == (taps, odd)
    assert Geometry(4, 6, kernel[::-1]).is_odd is odd


def test_weights_of_the_standard_convolution():
    assert Geometry(64, 128, (3, 3)).weights == 73_728
    assert Geometry(64, 128, (1, 7), groups=4).weights == 128 * 16 * 7
    assert Geometry(64, 64, (3, 3), groups=64).weights == 576


@pytest.mark.parametrize(
    ("facts", "size", "expected"),
    [
        ({"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)}, (224, 224), (112, 112)),  # resnet's stem
        ({"kernel": (3, 3), "padding": (1, 1)}, (5, 9), (5, 9)),
        ({"kernel": (3, 3)}, (5, 9), (3, 7)),
        ({"kernel": (3, 3), "padding": (2, 2), "dilation": (2, 2)}, (32, 31), (32, 31)),
        ({"kernel": (1, 7), "stride": (1, 2), "padding": (0, 3)}, (17, 17), (17, 9)),
        ({"kernel": (3, 3), "stride": (2, 3), "padding": (4, 0)}, (4, 8), (5, 2)),
    ],
)
def test_output_size_by_hand(facts, size, expected):
    assert Geometry(4, 4, **facts).output_size(*size) == expected


axis = st.tuples(st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.integers(0, 6), st.integers(1, 3))


@given(axis, axis)
def test_output_size_is_the_number_of_places_where_the_window_fits(rows, columns):
    def places(size, k, stride, pad, dilation):
        return sum(start + dilation * (k - 1) < size + 2 * pad for start in range(0, size + 2 * pad, stride))

    expected = (places(*rows), places(*columns))
    assume(min(expected) > 0)
    kernel, stride, padding, dilation = zip(rows[1:], columns[1:], strict=True)
    assert Geometry(1, 1, kernel, stride, padding, dilation).output_size(rows[0], columns[0]) == expected


def test_it_prints_as_kernel_and_channels():
    assert str(Geometry(64, 128, (1, 7))) == "1x7, 64 -> 128"


def test_numbers_stay_as_they_are():
    assert resolve_padding((2, 0), (3, 3), (2, 2), (1, 1)) == (2, 0)


def test_valid_is_no_padding():
    assert resolve_padding("valid", (5, 3), (2, 1), (3, 3)) == (0, 0)


@pytest.mark.parametrize(
    ("kernel", "dilation", "expected"),
    [((3, 3), (1, 1), (1, 1)), ((1, 7), (1, 1), (0, 3)), ((5, 3), (2, 3), (4, 3))],
)
def test_same_by_hand(kernel, dilation, expected):
    assert resolve_padding("same", kernel, (1, 1), dilation) == expected


odd_pair = st.tuples(st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 3, 5, 7)))
small_pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(odd_pair, small_pair, small_pair)
def test_same_keeps_height_and_width(kernel, dilation, size):
    padding = resolve_padding("same", kernel, (1, 1), dilation)
    assert Geometry(1, 1, kernel, (1, 1), padding, dilation).output_size(*size) == size


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 1)])
def test_same_with_a_stride_is_refused(stride):
    with pytest.raises(ValueError, match=rf"padding='same' needs stride 1, got stride \({stride[0]}, {stride[1]}\)"):
        resolve_padding("same", (3, 3), stride, (1, 1))


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="padding must be numbers, 'same' or 'valid', got 'full'"):
        resolve_padding("full", (3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize("padding", [(-1, 0), (0, -2)])
def test_negative_padding_is_refused(padding):
    with pytest.raises(ValueError, match="padding must not be negative"):
        resolve_padding(padding, (3, 3), (1, 1), (1, 1))
