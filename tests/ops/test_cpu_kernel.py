"""The CPU kernel equals the readable reference in float64 for every geometry, memory layout and vector width."""

import platform

import pytest
import torch
from compilers import compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.geometry import Geometry
from hetconv_cli.ops.hetconv2d import cpu_kernel
from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library
from hetconv_cli.ops.hetconv2d.reference import hetconv2d_reference
from hetconv_cli.ops.hetconv2d.spec import make_spec

BOUND = 2e-6  # of the output's scale: float32 sums of at most a few thousand products against float64
NATIVE, NARROW, NARROWEST = "c++", "c++ -mno-avx512f", "c++ -mno-avx"  # 16, 8 and 4 lanes where all three work
COMPILERS = [NATIVE, NARROW, NARROWEST] if platform.machine() in ("x86_64", "AMD64") else [NATIVE]

pytestmark = pytest.mark.skipif(cpu_library().problem is not None, reason=str(cpu_library().problem))


def layer(m=8, n=12, p=4, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), seed=0):
    """A spec and its weights: [n, m, 1, 1], [n, m / p, taps - 1] and a bias."""
    geometry = Geometry(m, n, kernel, stride, padding, dilation)
    make = torch.Generator().manual_seed(seed)
    shapes = ((n, m, 1, 1), (n, m // p, geometry.taps - 1), (n,))
    return make_spec(geometry, p, "blocked"), [torch.randn(shape, generator=make) for shape in shapes]


def run(x, spec, weights, residual=None, relu=False):
    weight_1x1, ring, bias = weights
    packed = cpu_kernel.pack(weight_1x1, ring, spec)
    return cpu_kernel.hetconv2d_cpu(x, packed, bias, spec, residual, relu=relu)


def exact(x, spec, weights, residual=None, relu=False):
    weight_1x1, ring, bias = (None if weight is None else weight.double() for weight in weights)
    y = hetconv2d_reference(x.double(), weight_1x1, ring, bias, spec)
    y = y if residual is None else y + residual.double()
    return torch.relu(y) if relu else y


def check(x, spec, weights, residual=None, relu=False):
    got, want = run(x, spec, weights, residual, relu), exact(x, spec, weights, residual, relu)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - want).abs().max() <= BOUND * want.abs().max().clamp_min(1)


def cut_out(x):
    """The same values as part of a larger image, every second column of it."""
    around = torch.full((len(x), x.shape[1] + 2, x.shape[2] + 3, 2 * x.shape[3]), float("nan"))
    inside = around[:, 1:-1, 2:-1, ::2]
    return inside.copy_(x)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "cut out": cut_out,
    "one channel repeated": lambda x: x[:, :1].expand(x.shape),
}


@settings(max_examples=150)
@given(
    part=st.integers(1, 40),
    p=st.sampled_from([1, 2, 3, 4, 8]),
    n=st.integers(1, 70),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 3), (1, 7)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 2)]),
    padding=st.sampled_from([(0, 0), (1, 1), (3, 0), (2, 9)]),
    dilation=st.sampled_from([(1, 1), (2, 1), (1, 3)]),
    size=st.tuples(st.integers(9, 12), st.integers(19, 40)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    command=st.sampled_from(COMPILERS),
    bias=st.booleans(),
    residual=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_geometry_in_every_layout(
    part, p, n, kernel, stride, padding, dilation, size, layout, command, bias, residual, relu, seed
):
    spec, weights = layer(part * p, n, p, kernel, stride, padding, dilation, seed)
    weights = weights if bias else [*weights[:2], None]
    make = torch.Generator().manual_seed(seed)
    x = LAYOUTS[layout](torch.randn((2, part * p, *size), generator=make))
    added = torch.randn((2, n, *spec.geometry.output_size(*size)), generator=make) if residual else None
    with compiler(command):
        check(x, spec, weights, added, relu)


def test_the_compilers_make_kernels_of_different_widths():
    lanes = []
    for command in COMPILERS:
        with compiler(command):
            lanes.append(cpu_library().library.hetconv_lanes())
    assert lanes == sorted(lanes, reverse=True)
    assert lanes[-1] == 4


def test_the_environment_may_change_between_packing_and_running(monkeypatch):
    spec, (weight_1x1, ring, bias) = layer(16, 16, 1)
    x = torch.randn(1, 16, 6, 6)
    with compiler(NATIVE):
        packed = cpu_kernel.pack(weight_1x1, ring, spec)
        before = cpu_kernel.hetconv2d_cpu(x, packed, bias, spec, None, relu=False)
        for command in (NARROW, "no-such-compiler", ""):
            monkeypatch.setenv("HETCONV_CXX", command)
            assert torch.equal(cpu_kernel.hetconv2d_cpu(x, packed, bias, spec, None, relu=False), before)


@pytest.mark.parametrize("width", [1, 2, 7, 13, 14, 15, 28, 29, 56, 63])
def test_every_width_of_a_tile(width):
    spec, weights = layer()
    check(torch.randn(1, 8, 5, width), spec, weights, relu=True)


def test_layers_of_real_networks():
    for m, n, size, stride in ((64, 64, 56, 1), (128, 256, 28, 2), (512, 512, 7, 1)):
        spec, weights = layer(m, n, 4, stride=(stride, stride))
        check(torch.randn(2, m, size, size), spec, weights, relu=True)


def test_an_image_of_many_strips_on_several_threads_is_the_same_to_the_bit():
    spec, weights = layer(64, 48, 4)
    x = torch.randn(3, 64, 90, 100)
    alone = run(x, spec, weights)
    torch.set_num_threads(3)
    try:
        assert torch.equal(run(x, spec, weights), alone)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(run(x[1:2], spec, weights), alone[1:2])


def test_nothing_of_the_output_is_left_unwritten():
    spec, weights = layer(20, 21, 4, stride=(2, 2))
    for _ in range(3):
        torch.full((2, 21, 6, 16), float("nan"))  # freed at once: the next output may take its memory
        assert not run(torch.randn(2, 20, 11, 31), spec, weights).isnan().any()


def test_an_infinite_input_stays_within_the_classes_of_a_vector():
    spec, weights = layer(32, 64, 4, padding=(0, 0))
    x = torch.zeros(1, 32, 3, 3)
    x[0, 0, 0, 0] = float("inf")  # read by the first class only: 16 filters, a vector
    y = run(x, spec, weights)
    assert not y[0, :16].isfinite().any()
    assert y[0, 16:].isfinite().all()


def test_nan_passes_relu_as_in_torch():
    spec, weights = layer()
    x = torch.zeros(1, 8, 6, 6)
    x[0, 0, 3, 3] = float("nan")
    y = run(x, spec, weights, relu=True)
    assert y[0, :, 3, 3].isnan().all()
    assert not y[0, :, 0, 0].isnan().any()


def test_a_residual_of_another_layout_type_and_shape_is_added_as_torch_does():
    spec, weights = layer()
    x = torch.randn(2, 8, 6, 5)
    for residual in (torch.randn(2, 12, 6, 5).double(), torch.randn(12, 1, 1), torch.randn(2, 12, 5, 6).mT):
        check(x, spec, weights, residual, relu=True)
    with pytest.raises(RuntimeError, match="expand"):
        run(x, spec, weights, torch.randn(2, 12, 6, 4))


@pytest.mark.parametrize("shape", [(0, 8, 6, 5), (2, 8, 6, 5)])
def test_the_operator_is_well_behaved(shape):
    spec, (weight_1x1, ring, bias) = layer()
    g, packed = spec.geometry, cpu_kernel.pack(weight_1x1, ring, spec)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    arguments = (x, packed, bias, None, True, 12, 4, g.kernel, g.stride, g.padding, g.dilation)
    torch.library.opcheck(torch.ops.hetconv.cpu_inference.default, arguments)


def test_a_window_larger_than_the_image_is_refused():
    spec, weights = layer(padding=(0, 0))
    with pytest.raises(ArgumentError, match="the output would be 0 x 3"):
        run(torch.randn(1, 8, 2, 5), spec, weights)


def test_weights_packed_for_another_layer_are_refused_not_read_beyond_their_end():
    spec, (weight_1x1, ring, bias) = layer()
    packed = cpu_kernel.pack(weight_1x1, ring, spec)
    with pytest.raises(HetconvError, match="packed weights must be"):
        cpu_kernel.hetconv2d_cpu(torch.randn(1, 8, 5, 5), packed[:-1], bias, spec, None, relu=False)
    for wrong in (packed.double(), packed.repeat_interleave(2)[::2]):
        with pytest.raises(HetconvError, match="pack them anew"):
            cpu_kernel.hetconv2d_cpu(torch.randn(1, 8, 5, 5), wrong, bias, spec, None, relu=False)


@pytest.mark.parametrize(
    ("more", "served"),
    [
        ({}, True),
        ({"n": 9}, True),
        ({"n": 3}, False),
        ({"m": 64, "n": 64, "p": 8}, True),
        ({"m": 64, "n": 64, "p": 64}, False),  # vectors of many classes: mostly zeros
        ({"dilation": (1, 12), "padding": (1, 12)}, False),  # strips of many rows that nobody reads
    ],
)
def test_layers_that_others_compute_faster_are_left_to_them(more, served):
    spec, (weight_1x1, _, _) = layer(**{"m": 8, "n": 12, "p": 4, **more})
    assert cpu_kernel.serves_layer(spec, weight_1x1) == served
