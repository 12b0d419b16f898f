"""The fused kernel on a GPU: every tile, the compiler, graphs, gradients, training. Skipped where there is none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.ops.hetconv2d import measured
from hetconv_cli.ops.hetconv2d.fused import layout_of, pack_weights
from hetconv_cli.ops.hetconv2d.layout import Tile
from hetconv_cli.ops.hetconv2d.walk import forward_walk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*deterministic"),  # of the mode that fills outputs with NaN
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# float32: tf32 off; half types: one rounding of the result, and what the gradients' sums add
LARGEST_ERROR = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}
SHAPES = {
    "64": (64, 64, 4, (3, 3), (1, 1), (1, 1), 14),
    "128": (128, 128, 4, (3, 3), (1, 1), (1, 1), 14),
    "256": (256, 256, 4, (3, 3), (1, 1), (1, 1), 14),
    "512, P 8": (512, 512, 8, (3, 3), (1, 1), (1, 1), 7),
    "strided": (64, 128, 4, (3, 3), (2, 2), (1, 1), 15),
    "odd channels": (60, 90, 4, (3, 3), (1, 1), (1, 1), 63),
    "dilated, 1 x 5": (48, 40, 3, (1, 5), (1, 2), (1, 2), 13),
    "P = M": (32, 32, 32, (3, 3), (1, 1), (1, 1), 9),
}
TILES = [
    Tile(64, 32, 32, 4, 2),
    Tile(128, 64, 64, 4, 3),
    Tile(128, 128, 64, 8, 3, taps_inside=True),
    Tile(128, 32, 16, 4, 4),
    Tile(64, 128, 64, 4, 1, taps_inside=True),
    Tile(256, 64, 64, 8, 3),
]
TILES += [row.tile for row in measured.MEASURED.values() if row.tile not in TILES]


@pytest.fixture(autouse=True)
def _true_float32_and_poisoned_outputs():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.conv.fp32_precision = before


def make(name: str, dtype: torch.dtype, arrangement: str = "blocked") -> tuple[HetConv2d, torch.Tensor]:
    m, n, p, kernel, stride, dilation, side = SHAPES[name]
    padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    layer = HetConv2d(m, n, kernel, stride, padding, dilation, p=p, arrangement=arrangement, device="cuda", dtype=dtype)
    layer.implementation = "triton"
    return layer, torch.randn(3, m, side, side, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)


def exactly(layer: HetConv2d) -> HetConv2d:
    exact = copy.deepcopy(layer).double()
    exact.implementation = "reference"
    return exact


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_equal_float64(name, arrangement, dtype):
    layer, x = make(name, dtype, arrangement)
    exact, exact_x = exactly(layer), x.double().requires_grad_()
    x.requires_grad_()
    output, expected = layer(x), exact(exact_x)
    assert error(output, expected) < LARGEST_ERROR[dtype]
    weigh = torch.randn_like(output)
    ours = torch.autograd.grad(output, [x, *layer.parameters()], weigh)
    wanted = torch.autograd.grad(expected, [exact_x, *exact.parameters()], weigh.double())
    for gradient, exact_gradient in zip(ours, wanted, strict=True):
        assert error(gradient, exact_gradient) < LARGEST_ERROR[dtype]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_tile_equals_float64(name, tile):
    from hetconv_cli.ops.hetconv2d import triton_kernels

    layer, x = make(name, torch.bfloat16)
    expected = exactly(layer)(x.double())
    out = torch.full_like(expected, float("nan"), dtype=torch.bfloat16, memory_format=torch.channels_last)
    triton_kernels.convolve(
        x,
        pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec).detach(),
        out,
        layout=layout_of(layer.spec),
        walk=forward_walk(layer.geometry, tuple(out.shape[2:])),
        tile=tile,
        precision="ieee",
        shift=layer.bias.detach(),
    )
    assert error(out, expected) < LARGEST_ERROR[torch.bfloat16]


@pytest.mark.parametrize("name", ["64", "256", "512, P 8"])
@pytest.mark.parametrize("dtype", [*DTYPES, "tf32"], ids=str)
def test_it_is_as_exact_as_cudnn(name, dtype):
    if dtype == "tf32":
        torch.backends.cudnn.conv.fp32_precision, dtype = "tf32", torch.float32
    layer, x = make(name, dtype)
    expected = exactly(layer)(x.double())
    vendor = F.conv2d(x, layer.dense_weight(), layer.bias, layer.stride, layer.padding, layer.dilation)
    assert error(layer(x), expected) < 1.1 * error(vendor, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
def test_opcheck():
    layer, x = make("64", torch.float32)
    packed = pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec).detach().requires_grad_()
    numbers = ([3, 3], [1, 1], [1, 1], [1, 1], 4, layout_of(layer.spec).merge, False)
    torch.library.opcheck(torch.ops.hetconv.fused, (x.requires_grad_(), packed, layer.bias, *numbers))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_compiles_without_graph_breaks(arrangement):
    layer, x = make("64", torch.bfloat16, arrangement)
    plain = copy.deepcopy(layer)
    output, expected = torch.compile(layer, fullgraph=True)(x), plain(x)
    torch.testing.assert_close(output, expected)
    output.float().square().sum().backward()
    expected.float().square().sum().backward()
    for ours, wanted in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_cuda_graph_records_forward_and_backward(arrangement):
    layer, x = make("strided", torch.bfloat16, arrangement)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(layer(x).float().square().sum(), list(layer.parameters()))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
        gradients = torch.autograd.grad(output.float().square().sum(), list(layer.parameters()))
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = layer(x)
    torch.testing.assert_close(output, expected)
    wanted = torch.autograd.grad(expected.float().square().sum(), list(layer.parameters()))
    for ours, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11, of cycles that there are none of
def test_the_fused_layer_is_one_kernel():
    from torch.profiler import ProfilerActivity, profile

    layer, x = make("256", torch.bfloat16)
    norm = nn.BatchNorm2d(256, device="cuda", dtype=torch.bfloat16).eval()
    norm.running_mean.normal_()
    fused = FusedHetConv2d(layer, norm, relu=True).prepare()
    residual = torch.randn_like(layer(x))
    torch.use_deterministic_algorithms(False)  # which fills outputs with NaN, by a kernel
    with torch.no_grad():
        fused(x, residual)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            for _ in range(5):  # the profiler misses some kernels' records
                output = fused(x, residual)
            torch.cuda.synchronize()
    kernels = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 1 <= len(kernels) <= 5, kernels
    assert all("convolve" in name for name in kernels), kernels
    exact = copy.deepcopy(norm).double()(exactly(layer)(x.double())) + residual.double()
    assert error(output, exact.relu()) < LARGEST_ERROR[torch.bfloat16]


def test_50_steps_of_training_follow_the_reference():
    torch.manual_seed(0)
    start = nn.Sequential(
        HetConv2d(16, 64, 3, padding=1, p=2, device="cuda"), nn.ReLU(), HetConv2d(64, 8, 3, 2, 1, p=4, device="cuda")
    )
    x, wanted = torch.randn(4, 16, 12, 12, device="cuda"), torch.randn(4, 8, 6, 6, device="cuda")
    curves = {}
    for implementation in ("triton", "reference"):
        network = copy.deepcopy(start)
        network[0].implementation = network[2].implementation = implementation
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        curves[implementation] = []
        for _ in range(50):
            loss = F.mse_loss(network(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[implementation].append(loss.item())
    assert curves["triton"] == pytest.approx(curves["reference"], rel=1e-3)
    assert curves["triton"][-1] < 0.8 * curves["triton"][0]


def test_autocast_and_the_devices_own_index():
    layer, x = make("64", torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert error(output, exactly(layer)(x.double())) < 6e-3
    output.float().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}
