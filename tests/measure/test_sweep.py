from itertools import pairwise

import pytest
import torch
from torch import nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.measure.network import prepare
from hetconv_cli.measure.sweep import sweep

SHAPES = ((1, 8, 6, 6),)


def swept(*channels, parts=None):
    layers = [nn.Conv2d(m, n, 3, padding=1, bias=False) for m, n in pairwise(channels)]
    model = nn.Sequential(*layers)
    return sweep(prepare(lambda place: model.to(place), torch.randn(1, channels[0], 6, 6)), "net", SHAPES, parts)


def test_a_layer_over_p_costs_what_the_equations_say():
    result = swept(8, 8)
    positions = 36
    assert (result.standard.macs, result.standard.params) == (positions * 64 * 9, 64 * 9)
    assert [(point.variant, point.p) for point in result.points] == [
        *[(variant, p) for p in (2, 4, 8) for variant in ("hetconv", "gwc")],
        *[("hetconv", "pc"), ("dwc", None)],
    ]
    found = {(point.variant, point.p): point for point in result.points}
    assert found["hetconv", 4].macs == positions * 8 * (2 * 9 + 6)
    assert found["gwc", 4].macs == positions * 8 * (2 * 9 + 8)
    assert found["dwc", None].macs == positions * 8 * (9 + 8)
    assert found["hetconv", "pc"].params == 8 * (9 + 7)
    assert found["hetconv", 4].ratio == pytest.approx(1 / 4 + 3 / 4 / 9)


def test_equation_6_crosses_before_p_equals_m_where_m_equals_n():
    crossings = swept(8, 8).crossings
    assert crossings.dwc_at == pytest.approx(8 * 8 / 9)  # N (1 - 1/K^2)
    assert (crossings.layers, crossings.dwc_holds_in, crossings.gwc_holds_in, crossings.gwc_below) == (1, 1, 1, True)


def test_with_more_filters_than_channels_both_equations_turn_round():
    crossings = swept(8, 16).crossings
    assert crossings.dwc_at == pytest.approx(16 * 8 / 9)  # beyond P = M = 8
    assert (crossings.dwc_holds_in, crossings.gwc_holds_in, crossings.gwc_below) == (0, 0, False)


def test_where_the_pairs_cost_the_same_nothing_is_below():
    assert swept(8, 9).crossings.gwc_below is None


def test_parts_that_are_asked_for_may_leave_layers_standing():
    result = swept(8, 12, 8, parts=[8])
    point = result.points[0]
    assert (point.p, point.converted_layers, point.misfits) == (8, 1, 1)


def test_p_1_is_the_standard_convolution_and_has_no_group_convolution_beside_it():
    points = swept(8, 8, parts=[1]).points
    assert [(point.variant, point.converted_layers, point.ratio) for point in points] == [
        ("hetconv", 0, 1.0),
        ("dwc", 1, pytest.approx(17 / 72)),
    ]


def test_a_network_with_nothing_to_convert_cannot_be_swept():
    with pytest.raises(ArgumentError, match="net: nothing to convert, so nothing to sweep"):
        swept(3, 8)
