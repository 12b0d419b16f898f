"""Measures the fused kernel on a GPU: one command, under 8 minutes, correctness before every time.

    python tests/gpu/bench_gpu.py FOLDER [--minutes 8] [--parts layers,networks,...] [--quick]

Writes FOLDER/results.json (after every measurement), FOLDER/table.md and FOLDER/rows.txt, the rows that
`ops/hetconv2d/measured.py` would take over. What fails is reported and the next measurement runs. They run in a process
of their own: where that dies, hangs or loses the GPU, another one goes on with what has not been tried. Every tile is
checked against float64 on fresh random input, its output filled with NaN before, and a wrong one gets no time. Times
are medians (20 % and 80 % quantiles) of a CUDA graph of several calls on different inputs, larger together than the L2
cache, with the cache flushed before each replay.
"""

import argparse
import copy
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from hetconv_cli.layers import FusedHetConv2d, HetConv2d
from hetconv_cli.ops.hetconv2d.fused import layout_of, pack_weights
from hetconv_cli.ops.hetconv2d.layout import Layout, Tile, ceil_div, choose_merge, choose_tile
from hetconv_cli.ops.hetconv2d.walk import Walk, forward_walk

BATCH = 128
DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
# relative, in the norm; guards, not results. Hopper's products cut float32 off to tf32, which alone makes 7.7e-4
LARGEST_ERROR = {"bf16": 6e-3, "fp16": 8e-4, "tf32": 1e-3, "fp32": 2e-6}
AT_ONCE = 1 << 28  # bytes that the rotating inputs of one measurement should have together: past every L2
WORKERS = 12  # processes that compile in advance
SHARES = {"warm": 0.25, "layers": 0.4}  # of the time, at most; the other parts run to the end
GRACE = 15  # seconds that the measurement under way at the end still has
SILENCE = 150  # seconds without a new measurement after which a process is taken to hang; more than `warm` has
PROCESSES = 5  # that are tried one after the other
LOST = 3  # exit status: the GPU answers no more, and a new process may find it well
PROFILED = 5  # calls; profilers miss some kernels' records


@dataclass(frozen=True)
class Shape:
    """A convolution of a network, and how often the network has it."""

    net: str
    m: int
    n: int
    side: int
    stride: int
    times: int


RESNET34 = [
    Shape("resnet34", 64, 64, 56, 1, 6),
    Shape("resnet34", 128, 128, 28, 1, 7),
    Shape("resnet34", 256, 256, 14, 1, 11),
    Shape("resnet34", 512, 512, 7, 1, 5),
    Shape("resnet34", 64, 128, 56, 2, 1),
    Shape("resnet34", 128, 256, 28, 2, 1),
    Shape("resnet34", 256, 512, 14, 2, 1),
]
VGG16 = [
    Shape("vgg16", 64, 64, 224, 1, 1),
    Shape("vgg16", 64, 128, 112, 1, 1),
    Shape("vgg16", 128, 128, 112, 1, 1),
    Shape("vgg16", 128, 256, 56, 1, 1),
    Shape("vgg16", 256, 256, 56, 1, 2),
    Shape("vgg16", 256, 512, 28, 1, 1),
    Shape("vgg16", 512, 512, 28, 1, 2),
    Shape("vgg16", 512, 512, 14, 1, 3),
]


@dataclass(frozen=True)
class Job:
    """A layer to measure, in one dtype, and whether many tiles are tried on it."""

    shape: Shape
    p: int
    dtype: str
    wide: bool


def jobs(quick: bool) -> list[Job]:
    if quick:
        return [Job(RESNET34[2], 4, "bf16", False)]
    chosen = [Job(shape, 4, "bf16", True) for shape in RESNET34]
    chosen += [Job(shape, 4, "bf16", False) for shape in VGG16]
    chosen += [Job(shape, p, "bf16", False) for p in (8, 2, 32) for shape in RESNET34]
    chosen += [Job(shape, 4, dtype, False) for dtype in ("fp16", "tf32") for shape in RESNET34[:4]]
    chosen += [Job(shape, 8, "bf16", False) for shape in VGG16]
    return [*chosen, Job(RESNET34[2], 4, "fp32", False)]


class Layer:
    """Tensors of one job on the GPU."""

    def __init__(self, job: Job, batch: int = BATCH) -> None:
        shape, self.job = job.shape, job
        self.dtype = DTYPES[job.dtype]
        layer = HetConv2d(shape.m, shape.n, 3, shape.stride, 1, p=job.p, device=DEVICE, dtype=self.dtype)
        self.layer, self.spec = layer.requires_grad_(False), layer.spec
        self.dense = last(layer.dense_weight())
        self.batch = batch
        self.out = layer.geometry.output_size(shape.side, shape.side)
        self.layout: Layout = layout_of(self.spec)
        self.packed = pack_weights(layer.weight_1x1, layer.weight_ring, self.spec)

    def image(self) -> Tensor:
        shape = self.job.shape
        return last(torch.randn(self.batch, shape.m, shape.side, shape.side, device=DEVICE, dtype=self.dtype))

    def images(self) -> list[Tensor]:
        first = self.image()
        count = max(2, min(10, ceil_div(AT_ONCE, first.numel() * first.element_size())))
        return [first, *(self.image() for _ in range(count - 1))]

    def empty(self) -> Tensor:
        return last(
            torch.full((self.batch, self.job.shape.n, *self.out), float("nan"), device=DEVICE, dtype=self.dtype)
        )

    def standard(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense, self.layer.bias, self.job.shape.stride, 1)

    def grouped(self, x: Tensor) -> Tensor:
        self.layer.implementation = "grouped"
        output: Tensor = self.layer(x)
        return output

    def fused(self, x: Tensor, tile: Tile, out: Tensor | None = None) -> Tensor:
        from hetconv_cli.ops.hetconv2d import triton_kernels

        out = self.empty() if out is None else out
        triton_kernels.convolve(
            x,
            self.packed,
            out,
            layout=self.layout,
            walk=forward_walk(self.layer.geometry, self.out),
            tile=tile,
            precision="tf32" if self.job.dtype == "tf32" else "ieee",
            shift=self.layer.bias,
        )
        return out

    def exact(self, x: Tensor) -> Tensor:
        """The first and the last image in float64."""
        bias, stride = self.layer.bias, self.job.shape.stride
        return F.conv2d(ends(x).double(), self.dense.double(), bias.double(), stride, 1)

    def tiles(self) -> list[Tile]:
        """The default tile first, then others."""
        size = self.packed.element_size()
        default = choose_tile(self.layout, self.batch * self.out[0] * self.out[1], size)
        others = []
        rows = self.layout.rows
        for block_m, block_n, block_k in itertools.product((64, 128, 256), (32, 64, 128, 256), (32, 64, 128)):
            stage = size * block_k * (block_m + block_n)  # bytes of shared memory, of which Hopper gives 227 KiB
            if (
                block_m * block_n > 128 * 256
                or block_n > max(32, 2 * rows)
                or block_n < min(rows, 64)
                or block_k > max(32, self.layout.ring)
            ):
                continue
            warps = 8 if block_m * block_n >= 128 * 128 else 4
            for stages, inside in ((3, False), (4, False), (3, True), (1, True)):
                if stages * stage <= 220 * 1024:
                    others.append(Tile(block_m, block_n, block_k, warps, stages, inside))
        deep = 64 if size == 2 else 32  # float32 products of 64 fill all registers and more
        others.sort(key=lambda tile: (-min(tile.block_k, deep), abs(tile.block_m - 128), abs(tile.block_n - rows)))
        preferred = [tile for tile in others if tile.block_k >= min(deep, self.layout.ring) and tile.block_m == 128]
        chosen = others if self.job.wide else preferred[:6]
        return list(dict.fromkeys([default, *chosen]))[: 24 if self.job.wide else 7]


def limit_us(shape: Shape, p: int, *, size: int = 2, flops: float = 790e12, bytes_s: float = 4.3e12) -> float:
    """The roofline of docs/gpu.md: nothing computes a layer in less, every tensor moved once."""
    out = ceil_div(shape.side, shape.stride)
    weights = shape.n * (shape.m * 9 // p + shape.m - shape.m // p)
    moved = size * (BATCH * shape.side**2 * shape.m + BATCH * out**2 * shape.n + weights)
    return 1e6 * max(2 * BATCH * out**2 * weights / flops, moved / bytes_s)


def last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def ends(image: Tensor) -> Tensor:
    return torch.cat((image[:1], image[-1:]))


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ends(ours).double() - exact).norm() / exact.norm()).item()


# --- time ---


def timed(call: Callable[[Tensor], Any], inputs: list[Tensor], rep: int = 60) -> dict[str, Any]:
    """Microseconds of one call: median and quantiles over replays of a graph with one call on each input."""
    from triton.testing import do_bench

    def all_calls() -> list[Any]:
        return [call(x) for x in inputs]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            all_calls()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    how: str = "graph"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = all_calls()  # held, so that each call writes to memory of its own
        run: Callable[[], Any] = graph.replay
    except Exception as problem:
        how, run, kept = f"eager, capture failed: {first_line(problem)}", all_calls, []
        torch.cuda.synchronize()
    median, low, high = do_bench(run, warmup=15, rep=rep, quantiles=[0.5, 0.2, 0.8])
    del kept
    each = 1000 / len(inputs)
    return {"us": median * each, "us_20": low * each, "us_80": high * each, "how": how, "inputs": len(inputs)}


def first_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"


class LostError(BaseException):
    """An error after which this process can do nothing on the GPU; no handler of `Exception` takes it for its own."""


def said(problem: Exception) -> str:
    """The first line of a problem that the GPU has survived."""
    try:
        torch.cuda.synchronize()
    except Exception as lasting:
        raise LostError(first_line(problem)) from lasting
    return first_line(problem)


class Session:
    """What was measured, where it is written, and until when."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        self.start, self.end = self.results["from"], self.results["until"]
        self.limit = self.end

    def run(self, name: str, part: Callable[["Session"], Any]) -> None:
        """A part, unless another process has been through it."""
        if name in self.results["done"]:
            return
        if time.time() > self.end:
            self.results["skipped"].append(name)
            return
        begin, seconds = time.time(), self.results["seconds"]
        share = SHARES.get(name, 1.0) * (self.end - self.start) - seconds.get(name, 0)
        self.limit = min(self.end, begin + share)
        print(f"[{begin - self.start:5.0f} s] {name}", flush=True)
        try:
            part(self)
        except Exception as problem:
            self.results["failed"][name] = traceback.format_exc()
            print(f"  {name} FAILED: {said(problem)}", flush=True)
        finally:
            seconds[name] = round(seconds.get(name, 0) + time.time() - begin, 1)
            self.write()
        self.results["done"].append(name)
        self.write()
        write_tables(self.folder, self.results)
        torch.cuda.empty_cache()

    def begins(self, what: str) -> bool:
        """Whether to measure something now: not when the time is up, nor where a process has tried it already."""
        if what in self.results["begun"]:
            return False
        if time.time() > self.limit:
            self.results["skipped"].append(what)
            return False
        self.results["begun"].append(what)
        self.write()
        return True

    def add(self, part: str, row: dict[str, Any]) -> dict[str, Any]:
        """Takes a row in, which may be filled later."""
        self.results.setdefault(part, []).append(row)
        return row

    def write(self) -> None:
        write(self.folder, self.results)


def write(folder: Path, results: dict[str, Any]) -> None:
    """In one step, so that there is a whole file whenever this process ends."""
    new = folder / "results.json.new"
    new.write_text(json.dumps(results))
    new.replace(folder / "results.json")


def write_tables(folder: Path, results: dict[str, Any]) -> None:
    (folder / "table.md").write_text(table(results))
    (folder / "rows.txt").write_text("\n".join(measured_rows(results)) + "\n")


# --- parts ---


def machine(session: Session) -> None:
    if not session.begins("machine"):
        return
    import triton

    properties = torch.cuda.get_device_properties(0)
    session.results["machine"] = {
        "gpu": properties.name,
        "capability": list(torch.cuda.get_device_capability(0)),
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    x = torch.randn(1 << 28, device=DEVICE)
    from triton.testing import do_bench

    ms = do_bench(lambda: x.clone(), quantiles=[0.5, 0.2, 0.8])[0]
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    product = do_bench(lambda: a @ a, quantiles=[0.5, 0.2, 0.8])[0]
    session.results["ceilings"] = {"copy_tb_s": 2 * x.nbytes / ms / 1e9, "bf16_tflop_s": 2 * 8192**3 / product / 1e9}


def warm(session: Session) -> None:
    """Compiles every tile in processes side by side; Triton's cache on disk hands them to this one."""
    if not session.begins("warm"):
        return
    line = [sys.executable, __file__, str(session.folder), *(["--quick"] if session.quick else [])]
    workers = [
        subprocess.Popen(
            [*line, "--warm", f"{index}/{WORKERS}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for index in range(WORKERS)
    ]
    until = session.limit
    for worker in workers:
        try:
            _, complaint = worker.communicate(timeout=max(1.0, until - time.time()))
            if worker.returncode:
                session.add("warm_failures", {"said": complaint[-500:]})
        except subprocess.TimeoutExpired:
            worker.kill()
            session.add("warm_failures", {"said": "took too long; what it left is compiled when it is measured"})


def compile_slice(index: int, count: int, quick: bool) -> None:
    """Launches every `count`-th tile of all jobs once."""
    number = 0
    for job in jobs(quick):
        layer, x = Layer(job), None
        for tile in layer.tiles():
            number += 1
            if number % count != index:
                continue
            x = layer.image() if x is None else x
            try:
                layer.fused(x, tile)
            except Exception as problem:  # reported when it is measured
                print(tile, first_line(problem), file=sys.stderr)
        torch.cuda.empty_cache()


def layers(session: Session) -> None:
    """Forward: cuDNN's standard convolution, two vendor convolutions, and the fused kernel with several tiles."""
    for job in jobs(session.quick):
        if not session.begins(f"layer {job}"):
            continue
        row: dict[str, Any] = {**asdict(job.shape), "p": job.p, "dtype": job.dtype, "tiles": []}
        try:
            one_layer(job, session.add("layers", row), session.write)
        except Exception as problem:
            session.add("layer_failures", {"job": asdict(job), "problem": said(problem)})
        finally:
            summarize(row)
        torch.cuda.empty_cache()


def one_layer(job: Job, row: dict[str, Any], keep: Callable[[], None]) -> None:
    """Fills `row` as it goes, so that what was measured before a problem is kept."""
    allow_tf32(job.dtype == "tf32")
    layer = Layer(job)
    images = layer.images()
    x = images[0]
    exact = layer.exact(x)
    row["merge"] = layer.layout.merge
    for name, call in (("standard", layer.standard), ("grouped", layer.grouped)):
        try:
            row[name] = {"error": error(call(x), exact)} | timed(call, images)
        except Exception as problem:
            row[name] = {"error": float("nan"), "us": float("nan"), "problem": said(problem)}
    if job.dtype in ("bf16", "fp16"):
        row["limit_us"] = {"standard": limit_us(job.shape, 1), "hetconv": limit_us(job.shape, job.p)}
    for tile in layer.tiles():
        entry: dict[str, Any] = {"tile": asdict(tile)}
        row["tiles"].append(entry)
        try:
            fresh = layer.image()
            output = layer.fused(fresh, tile)
            entry["error"] = error(output, layer.exact(fresh))
            entry["whole"] = bool(output.isfinite().all())
            entry["right"] = entry["whole"] and entry["error"] <= LARGEST_ERROR[job.dtype]
            entry["no_worse_than_standard"] = entry["error"] <= 1.02 * row["standard"]["error"]  # other random input
            if entry["right"]:
                outs = {x.data_ptr(): layer.empty() for x in images}
                entry |= timed(lambda x, tile=tile, outs=outs: layer.fused(x, tile, outs[x.data_ptr()]), images)
        except Exception as problem:
            entry["problem"] = first_line(problem)
            said(problem)
        keep()


def summarize(row: dict[str, Any]) -> None:
    """The fastest right tile beside what cuDNN takes."""
    right = [entry for entry in row["tiles"] if "us" in entry]
    row["worse_tiles"] = sum(not entry["no_worse_than_standard"] for entry in right)
    row["wrong_tiles"] = sum(entry.get("right") is False for entry in row["tiles"])
    if right:
        row["fused"] = min(right, key=lambda entry: entry["us"])
        row["default"] = right[0] if right[0] is row["tiles"][0] else None
        row["over_standard"] = row["standard"]["us"] / row["fused"]["us"]
        row["over_grouped"] = row["grouped"]["us"] / row["fused"]["us"]
        fused, standard = row["fused"], row["standard"]
        print(
            f"  {row['m']}->{row['n']} {row['side']} /{row['stride']} P{row['p']} {row['dtype']}: standard "
            f"{standard['us']:.1f}, grouped {row['grouped']['us']:.1f}, fused {fused['us']:.1f} us "
            f"(x{row['over_standard']:.2f}), errors {standard['error']:.1e} {fused['error']:.1e}",
            flush=True,
        )


def allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"


def gradients(session: Session) -> None:
    """Input and weight gradient of ResNet-34's layers against float64 (a few images), then timed on the whole batch."""
    for shape, dtype in itertools.product(RESNET34[: 1 if session.quick else None], ("bf16", "fp16", "tf32")):
        if not session.begins(f"gradients {shape} {dtype}"):
            continue
        allow_tf32(dtype == "tf32")
        try:
            row = session.add("gradients", {**asdict(shape), "p": 4, "dtype": dtype})
            for name in ("triton", "grouped", "standard"):
                row[name] = gradient_errors(Job(shape, 4, dtype, False), name)
                if dtype == "bf16":
                    row[name] |= gradient_times(Job(shape, 4, dtype, False), name)
        except Exception as problem:
            session.add("gradient_failures", {"shape": asdict(shape), "dtype": dtype, "problem": said(problem)})


def module_for(layer: Layer, name: str) -> nn.Module:
    shape = layer.job.shape
    if name == "standard":
        conv = nn.Conv2d(shape.m, shape.n, 3, shape.stride, 1, device=DEVICE, dtype=layer.dtype)
        conv.weight.data.copy_(layer.dense)
        conv.bias.data.copy_(layer.layer.bias)
        return conv.to(memory_format=torch.channels_last)
    module = copy.deepcopy(layer.layer).requires_grad_(True)
    module.implementation = name
    return module


def gradient_errors(job: Job, name: str) -> dict[str, float]:
    layer = Layer(job, batch=4)
    module = module_for(layer, name)
    x = layer.image().requires_grad_()
    exact_x, exact = x.detach().double().requires_grad_(), copy.deepcopy(module).double()
    if name == "triton":
        exact.implementation = "grouped"
    y = module(x)
    weigh = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *module.parameters()], weigh)
    wanted = torch.autograd.grad(exact(exact_x), [exact_x, *exact.parameters()], weigh.double())
    return {
        f"error_{label}": ((a.double() - b).norm() / b.norm()).item()
        for label, a, b in zip(("input", *dict(module.named_parameters())), ours, wanted, strict=True)
    }


def gradient_times(job: Job, name: str) -> dict[str, Any]:
    from triton.testing import do_bench

    layer = Layer(job)
    times = {}
    for label in ("input", "weights"):
        module = module_for(layer, name).requires_grad_(label == "weights")
        if module.bias is not None:
            module.bias.requires_grad_(False)
        x = layer.image().requires_grad_(label == "input")
        y = module(x)
        weigh = torch.randn_like(y)
        wanted = (
            [x] if label == "input" else [parameter for parameter in module.parameters() if parameter.requires_grad]
        )

        def backward(y: Tensor = y, wanted: list[Tensor] = wanted, weigh: Tensor = weigh) -> Any:
            return torch.autograd.grad(y, wanted, weigh, retain_graph=True)

        times[f"us_{label}"] = 1000 * do_bench(backward, warmup=15, rep=60, quantiles=[0.5, 0.2, 0.8])[0]
    return times


def narrow_products(session: Session) -> None:
    """The kernel as a plain matrix product [401408 x 576] x [576 x n]: what narrow tiles cost."""
    from hetconv_cli.ops.hetconv2d import triton_kernels

    for n in (16, 32, 64, 128, 256):
        if not session.begins(f"narrow {n}"):
            continue
        x = last(torch.randn(BATCH, 576, 56, 56, device=DEVICE, dtype=torch.bfloat16))
        packed = torch.randn(n, 576, device=DEVICE, dtype=torch.bfloat16)
        layout = Layout(576, n, 1, choose_merge(576, n, 1), False, 1)
        layer = HetConv2d(576, n, 1, p=1, device="meta")
        walk = forward_walk(layer.geometry, (56, 56))
        out = last(torch.empty(BATCH, n, 56, 56, device=DEVICE, dtype=torch.bfloat16))
        best = []
        for block_m, stages in ((128, 3), (128, 4), (256, 3)):
            tile = Tile(block_m, min(n, 256), 64, 8 if block_m * n >= 128 * 128 else 4, stages)

            def product(given: Tensor, packed: Tensor, out: Tensor, layout: Layout, walk: Walk, tile: Tile) -> None:
                triton_kernels.convolve(given, packed, out, layout=layout, walk=walk, tile=tile, precision="ieee")

            try:
                call = functools.partial(product, packed=packed, out=out, layout=layout, walk=walk, tile=tile)
                best.append((timed(call, [x])["us"], asdict(tile)))
            except Exception as problem:
                session.add("narrow_failures", {"n": n, "tile": asdict(tile), "problem": said(problem)})
        try:
            vendor = timed(lambda given, packed=packed: F.conv2d(given, packed[:, :, None, None]), [x])["us"]
        except Exception as problem:
            session.add("narrow_failures", {"n": n, "problem": said(problem)})
            vendor = float("nan")
        if best:
            us, tile_used = min(best, key=lambda pair: pair[0])
            flops = 2 * BATCH * 56 * 56 * 576 * n
            session.add(
                "narrow", {"n": n, "us": us, "tflop_s": flops / us / 1e6, "vendor_us": vendor, "tile": tile_used}
            )


def networks_of(name: str, p: int) -> dict[str, Callable[[], nn.Module]]:
    """How each variant is made, in eval mode, bf16 and channels_last."""
    import torchvision

    from hetconv_cli.conversion.convert import convert
    from hetconv_cli.conversion.fuse import fuse

    model = getattr(torchvision.models, name)().eval()
    converted = convert(model, p=p, example=torch.randn(1, 3, 224, 224)).model.eval()

    def placed(module: nn.Module) -> nn.Module:
        return copy.deepcopy(module).to(DEVICE, torch.bfloat16).to(memory_format=torch.channels_last)

    def served_by(implementation: Any) -> nn.Module:
        chosen = placed(converted)
        for module in chosen.modules():
            if isinstance(module, HetConv2d):
                module.implementation = implementation
        return chosen

    def folded() -> nn.Module:
        from torch.fx.experimental.optimization import fuse as fold

        return placed(fold(copy.deepcopy(model)))

    def fused(implementation: Any) -> nn.Module:
        image = torch.randn(1, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16)
        return fuse(served_by(implementation), last(image))

    return {
        "standard": lambda: placed(model),
        "standard, BatchNorm folded": folded,
        "grouped": lambda: served_by("grouped"),
        "grouped, hc.fuse": lambda: fused("grouped"),
        "triton": lambda: served_by("triton"),
        "triton, hc.fuse": lambda: fused("triton"),
    }


def networks(session: Session) -> None:
    """Images per second of whole networks, and the memory of a forward pass."""
    wanted = [("resnet34", 4), ("vgg16", 4), ("resnet34", 8)]
    for name, p in wanted[: 1 if session.quick else None]:
        if time.time() > session.limit:
            session.results["skipped"].append(f"network {name} P{p}")
            continue
        x = last(torch.randn(BATCH, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16))
        try:
            variants = networks_of(name, p)
        except Exception as problem:
            session.add("networks", {"network": name, "p": p, "problem": said(problem)})
            continue
        for variant, make in variants.items():
            if session.begins(f"network {name} P{p} {variant}"):
                one_network(session.add("networks", {"network": name, "p": p, "variant": variant}), make, x)
                torch.cuda.empty_cache()


@torch.no_grad()
def one_network(row: dict[str, Any], make: Callable[[], nn.Module], x: Tensor) -> None:
    try:
        model = make()
        model(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        model(x)
        torch.cuda.synchronize()
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        row |= timed(model, [x], rep=300)
        row["images_s"] = len(x) / row["us"] * 1e6
        print(f"  {row['network']} P{row['p']} {row['variant']}: {row['images_s']:.0f} images/s", flush=True)
    except Exception as problem:
        row["problem"] = said(problem)


def training(session: Session) -> None:
    """One step of SGD on ResNet-34 under bf16 autocast: standard, two vendor convolutions, fused."""
    import torchvision
    from triton.testing import do_bench

    from hetconv_cli.conversion.convert import convert

    standard = torchvision.models.resnet34()
    converted = convert(standard, p=4, example=torch.randn(1, 3, 224, 224)).model
    x = last(torch.randn(BATCH, 3, 224, 224, device=DEVICE))
    target = torch.randint(1000, (BATCH,), device=DEVICE)
    for variant, source in (("standard", standard), ("grouped", converted), ("triton", converted)):
        if not session.begins(f"training {variant}"):
            continue
        row = session.add("training", {"network": "resnet34", "p": 4, "variant": variant})
        try:
            model = copy.deepcopy(source).train().to(DEVICE).to(memory_format=torch.channels_last)
            for module in model.modules():
                if isinstance(module, HetConv2d):
                    module.implementation = variant
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

            def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.bfloat16):
                    loss = F.cross_entropy(model(x), target)
                loss.backward()
                optimizer.step()

            for _ in range(3):
                step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            row["ms"], row["ms_20"], row["ms_80"] = do_bench(step, warmup=200, rep=1500, quantiles=[0.5, 0.2, 0.8])
            print(f"  {variant}: {row['ms']:.1f} ms a step", flush=True)
            del model, optimizer, step
        except Exception as problem:
            row["problem"] = said(problem)
        torch.cuda.empty_cache()


def kernel_names(session: Session) -> None:
    """What the profiler sees in one call: one kernel for a fused layer, and which kernels cuDNN takes."""
    for shape, dtype in itertools.product(RESNET34[: 1 if session.quick else None], ("bf16", "fp16", "tf32")):
        if not session.begins(f"kernels {shape} {dtype}"):
            continue
        allow_tf32(dtype == "tf32")
        layer = Layer(Job(shape, 4, dtype, False))
        fused = FusedHetConv2d(layer.layer, relu=True)
        fused.implementation = "triton"
        fused.prepare()
        residual = layer.standard(layer.image())
        calls = {"standard": layer.standard, "grouped": layer.grouped, "fused": lambda x, f=fused, r=residual: f(x, r)}
        row = session.add("kernels", {**asdict(shape), "dtype": dtype})
        for name, call in calls.items():
            try:
                row[name] = kernels_of(call, layer.image())
            except Exception as problem:
                row[name] = {said(problem): 0}


@torch.no_grad()
def kernels_of(call: Callable[[Tensor], Any], x: Tensor) -> dict[str, int]:
    """How often each kernel ran in `PROFILED` calls."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        call(x)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            call(x)
        torch.cuda.synchronize()
    return Counter(event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)


# --- tables ---


def table(results: dict[str, Any]) -> str:
    lines = [f"# {results.get('machine', {}).get('gpu', 'no GPU')}", "", f"batch {BATCH}, channels_last", ""]
    lines += [
        "| layer | P | dtype | standard us | grouped us | fused us | over standard | over grouped | error: standard |"
    ]
    lines[-1] += " fused | tile | wrong tiles | worse than cuDNN |"
    lines += ["|" + "---|" * 13]
    for row in results.get("layers", []):
        if "fused" in row:
            tile = row["fused"]["tile"]
            name = f"{row['net']} {row['m']}->{row['n']} {row['side']} /{row['stride']}"
            cells = [
                name,
                row["p"],
                row["dtype"],
                *(f"{row[kind]['us']:.1f}" for kind in ("standard", "grouped", "fused")),
            ]
            cells += [f"x{row['over_standard']:.2f}", f"x{row['over_grouped']:.2f}"]
            cells += [f"{row['standard']['error']:.1e}", f"{row['fused']['error']:.1e}"]
            cells += [" ".join(str(value) for value in tile.values()), row["wrong_tiles"], row["worse_tiles"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *sums(results.get("layers", [])), ""]
    lines += ["## not run or failed", ""]
    lines += [f"- a process died at {end['at']}: {end['ended']}" for end in results["died"]]
    lines += [f"- failed: {name}: {trace.strip().splitlines()[-1]}" for name, trace in results["failed"].items()]
    lines += [*(f"- skipped: {what}" for what in results["skipped"]), ""]
    for part in ("networks", "training", "layer_failures", "warm_failures", "gradients", "narrow", "kernels"):
        lines += [f"## {part}", "", *(f"- {json.dumps(row)}" for row in results.get(part, [])), ""]
    return "\n".join(lines)


def sums(rows: list[dict[str, Any]]) -> list[str]:
    """Over all 3 x 3 layers of a network: the fused kernel everywhere, and the fastest of all three for each layer."""
    lines = []
    for key in dict.fromkeys((row["net"], row["p"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["net"], row["p"], row["dtype"]) == key and "fused" in row]
        counted = sum(row["times"] for row in mine)
        total = {kind: sum(row["times"] * row[kind]["us"] for row in mine) for kind in ("standard", "grouped", "fused")}
        if mine:
            lines.append(
                f"- {key[0]} P{key[1]} {key[2]}, {counted} layers: standard {total['standard']:.0f} us, grouped "
                f"{total['grouped']:.0f} us, fused {total['fused']:.0f} us: x{total['standard'] / total['fused']:.2f} "
                f"over standard, x{total['grouped'] / total['fused']:.2f} over grouped"
            )
    return lines


def measured_rows(results: dict[str, Any]) -> Iterator[str]:
    capability = "".join(map(str, results.get("machine", {}).get("capability", "??")))
    names = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32"}
    for row in results.get("layers", []):
        if "fused" in row and row["dtype"] in names:
            stride = (row["stride"], row["stride"])
            dtype, tile = names[row["dtype"]], Tile(**row["fused"]["tile"])
            key = f"Shape('sm_{capability}', '{dtype}', {row['m']}, {row['n']}, (3, 3), {stride}, {row['p']})"
            times = ", ".join(f"{row[kind]['us']:.1f}" for kind in ("fused", "grouped", "standard"))
            yield f"{key}: Row({tile!r}, {times}),  # {row['net']}, {row['side']} x {row['side']}"


PARTS: dict[str, Callable[[Session], None]] = {
    "machine": machine,
    "warm": warm,
    "layers": layers,
    "kernels": kernel_names,
    "networks": networks,
    "training": training,
    "gradients": gradients,
    "narrow": narrow_products,
}


# --- processes ---


def supervise(folder: Path, minutes: float, parts: list[str], more: list[str]) -> dict[str, Any]:
    """The results of processes that measure, one after the other, until one comes to its end or the time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    results: dict[str, Any] = {"schema": "hetconv.gpu/1", "from": start, "until": start + 60 * minutes, "seconds": {}}
    results |= {"begun": [], "done": [], "died": [], "failed": {}, "skipped": []}
    write(folder, results)
    line = [sys.executable, __file__, str(folder), "--parts", ",".join(parts), "--measure", *more]
    for _ in range(PROCESSES):
        process = subprocess.Popen(line, start_new_session=True)
        ended = wait_for(process, folder / "results.json", results["until"] + GRACE)
        results = json.loads((folder / "results.json").read_text())
        if ended == "0":
            break
        results["died"].append({"at": (results["begun"] or ["the start"])[-1], "ended": ended})
        write(folder, results)
        if time.time() > results["until"] or not results["begun"]:
            break
    return results


def wait_for(process: subprocess.Popen[bytes], sign_of_life: Path, until: float) -> str:
    """How a process ended; one that is late or silent is killed, with all that it started."""
    while process.poll() is None:
        now = time.time()
        if now > until or now > sign_of_life.stat().st_mtime + SILENCE:
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # in the driver
                return "killed, and does not go"
            return "killed: the time was up" if now > until else f"killed: silent for {SILENCE} s"
        time.sleep(0.2)
    return str(process.returncode)


def measure(folder: Path, quick: bool, parts: list[str]) -> int:
    """Runs the parts that are left in this process."""
    session = Session(folder, quick)
    try:
        for name in parts:
            session.run(name, PARTS[name])
    except LostError as problem:
        print(f"  the GPU is lost to this process: {problem}", flush=True)
        session.results["failed"][session.results["begun"][-1]] = str(problem)
        session.write()
        return LOST
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one layer and one network: does it run at all?")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = given.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts: expected some of {','.join(PARTS)}, got {given.parts}")
    if not torch.cuda.is_available():
        print("this needs an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    if given.warm:
        index, count = map(int, given.warm.split("/"))
        compile_slice(index, count, given.quick)
        return 0
    if given.measure:
        return measure(given.folder, given.quick, parts)
    results = supervise(given.folder, given.minutes, parts, ["--quick"] if given.quick else [])
    write_tables(given.folder, results)
    print((given.folder / "table.md").read_text()[:9000])
    return 1 if results["failed"] or results["died"] else 0


if __name__ == "__main__":
    sys.exit(main())
