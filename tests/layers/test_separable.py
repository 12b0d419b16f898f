"""The layers that the paper compares with, against pairs of plain convolutions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
odd_pair = st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)))
small_pair = st.tuples(st.integers(1, 2), st.integers(1, 2))


def image(channels: int, batch: int = 2) -> torch.Tensor:
    make = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, 9, 7, generator=make, dtype=torch.float64)


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), odd_pair, small_pair, small_pair, st.booleans(),
    st.sampled_from(tuple(MODES)),
)  # fmt: skip
def test_groupwise_is_a_group_convolution_m_to_m_then_a_pointwise(
    groups, each, n, kernel, stride, dilation, bias, mode
):
    m = groups * each
    rows, columns = (k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    layer = GroupwisePointwise(
        m, n, kernel, stride, (rows, columns), dilation, bias, mode, groups=groups, dtype=torch.float64
    )
    first, second = layer.spatial.weight, layer.pointwise.weight
    assert first.shape == (m, each, *kernel)
    assert second.shape == (n, m, 1, 1)
    padded = F.pad(image(m), (columns, columns, rows, rows), mode=MODES[mode])
    between = F.conv2d(padded, first, None, stride, 0, dilation, groups)
    expected = F.conv2d(between, second, layer.pointwise.bias)
    torch.testing.assert_close(layer(image(m)), expected, rtol=0, atol=1e-10)


@given(st.integers(1, 6), st.integers(1, 6), odd_pair, small_pair, st.booleans())
def test_depthwise_is_a_kernel_per_channel_then_a_pointwise(m, n, kernel, stride, bias):
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = DepthwisePointwise(m, n, kernel, stride, padding, bias=bias, dtype=torch.float64)
    x = image(m)
    each = [F.conv2d(x[:, c : c + 1], layer.spatial.weight[c : c + 1], None, stride, padding) for c in range(m)]
    expected = F.conv2d(torch.cat(each, dim=1), layer.pointwise.weight, layer.pointwise.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_only_the_pointwise_has_a_bias():
    layer = GroupwisePointwise(8, 6, 3, groups=4)
    assert set(layer.state_dict()) == {"spatial.weight", "pointwise.weight", "pointwise.bias"}
    assert layer.pointwise.bias.shape == (6,)
    assert set(GroupwisePointwise(8, 6, 3, bias=False, groups=4).state_dict()) == {"spatial.weight", "pointwise.weight"}


@pytest.mark.parametrize("make", [DepthwisePointwise, lambda *a, **k: GroupwisePointwise(*a, groups=4, **k)])
@pytest.mark.parametrize(
    ("padding", "size"), [("same", (9, 7)), ("valid", (7, 3)), (1, (9, 5)), ((0, 2), (7, 7)), (3, (13, 9))]
)
def test_padding_is_conv2ds(make, padding, size):
    assert make(8, 6, (3, 5), padding=padding, dtype=torch.float64)(image(8)).shape == (2, 6, *size)


def test_a_single_image_needs_no_batch_dimension():
    layer = GroupwisePointwise(8, 6, 3, padding=1, groups=2, dtype=torch.float64)
    torch.testing.assert_close(layer(image(8)[0]), layer(image(8))[0])


def macs(layer: torch.nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(*shape, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, 20 * 8 * 8 * 9 + 20 * 8 * 6),
        (2, 20 * 8 * 4 * 9 + 20 * 8 * 6),
        (4, 3840),  # 20 pixels (8 * 2 * 9 + 8 * 6)
        (8, 2400),  # 20 pixels (8 * 9 + 8 * 6)
    ],
)
def test_the_dispatcher_counts_what_the_tables_count(groups, expected):
    layer = GroupwisePointwise(8, 6, 3, 2, 1, groups=groups, device="meta")
    assert layer(torch.empty(1, 8, 9, 7, device="meta")).shape == (1, 6, 5, 4)
    assert macs(layer, 1, 8, 9, 7) == expected
    assert macs(layer, 3, 8, 9, 7) == 3 * expected


def test_the_dispatcher_counts_a_depthwise_pair_by_hand():
    assert macs(DepthwisePointwise(8, 6, 3, 2, 1, device="meta"), 1, 8, 9, 7) == 2400
    assert macs(DepthwisePointwise(8, 6, (1, 7), padding=(0, 3), device="meta"), 1, 8, 2, 3) == 6 * 8 * (7 + 6)


def test_parameters_by_hand():
    count = sum(p.numel() for p in GroupwisePointwise(8, 6, 3, groups=4).parameters())
    assert count == 8 * 2 * 9 + 8 * 6 + 6
    assert sum(p.numel() for p in DepthwisePointwise(8, 6, 3, bias=False).parameters()) == 8 * 9 + 8 * 6


@pytest.mark.parametrize("name", ["meta", "cpu"])
def test_parameters_are_made_on_the_device_and_in_the_type_asked_for(name):
    for layer in (
        DepthwisePointwise(8, 6, 3, device=name, dtype=torch.bfloat16),
        GroupwisePointwise(8, 6, 3, groups=2, device=name, dtype=torch.bfloat16),
    ):
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {(name, torch.bfloat16)}


BAD = [
    ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
    ({"out_channels": 0}, "out_channels must be a positive integer, got 0"),
    ({"kernel_size": 2}, "kernel_size must be odd.*got 2"),
    ({"stride": 0}, "stride must be an integer >= 1, or a pair of them; got 0"),
    ({"dilation": 0}, "dilation must be an integer >= 1, or a pair of them; got 0"),
    ({"padding": -1}, "padding must be an integer >= 0, or a pair of them; got -1"),
    ({"padding": "full"}, "padding must be numbers, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, r"padding='same' needs stride 1, got stride \(2, 2\)"),
    ({"padding_mode": "wrap"}, "padding_mode must be one of zeros, reflect, replicate, circular; got 'wrap'"),
]
GOOD = {"in_channels": 8, "out_channels": 6, "kernel_size": 3}


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        DepthwisePointwise(**(GOOD | arguments))
    with pytest.raises(ArgumentError, match=said):
        GroupwisePointwise(**(GOOD | arguments), groups=4)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (3, r"`in_channels` \(=8\) must be divisible by `groups` \(=3\)"),
        (16, r"`in_channels` \(=8\) must be divisible by `groups` \(=16\)"),
        (0, "groups must be a positive integer, got 0"),
        (-4, "groups must be a positive integer, got -4"),
        (2.0, "groups must be a positive integer, got 2.0"),
        (True, "groups must be a positive integer, got True"),
    ],
)
def test_bad_groups_are_refused(groups, said):
    with pytest.raises(ArgumentError, match=said):
        GroupwisePointwise(**GOOD, groups=groups)
