"""FusedHetConv2d equals the layer it took over however it is moved, copied, cast or loaded, and packs what it may."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from compilers import compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.ops.hetconv2d import cpu_kernel, onednn
from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library

BOUND = 3e-6  # of the output's scale: float32 against float64


def layer_and_norm(seed=0, m=8, n=12, p=4, kernel=3, arrangement="blocked", **more):
    torch.manual_seed(seed)
    layer = HetConv2d(m, n, kernel, p=p, arrangement=arrangement, **more)
    norm = nn.BatchNorm2d(n).eval()
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return layer, norm


def wanted(layer, norm, x, residual=None, relu=True):
    """By the class-by-class reference in float64."""
    exact = copy.deepcopy(layer).double()
    exact.implementation = "reference"
    y = copy.deepcopy(norm).double()(exact(x.double()))
    y = y if residual is None else y + residual.double()
    return F.relu(y) if relu else y


def check(fused, layer, norm, x, residual=None):
    with torch.no_grad():
        sums = wanted(layer, norm, x, residual, relu=False)
        got = fused(x, residual)
    assert got.dtype == x.dtype
    assert (got - (F.relu(sums) if fused.relu else sums)).abs().max() <= BOUND * sums.abs().max()


def channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=["CPU kernel", "oneDNN"])
def packed_calls(request, monkeypatch):
    """How often packed weights ran, with a compiler and without."""
    calls = []
    for module, name in ((cpu_kernel, "hetconv2d_cpu"), (onednn, "hetconv2d_onednn")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, run=run, **more: calls.append(1) or run(*args, **more))
    with compiler("" if request.param == "oneDNN" else None):
        if request.param != "oneDNN" and cpu_library().problem:
            pytest.skip(cpu_library().problem)
        yield calls


@settings(max_examples=40, deadline=None)
@given(
    m=st.sampled_from([4, 8, 12]),
    n=st.integers(1, 20),
    p=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 3, (3, 5), (5, 1)]),
    stride=st.sampled_from([1, 2, (1, 3)]),
    padding=st.sampled_from(["same as the window", 0, 1, 3]),
    dilation=st.sampled_from([1, 2]),
    arrangement=st.sampled_from(["blocked", "shifted"]),
    mode=st.sampled_from(["zeros", "circular"]),
    bias=st.booleans(),
    relu=st.booleans(),
    residual=st.booleans(),
    batch=st.integers(0, 3),
    compiles=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_geometry_with_residual_and_relu(
    m, n, p, kernel, stride, padding, dilation, arrangement, mode, bias, relu, residual, batch, compiles, seed
):
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    if padding == "same as the window":
        padding = tuple(k // 2 * dilation for k in size)
    more = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode, "bias": bias}
    layer, norm = layer_and_norm(seed, m, n, p, kernel, arrangement, **more)
    with compiler(None if compiles else ""):
        fused = FusedHetConv2d(layer, norm, relu=relu)
    x = channels_last(batch, m, 11, 9)
    with torch.no_grad():
        shape = layer(x).shape
    added = torch.randn(shape) if residual else None
    if batch:
        check(fused, layer, norm, x, added)
    else:
        assert fused(x, added).shape == shape


def test_images_in_channels_last_take_the_packed_weights_and_the_cpu_kernel_takes_all(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    check(fused, layer, norm, channels_last(2, 8, 7, 6), torch.randn(2, 12, 7, 6))
    assert len(packed_calls) == 1
    check(fused, layer, norm, torch.randn(2, 8, 7, 6))
    calls = 2 if fused.runs_as == "CPU kernel" else 1
    assert len(packed_calls) == calls
    fused.implementation = "reference"
    check(fused, layer, norm, channels_last(2, 8, 7, 6))
    assert len(packed_calls) == calls


def test_two_convolutions_that_were_asked_for_are_two(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    layer.implementation = "grouped"
    fused = FusedHetConv2d(layer, norm, relu=True)
    assert fused.runs_as == "oneDNN"
    check(fused, layer, norm, channels_last(2, 8, 7, 6))


@pytest.mark.parametrize(
    ("more", "runs_as"),
    [
        ({"padding": 0}, "CPU kernel"),
        ({"padding": 1, "padding_mode": "reflect"}, "CPU kernel"),
        ({"padding": 1, "arrangement": "shifted"}, "torch"),
    ],
)
def test_layers_that_are_not_two_plain_convolutions_are_not_packed_for_them(more, runs_as, packed_calls):
    layer, norm = layer_and_norm(**more)
    fused = FusedHetConv2d(layer, norm)
    assert fused.runs_as == (runs_as if cpu_library().library else "torch")
    assert f"runs_as='{fused.runs_as}'" in repr(fused)
    check(fused, layer, norm, channels_last(2, 8, 7, 6))
    assert len(packed_calls) == (fused.runs_as == "CPU kernel")


@pytest.mark.parametrize("filters", [1, 2, 3])
def test_fewer_filters_than_classes_in_channels_last(filters):
    layer, norm = layer_and_norm(m=4, n=filters, p=4, kernel=1)
    x = channels_last(2, 4, 11, 9)
    check(FusedHetConv2d(layer, norm), layer, norm, x)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("of", ["input", "residual"])
def test_a_gradient_is_right(of, packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    x, residual = channels_last(2, 8, 7, 6), channels_last(2, 12, 7, 6)
    ours = (x if of == "input" else residual).requires_grad_()
    fused(x, residual).square().sum().backward()
    exact_x, exact_residual = x.detach().double(), residual.detach().double()
    exact = (exact_x if of == "input" else exact_residual).requires_grad_()
    wanted(layer, norm, exact_x, exact_residual).square().sum().backward()
    assert (ours.grad - exact.grad).abs().max() <= BOUND * exact.grad.abs().max()
    assert not packed_calls


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own
def test_a_forward_derivative_is_right(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    x, direction = channels_last(2, 8, 7, 6), channels_last(2, 8, 7, 6)
    _, got = torch.func.jvp(fused, (x,), (direction,))
    exact = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm), nn.ReLU()).double()
    _, want = torch.func.jvp(exact, (x.double(),), (direction.double(),))
    assert (got - want).abs().max() <= BOUND * want.abs().max()
    assert not packed_calls


@pytest.mark.filterwarnings("ignore")  # the tracer's: sizes are constants, and it is deprecated
def test_an_exported_or_traced_graph_runs_without_this_package(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    x = torch.randn(2, 8, 7, 6)
    network = nn.Sequential(fused)
    exported = torch.export.export(network, (x,)).graph_module.graph
    traced = torch.jit.trace(network, (x,)).inlined_graph
    for graph in (exported, traced):
        assert "conv" in str(graph)
        assert "cpu_inference" not in str(graph)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "moved",
    [
        copy.deepcopy,
        saved_and_loaded,
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.double().float(),
        lambda module: module.to("cpu"),
        lambda module: copy.deepcopy(copy.deepcopy(module)),
    ],
    ids=["copied", "pickled", "channels_last", "cast", "moved", "copied twice"],
)
def test_a_layer_that_was_moved_computes_the_same_and_is_packed_again(moved, packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = moved(FusedHetConv2d(layer, norm, relu=True))
    check(fused, layer, norm, channels_last(2, 8, 7, 6))
    assert len(packed_calls) == 1


def test_weights_that_are_loaded_are_the_weights_that_run(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    other, other_norm = layer_and_norm(seed=1, padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    fused.load_state_dict(FusedHetConv2d(other, other_norm).state_dict())
    check(fused, other, other_norm, channels_last(2, 8, 7, 6))
    assert len(packed_calls) == 1


def test_in_float64_it_equals_the_reference_exactly_enough():
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer.double(), norm.double(), relu=True)
    x = channels_last(2, 8, 7, 6).double()
    torch.testing.assert_close(fused(x), wanted(layer, norm, x).detach(), rtol=0, atol=1e-12)


def test_autocast_takes_no_float32_shortcut(packed_calls):
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm)
    x = channels_last(2, 8, 7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert fused(x).dtype == torch.bfloat16
    assert not packed_calls


def test_it_compiles_without_a_graph_break():
    layer, norm = layer_and_norm(padding=1)
    fused = FusedHetConv2d(layer, norm, relu=True)
    x, residual = channels_last(2, 8, 7, 6), channels_last(2, 12, 7, 6)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, residual), fused(x, residual), rtol=0, atol=1e-5)
