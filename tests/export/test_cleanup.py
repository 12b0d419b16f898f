"""Cleaning up changes no output and leaves nothing that only the exporter's machine knows."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hetconv_cli.export.cleanup import join_identities, prune, strip_metadata


def model_with_identities():
    """y = x + w + w with w read through two Identity nodes, one behind the other; z = w; an unused constant."""
    nodes = [
        helper.make_node("Identity", ["w"], ["a"], doc_string="/home/someone/net.py"),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["w"], ["z"]),
        helper.make_node("Constant", [], ["unused"], value_float=1.0),
        helper.make_node("Add", ["x", "a"], ["sum"]),
        helper.make_node("Add", ["sum", "b"], ["y"]),
    ]
    nodes[-1].metadata_props.add(key="stack", value="/home/someone/net.py")
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xyz"}
    stored = [numpy_helper.from_array(np.float32([1, 2]), name) for name in ("w", "spare")]
    graph = helper.make_graph(nodes, "g", [tensors["x"]], [tensors["y"], tensors["z"]], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_identities_of_weights_go_and_outputs_stay():
    model = model_with_identities()
    x = np.float32([3, 4])
    before = ReferenceEvaluator(model).run(None, {"x": x})
    join_identities(model.graph)
    prune(model.graph)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity", "Add", "Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x}), before)


def test_no_path_of_a_source_file_remains():
    model = model_with_identities()
    strip_metadata(model)
    assert b"someone" not in model.SerializeToString()
