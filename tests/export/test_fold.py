"""Folding changes no output, to float64 rounding, and folds what it may and nothing else."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hetconv_cli.export.fold import FoldCount, fold_batchnorms

N, M = 6, 4
RANDOM = np.random.default_rng(0)


def graph_of(nodes, initializers, outputs=("y",)):
    """A float64 model from x [batch, M, 5, 5] to `outputs`."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", M, 5, 5])]
    made = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", "c", "h", "w"]) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, made, stored), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.checker.check_model(model)
    return model


def norm_constants():
    return {
        "gamma": RANDOM.normal(size=N),
        "beta": RANDOM.normal(size=N),
        "mean": RANDOM.normal(size=N),
        "var": RANDOM.uniform(0.1, 2, N),
    }


def norm(source, target="y", **attributes):
    return helper.make_node("BatchNormalization", [source, "gamma", "beta", "mean", "var"], [target], **attributes)


def conv(weight, target, bias=None, **attributes):
    return helper.make_node("Conv", ["x", weight, *([bias] if bias else [])], [target], **attributes)


def sum_of_two(bias_a=False, bias_b=False):
    """Conv 3x3 in two groups + Conv 1x1 -> Add -> BatchNormalization, as a converted layer exports."""
    constants = {"a": RANDOM.normal(size=(N, M // 2, 3, 3)), "b": RANDOM.normal(size=(N, M, 1, 1)), **norm_constants()}
    constants |= {
        name: RANDOM.normal(size=N) for name, wanted in {"bias_a": bias_a, "bias_b": bias_b}.items() if wanted
    }
    nodes = [
        conv("a", "left", "bias_a" if bias_a else None, group=2, pads=[1, 1, 1, 1]),
        conv("b", "right", "bias_b" if bias_b else None),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        norm("sum", epsilon=1e-3),
    ]
    return nodes, constants


def operators(model):
    return sorted(node.op_type for node in model.graph.node)


def check_folds(model, expected):
    """Folds `model` and holds its outputs to what they were."""
    x = RANDOM.normal(size=(3, M, 5, 5))
    before = ReferenceEvaluator(model).run(None, {"x": x})
    assert fold_batchnorms(model) == expected
    onnx.checker.check_model(model)
    for old, new in zip(before, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias_a", [False, True])
@pytest.mark.parametrize("bias_b", [False, True])
def test_a_sum_of_two_convolutions(bias_a, bias_b):
    model = graph_of(*sum_of_two(bias_a, bias_b))
    check_folds(model, FoldCount(folded=1, left=0))
    assert operators(model) == ["Add", "Conv", "Conv"]
    assert [output.name for output in model.graph.output] == ["y"]


@pytest.mark.parametrize("bias", [None, "bias"])
def test_a_single_convolution(bias):
    constants = {"w": RANDOM.normal(size=(N, M, 3, 3)), "bias": RANDOM.normal(size=N), **norm_constants()}
    model = graph_of([conv("w", "c", bias), norm("c")], constants)
    check_folds(model, FoldCount(1, 0))
    assert operators(model) == ["Conv"]
    assert len(model.graph.initializer) == 2, "the old weight, bias and statistics are gone"


def test_channels_reordered_between_convolution_and_sum():
    """The shifted arrangement, with a filter that only fills its group up (row 6)."""
    nodes, constants = sum_of_two()
    constants["a"] = RANDOM.normal(size=(N + 2, M // 2, 3, 3))
    constants["order"] = np.array([0, 4, 1, 5, 2, 7])
    nodes[0] = conv("a", "unordered", group=2, pads=[1, 1, 1, 1])
    nodes.insert(1, helper.make_node("Gather", ["unordered", "order"], ["left"], axis=1))
    check_folds(graph_of(nodes, constants), FoldCount(1, 0))


def test_a_weight_in_a_constant_node():
    nodes, constants = sum_of_two()
    nodes.insert(0, helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(constants.pop("b"))))
    model = graph_of(nodes, constants)
    check_folds(model, FoldCount(1, 0))
    assert operators(model) == ["Add", "Conv", "Conv"]


def test_two_norms_that_share_their_constants():
    nodes, constants = sum_of_two()
    nodes += [conv("b", "third"), norm("third", "z")]
    check_folds(graph_of(nodes, constants, ("y", "z")), FoldCount(2, 0))


@pytest.mark.parametrize("tensor", ["left", "sum"])
def test_not_where_something_else_reads_the_tensor(tensor):
    nodes, constants = sum_of_two()
    nodes.append(helper.make_node("Relu", [tensor], ["z"]))
    check_folds(graph_of(nodes, constants, ("y", "z")), FoldCount(0, 1))


def test_not_where_the_sum_is_an_output():
    nodes, constants = sum_of_two()
    check_folds(graph_of(nodes, constants, ("y", "sum")), FoldCount(0, 1))


def test_not_where_a_weight_is_computed():
    nodes, constants = sum_of_two()
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"]), helper.make_node("Add", ["b", "m"], ["w"]), *nodes]
    nodes[3] = conv("w", "right")
    constants["axes"] = np.array([0, 1, 2, 3])
    check_folds(graph_of(nodes, constants), FoldCount(0, 1))


def test_not_a_convolution_added_to_itself():
    nodes = [conv("b", "c"), helper.make_node("Add", ["c", "c"], ["sum"]), norm("sum")]
    check_folds(graph_of(nodes, {"b": RANDOM.normal(size=(N, M, 1, 1)), **norm_constants()}), FoldCount(0, 1))


def test_not_one_channel_spread_over_many():
    constants = {"a": RANDOM.normal(size=(1, M, 1, 1)), "b": RANDOM.normal(size=(N, M, 1, 1)), **norm_constants()}
    nodes = [conv("a", "l"), conv("b", "r"), helper.make_node("Add", ["l", "r"], ["sum"]), norm("sum")]
    check_folds(graph_of(nodes, constants), FoldCount(0, 1))


def test_not_channels_that_a_gather_reads_twice():
    constants = {"b": RANDOM.normal(size=(N, M, 1, 1)), "order": np.array([0, 0, 1, 2, 3, 4]), **norm_constants()}
    nodes = [conv("b", "c"), helper.make_node("Gather", ["c", "order"], ["g"], axis=1), norm("g")]
    check_folds(graph_of(nodes, constants), FoldCount(0, 1))


def test_not_an_input_that_no_convolution_made():
    constants = {name: value[:M] for name, value in norm_constants().items()}
    check_folds(graph_of([norm("x")], constants), FoldCount(0, 1))


def test_not_in_training_form():
    nodes, constants = sum_of_two()
    nodes[-1] = helper.make_node(
        "BatchNormalization", ["sum", "gamma", "beta", "mean", "var"], ["y", "m", "v"], training_mode=1
    )
    check_folds(graph_of(nodes, constants), FoldCount(0, 1))


def test_float32_weights_stay_float32_and_are_rounded_once():
    nodes, constants = sum_of_two()
    model = graph_of(nodes, constants)
    single = graph_of(nodes, constants)
    fold_batchnorms(model)
    for tensor in single.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    fold_batchnorms(single)
    for exact, rounded in zip(model.graph.initializer, single.graph.initializer, strict=True):
        value = numpy_helper.to_array(rounded)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, numpy_helper.to_array(exact), rtol=1e-5, atol=1e-6)
