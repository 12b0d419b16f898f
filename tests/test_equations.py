"""Equations (1) to (9) against numbers worked out by hand, and against the paper's own tables."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli import equations

# VGG-16 for CIFAR-10: (input channels, filters, side of the output map) of its 3x3 convolutions, then the linears.
STEM = (3, 64, 32)
CONVS = [
    (64, 64, 32),
    (64, 128, 16),
    (128, 128, 16),
    (128, 256, 8),
    (256, 256, 8),
    (256, 256, 8),
    (256, 512, 4),
    (512, 512, 4),
    (512, 512, 4),
    (512, 512, 2),
    (512, 512, 2),
    (512, 512, 2),
]
LINEARS = 512 * 512 + 512 * 10

K3 = (3, 3)
channels = st.integers(1, 64)
kernels = st.tuples(st.integers(1, 9), st.integers(1, 9))
outputs = st.tuples(st.integers(1, 50), st.integers(1, 50))
parts = st.integers(1, 16)


def vgg16(count) -> int:
    """MACs of the network when `count(m, n, kernel, output)` stands for its twelve convertible convolutions."""
    stem = 32 * 32 * 3 * 64 * 9
    return stem + sum(count(m, n, K3, (side, side)) for m, n, side in CONVS) + LINEARS


def vgg16_weights(count) -> int:
    return 3 * 64 * 9 + sum(count(m, n, K3, (1, 1)) for m, n, _ in CONVS) + LINEARS


def in_millions(macs: int, digits: int = 2) -> str:
    return f"{macs / 1e6:.{digits}f}"


def test_1_standard_macs_by_hand():
    assert equations.standard_macs(8, 6, K3, (5, 4)) == 20 * 8 * 6 * 9 == 8640


def test_2_hetconv_macs_by_hand():
    assert equations.hetconv_kxk_macs(8, 6, K3, (5, 4), 4) == 20 * 2 * 6 * 9 == 2160
    assert equations.hetconv_1x1_macs(8, 6, (5, 4), 4) == 20 * 6 * 6 == 720
    assert equations.hetconv_macs(8, 6, K3, (5, 4), 4) == 2880


def test_2_hetconv_macs_of_a_rectangular_kernel_by_hand():
    # 1x7, 6 filters, P=2: 4 channels of 7 taps and 4 of one, on 2x3 pixels
    assert equations.hetconv_macs(8, 6, (1, 7), (2, 3), 2) == 6 * 6 * (4 * 7 + 4) == 1152
    assert equations.hetconv_macs(8, 6, (7, 1), (3, 2), 2) == 1152
    assert equations.hetconv_macs(8, 6, (5, 3), (1, 1), 8) == 6 * (15 + 7)


def test_3_hetconv_ratio_by_hand():
    assert equations.hetconv_ratio(K3, 4) == Fraction(1, 3)  # 1/4 + 3/4 / 9
    assert equations.hetconv_ratio(K3, 2) == Fraction(5, 9)  # 1/2 + 1/2 / 9
    assert equations.hetconv_ratio((1, 7), 2) == Fraction(4, 7)  # 1/2 + 1/2 / 7
    assert equations.hetconv_ratio((1, 1), 8) == 1
    assert equations.hetconv_ratio((5, 5), 1) == 1


def test_4_dwc_macs_by_hand():
    assert equations.dwc_macs(8, 6, K3, (5, 4)) == 20 * 8 * 9 + 20 * 8 * 6 == 2400
    assert equations.dwc_macs(8, 6, (1, 7), (2, 3)) == 6 * 8 * 7 + 6 * 8 * 6


def test_5_dwc_ratio_by_hand():
    assert equations.dwc_ratio(6, K3) == Fraction(5, 18)  # 1/6 + 1/9


def test_7_gwc_macs_as_printed_by_hand():
    assert equations.gwc_macs(8, 6, K3, (5, 4), 4) == 20 * 8 * 6 * 9 // 4 + 20 * 8 * 6 == 3120


def test_7_gwc_macs_of_the_tables_put_the_group_convolution_on_m_to_m():
    assert equations.gwc_table_macs(8, 6, K3, (5, 4), 4) == 20 * 8 * 8 * 9 // 4 + 20 * 8 * 6 == 3840


def test_8_gwc_ratio_by_hand():
    assert equations.gwc_ratio(K3, 4) == Fraction(13, 36)  # 1/4 + 1/9


def test_hetconv_weights_by_hand():
    assert equations.hetconv_weights(8, 6, K3, 4) == 6 * (2 * 9 + 6) == 144
    assert equations.hetconv_weights(64, 64, K3, 4) == 12_288


def test_vgg16_cifar_standard():
    assert vgg16(equations.standard_macs) == 313_463_808
    assert in_millions(vgg16(equations.standard_macs), 3) == "313.464"
    assert vgg16_weights(equations.standard_macs) == 14_977_728


@pytest.mark.parametrize(
    ("p", "millions"),
    [(2, "175.05"), (4, "105.85"), (8, "71.24"), (16, "53.94"), (32, "45.29"), (64, "40.97"), ("pc", "38.33")],
)
def test_vgg16_cifar_hetconv(p, millions):
    macs = vgg16(lambda m, n, k, o: equations.hetconv_macs(m, n, k, o, m if p == "pc" else p))
    assert in_millions(macs) == millions


def test_vgg16_cifar_gwc_as_the_tables_count_it():
    assert in_millions(vgg16(lambda m, n, k, o: equations.gwc_table_macs(m, n, k, o, 4))) == "107.42"
    assert in_millions(vgg16_weights(lambda m, n, k, o: equations.gwc_table_macs(m, n, k, o, 4)), 3) == "5.387"


def test_vgg16_cifar_dwc():
    assert in_millions(vgg16(equations.dwc_macs)) == "38.28"


@given(parts, channels, channels, kernels, outputs)
def test_the_ratios_are_exactly_the_macs_over_the_standard_macs(p, per_class, n, kernel, output):
    m = p * per_class
    standard = equations.standard_macs(m, n, kernel, output)
    assert Fraction(equations.hetconv_macs(m, n, kernel, output, p), standard) == equations.hetconv_ratio(kernel, p)
    assert Fraction(equations.dwc_macs(m, n, kernel, output), standard) == equations.dwc_ratio(n, kernel)
    assert Fraction(equations.gwc_macs(m, n, kernel, output, p), standard) == equations.gwc_ratio(kernel, p)


@given(parts, channels, channels, kernels, outputs)
def test_hetconv_is_its_two_parts_and_its_weights_at_every_output_pixel(p, per_class, n, kernel, output):
    m = p * per_class
    kxk = equations.hetconv_kxk_macs(m, n, kernel, output, p)
    macs = equations.hetconv_macs(m, n, kernel, output, p)
    assert macs == kxk + equations.hetconv_1x1_macs(m, n, output, p)
    assert macs == equations.hetconv_weights(m, n, kernel, p) * output[0] * output[1]


@given(channels, channels, kernels, outputs)
def test_part_one_is_the_standard_convolution(m, n, kernel, output):
    assert equations.hetconv_macs(m, n, kernel, output, 1) == equations.standard_macs(m, n, kernel, output)


@given(parts, channels, kernels, outputs)
def test_both_forms_of_7_agree_where_m_is_n(groups, per_group, kernel, output):
    m = groups * per_group
    assert equations.gwc_macs(m, m, kernel, output, groups) == equations.gwc_table_macs(m, m, kernel, output, groups)


@given(channels, channels, kernels, outputs)
def test_the_tables_form_with_a_group_per_channel_is_equation_4(m, n, kernel, output):
    assert equations.gwc_table_macs(m, n, kernel, output, m) == equations.dwc_macs(m, n, kernel, output)


@pytest.mark.parametrize("m", [1, 2, 3, 16, 64, 512, 10**6])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (1, 7), (11, 11)])
def test_6_pc_is_below_dwc(m, kernel):
    left, right = equations.pc_against_dwc(m, kernel)
    taps = kernel[0] * kernel[1]
    assert left == Fraction(1, m) + (1 - Fraction(1, m)) / taps
    assert right == Fraction(1, m) + Fraction(1, taps)
    assert left < right


@pytest.mark.parametrize("p", [1, 2, 4, 8, 64, 10**6])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 1), (11, 11)])
def test_9_hetconv_is_below_gwc(p, kernel):
    left, right = equations.hetconv_against_gwc(kernel, p)
    taps = kernel[0] * kernel[1]
    assert left == Fraction(1, p) + (1 - Fraction(1, p)) / taps
    assert right == Fraction(1, p) + Fraction(1, taps)
    assert left < right


def test_counts_are_exact_integers_of_any_size():
    m, p = 10**30, 10**10
    macs = equations.hetconv_macs(m, 7, K3, (10**6, 1), p)
    assert macs == 7 * 10**6 * (9 * 10**20 + 10**30 - 10**20)
    assert type(macs) is int
    assert equations.dwc_macs(m, m, K3, (1, 1)) == 9 * 10**30 + 10**60
    assert equations.hetconv_ratio(K3, 10**30) == Fraction(8 + 10**30, 9 * 10**30)


@pytest.mark.parametrize("p", [3, 16, 0, -1])
def test_a_part_that_does_not_divide_the_channels_is_refused(p):
    said = rf"p must divide the 8 input channels, got {p}"
    with pytest.raises(ValueError, match=said):
        equations.hetconv_kxk_macs(8, 6, K3, (5, 4), p)
    with pytest.raises(ValueError, match=said):
        equations.hetconv_1x1_macs(8, 6, (5, 4), p)
    with pytest.raises(ValueError, match=said):
        equations.hetconv_macs(8, 6, K3, (5, 4), p)
    with pytest.raises(ValueError, match=said):
        equations.hetconv_weights(8, 6, K3, p)


@pytest.mark.parametrize("count", [equations.gwc_macs, equations.gwc_table_macs])
@pytest.mark.parametrize("groups", [3, 16, 0, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(count, groups):
    with pytest.raises(ValueError, match=rf"groups must divide the 8 input channels, got {groups}"):
        count(8, 6, K3, (5, 4), groups)
