"""What of a quantized network really runs in int8: read from the graph that a runtime makes of the file."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from hetconv_cli.export.graphs import names_read_by

_BOUNDARIES = ("QuantizeLinear", "DequantizeLinear")
_NO_WORK = ("Input", "Const", "Output", "Reorder")  # in OpenVINO's graph
_FROM_FLOAT = ("Shape", "Size")  # read a float tensor's size, never its numbers


@dataclass(frozen=True)
class Int8Graph:
    """Operators of a quantized network, as a runtime runs it on the CPU with all its optimizations.

    Attributes:
        int8_convolutions: Convolutions of integers.
        float_convolutions: Convolutions that quantization left in float.
        batch_norms: BatchNormalizations that are left, whatever they run in.
        transposes: Transposes that the network brings with it.
        layout_transposes: Those that the runtime adds, to keep convolutions of integers in channels_last (in OpenVINO:
            its Reorders, of layout and of type).
        float_operators: Every operator that reads float numbers, by the runtime's name, conversions to and from int8
            apart.
    """

    int8_convolutions: int
    float_convolutions: int
    batch_norms: int
    transposes: int
    layout_transposes: int
    float_operators: dict[str, int]


def inspect_onnxruntime(file: Path) -> Int8Graph:
    """Loads a quantized ONNX file into ONNX Runtime, twice, and counts what its optimized graphs hold."""
    before_layout, final = _optimized(file, "ORT_ENABLE_EXTENDED"), _optimized(file, "ORT_ENABLE_ALL")
    total = Counter(node.op_type for node in final.node)
    in_float = _reading_floats(final)
    convolutions = sum(number for name, number in total.items() if _is_convolution(name))
    float_convolutions = sum(number for name, number in in_float.items() if _is_convolution(name))
    transposes = sum(node.op_type == "Transpose" for node in before_layout.node)
    return Int8Graph(
        int8_convolutions=convolutions - float_convolutions,
        float_convolutions=float_convolutions,
        batch_norms=total["BatchNormalization"],
        transposes=transposes,
        layout_transposes=max(0, total["Transpose"] - transposes),
        float_operators=dict(sorted(in_float.items())),
    )


def inspect_openvino(file: Path) -> Int8Graph:
    """Compiles a quantized ONNX file in OpenVINO and counts what its graph holds.

    A BatchNormalization that is left is a Multiply and Add there, or part of a Subgraph: see `float_operators`.
    """
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(file)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    notes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    nodes = Counter((note["layerType"].value, note["runtimePrecision"].value == "f32") for note in notes)
    in_float = {name: number for (name, is_float), number in nodes.items() if is_float and name not in _NO_WORK}
    return Int8Graph(
        int8_convolutions=sum(number for (name, is_float), number in nodes.items() if "Conv" in name and not is_float),
        float_convolutions=sum(number for name, number in in_float.items() if _is_convolution(name)),
        batch_norms=0,
        transposes=sum(number for (name, _), number in nodes.items() if name == "Transpose"),
        layout_transposes=sum(number for (name, _), number in nodes.items() if name == "Reorder"),
        float_operators=dict(sorted(in_float.items())),
    )


def _optimized(file: Path, level: str) -> onnx.GraphProto:
    """The graph that ONNX Runtime makes of the file at an optimization level."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="hetconv-bench-") as folder:
        path = Path(folder, "optimized.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3  # it warns that such a file is for this machine only
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(path)).graph


def _is_convolution(name: str) -> bool:
    return "Conv" in name  # Conv, FusedConv, QLinearConv, ConvInteger, ConvTranspose, ...


def _reading_floats(graph: onnx.GraphProto) -> Counter[str]:
    """Operators that read float activations. Optimized graphs note no types: they are followed from the inputs."""
    floats = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    found: Counter[str] = Counter()
    for node in graph.node:  # ONNX keeps nodes in the order in which they can run
        reads = any(name in floats for name in names_read_by(node))
        if reads and node.op_type not in (*_BOUNDARIES, *_FROM_FLOAT):
            found[node.op_type] += 1
        if _writes_floats(node, reads):
            floats |= set(node.output)
    return found


def _writes_floats(node: onnx.NodeProto, reads: bool) -> bool:
    """Whether a node's outputs are float: those of a dequantization are, of a quantization not, else as its inputs."""
    if node.op_type == "QGemm":
        return len(node.input) < 9  # without the output's scale and zero point it gives floats
    if node.op_type.endswith("ToFloat"):
        return True
    return node.op_type == "DequantizeLinear" or (reads and node.op_type not in ("QuantizeLinear", *_FROM_FLOAT))
