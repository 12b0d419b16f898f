"""What runs a network: torch eagerly, torch.compile, ONNX Runtime, OpenVINO. Each opens to a call, and closes again."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import torch
from torch import Tensor, nn

from hetconv_cli.bench.clock import Call
from hetconv_cli.conversion.fuse import fuse
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.export.exporters import export_graph
from hetconv_cli.export.inputs import inputs_like
from hetconv_cli.export.onnx_file import DEFAULT_OPSET, export_onnx
from hetconv_cli.layers import FusedHetConv2d
from hetconv_cli.models.device import DeviceName
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.models.one_line import one_line

Runtime = Literal["torch", "compile", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


@dataclass(frozen=True)
class Form:
    """A network in a runtime, ready to be opened; `outputs` runs it once, `name` says in which form it runs.

    `file` is what the runtime reads, where it reads one.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[Call]]
    outputs: Callable[[], list[Tensor]]
    file: Path | None = None


def check_runtime(runtime: Runtime, device: DeviceName) -> None:
    """Raises ArgumentError where `runtime` cannot run here, and says why."""
    if runtime == "openvino" and find_spec("openvino") is None:
        raise ArgumentError("runtime openvino needs OpenVINO: pip install 'hetconv-cli[openvino]'")
    if device == "cuda" and runtime in ("onnxruntime", "openvino"):
        raise ArgumentError(f"runtime {runtime} is measured on the CPU only: --device cpu, or --runtime torch,compile")


def torch_forms(
    model: nn.Module, example: ExampleSpec, device: DeviceName, *, compiled: bool, plain: bool = False
) -> list[Form]:
    """The network in torch, in every form that could be its fastest: the fastest one counts.

    As it is and fused (`hc.fuse`: BatchNorm folded, weights packed), each in channels_last too where inputs are images.
    A compiler is given the fused form alone: it folds what is left. `plain`: as it is, and nothing else.
    """
    layouts = [torch.contiguous_format]
    if example.kind == "tensors" and all(len(shape) == 4 for shape in example.shapes):
        layouts.append(torch.channels_last)
    own = copy.deepcopy(model).to(device).eval()
    models = {} if compiled and not plain else {"as it is": own}
    if not plain:
        fused = fuse(own, example.make(device=device))
        ours = {layer.runs_as for layer in fused.modules() if isinstance(layer, FusedHetConv2d)}
        models[" + ".join(["fused", *sorted(ours & {"CPU kernel", "GPU kernel"})])] = fused
    return [
        _torch_form(form, f"{name}, {_LAYOUTS[layout]}", example, device, layout, compiled=compiled)
        for name, form in models.items()
        for layout in layouts
    ]


_LAYOUTS = {torch.contiguous_format: "contiguous", torch.channels_last: "channels_last"}


def _torch_form(
    model: nn.Module,
    name: str,
    example: ExampleSpec,
    device: DeviceName,
    layout: torch.memory_format,
    *,
    compiled: bool,
) -> Form:
    own = copy.deepcopy(model)
    inputs = example.make(device=device)
    if layout is torch.channels_last:
        own = own.to(memory_format=layout)
        inputs = tuple(tensor.contiguous(memory_format=layout) for tensor in inputs)
    run = torch.compile(own) if compiled else own

    def call() -> Any:
        with torch.no_grad():
            return run(*inputs)

    if compiled:
        _compile(call)

    @contextlib.contextmanager
    def opened() -> Iterator[Call]:
        yield call if device == "cpu" else _synchronised(call)

    return Form(name, opened, lambda: tensors_in(call()))


def _compile(call: Call) -> None:
    """The first call of a compiled network, with weights as constants: as an option of torch.compile that does nothing.

    Networks of one class share one budget of compilations, beyond which torch runs them eagerly and only logs it.

    Raises:
        HetconvError: torch cannot compile it (2.15: with circular padding).
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    most = dynamo.patch(recompile_limit=1000, accumulated_recompile_limit=1000, fail_on_recompile_limit_hit=True)
    try:
        with inductor.patch(freezing=True), most:
            call()
    except Exception as error:
        raise HetconvError(
            f"torch.compile fails on this network or a variant of it ({type(error).__name__}: {one_line(error)});"
            " leave compile out of --runtime"
        ) from error


def _synchronised(call: Call) -> Call:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def onnxruntime_form(file: Path, inputs: Sequence[Tensor], threads: int) -> Form:
    """The network in ONNX Runtime on the CPU; its session lives only while it is open."""
    import onnxruntime

    feeds = [tensor.numpy() for tensor in inputs]

    @contextlib.contextmanager
    def opened() -> Iterator[Call]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        named = dict(zip((node.name for node in session.get_inputs()), feeds, strict=True))
        yield lambda: session.run(None, named)

    def outputs() -> list[Tensor]:
        with opened() as call:
            return [torch.from_numpy(array) for array in call()]  # type: ignore[attr-defined]  # a list of arrays

    return Form("onnx", opened, outputs, file)


def openvino_form(file: Path, inputs: Sequence[Tensor], threads: int) -> Form:
    """The network in OpenVINO on the CPU, from the same ONNX file."""
    import openvino

    feeds = [tensor.numpy() for tensor in inputs]

    @contextlib.contextmanager
    def opened() -> Iterator[Call]:
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()
        yield lambda: request.infer(feeds, share_inputs=True)

    def outputs() -> list[Tensor]:
        with opened() as call:
            return [torch.from_numpy(array.copy()) for array in call().values()]  # type: ignore[attr-defined]

    return Form("onnx", opened, outputs, file)


def write_onnx(model: nn.Module, file: Path, example: ExampleSpec, *, plain: bool = False) -> None:
    """The network as ONNX for a runtime; bench compares outputs itself, so no proof is made here.

    `plain`: as torch's exporter writes it, without the joined groups and folded BatchNorms of `hetconv export`.
    """
    if not plain:
        export_onnx(model, file, example, dynamic_batch=False, verify=False)
        return
    inputs = inputs_like(example, model)
    outputs = [f"output_{number}" for number in range(len(_run_once(model, example)))]
    graph = export_graph(model, inputs, outputs, batch=inputs.batch, opset=DEFAULT_OPSET, dynamic_batch=False)
    onnx.save(graph, str(file))


def _run_once(model: nn.Module, example: ExampleSpec) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(*example.make()))


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a model's output, in order."""
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
