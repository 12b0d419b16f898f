"""The operator against a loop written straight from the definition, filter by filter and channel by channel."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hetconv_cli import equations
from hetconv_cli.arrangement import ARRANGEMENTS, shifted_as_blocked
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d import choose_implementation, hetconv2d
from hetconv_cli.ops.hetconv2d.taps import split_window, window

FORMS = ("reference", "grouped")
NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
EXACT = {"rtol": 0, "atol": 1e-10}


def matches(m: int, n: int, channels: int, filters: int, p: int, arrangement: str) -> bool:
    """Whether filter n has a K x K kernel on channel m."""
    if arrangement == "shifted":
        return (m - n) % p == 0
    return n * p // filters == m * p // channels


@dataclass(frozen=True)
class Case:
    """One call of the operator; tensors follow from it."""

    per_class: int = 2
    p: int = 3
    filters: int = 7
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: str | tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    bias: bool = True
    arrangement: str = "blocked"
    batch: int | None = 2
    size: tuple[int, int] = (5, 7)
    seed: int = 0

    @property
    def channels(self) -> int:
        return self.p * self.per_class

    @property
    def pixels(self) -> tuple[int, int]:
        """The padding in pixels per side."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            return tuple(k // 2 * d for k, d in zip(self.kernel, self.dilation, strict=True))
        return self.padding

    @property
    def output(self) -> tuple[int, int]:
        span = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        return tuple(
            (s + 2 * pad - over - 1) // step + 1
            for s, pad, over, step in zip(self.size, self.pixels, span, self.stride, strict=True)
        )

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor | None]:
        make = torch.Generator().manual_seed(self.seed)
        shape = (self.channels, *self.size) if self.batch is None else (self.batch, self.channels, *self.size)
        shapes = {
            "input": shape,
            "weight_1x1": (self.filters, self.channels, 1, 1),
            "weight_ring": (self.filters, self.per_class, self.kernel[0] * self.kernel[1] - 1),
            "bias": (self.filters,),
        }
        drawn = {name: torch.randn(s, generator=make, dtype=torch.float64).to(dtype) for name, s in shapes.items()}
        return drawn if self.bias else drawn | {"bias": None}

    def arguments(self) -> dict[str, object]:
        return {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
            "p": self.p,
            "arrangement": self.arrangement,
        }

    def call(self, implementation: str, tensors: dict[str, torch.Tensor | None]) -> torch.Tensor:
        return hetconv2d(**tensors, **self.arguments(), implementation=implementation)

    def dense(self, tensors: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """The weight [N, M, K_h, K_w] of a standard convolution that computes the same."""
        kh, kw = self.kernel
        dense = tensors["weight_1x1"].new_zeros(self.filters, self.channels, kh * kw)
        centre = kh * kw // 2
        for n in range(self.filters):
            seen = 0
            for m in range(self.channels):
                dense[n, m, centre] = tensors["weight_1x1"][n, m, 0, 0]
                if matches(m, n, self.channels, self.filters, self.p, self.arrangement):
                    ring = tensors["weight_ring"][n, seen]
                    dense[n, m, :centre], dense[n, m, centre + 1 :] = ring[:centre], ring[centre:]
                    seen += 1
        return dense.view(self.filters, self.channels, kh, kw)

    def by_definition(self, tensors: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """For each filter and channel: a K x K kernel where the class matches, else a 1 x 1 at the centre tap."""
        given = {name: None if t is None else t.numpy() for name, t in tensors.items()}
        x = given["input"] if self.batch is not None else given["input"][None]
        (rows, columns), (kh, kw), (ho, wo) = self.pixels, self.kernel, self.output
        around = ((0, 0), (0, 0), (rows, rows), (columns, columns))
        padded = np.pad(x, around, mode=NUMPY_MODES[self.padding_mode])

        def seen_by_tap(m: int, i: int, j: int) -> np.ndarray:
            top, left = i * self.dilation[0], j * self.dilation[1]
            bottom, right = top + (ho - 1) * self.stride[0] + 1, left + (wo - 1) * self.stride[1] + 1
            return padded[:, m, top : bottom : self.stride[0], left : right : self.stride[1]]

        result = np.zeros((len(x), self.filters, ho, wo))
        for n in range(self.filters):
            matched = 0
            for m in range(self.channels):
                small = given["weight_1x1"][n, m, 0, 0]
                result[:, n] += small * seen_by_tap(m, kh // 2, kw // 2)
                if matches(m, n, self.channels, self.filters, self.p, self.arrangement):
                    ring = iter(given["weight_ring"][n, matched])
                    for i in range(kh):
                        for j in range(kw):
                            if (i, j) != (kh // 2, kw // 2):
                                result[:, n] += next(ring) * seen_by_tap(m, i, j)
                    matched += 1
            if self.bias:
                result[:, n] += given["bias"][n]
        return torch.from_numpy(result if self.batch is not None else result[0])


odd = st.sampled_from((1, 3, 3, 3, 5, 7))
two = st.tuples


@st.composite
def cases(draw, p=None, filters=None) -> Case:
    part = draw(st.integers(1, 6)) if p is None else p
    kernel = draw(two(odd, odd))
    dilation = draw(two(st.integers(1, 3), st.integers(1, 3)))
    reach = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    padding = draw(
        st.one_of(
            two(*(st.integers(0, r + 2) for r in reach)),  # smaller and larger than what keeps the size
            st.just(reach),
            st.sampled_from(("same", "valid")),
        )
    )
    stride = (1, 1) if padding == "same" else draw(two(st.integers(1, 3), st.integers(1, 3)))
    pixels = reach if padding == "same" else (0, 0) if padding == "valid" else padding
    # reflection and wrapping need an input larger than what they add
    least = [max(2 * r + 1 - 2 * pad, pad + 1) for r, pad in zip(reach, pixels, strict=True)]
    return Case(
        per_class=draw(st.integers(1, 3)),
        p=part,
        filters=draw(st.integers(1, 9)) if filters is None else filters,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=draw(st.sampled_from(tuple(NUMPY_MODES))),
        bias=draw(st.booleans()),
        arrangement=draw(st.sampled_from(ARRANGEMENTS)),
        batch=draw(st.sampled_from((1, 2, None))),
        size=tuple(low + draw(st.integers(0, 4)) for low in least),
        seed=draw(st.integers(0, 2**16)),
    )


CORNERS = {
    "fewer filters than classes": Case(p=6, filters=2),
    "one filter": Case(p=4, filters=1),
    "filters not divisible by p": Case(p=4, filters=6),
    "p = 1": Case(p=1, per_class=4),
    "p = M": Case(p=6, per_class=1),
    "K = 1": Case(kernel=(1, 1), padding=(0, 0)),
    "K = 1 with padding": Case(kernel=(1, 1), padding=(2, 1)),
    "1 x 7": Case(kernel=(1, 7), padding=(0, 3)),
    "7 x 1 without padding": Case(kernel=(7, 1), padding="valid", size=(9, 4)),
    "one output pixel": Case(kernel=(5, 3), padding=(0, 0), size=(5, 3)),
    "padding beyond the window": Case(padding=(3, 2), stride=(2, 3)),
    "padding small above, large beside": Case(kernel=(5, 3), padding=(0, 2), dilation=(1, 2), size=(7, 7)),
    "same, dilated": Case(padding="same", dilation=(2, 3), padding_mode="reflect"),
    "batch 0": Case(batch=0),
    "unbatched": Case(batch=None, stride=(2, 2)),
    "unbatched, wrapped": Case(batch=None, padding_mode="circular"),
}

# --- the definition ---


@settings(max_examples=150)
@given(cases(), st.sampled_from(FORMS))
def test_equals_the_definition(case, form):
    tensors = case.tensors()
    expected = case.by_definition(tensors)
    torch.testing.assert_close(case.call(form, tensors), expected, **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("corner", CORNERS)
def test_equals_the_definition_at_the_corners(corner, arrangement, form):
    case = Case(**{**vars(CORNERS[corner]), "arrangement": arrangement})
    tensors = case.tensors()
    torch.testing.assert_close(case.call(form, tensors), case.by_definition(tensors), **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_an_empty_batch_gives_an_empty_output_in_every_padding_mode(mode, form):
    case = Case(batch=0, padding_mode=mode, stride=(2, 1))
    assert case.call(form, case.tensors()).shape == (0, 7, 3, 7)


def test_by_hand_the_1x1_kernels_read_the_centre_of_the_window():
    # M = 2, N = 2, P = 2, K = 3, no padding, one window. Ring weights 1, own centre 10, the other channel's 1x1 100.
    weight_1x1 = torch.tensor([[10.0, 100.0], [100.0, 10.0]]).view(2, 2, 1, 1)
    x = torch.stack((torch.arange(1.0, 10), torch.arange(11.0, 20))).view(1, 2, 3, 3)
    # filter 0: (1+...+9 without 5) + 10*5 + 100*15 = 40 + 50 + 1500; filter 1: 120 + 10*15 + 100*5
    for form in FORMS:
        y = hetconv2d(x, weight_1x1, torch.ones(2, 1, 8), kernel_size=3, p=2, implementation=form)
        assert y.flatten().tolist() == [1590, 770]


def test_by_hand_the_ring_runs_row_by_row_without_the_centre():
    ring = torch.arange(1.0, 9).view(1, 1, 8)
    x = torch.zeros(1, 1, 3, 3)
    for tap, expected in zip(range(9), [1, 2, 3, 4, 50, 5, 6, 7, 8], strict=True):
        x.zero_().view(-1)[tap] = 1
        y = hetconv2d(x, torch.full((1, 1, 1, 1), 50.0), ring, kernel_size=3, p=1)
        assert y.item() == expected


def test_split_window_undoes_window():
    kernels = torch.randn(4, 3, 5, 3)
    ring, centre = split_window(kernels)
    assert centre.equal(kernels[:, :, 2, 1])
    assert window(ring, centre, (5, 3)).equal(kernels)


@given(cases())
def test_pc_is_a_part_of_all_channels(case):
    case = Case(**{**vars(case), "p": case.channels, "per_class": 1})
    tensors = case.tensors()
    by_word = hetconv2d(**tensors, **(case.arguments() | {"p": "pc"}))
    assert by_word.equal(hetconv2d(**tensors, **case.arguments()))


@given(st.data(), st.integers(1, 6), st.integers(1, 3), st.sampled_from(FORMS))
def test_shifted_is_blocked_after_relabelling_channels_and_filters(data, p, filters_per_class, form):
    shifted = Case(**{**vars(data.draw(cases(p=p, filters=p * filters_per_class))), "arrangement": "shifted"})
    blocked = Case(**{**vars(shifted), "arrangement": "blocked"})
    tensors = shifted.tensors()
    to_channel = torch.tensor(shifted_as_blocked(shifted.channels, p))
    to_filter = torch.tensor(shifted_as_blocked(shifted.filters, p))
    # position i of the blocked layer holds what stood at from_...[i] in the shifted one
    from_channel, from_filter = to_channel.argsort(), to_filter.argsort()
    relabelled = {
        "input": tensors["input"].index_select(-3, from_channel),
        "weight_1x1": tensors["weight_1x1"][from_filter][:, from_channel],
        "weight_ring": tensors["weight_ring"][from_filter],
        "bias": None if tensors["bias"] is None else tensors["bias"][from_filter],
    }
    torch.testing.assert_close(
        blocked.call(form, relabelled).index_select(-3, to_filter), shifted.call(form, tensors), **EXACT
    )


# --- gradients ---


def gradients(case: Case, form: str) -> list[torch.Tensor]:
    tensors = {name: None if t is None else t.requires_grad_() for name, t in case.tensors().items()}
    output = case.call(form, tensors)
    weigh = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(output, [t for t in tensors.values() if t is not None], weigh))


@given(cases())
def test_both_forms_have_the_same_gradients(case):
    for ours, expected in zip(gradients(case, "grouped"), gradients(case, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("corner", ["fewer filters than classes", "filters not divisible by p", "K = 1", "batch 0"])
def test_gradients_are_those_of_the_dense_convolution(corner, arrangement, form):
    case = Case(**{**vars(CORNERS[corner]), "arrangement": arrangement})
    tensors = {name: t.requires_grad_() for name, t in case.tensors().items()}
    dense = F.conv2d(tensors["input"], case.dense(tensors), tensors["bias"], case.stride, case.pixels)
    weigh = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(dense, list(tensors.values()), weigh)
    for ours, wanted in zip(gradients(case, form), expected, strict=True):
        torch.testing.assert_close(ours, wanted, **EXACT)


SMALL = {"per_class": 1, "p": 2, "filters": 3, "batch": 1, "size": (4, 3), "stride": (2, 1)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_gradcheck(mode, arrangement, form):
    case = Case(**SMALL, arrangement=arrangement, padding_mode=mode)
    tensors = [t.requires_grad_() for t in case.tensors().values()]
    names = list(case.tensors())
    assert torch.autograd.gradcheck(lambda *given: case.call(form, dict(zip(names, given, strict=True))), tensors)


@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck(form):
    case = Case(**SMALL, arrangement="shifted")
    tensors = [t.requires_grad_() for t in case.tensors().values()]
    names = list(case.tensors())
    assert torch.autograd.gradgradcheck(lambda *given: case.call(form, dict(zip(names, given, strict=True))), tensors)


# --- memory formats, precision, autocast ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_non_contiguous_input_gives_the_same(arrangement, form):
    case = Case(arrangement=arrangement)
    tensors = case.tensors()
    wide = torch.zeros(2, case.channels, 5, 14, dtype=torch.float64)
    view = wide[..., ::2]
    view.copy_(tensors["input"])
    assert not view.is_contiguous()
    torch.testing.assert_close(case.call(form, tensors | {"input": view}), case.by_definition(tensors), **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("filters", [6, 7])
def test_channels_last_gives_the_same(filters, arrangement, form):
    case = Case(arrangement=arrangement, filters=filters)
    tensors = case.tensors()
    last = tensors | {"input": tensors["input"].to(memory_format=torch.channels_last)}
    torch.testing.assert_close(case.call(form, last), case.by_definition(tensors), **EXACT)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("filters", [6, 7])
def test_the_grouped_form_keeps_channels_last(filters, arrangement):
    case = Case(arrangement=arrangement, filters=filters, padding=(1, 1))
    tensors = case.tensors(torch.float32)
    last = tensors | {"input": tensors["input"].to(memory_format=torch.channels_last)}
    output = case.call("grouped", last)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_is_about_as_exact_as_a_dense_convolution(dtype, arrangement, form):
    case = Case(per_class=8, p=4, filters=30, size=(9, 11), arrangement=arrangement)
    tensors = case.tensors(dtype)
    exact = {name: t.double() for name, t in tensors.items()}
    expected = F.conv2d(exact["input"], case.dense(exact), exact["bias"], padding=1)
    dense = F.conv2d(tensors["input"], case.dense(tensors), tensors["bias"], padding=1)
    ours = case.call(form, tensors)
    assert ours.dtype == dtype
    error, dense_error = ((y.double() - expected).abs().max() for y in (ours, dense))
    assert 0 < error <= 4 * dense_error  # two roundings and a sum where the dense convolution rounds once


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients(bias, arrangement, form):
    case = Case(arrangement=arrangement, bias=bias)
    tensors = case.tensors(torch.float32)
    leaves = {name: t.requires_grad_() for name, t in tensors.items() if t is not None}
    with torch.autocast("cpu", torch.bfloat16):
        output = case.call(form, tensors)
    assert output.dtype == torch.bfloat16
    expected = case.by_definition({name: None if t is None else t.detach().double() for name, t in tensors.items()})
    assert (output.double() - expected).abs().max() < 0.02 * expected.abs().max()  # bfloat16 keeps 8 bits
    output.float().sum().backward()
    assert {t.grad.dtype for t in leaves.values()} == {torch.float32}


# --- which implementation ---


def test_the_implementation_asked_for_is_the_one_that_serves():
    assert choose_implementation("reference").implementation == "reference"
    assert choose_implementation("grouped").implementation == "grouped"
    assert choose_implementation().implementation == "grouped"
    assert "on every device" in choose_implementation("auto").reason


def test_auto_is_the_implementation_it_says():
    case = Case()
    tensors = case.tensors()
    assert case.call("auto", tensors).equal(case.call(choose_implementation("auto").implementation, tensors))


# --- validation ---

BAD_ARGUMENTS = [
    ({"kernel_size": 2}, "kernel_size must be odd, so that the window has a centre; got 2"),
    ({"kernel_size": (3, 4)}, r"kernel_size must be odd.*got \(3, 4\)"),
    ({"kernel_size": 0}, "kernel_size must be an integer >= 1, or a pair of them; got 0"),
    ({"kernel_size": -3}, "kernel_size must be an integer >= 1.*got -3"),
    ({"kernel_size": 3.0}, "kernel_size must be an integer >= 1.*got 3.0"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size must be an integer >= 1.*got \(3, 3, 3\)"),
    ({"kernel_size": "3"}, "kernel_size must be an integer >= 1.*got '3'"),
    ({"kernel_size": True}, "kernel_size must be an integer >= 1.*got True"),
    ({"stride": 0}, "stride must be an integer >= 1, or a pair of them; got 0"),
    ({"stride": (1, 0)}, r"stride must be an integer >= 1.*got \(1, 0\)"),
    ({"dilation": 0}, "dilation must be an integer >= 1, or a pair of them; got 0"),
    ({"padding": -1}, "padding must be an integer >= 0, or a pair of them; got -1"),
    ({"padding": 0.5}, "padding must be an integer >= 0.*got 0.5"),
    ({"padding": "full"}, "padding must be numbers, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, r"padding='same' needs stride 1, got stride \(2, 2\)"),
    ({"padding_mode": "constant"}, "padding_mode must be one of zeros, reflect, replicate, circular; got 'constant'"),
    ({"p": 3}, r"`in_channels` \(=8\) must be divisible by `p` \(=3\)"),
    ({"p": 1_000}, r"`in_channels` \(=8\) must be divisible by `p` \(=1000\)"),
    ({"p": 0}, "p must be a positive integer or 'pc', got 0"),
    ({"p": -1}, "p must be a positive integer or 'pc', got -1"),
    ({"p": 1.5}, "p must be a positive integer or 'pc', got 1.5"),
    ({"p": float("nan")}, "p must be a positive integer or 'pc', got nan"),
    ({"p": True}, "p must be a positive integer or 'pc', got True"),
    ({"p": "x"}, "p must be a positive integer or 'pc', got 'x'"),
    ({"p": None}, "p must be a positive integer or 'pc', got None"),
    ({"arrangement": "diagonal"}, "arrangement must be one of blocked, shifted; got 'diagonal'"),
    ({"implementation": "triton2"}, "implementation must be one of .*reference, grouped.*; got 'triton2'"),
]
BAD_TENSORS = [
    ({"input": (2, 6, 5, 5)}, r"input must have shape \[batch, 8, H, W\] or \[8, H, W\], got \[2, 6, 5, 5\]"),
    ({"input": (8, 5)}, r"input must have shape .* got \[8, 5\]"),
    ({"input": (1, 2, 8, 5, 5)}, r"input must have shape .* got \[1, 2, 8, 5, 5\]"),
    ({"weight_1x1": (6, 8, 3, 3)}, r"weight_1x1 must have shape \[6, 8, 1, 1\], got \[6, 8, 3, 3\]"),
    ({"weight_1x1": (6, 8)}, r"weight_1x1 must have shape .*, got \[6, 8\]"),
    ({"weight_1x1": (6,)}, r"weight_1x1 must have shape .*, got \[6\]"),
    ({"weight_ring": (6, 2, 9)}, r"weight_ring must have shape \[6, 2, 8\], got \[6, 2, 9\]"),
    ({"weight_ring": (6, 8, 8)}, r"weight_ring must have shape \[6, 2, 8\], got \[6, 8, 8\]"),
    ({"weight_ring": (5, 2, 8)}, r"weight_ring must have shape \[6, 2, 8\], got \[5, 2, 8\]"),
    ({"bias": (5,)}, r"bias must have shape \[6\], got \[5\]"),
    ({"bias": (6, 1)}, r"bias must have shape \[6\], got \[6, 1\]"),
]


def call_with(arguments: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> torch.Tensor:
    good = {"input": (2, 8, 5, 5), "weight_1x1": (6, 8, 1, 1), "weight_ring": (6, 2, 8), "bias": (6,)}
    tensors = {name: torch.zeros(shape) for name, shape in (good | shapes).items()}
    return hetconv2d(**tensors, **({"kernel_size": 3, "p": 4} | arguments))


def test_the_call_that_the_bad_ones_vary_is_good():
    assert call_with({}, {}).shape == (2, 6, 3, 3)


@pytest.mark.parametrize(("arguments", "said"), BAD_ARGUMENTS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_bad_argument_is_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        call_with(arguments, {})


@pytest.mark.parametrize(("shapes", "said"), BAD_TENSORS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_tensor_of_the_wrong_shape_is_refused(shapes, said):
    with pytest.raises(ArgumentError, match=said):
        call_with({}, shapes)


# --- peers ---


class Peer(nn.Module):
    """The public "efficient" layer: a grouped K x K plus a full 1 x 1 whose class block is zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, p: int) -> None:
        super().__init__()
        self.gwc = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=p, bias=False)
        self.pwc = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        rows, columns = out_channels // p, in_channels // p
        for block in range(p):
            self.pwc.weight.data[block * rows : (block + 1) * rows, block * columns : (block + 1) * columns] = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.gwc(input) + self.pwc(input)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n", "kernel", "p"), [(8, 12, 3, 4), (6, 6, 5, 2), (6, 6, 3, 6), (4, 8, 3, 1)])
def test_the_public_efficient_layer_loads_into_ours(m, n, kernel, p, form):
    peer = Peer(m, n, kernel, p).double()
    layer = HetConv2d(m, n, kernel, padding=kernel // 2, bias=False, p=p, dtype=torch.float64)
    layer.implementation = form
    taps = peer.gwc.weight.detach().flatten(2)
    middle = kernel * kernel // 2
    with torch.no_grad():
        layer.weight_ring.copy_(taps[..., [t for t in range(kernel * kernel) if t != middle]])
        layer.weight_1x1.copy_(peer.pwc.weight)
        for filter_ in range(n):
            first = filter_ // (n // p) * (m // p)
            layer.weight_1x1[filter_, first : first + m // p, 0, 0] += taps[filter_, :, middle]
    x = torch.randn(2, m, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), peer(x), **EXACT)


# --- counting ---


def dispatcher_macs(case: Case, form: str) -> int:
    """What torch's own counter sees on the meta device."""
    tensors = {name: None if t is None else t.to("meta") for name, t in case.tensors().items()}
    with FlopCounterMode(display=False) as counter:
        case.call(form, tensors)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@given(cases())
def test_the_dispatcher_over_the_reference_counts_the_equation(case):
    expected = (case.batch or 1) * equations.hetconv_macs(case.channels, case.filters, case.kernel, case.output, case.p)
    assert dispatcher_macs(case, "reference") == expected


@given(st.data(), st.integers(1, 6), st.integers(1, 3))
def test_the_dispatcher_over_the_grouped_form_counts_what_runs(data, p, filters_per_class):
    case = data.draw(cases(p=p, filters=p * filters_per_class))
    (kh, kw), (ho, wo) = case.kernel, case.output
    expected = (case.batch or 1) * ho * wo * case.filters * (case.per_class * kh * kw + case.channels)
    assert dispatcher_macs(case, "grouped") == expected


@pytest.mark.parametrize(("p", "more"), [(4, Fraction(1, 12)), (2, Fraction(1, 10))])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_grouped_form_executes_a_twelfth_more_at_p_4_and_a_tenth_more_at_p_2(p, more, arrangement):
    case = Case(p=p, per_class=16 // p, filters=32, arrangement=arrangement)
    assert Fraction(dispatcher_macs(case, "grouped"), dispatcher_macs(case, "reference")) == 1 + more
