"""BatchNormalization of an ONNX graph, folded into the convolutions before it.

A converted layer exports as Conv (K x K, grouped) + Conv (1 x 1) -> Add -> BatchNormalization. At inference the last is
y = scale x + shift with constants for each channel, so

    scale (a + b) + shift = (scale a) + (scale b + shift):

each branch's filters are scaled, and the shift goes into one branch's bias. Exporters fold only Conv ->
BatchNormalization. Works on any ONNX graph, whoever wrote it.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hetconv_cli.export.cleanup import prune
from hetconv_cli.export.graphs import names_read

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

DEFAULT_EPSILON = float(np.float32(1e-5))  # attributes are float32


@dataclass(frozen=True)
class FoldCount:
    """BatchNormalization nodes that were folded, and those that remain because they follow something else."""

    folded: int
    left: int


@dataclass(frozen=True)
class _Branch:
    """A convolution, its weight, and which of its filters each channel of the sum reads."""

    conv: onnx.NodeProto
    weight: npt.NDArray[np.generic]
    rows: Rows


def fold_batchnorms(model: onnx.ModelProto) -> FoldCount:
    """Folds, in place, each BatchNormalization that follows a convolution or a sum of convolutions.

    Between a convolution and the sum there may be a Gather that reorders channels. Weights must be constants, and
    every tensor on the way must be read only there. The arithmetic is float64; the results have the weights' type.
    Initializers that nothing reads afterwards are removed.

    Returns:
        How many were folded and how many BatchNormalization nodes the graph still has.
    """
    graph = _Graph(model.graph)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    folded = sum(_fold(graph, node) for node in norms)
    prune(model.graph)
    return FoldCount(folded, len(norms) - folded)


class _Graph:
    """Who makes and who reads each tensor of an ONNX graph."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.maker = {name: node for node in proto.node for name in node.output}
        self.reads = Counter(names_read(proto))
        self.initializers = {tensor.name: tensor for tensor in proto.initializer}

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a tensor that no input can change, or None."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.maker.get(name)
        value = _attribute(node, "value") if node is not None and node.op_type == "Constant" else None
        return None if value is None else numpy_helper.to_array(value.t)

    def add_initializer(self, value: Array, like: str, dtype: np.dtype[np.generic]) -> str:
        """Stores `value` as `dtype` under a new name made from `like`."""
        name = f"{like}_folded"
        while name in self.initializers or name in self.maker:
            name += "_"
        self.proto.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
        self.initializers[name] = self.proto.initializer[-1]
        return name


def _fold(graph: _Graph, norm: onnx.NodeProto) -> bool:
    """Folds one BatchNormalization if it can be."""
    if any(norm.output[1:]) or _integer(norm, "training_mode", 0):
        return False
    constants = [graph.constant(name) for name in norm.input[1:5]]
    branches = _branches(graph, norm.input[0])
    if any(value is None for value in constants) or branches is None:
        return False
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in constants)
    if any(len(branch.rows) != len(gamma) for branch in branches):
        return False  # a sum that spreads one channel over many
    epsilon = _attribute(norm, "epsilon")
    scale = gamma / np.sqrt(variance + (DEFAULT_EPSILON if epsilon is None else epsilon.f))
    _rescale(graph, branches[0], scale, beta - mean * scale)
    for branch in branches[1:]:
        _rescale(graph, branch, scale, None)
    _take_place(graph, norm)
    return True


def _branches(graph: _Graph, name: str) -> list[_Branch] | None:
    """The convolutions whose sum is the tensor `name`, or None if it is anything else."""
    node = graph.maker.get(name)
    if node is None or graph.reads[name] != 1:
        return None
    if node.op_type == "Conv":
        weight = graph.constant(node.input[1])
        if weight is None or (_bias_name(node) and graph.constant(node.input[2]) is None):
            return None
        return [_Branch(node, weight, np.arange(len(weight)))]
    if node.op_type == "Gather":
        return _reordered(graph, node)
    if node.op_type == "Add":
        left, right = (_branches(graph, operand) for operand in node.input)
        if left and right and len({branch.weight.ndim for branch in left + right}) == 1:
            return left + right
    return None


def _reordered(graph: _Graph, gather: onnx.NodeProto) -> list[_Branch] | None:
    """The branches behind a Gather of channels that reads no channel twice."""
    index = graph.constant(gather.input[1])
    if index is None or index.ndim != 1 or _integer(gather, "axis", 0) != 1 or len(set(index.tolist())) != len(index):
        return None
    branches = _branches(graph, gather.input[0])
    return branches and [replace(branch, rows=branch.rows[index.astype(np.int64)]) for branch in branches]


def _rescale(graph: _Graph, branch: _Branch, scale: Array, shift: Array | None) -> None:
    """Multiplies the filters that are read by `scale`, [channels], and adds `shift` to their biases."""
    conv, weight, rows = branch.conv, branch.weight, branch.rows
    factor = np.ones(len(weight))
    factor[rows] = scale
    old = graph.constant(conv.input[2]) if _bias_name(conv) else None
    bias_like = _bias_name(conv) or f"{conv.input[1]}_bias"
    scaled = weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))
    conv.input[1] = graph.add_initializer(scaled, conv.input[1], weight.dtype)
    if old is None and shift is None:
        return
    bias = np.zeros(len(weight)) if old is None else old.astype(np.float64) * factor
    if shift is not None:
        bias[rows] += shift
    del conv.input[2:]
    conv.input.append(graph.add_initializer(bias, bias_like, weight.dtype))


def _take_place(graph: _Graph, norm: onnx.NodeProto) -> None:
    """Removes `norm`; the node before it makes the tensor that `norm` made."""
    before = graph.maker.pop(norm.input[0])
    before.output[0] = norm.output[0]
    graph.maker[norm.output[0]] = before
    graph.proto.node.remove(norm)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    attribute = _attribute(node, name)
    return default if attribute is None else int(attribute.i)


def _bias_name(conv: onnx.NodeProto) -> str:
    return conv.input[2] if len(conv.input) > 2 else ""
