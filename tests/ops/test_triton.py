"""The fused kernel without a GPU: its arithmetic, its choice, its generated code; and the interpreter's run of it."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hetconv_cli.arrangement import ARRANGEMENTS, classes, members
from hetconv_cli.errors import ArgumentError
from hetconv_cli.geometry import Geometry
from hetconv_cli.layers import HetConv2d
from hetconv_cli.ops.hetconv2d import availability, choose_implementation, measured, packing
from hetconv_cli.ops.hetconv2d.fused import layout_of, pack_weights
from hetconv_cli.ops.hetconv2d.launch import convolve_arguments, weight_gradient_arguments
from hetconv_cli.ops.hetconv2d.layout import (
    Layout,
    Tile,
    choose_gradient_tile,
    choose_merge,
    choose_shares,
    choose_tile,
    executed_weights,
)
from hetconv_cli.ops.hetconv2d.walk import Walk, forward_walk, gradient_walks

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not availability.HAS_TRITON, reason="triton is not installed")


def interpreter_cannot_loop() -> bool:
    """Triton 3.6's interpreter takes int() of one-element arrays, which numpy no longer allows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            int(np.ones(1))
    except TypeError:
        return availability.HAS_TRITON and tuple(map(int, version("triton").split(".")[:2])) <= (3, 6)
    return False


@needs_triton
@pytest.mark.skipif(interpreter_cannot_loop(), reason="Triton up to 3.6 cannot interpret loops with this numpy")
@pytest.mark.parametrize("part", ["equal_the_reference", "not equal_the_reference"])
def test_the_kernels_are_right_under_the_interpreter(part):
    line = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", part, str(HERE / "interpreted_triton.py")]
    line += ["-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"]  # Triton 3.6 with numpy up to 2.3
    done = subprocess.run(line, env=environment(TRITON_INTERPRET="1"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d\d passed", done.stdout)


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")} | more


# --- layout ---

part_and_counts = st.integers(1, 12).flatmap(
    lambda p: st.tuples(st.just(p), st.integers(1, 8).map(lambda each: each * p), st.integers(1, 70))
)


@given(part_and_counts, st.integers(1, 12), st.booleans())
def test_groups_are_whole_classes_in_class_order(numbers, merge, shifted):
    p, m, n = numbers
    layout = Layout(m, n, p, min(merge, p), shifted, 9)
    for count in (m, n):
        mine = members(count, p, "shifted" if shifted else "blocked")
        starts = [sum(map(len, mine[:index])) for index in range(p + 1)]
        assert [layout.first(count, of_class) for of_class in range(p + 1)] == starts
        groups = [layout.group(count, index) for index in range(layout.groups)]
        assert [n for group in groups for n in group] == list(range(count))
        assert max(map(len, groups)) == (layout.ring if count == m else layout.rows) or m == n


@pytest.mark.parametrize(
    ("m", "n", "p", "merge"),
    [
        (256, 256, 4, 1),
        (512, 512, 8, 1),
        (128, 128, 4, 1),
        (64, 64, 4, 2),
        (64, 64, 8, 4),
        (64, 64, 16, 8),
        (8, 3, 8, 8),
        (64, 128, 64, 16),
        (16, 512, 4, 4),
        (30, 30, 1, 1),
        (24, 96, 3, 2),
    ],
)
def test_classes_are_merged_until_a_matrix_product_is_worth_it(m, n, p, merge):
    assert choose_merge(m, n, p) == merge


def test_merging_executes_what_a_smaller_part_would():
    weights = [executed_weights(Layout(64, 64, p, choose_merge(64, 64, p), False, 9)) for p in (2, 4, 8, 16, 32)]
    assert len(set(weights)) == 1
    assert weights[0] == 64 * (32 * 9 + 32)
    alone = Layout(256, 256, 4, 1, False, 9)
    assert executed_weights(alone) == 256 * (64 * 9 + 192)  # exactly the paper's


@given(part_and_counts, st.sampled_from([2, 4]), st.integers(0, 10**6))
def test_tiles_are_powers_of_two_that_the_compiler_takes(numbers, itemsize, pixels):
    p, m, n = numbers
    layout = Layout(m, n, p, choose_merge(m, n, p), False, 9)
    for tile in (choose_tile(layout, pixels, itemsize), choose_gradient_tile(layout, itemsize)):
        for block in (tile.block_m, tile.block_n, tile.block_k):
            assert block >= 16
            assert block & (block - 1) == 0
        assert tile.stages * itemsize * tile.block_k * (tile.block_m + tile.block_n) <= 99 * 1024  # Ada's shared memory
        assert choose_shares(layout, tile, pixels) >= 1


# --- packing ---


def expand(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The dense kernels [outputs, inputs, taps], in class order, that packed weights stand for."""
    dense = packed.new_zeros(layout.outputs, layout.inputs, layout.taps)
    centre = layout.taps // 2
    ring = packed[:, : layout.ring_width].view(layout.outputs, layout.taps - 1, layout.ring)
    for index in range(layout.groups):
        for filter in layout.group(layout.outputs, index):
            for slot, channel in enumerate(layout.group(layout.inputs, index)):
                dense[filter, channel, :centre] = ring[filter, :centre, slot]
                dense[filter, channel, centre + 1 :] = ring[filter, centre:, slot]
    dense[:, :, centre] = packed[:, layout.ring_width :]
    return dense


@given(part_and_counts, st.sampled_from(ARRANGEMENTS))
def test_packed_weights_are_the_dense_kernels(numbers, arrangement):
    p, m, n = numbers
    layer = HetConv2d(m, n, (1, 3), p=p, arrangement=arrangement, dtype=torch.float64)
    layout = layout_of(layer.spec)
    packed = pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec).detach()
    channels = sorted(range(m), key=lambda c: (classes(m, p, arrangement)[c], c))
    filters = sorted(range(n), key=lambda f: (classes(n, p, arrangement)[f], f))
    wanted = layer.dense_weight().flatten(2)[filters][:, channels]
    assert expand(packed, layout).equal(wanted)
    back = packing.pack_transposed(packed, layout)
    assert back.shape == (m, layout.transposed().width)
    assert expand(back, layout.transposed()).equal(wanted.transpose(0, 1))


@given(st.integers(1, 7), st.integers(1, 5))
def test_class_order_is_undone_by_places(p, each):
    x = torch.randn(2, p * each, 3, 2).contiguous(memory_format=torch.channels_last)
    ordered = packing.in_class_order(x, p)
    assert ordered.index_select(1, packing.filter_places(p * each, p, CPU)).equal(x)
    assert ordered.is_contiguous(memory_format=torch.channels_last)
    assert packing.in_class_order(x[..., 0, 0], p).equal(ordered[..., 0, 0])


# --- walks ---

small = st.tuples(st.integers(1, 4), st.integers(1, 4))
odd = st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)))


@given(odd, small, small, st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_walks_pair_the_same_pixels_and_taps_forward_and_backward(kernel, stride, dilation, padding):
    geometry = Geometry(1, 1, kernel, stride, padding, dilation)
    size = tuple(d * (k - 1) + 3 for k, d in zip(kernel, dilation, strict=True))
    output = geometry.output_size(*size)
    forward = forward_walk(geometry, output)
    pairs = {(read, tap, made) for made, tap, read in pixels_met(forward, size)}
    backward = gradient_walks(geometry, size)
    assert pairs == {met for walk in backward for met in pixels_met(walk, output)}
    visited = [
        (u * walk.rows.out_step + walk.rows.out_first, v * walk.columns.out_step + walk.columns.out_first)
        for walk in backward
        for u in range(walk.rows.size)
        for v in range(walk.columns.size)
    ]
    assert sorted(visited) == [(i, j) for i in range(size[0]) for j in range(size[1])]
    assert sum(walk.centre is not None for walk in backward) <= 1 or stride == (1, 1)


def pixels_met(walk: Walk, size: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """(pixel made, tap, pixel read) of every product that is not with padding."""
    axes = []
    for axis, length in zip((walk.rows, walk.columns), size, strict=True):
        reads = (
            (u, t, u * axis.step + axis.offset + t * axis.delta) for u in range(axis.size) for t in range(axis.taps)
        )
        axes.append(
            [
                (u * axis.out_step + axis.out_first, axis.first_tap + t * axis.tap_step, read)
                for u, t, read in reads
                if 0 <= read < length
            ]
        )
    return [((a, x), (b, y), (c, z)) for a, b, c in axes[0] for x, y, z in axes[1]]


def test_a_gradient_at_stride_2_is_four_walks_of_1_2_2_and_4_taps():
    walks = gradient_walks(Geometry(1, 1, (3, 3), (2, 2), (1, 1)), (8, 8))
    assert [(walk.rows.taps * walk.columns.taps, walk.centre) for walk in walks] == [
        (1, (0, 0)),
        (2, None),
        (2, None),
        (4, None),
    ]


# --- which implementation ---

ROW = measured.Row(Tile(128, 64, 64, 4, 3), fused_us=10, grouped_us=30, standard_us=20)
LAYER = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1, "p": 4}


def shape_of(layer: HetConv2d) -> measured.Shape:
    g = layer.geometry
    return measured.Shape("sm_90", "bfloat16", g.in_channels, g.out_channels, g.kernel, g.stride, layer.p)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(availability, "capability_of", lambda index: (9, 0))
    monkeypatch.setattr(availability, "HAS_TRITON", True)


def on_hopper(layer: HetConv2d, dtype: torch.dtype = torch.bfloat16):
    return choose_implementation("auto", spec=layer.spec, device=GPU, dtype=dtype)


@pytest.mark.usefixtures("hopper")
def test_auto_keeps_the_vendors_where_nothing_was_measured():
    assert measured.MEASURED == {}, "the tables have rows now: say so in docs/gpu.md, and change this test"
    choice = on_hopper(HetConv2d(**LAYER))
    assert choice.implementation == "grouped"
    assert "not yet measured on this GPU (sm_90, bfloat16)" in choice.reason
    assert choose_implementation("triton", device=GPU, dtype=torch.bfloat16).implementation == "triton"


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("fused_us", "implementation"), [(10, "triton"), (40, "grouped")])
def test_auto_takes_what_was_measured_to_be_faster(fused_us, implementation, monkeypatch):
    layer = HetConv2d(**LAYER)
    row = measured.Row(**(vars(ROW) | {"fused_us": fused_us}))
    monkeypatch.setattr(measured, "MEASURED", {shape_of(layer): row})
    choice = on_hopper(layer)
    assert choice.implementation == implementation
    assert f"fused kernel {fused_us} us, two vendor convolutions 30 us, measured on this GPU (sm_90" in choice.reason
    assert "not yet measured" in on_hopper(layer, torch.float16).reason
    shifted = on_hopper(HetConv2d(**LAYER, arrangement="shifted"))
    assert (shifted.implementation, "relabelling is not yet measured" in shifted.reason) == ("grouped", True)


def test_auto_on_an_old_gpu_says_why_not(monkeypatch):
    monkeypatch.setattr(availability, "HAS_TRITON", True)
    monkeypatch.setattr(availability, "capability_of", lambda index: (7, 5))
    choice = on_hopper(HetConv2d(**LAYER))
    assert choice.implementation == "grouped"
    assert "compute capability 8.0 (Ampere) or newer, and this GPU has 7.5" in choice.reason


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        (CPU, torch.float32, "needs an NVIDIA GPU, and the tensors are on cpu; 'auto' takes what can"),
        (torch.device("meta"), torch.float32, "the tensors are on meta"),
        (GPU, torch.float64, "it computes in float16, bfloat16 or float32, got float64"),
    ],
)
def test_asking_for_the_kernel_where_it_cannot_run_says_why(device, dtype, said, monkeypatch):
    monkeypatch.setattr(availability, "HAS_TRITON", True)
    with pytest.raises(ArgumentError, match=f"implementation 'triton' cannot run here: .*{said}"):
        choose_implementation("triton", device=device, dtype=dtype)


def test_a_torch_for_other_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(availability, "HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.raises(ArgumentError, match="this torch is built for AMD's"):
        choose_implementation("triton", device=GPU, dtype=torch.float16)


def test_the_layer_asked_for_the_kernel_on_the_cpu_says_why():
    layer = HetConv2d(8, 6, 3, p=2)
    layer.implementation = "triton"
    with pytest.raises(ArgumentError, match=r"'triton' cannot run here"):
        layer(torch.randn(1, 8, 5, 5))
    with pytest.raises(ArgumentError, match=r"'triton' cannot run here"):
        layer.choice()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import hetconv_cli as hc
layer = hc.HetConv2d(8, 6, 3, p=2)
assert layer(torch.randn(1, 8, 5, 5)).shape == (1, 6, 3, 3)
layer.implementation = "triton"
try:
    layer(torch.randn(1, 8, 5, 5))
except hc.ArgumentError as error:
    assert "triton is not installed" in str(error), error
else:
    raise SystemExit("not refused")
assert not any(name.startswith("triton") for name in sys.modules if sys.modules[name] is not None)
"""


def test_without_triton_everything_else_works():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_operators_shapes_are_known_without_running_them():
    x = torch.empty(2, 64, 9, 7, device="meta")
    layer = HetConv2d(64, 48, 3, stride=2, padding=1, p=4, device="meta")
    packed = pack_weights(layer.weight_1x1, layer.weight_ring, layer.spec)
    numbers = ([3, 3], [2, 2], [1, 1], [1, 1], 4, layout_of(layer.spec).merge, False)
    expected = F.conv2d(x, layer.dense_weight(), stride=2, padding=1)
    y = torch.ops.hetconv.fused(x, packed, layer.bias, *numbers)
    assert y.shape == expected.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.ops.hetconv.fused_weight_gradient(y, x, *numbers).shape == packed.shape
    assert torch.ops.hetconv.fused_input_gradient(y, packed, 64, 9, 7, *numbers).shape == x.shape


# --- generated code ---

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SIZES = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4}
# ResNet-34's layers: channels in, out, size in, stride
RESNET = {"64": (64, 64, 56, 1), "128": (128, 128, 28, 1), "256": (256, 256, 14, 1), "512": (512, 512, 7, 1)}
STRIDED = {"64 to 128": (64, 128, 56, 2)}
BATCH = 128
REGISTERS = 255  # that a thread can have
SHARED = {90: 227 * 1024, 80: 163 * 1024}


def compiled(kind: str, layer: tuple[int, int, int, int], dtype: torch.dtype, capability: int, p: int = 4):
    """The kernel that a launch on a layer would compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hetconv_cli.ops.hetconv2d import triton_kernels

    m, n, side, stride = layer
    geometry = Geometry(m, n, (3, 3), (stride, stride), (1, 1))
    out = geometry.output_size(side, side)
    layout = Layout(m, n, p, choose_merge(m, n, p), False, 9)
    pointer = TYPES[dtype]
    same = {"precision": "tf32"}
    forward = (BATCH, side, side, *out)
    if kind == "forward":
        tile = choose_tile(layout, BATCH * out[0] * out[1], SIZES[dtype])
        launch = convolve_arguments(
            forward, layout=layout, walk=forward_walk(geometry, out), tile=tile, relu=True, **same
        )
        kernel, pointers = triton_kernels._convolve, [pointer, pointer, pointer, None, pointer, pointer]
    elif kind == "input gradient":
        back = layout.transposed()
        walk = gradient_walks(geometry, (side, side))[-1]
        tile = choose_tile(back, BATCH * side * side // stride**2, SIZES[dtype])
        launch = convolve_arguments((BATCH, *out, side, side), layout=back, walk=walk, tile=tile, relu=False, **same)
        kernel, pointers = triton_kernels._convolve, [pointer, pointer, pointer, None, None, None]
    else:
        tile = choose_gradient_tile(layout, SIZES[dtype])
        walk = forward_walk(geometry, out)
        launch = weight_gradient_arguments(forward, 4, layout=layout, walk=walk, tile=tile, **same)
        kernel, pointers = triton_kernels._weight_gradient, [pointer, pointer, "*fp32"]
    _, numbers, constants, options = launch
    given = dict(zip(kernel.arg_names, [*pointers, *numbers], strict=False)) | constants
    fixed = {name: value for name, value in given.items() if name in constants or value is None}
    signature = {
        name: "constexpr" if name in fixed else value if isinstance(value, str) else "i32"
        for name, value in given.items()
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in fixed and (isinstance(given[name], str) or given[name] % 16 == 0)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(kernel, folder: Path) -> dict[str, int] | None:
    """Registers of a thread and bytes of its stack and spills, read from the machine code; None without the tool."""
    import triton

    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        return None
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    said = subprocess.run([tool, "-res-usage", str(file)], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said.stdout + said.stderr)
    assert found, said
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


CODE = [("forward", layer, torch.bfloat16) for layer in RESNET]
CODE += [("forward", "256", torch.float16), ("forward", "256", torch.float32), ("forward", "64 to 128", torch.bfloat16)]
CODE += [("input gradient", "256", torch.bfloat16), ("input gradient", "64 to 128", torch.bfloat16)]
CODE += [("weight gradient", "256", torch.bfloat16), ("weight gradient", "256", torch.float32)]
# Copies that are narrower than 16 bytes, in hexadecimal: what is known and not yet better.
NARROW = {
    # 16 channels of 32 filters are too few for every thread to copy 16 bytes
    ("forward", "64 to 128", torch.bfloat16): {"10", "8"},
    ("input gradient", "64 to 128", torch.bfloat16): {"10", "8"},
    # tf32 products want the summed dimension contiguous, and here that is the pixels
    ("weight gradient", "256", torch.float32): {"10", "8", "4"},
}


@needs_triton
@pytest.mark.skipif(availability.INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("capability", [90, 80], ids=["sm_90", "sm_80"])
@pytest.mark.parametrize(("kind", "layer", "dtype"), CODE)
def test_the_generated_code_uses_tensor_cores_and_wide_copies_and_spills_nothing(
    kind, layer, dtype, capability, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(kind, (RESNET | STRIDED)[layer], dtype, capability)
    ptx = kernel.asm["ptx"]
    product = "wgmma.mma_async" if capability == 90 else "mma.sync.aligned.m16n8k"
    number = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "tf32"}[dtype]
    assert re.search(rf"{product}\S*\.f32\.{number}\.{number}", ptx), "no tensor cores"
    assert "fma.rn.f32" not in ptx
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global\b[^;]*\], 0x(\w+)", ptx)
    assert copies
    assert set(copies) <= NARROW.get((kind, layer, dtype), {"10"}), "narrow copies"
    assert kernel.metadata.shared <= SHARED[capability]
    used = resources(kernel, tmp_path)
    if used is None:
        pytest.skip("cuobjdump is not there: registers and spills are not read")
    assert used["stack"] == used["local"] == 0
    assert used["registers"] <= REGISTERS
