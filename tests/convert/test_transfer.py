"""Weights carried over: which taps, which products, and the size of signals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.convert.conversion import convert
from hetconv_cli.convert.transfer import transfer_weights
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.plan import Rules, Wish

EXACT = {"rtol": 0, "atol": 1e-12}


def same_class(n: int, m: int, filters: int, channels: int, p: int, arrangement: str) -> bool:
    """Whether filter n has a K x K kernel on channel m, from the definition."""
    if arrangement == "shifted":
        return (m - n) % p == 0
    return n * p // filters == m * p // channels


def mask(filters: int, channels: int, kernel: tuple[int, int], p: int, arrangement: str) -> torch.Tensor:
    """1 at every tap that a HetConv has."""
    taps = torch.zeros(filters, channels, *kernel, dtype=torch.float64)
    for n in range(filters):
        for m in range(channels):
            if same_class(n, m, filters, channels, p, arrangement):
                taps[n, m] = 1
            taps[n, m, kernel[0] // 2, kernel[1] // 2] = 1
    return taps


def pair(m: int, n: int, kernel=(3, 3), *, p: int, arrangement="blocked", **more) -> tuple[nn.Conv2d, HetConv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(m, n, kernel, dtype=torch.float64, **more)
    return conv, HetConv2d(m, n, kernel, p=p, arrangement=arrangement, dtype=torch.float64, **more)


# --- HetConv ---


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 7),
    st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5))),
    st.sampled_from(ARRANGEMENTS),
)
def test_every_tap_that_the_new_layer_has_is_carried_over(p, per_class, n, kernel, arrangement):
    m = p * per_class
    conv, layer = pair(m, n, kernel, p=p, arrangement=arrangement)
    transfer_weights(layer, conv, "center")
    assert torch.equal(layer.dense_weight(), conv.weight.detach() * mask(n, m, kernel, p, arrangement))
    assert torch.equal(layer.bias, conv.bias)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("more", [{}, {"stride": 2, "padding": 1, "bias": False}, {"padding": 3, "dilation": 2}])
def test_where_the_dense_kernels_are_zero_outside_their_class_the_new_layer_computes_the_same(arrangement, more):
    conv, layer = pair(8, 6, p=4, arrangement=arrangement, **more)
    with torch.no_grad():
        conv.weight.mul_(mask(6, 8, (3, 3), 4, arrangement))
    transfer_weights(layer, conv, "center")
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), **EXACT)


def test_fresh_weights_are_the_centre_taps_scaled_to_the_new_fan_in():
    conv, layer = pair(8, 6, p=4)
    transfer_weights(layer, conv, "fresh")
    scale = (8 * 9 / (2 * 9 + 6)) ** 0.5
    expected = conv.weight.detach() * mask(6, 8, (3, 3), 4, "blocked") * scale
    torch.testing.assert_close(layer.dense_weight(), expected, **EXACT)
    assert torch.equal(layer.bias, conv.bias)


def test_no_random_number_is_drawn_for_a_hetconv():
    for transfer in ("center", "fresh"):
        conv, layer = pair(8, 6, p=4)
        before = torch.get_rng_state()
        transfer_weights(layer, conv, transfer)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_convolution_keeps_its_weights():
    for layer in (HetConv2d(8, 6, 3, p=4), DepthwisePointwise(8, 6, 3), GroupwisePointwise(8, 6, 3, groups=2)):
        conv = nn.Conv2d(8, 6, 3)
        before = [parameter.detach().clone() for parameter in conv.parameters()]
        transfer_weights(layer, conv, "center")
        assert all(torch.equal(new, old) for new, old in zip(conv.parameters(), before, strict=True))


def test_on_meta_there_is_nothing_to_carry():
    conv, layer = nn.Conv2d(8, 6, 3, device="meta"), HetConv2d(8, 6, 3, p=4, device="meta")
    transfer_weights(layer, conv, "center")
    assert layer.weight_1x1.is_meta


def deep_stack(depth: int, seed: int, channels: int = 64) -> nn.Sequential:
    """Plain convolutions and ReLUs, initialised so that signals keep their size."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def size_ratio(wish: Wish, transfer: str, depth: int) -> float:
    """Output variance of converted stacks to that of the originals: the geometric mean over twelve draws."""
    logarithms = []
    for seed in range(12):
        model = deep_stack(depth, seed)
        x = torch.randn(4, 64, 8, 8, generator=torch.Generator().manual_seed(seed))
        converted = convert(model, rules=Rules(wish), transfer=transfer).model
        logarithms.append(math.log(converted(x).var() / model(x).var()))
    return math.exp(sum(logarithms) / len(logarithms))


@pytest.mark.parametrize("wish", [Wish(p=4), Wish(p=16), Wish(p="pc"), Wish(p=4, arrangement="shifted")])
def test_signals_keep_their_size_through_a_deep_stack_of_fresh_layers(wish):
    assert 1 / 2 < size_ratio(wish, "fresh", depth=12) < 2
    assert size_ratio(wish, "center", depth=12) < 1e-4  # what rescaling is for


@pytest.mark.parametrize("wish", [Wish("dwc"), Wish("gwc", groups=4)])
def test_signals_keep_their_size_through_fresh_pairs(wish):
    assert 1 / 2 < size_ratio(wish, "fresh", depth=6) < 2


# --- GWC and DWC ---


def dense_of(layer: GroupwisePointwise) -> torch.Tensor:
    """The Conv2d weight [N, M, K_h, K_w] that a pair amounts to: sum over the channels between, group by group."""
    n, m = layer.pointwise.weight.shape[:2]
    size = m // layer.groups
    pointwise = layer.pointwise.weight.detach().reshape(n, layer.groups, size)
    spatial = layer.spatial.weight.detach().reshape(layer.groups, size, size, *layer.spatial.kernel_size)
    return torch.einsum("ngi,gicyx->ngcyx", pointwise, spatial).reshape(n, m, *layer.spatial.kernel_size)


def pair_layer(groups: int | None, m=8, n=6, kernel=(3, 3), **more) -> GroupwisePointwise:
    if groups is None:
        return DepthwisePointwise(m, n, kernel, dtype=torch.float64, **more)
    return GroupwisePointwise(m, n, kernel, groups=groups, dtype=torch.float64, **more)


def test_the_dense_weight_of_a_pair_computes_what_the_pair_does():
    torch.manual_seed(0)
    for groups in (None, 1, 2, 4):
        layer = pair_layer(groups, bias=False)
        x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(nn.functional.conv2d(x, dense_of(layer)), layer(x), **EXACT)


@pytest.mark.parametrize("groups", [None, 2, 4, 8])
@pytest.mark.parametrize(("n", "kernel"), [(6, (3, 3)), (1, (1, 5)), (20, (3, 1))])
def test_a_dense_weight_that_is_such_a_product_comes_back_exactly(groups, n, kernel):
    torch.manual_seed(0)
    same = {"stride": 2, "padding": (kernel[0] // 2, kernel[1] // 2)}
    source, layer = (pair_layer(groups, 8, n, kernel, **same) for _ in range(2))
    conv = nn.Conv2d(8, n, kernel, dtype=torch.float64, **same)
    with torch.no_grad():
        conv.weight.copy_(dense_of(source))
    transfer_weights(layer, conv, "center")
    torch.testing.assert_close(dense_of(layer), conv.weight.detach(), **EXACT)
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), **EXACT)


@given(st.integers(0, 2**16), st.sampled_from((None, 1, 2, 4)), st.integers(1, 9))
@settings(max_examples=40)
def test_no_random_product_is_nearer_to_the_dense_weight(seed, groups, n):
    torch.manual_seed(seed)
    conv, layer = nn.Conv2d(8, n, 3, dtype=torch.float64), pair_layer(groups, 8, n)
    others = [dense_of(pair_layer(groups, 8, n)) for _ in range(3)]
    transfer_weights(layer, conv, "center")
    nearest, weight = dense_of(layer), conv.weight.detach()
    distance = (nearest - weight).norm()
    for other in others:
        best_scale = (other * weight).sum() / (other * other).sum()
        assert distance <= (other * best_scale - weight).norm() + 1e-12
    assert distance <= weight.norm()


def test_of_a_depthwise_pair_the_error_is_what_the_first_singular_values_leave():
    torch.manual_seed(0)
    conv, layer = nn.Conv2d(8, 6, 3, dtype=torch.float64), pair_layer(None)
    transfer_weights(layer, conv, "center")
    values = [torch.linalg.svdvals(conv.weight[:, m].detach().flatten(1)) for m in range(8)]
    left = sum(float((each[1:] ** 2).sum()) for each in values) ** 0.5
    assert float((dense_of(layer) - conv.weight.detach()).norm()) == pytest.approx(left, rel=1e-10)


@pytest.mark.parametrize("transfer", ["center", "fresh"])
@pytest.mark.parametrize("groups", [None, 2])
def test_the_bias_of_a_pair_is_the_convolutions(transfer, groups):
    conv, layer = nn.Conv2d(8, 6, 3, dtype=torch.float64), pair_layer(groups)
    transfer_weights(layer, conv, transfer)
    assert torch.equal(layer.pointwise.bias, conv.bias)


def test_half_precision_is_carried_over_in_its_own_type():
    conv = nn.Conv2d(8, 6, 3, dtype=torch.bfloat16)
    for layer in (HetConv2d(8, 6, 3, p=4, dtype=torch.bfloat16), DepthwisePointwise(8, 6, 3, dtype=torch.bfloat16)):
        transfer_weights(layer, conv, "center")
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
        assert all(parameter.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_sums_of_taps_answer_even_surfaces_as_the_dense_kernels_do(arrangement):
    conv, layer = pair(8, 6, p=4, arrangement=arrangement)
    transfer_weights(layer, conv, "sum")
    even = torch.arange(8.0, dtype=torch.float64).view(1, 8, 1, 1).expand(1, 8, 5, 5)
    torch.testing.assert_close(layer(even), conv(even), **EXACT)
    own = mask(6, 8, (3, 3), 4, arrangement)[:, :, 0, 0].bool()
    assert torch.equal(layer.dense_weight()[own], conv.weight.detach()[own])
