"""Sums are turned where that changes no output, and only there."""

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hetconv_cli.conversion.convert import convert
from hetconv_cli.export import export_onnx
from hetconv_cli.export.residuals import add_residuals_first

RANDOM = np.random.default_rng(0)


def graph_of(nodes, outputs=("y",)):
    """x [1, 4, 5, 5] and r, of the same shape, to `outputs`; `a` and `b` are 1 x 1 weights, `c` a constant map."""
    given = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 4, 5, 5]) for name in ("x", "r")]
    made = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 4, 5, 5]) for name in outputs]
    stored = [numpy_helper.from_array(RANDOM.normal(size=(4, 4, 1, 1)), name) for name in ("a", "b")]
    stored.append(numpy_helper.from_array(RANDOM.normal(size=(1, 4, 1, 1)), "c"))
    graph = helper.make_graph(nodes, "g", given, made, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def node(kind, *inputs_and_output):
    return helper.make_node(kind, list(inputs_and_output[:-1]), [inputs_and_output[-1]])


BRANCHES = [node("Conv", "x", "a", "left"), node("Conv", "x", "b", "right")]


def run(model):
    feeds = {name: np.random.default_rng(1).normal(size=(1, 4, 5, 5)) for name in ("x", "r")}
    return ReferenceEvaluator(model).run(None, feeds)


def turned_equal(nodes, outputs=("y",)):
    """How many sums were turned, after checking that the graph is valid and computes the same."""
    model = graph_of(nodes, outputs)
    wanted = run(model)
    count = add_residuals_first(model.graph)
    onnx.checker.check_model(model, full_check=True)
    for got, want in zip(run(model), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
    return count, model


@pytest.mark.parametrize("residual", ["r", "late"])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_residual_goes_to_one_branch_before_the_other_is_added(swapped, residual):
    outer = (residual, "sum") if swapped else ("sum", residual)
    late = node("Relu", "r", "late")  # made after the inner sum
    count, model = turned_equal([*BRANCHES, node("Add", "left", "right", "sum"), late, node("Add", *outer, "y")])
    inner, last = (each for each in model.graph.node if each.op_type == "Add")
    assert count == 1
    assert list(inner.input) == ["right", residual]
    assert list(last.input) == ["sum", "left"]


def test_a_branch_that_is_gathered_goes_first():
    gather = helper.make_node("Gather", ["left", "order"], ["moved"], axis=1)
    order = node("Constant", "order")
    order.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.array([2, 0, 3, 1]))))
    sums = [node("Add", "moved", "right", "sum"), node("Add", "sum", "r", "y")]
    count, model = turned_equal([order, *BRANCHES, gather, *sums])
    assert count == 1
    assert list(model.graph.node[-1].input) == ["sum", "right"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([*BRANCHES, node("Add", "left", "right", "sum"), node("Add", "sum", "c", "y")], ["y"]),
        ([*BRANCHES, node("Add", "left", "right", "sum"), node("Add", "sum", "r", "y")], ["y", "sum"]),
        ([*BRANCHES, node("Add", "left", "right", "sum"), node("Add", "sum", "sum", "y")], ["y"]),
        ([*BRANCHES, node("Add", "left", "left", "sum"), node("Add", "sum", "r", "y")], ["y"]),
        ([*BRANCHES, node("Mul", "left", "right", "sum"), node("Add", "sum", "r", "y")], ["y"]),
        ([node("Relu", "x", "left"), node("Add", "left", "r", "sum"), node("Add", "sum", "x", "y")], ["y"]),
    ],
    ids=["constant", "read twice", "added to itself", "doubled branch", "product", "no convolution"],
)
def test_other_sums_stay(nodes, outputs):
    count, _ = turned_equal(nodes, outputs)
    assert count == 0


def test_a_chain_of_residuals_is_turned_once_each():
    chain = [node("Add", "left", "right", "one"), node("Add", "one", "r", "two"), node("Add", "two", "x", "y")]
    count, _ = turned_equal([*BRANCHES, *chain])
    assert count == 2


def test_resnet18_keeps_no_sum_of_three(tmp_path):
    torch.manual_seed(0)
    model = convert(torchvision.models.resnet18(), p=4, example=torch.randn(1, 3, 64, 64)).model.eval()
    export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 3, 64, 64), fresh=True)
    graph = onnx.load(tmp_path / "model.onnx").graph
    maker = {name: each for each in graph.node for name in each.output}
    sums = [each for each in graph.node if each.op_type == "Add"]
    assert len(sums) == 24
    assert all(any(maker[name].op_type == "Conv" for name in each.input) for each in sums)
