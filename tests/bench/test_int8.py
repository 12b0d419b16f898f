"""int8: calibrated on what is given, and what of it really runs in int8."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from hetconv_cli.bench.int8_graph import inspect_onnxruntime, inspect_openvino
from hetconv_cli.bench.quantize import image_batches, quantize, random_batches
from hetconv_cli.bench.run import Settings, bench
from hetconv_cli.bench.runtimes import write_onnx
from hetconv_cli.bench.subjects import Contest, network_contest
from hetconv_cli.conversion.convert import convert, make_wish
from hetconv_cli.conversion.copying import meta_copy
from hetconv_cli.measure.network import prepare
from hetconv_cli.models.build import build
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.models.source import resolve

INT8 = Settings(runtimes=("onnxruntime",), dtypes=("int8",), batches=(2,), rounds=1, seconds=1e-3)


def quantized(model, file, example):
    write_onnx(model, file, example)
    quantize(file, random_batches(example))
    return inspect_onnxruntime(file)


def test_resnet18_runs_in_int8_from_end_to_end(tmp_path):
    example = ExampleSpec(((1, 3, 64, 64),))
    standard = build(resolve("resnet18")).model
    hetconv = convert(standard, 4, example=example, transfer="fresh").model
    found = {
        "standard": quantized(standard, tmp_path / "standard.onnx", example),
        "hetconv": quantized(hetconv, tmp_path / "hetconv.onnx", example),
    }
    for name, convolutions in {"standard": 20, "hetconv": 20 + 16}.items():  # a HetConv is two
        graph = found[name]
        assert (graph.int8_convolutions, graph.float_convolutions) == (convolutions, 0)  # first and last layers too
        assert (graph.batch_norms, graph.transposes) == (0, 0)
        # the mean over the last map: ONNX Runtime has no int8 form of it; Add and Gemm are integers
        assert graph.float_operators == {"ReduceMean": 1}
    assert found["standard"].layout_transposes == found["hetconv"].layout_transposes


def test_resnet18_runs_in_int8_in_openvino_too(tmp_path):
    pytest.importorskip("openvino")
    example = ExampleSpec(((1, 3, 64, 64),))
    hetconv = convert(build(resolve("resnet18")).model, 4, example=example, transfer="fresh").model
    quantized(hetconv, tmp_path / "hetconv.onnx", example)
    graph = inspect_openvino(tmp_path / "hetconv.onnx")
    assert (graph.int8_convolutions, graph.float_convolutions, graph.transposes) == (36, 0, 0)
    assert "FullyConnected" not in graph.float_operators


def test_a_batch_norm_that_is_left_is_seen(tmp_path):
    example = ExampleSpec(((1, 8, 8, 8),))
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Sigmoid(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    graph = quantized(model, tmp_path / "net.onnx", example)
    assert (graph.int8_convolutions, graph.batch_norms, graph.transposes) == (2, 1, 0)
    assert graph.float_operators["BatchNormalization"] == 1


def test_a_float_network_is_all_in_float(tmp_path):
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in "xz"}
    weight = onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["y", "w"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "net", [value["x"]], [value["z"]], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "f.onnx")
    found = inspect_onnxruntime(tmp_path / "f.onnx")
    assert (found.int8_convolutions, found.float_convolutions, found.transposes) == (0, 1, 1)
    assert found.float_operators["Transpose"] == 1


def test_the_last_batch_of_images_is_filled_from_the_first():
    images = torch.arange(5.0).view(5, 1, 1, 1)
    batches = [batch.flatten().tolist() for (batch,) in image_batches(images, 2)]
    assert batches == [[0, 1], [2, 3], [4, 0]]


@pytest.fixture(scope="module")
def contest():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    example = ExampleSpec(((1, 8, 10, 10),))
    network = prepare(lambda place: meta_copy(net) if place == "meta" else net, example)
    return network_contest(net, network, [make_wish(4)], example)


def test_images_of_another_scale_are_met_by_their_own_calibration(contest):
    images = 1000 * torch.randn(3, 8, 10, 10, generator=torch.Generator().manual_seed(1))
    report = bench("net", [Contest(None, contest.subjects, contest.example, images)], INT8)
    assert report.images == 3
    for row in report.rows:
        assert row.calibration == "images"
        assert row.error < 0.1  # noise of scale 1 would be rounded away
        assert row.int8.float_convolutions == 0


def test_without_images_the_rows_say_so(contest):
    report = bench("net", [contest], INT8)
    assert report.images is None
    assert [row.calibration for row in report.rows] == ["random", "random"]
    floats = bench("net", [contest], Settings(runtimes=("onnxruntime",), batches=(1,), rounds=1, seconds=1e-3))
    assert [(row.calibration, row.int8) for row in floats.rows] == [(None, None)] * 2
