"""The Triton kernels on the CPU, by Triton's interpreter, against the reference in float64.

Triton decides when it is first imported whether kernels are interpreted, so `test_triton.py` runs this file in a
process of its own; by hand: TRITON_INTERPRET=1 pytest -n 0 tests/ops/interpreted_triton.py
"""

import copy

import pytest
import torch
from torch import nn

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.ops.hetconv2d import availability, choose_implementation, hetconv2d, launch, registration
from hetconv_cli.ops.hetconv2d.fused import layout_of, pack_weights
from hetconv_cli.ops.hetconv2d.layout import Tile
from hetconv_cli.ops.hetconv2d.walk import forward_walk

assert availability.INTERPRETED, "set TRITON_INTERPRET=1"

FLOAT32 = 1e-6  # of the norm; float32 sums of some hundred products stay below 3e-7
ROUNDING = {torch.float16: 5e-4, torch.float32: FLOAT32}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error in the norm; NaN never passes a comparison with it."""
    assert ours.shape == exact.shape
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def draw(m, n, p, kernel, size, *, batch=2, bias=True, seed=0) -> list[torch.Tensor | None]:
    make = torch.Generator().manual_seed(seed)
    shapes = [(batch, m, *size), (n, m, 1, 1), (n, m // p, kernel[0] * kernel[1] - 1), (n,)]
    tensors = [torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes]
    return tensors if bias else [*tensors[:3], None]


# (M, N, P, kernel, stride, dilation, padding, size): channels that are no powers of two, 7 and 63 among the sizes
CASES = {
    "3x3": (24, 20, 4, (3, 3), (1, 1), (1, 1), (1, 1), (7, 7)),
    "stride 2": (20, 12, 2, (3, 3), (2, 2), (1, 1), (1, 1), (7, 9)),
    "63 rows, strides 3 and 1": (12, 8, 2, (3, 3), (3, 1), (1, 1), (1, 1), (63, 7)),
    "63 columns, dilation 2": (6, 5, 3, (3, 3), (1, 2), (2, 2), (2, 2), (5, 63)),
    "stride and dilation share a factor": (8, 8, 4, (3, 5), (2, 3), (2, 3), (3, 1), (9, 15)),
    "stride beyond the kernel": (6, 4, 2, (3, 1), (4, 3), (1, 1), (1, 0), (9, 7)),
    "padding beyond the window": (6, 9, 3, (3, 3), (2, 1), (1, 1), (4, 3), (5, 5)),
    "no padding, 1 x 7": (10, 6, 5, (1, 7), (1, 2), (1, 1), (0, 0), (4, 13)),
    "K = 1": (10, 6, 5, (1, 1), (2, 1), (1, 1), (0, 1), (5, 5)),
    "P = 1": (18, 34, 1, (3, 3), (1, 1), (1, 1), (1, 1), (5, 7)),
    "P = M": (21, 21, 21, (3, 3), (1, 1), (1, 1), (1, 1), (7, 5)),
    "filters not divisible by P": (24, 22, 4, (3, 3), (1, 1), (1, 1), (1, 1), (5, 5)),
    "groups of unequal size": (120, 87, 3, (3, 1), (1, 1), (1, 1), (1, 0), (3, 5)),
    "a last group with fewer classes": (36, 39, 3, (3, 3), (2, 1), (1, 1), (1, 1), (5, 5)),
    "fewer filters than classes": (16, 3, 8, (3, 3), (1, 1), (1, 1), (1, 1), (5, 5)),
    "several blocks of filters": (32, 136, 1, (3, 1), (1, 1), (1, 1), (1, 0), (3, 5)),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_the_reference(name, arrangement):
    m, n, p, kernel, stride, dilation, padding, size = CASES[name]
    call = {"stride": stride, "dilation": dilation, "padding": padding}
    call |= {"kernel_size": kernel, "p": p, "arrangement": arrangement}
    ours = [t.float().requires_grad_() for t in draw(m, n, p, kernel, size)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    output = hetconv2d(*ours, **call, implementation="triton")
    expected = hetconv2d(*exact, **call, implementation="reference")
    assert output.is_contiguous(memory_format=torch.channels_last) or arrangement == "shifted"
    assert error(output, expected) < FLOAT32
    weigh = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, exact, weigh.double())
    for gradient, exact_gradient in zip(torch.autograd.grad(output, ours, weigh), wanted, strict=True):
        assert error(gradient, exact_gradient) < FLOAT32


def in_float64(layer: HetConv2d, x: torch.Tensor) -> torch.Tensor:
    return call_layer(copy.deepcopy(layer).double(), "reference", x.double())


def call_layer(layer: HetConv2d, implementation: str, *inputs: torch.Tensor) -> torch.Tensor:
    layer.implementation = implementation
    return layer(*inputs)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_float16_rounds_once(arrangement):
    call = {"padding": 1, "kernel_size": 3, "p": 4, "arrangement": arrangement}
    tensors = [t.half() for t in draw(24, 20, 4, (3, 3), (7, 7))]
    expected = hetconv2d(*[t.double() for t in tensors], **call, implementation="reference")
    assert error(hetconv2d(*tensors, **call, implementation="triton"), expected) < ROUNDING[torch.float16]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes(mode):
    layer = HetConv2d(8, 6, 3, padding=1, padding_mode=mode, p=4)
    x = torch.randn(1, 8, 5, 7)
    assert error(call_layer(layer, "triton", x), in_float64(layer, x)) < FLOAT32


def test_no_bias_one_image_and_a_view_of_a_larger_one():
    layer = HetConv2d(8, 6, 3, padding=1, bias=False, p=4, arrangement="shifted")
    x = torch.randn(8, 5, 14)[..., ::2]
    assert error(call_layer(layer, "triton", x), in_float64(layer, x)) < FLOAT32


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_an_empty_batch(arrangement):
    layer = HetConv2d(8, 6, 3, padding=1, stride=2, p=4, arrangement=arrangement)
    x = torch.empty(0, 8, 5, 7, requires_grad=True)
    output = call_layer(layer, "triton", x)
    assert output.shape == (0, 6, 3, 4)
    output.sum().backward()
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert parameter.grad.eq(0).all()


TILES = [Tile(16, 16, 16, 4, 1), Tile(64, 32, 32, 4, 2), Tile(32, 16, 64, 8, 3, True), Tile(128, 64, 16, 4, 4, True)]


@pytest.mark.parametrize("wide", [False, True], ids=["32 bit", "64 bit"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_gives_the_same_with_the_whole_epilogue(tile, wide, monkeypatch):
    if wide:
        monkeypatch.setattr(launch, "INT32_MAX", 0)
    m, n, p = 40, 36, 2
    layer = HetConv2d(m, n, 3, padding=1, stride=(1, 2), p=p)
    x, residual = torch.randn(2, m, 5, 9), torch.randn(2, n, 5, 5)
    scale, shift = torch.randn(n), torch.randn(n)
    exact = layer.double()(x.double()) - layer.bias.view(-1, 1, 1)
    exact = exact * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1) + residual.double()
    from hetconv_cli.ops.hetconv2d import triton_kernels

    def last(image: torch.Tensor) -> torch.Tensor:
        return image.contiguous(memory_format=torch.channels_last)

    out = last(torch.full_like(residual, float("nan")))
    packed = pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec).float().detach()
    walk = forward_walk(layer.geometry, (5, 5))
    triton_kernels.convolve(
        last(x),
        packed,
        out,
        layout=layout_of(layer.spec),
        walk=walk,
        tile=tile,
        precision="ieee",
        scale=scale,
        shift=shift,
        residual=last(residual),
        relu=True,
    )
    assert error(out, exact.detach().relu()) < FLOAT32


@pytest.mark.parametrize("shares", [1, 3, 7])
@pytest.mark.parametrize("wide", [False, True], ids=["32 bit", "64 bit"])
def test_a_weight_gradient_in_shares(shares, wide, monkeypatch):
    if wide:
        monkeypatch.setattr(launch, "INT32_MAX", 0)
    monkeypatch.setattr(registration, "choose_shares", lambda *_: shares)
    monkeypatch.setattr(registration, "choose_gradient_tile", lambda *_: Tile(16, 16, 32, 4, 2))
    layer = HetConv2d(24, 20, 3, padding=1, p=2)
    x = torch.randn(2, 24, 5, 7)
    exact = copy.deepcopy(layer).double()
    call_layer(exact, "reference", x.double()).square().sum().backward()
    call_layer(layer, "triton", x).square().sum().backward()
    for ours, expected in zip(layer.parameters(), exact.parameters(), strict=True):
        assert error(ours.grad, expected.grad) < FLOAT32


def test_relu_keeps_nan_as_torch_does():
    layer = FusedHetConv2d(HetConv2d(32, 64, 3, padding=1, p=2), relu=True)
    assert layout_of(layer.spec).merge == 1  # the zeros of merged classes make NaN of it elsewhere, too
    x = torch.randn(1, 32, 5, 5)
    x[0, 0, 0, 0] = float("nan")
    ours, grouped = call_layer(layer, "triton", x), call_layer(layer, "grouped", x)
    assert ours.isnan().equal(grouped.isnan())
    assert ours.isnan().any()


# --- as an operator of torch ---


def operator_arguments(requires_grad: bool) -> tuple[object, ...]:
    layer = HetConv2d(12, 10, 3, stride=2, padding=1, p=2)
    x = torch.randn(2, 12, 5, 7).contiguous(memory_format=torch.channels_last)
    packed = pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec).detach()
    bias = layer.bias.detach()
    tensors = [t.requires_grad_(requires_grad) for t in (x, packed, bias)]
    numbers = ([3, 3], [2, 2], [1, 1], [1, 1], 2, layout_of(layer.spec).merge, False)
    return (*tensors, *numbers)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
def test_opcheck():
    x, packed, bias, *numbers = operator_arguments(True)
    torch.library.opcheck(torch.ops.hetconv.fused, (x, packed, bias, *numbers))
    x, packed, bias, *numbers = operator_arguments(False)
    residual = torch.randn(2, 10, 3, 4)
    operators = torch.ops.hetconv
    torch.library.opcheck(operators.fused_inference, (x, packed, bias, bias, residual, True, *numbers))
    torch.library.opcheck(operators.fused_input_gradient, (residual, packed, 12, 5, 7, *numbers))
    torch.library.opcheck(operators.fused_weight_gradient, (residual, x, *numbers))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_compiles_without_graph_breaks(arrangement):
    layer = HetConv2d(12, 10, 3, stride=2, padding=1, p=2, arrangement=arrangement)
    layer.implementation = "triton"
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, 5, 7)
    plain = copy.deepcopy(layer)
    output, expected = compiled(x), plain(x)
    assert output.equal(expected)
    assert output.stride() == expected.stride()
    output.square().sum().backward()
    expected.square().sum().backward()
    for ours, wanted in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad)


def test_a_second_derivative_is_refused_not_wrong():
    x, packed, bias, *numbers = operator_arguments(True)
    y = torch.ops.hetconv.fused(x, packed, bias, *numbers)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(HetconvError, match="no gradient of their own; implementation='grouped' has"):
        first.sum().backward()


def test_the_epilogue_has_no_gradient_and_says_so():
    x, packed, bias, *numbers = operator_arguments(True)
    y = torch.ops.hetconv.fused_inference(x, packed, None, bias, None, True, *numbers)
    with pytest.raises(HetconvError, match="inference form have no gradient of their own"):
        y.sum().backward()


def test_autocast_computes_in_float16_and_keeps_float32_gradients():
    layer = HetConv2d(12, 10, 3, padding=1, p=2)
    x = torch.randn(2, 12, 5, 7)
    with torch.autocast("cpu", torch.float16):
        output = call_layer(layer, "triton", x)
    assert output.dtype == torch.float16
    assert error(output, in_float64(layer, x)) < 2e-3  # inputs round too
    output.float().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_50_steps_of_training_follow_the_reference():
    start = HetConv2d(6, 4, (1, 3), padding=(0, 1), p=2)
    x, wanted = torch.randn(1, 6, 3, 3), torch.randn(1, 4, 3, 3)
    curves = {}
    for implementation in ("triton", "reference"):
        layer = copy.deepcopy(start)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        curves[implementation] = []
        for _ in range(50):
            loss = nn.functional.mse_loss(call_layer(layer, implementation, x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[implementation].append(loss.item())
    assert curves["triton"] == pytest.approx(curves["reference"], rel=1e-4)
    assert curves["triton"][-1] < 0.5 * curves["triton"][0]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("prepared", [True, False], ids=["packed once", "packed at the call"])
def test_the_layer_with_its_batchnorm_residual_and_relu(prepared, arrangement):
    layer = HetConv2d(12, 10, 3, padding=1, p=4, arrangement=arrangement)
    norm = nn.BatchNorm2d(10).eval()
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    x, residual = torch.randn(2, 12, 5, 7), torch.randn(2, 10, 5, 7)
    fused = FusedHetConv2d(layer, norm, relu=True)
    fused.implementation = "triton"
    if prepared:
        assert fused.prepare().packed is not None
    exact = norm.double()(call_layer(layer.double(), "reference", x.double())) + residual.double()
    assert error(fused(x, residual), exact.detach().relu()) < FLOAT32


# --- what it cannot ---


def test_bfloat16_is_left_to_a_gpu():
    with pytest.raises(ArgumentError, match="interpreter cannot multiply bfloat16"):
        choose_implementation("triton", device=torch.device("cpu"), dtype=torch.bfloat16)


def test_a_window_larger_than_the_padded_input_is_refused():
    layer = HetConv2d(8, 6, 5, p=2)
    with pytest.raises(ArgumentError, match="window is larger than the padded input: the output would be 0 x 3"):
        call_layer(layer, "triton", torch.randn(1, 8, 4, 7))


def test_two_dtypes_are_refused():
    layer = HetConv2d(8, 6, 3, p=2)
    with pytest.raises(ArgumentError, match=r"one dtype; got torch.float16 and torch.float32"):
        call_layer(layer, "triton", torch.randn(1, 8, 4, 7).half())


def test_more_pixels_than_32_bits_count_are_refused():
    image = torch.empty(1).expand(2, 1, 2**15, 2**15)
    with pytest.raises(ArgumentError, match="at most 2147483647, got 2147483648"):
        registration._pixels(image)
