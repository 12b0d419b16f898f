"""A file is written only when it is proven, and then it is what was promised."""

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hetconv_cli import files
from hetconv_cli.errors import ArgumentError, HetconvError, NotProvenError
from hetconv_cli.export import export_onnx, onnx_file
from hetconv_cli.layers import HetConv2d
from hetconv_cli.models.example import ExampleSpec

EXAMPLE = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def small_network(**head):
    """HetConvs of all kinds, each with its BatchNorm; statistics as after training."""
    torch.manual_seed(1)
    layers = [
        HetConv2d(4, 8, 3, padding=1, p=2, bias=False),
        HetConv2d(8, 10, 3, stride=2, p=4, arrangement="shifted"),
        HetConv2d(10, 8, (1, 3), padding=(1, 2), p=5, dilation=2, padding_mode="reflect"),
        HetConv2d(8, 8, 3, padding=3, p=8),
    ]
    blocks = [nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()) for layer in layers]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, 4, 9, 9))
    return model


def names_in(folder):
    return sorted(os.listdir(folder))


def shape_of(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_file_and_report(tmp_path):
    model = small_network()
    steps = []
    report = export_onnx(model, tmp_path / "net.onnx", EXAMPLE, progress=steps.append)
    assert names_in(tmp_path) == ["net.onnx"], "one file, nothing beside it"
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert (report.verified, report.dynamic_batch, report.exporter, report.opset) == (True, True, "dynamo", 18)
    assert (report.bn_folded, report.bn_left) == (4, 0)
    assert (report.nodes["Conv"], report.nodes["Add"]) == (8, 4)
    assert (report.example_batch, report.proof_batch) == (2, 3)
    assert report.max_rel_diff < 1e-5
    assert report.reaction > 1e-3
    assert steps == ["exporting", "folding BatchNorm", "proving"]
    assert model.training, "the caller's model is as it was"

    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [shape_of(value) for value in (*graph.input, *graph.output)] == [["batch", 4, 9, 9], ["batch", 3]]
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    assert b".py" not in (tmp_path / "net.onnx").read_bytes(), "no stack traces"


def test_static_batch_keeps_the_examples(tmp_path):
    report = export_onnx(small_network(), tmp_path / "net.onnx", EXAMPLE, dynamic_batch=False)
    assert not report.dynamic_batch
    assert (report.example_batch, report.proof_batch) == (1, 1)
    assert shape_of(onnx.load(tmp_path / "net.onnx").graph.input[0]) == [1, 4, 9, 9]


class TwoInputs(nn.Module):
    """A shared HetConv2d, two inputs (one in *args), a dict of outputs with one that no input reaches."""

    def __init__(self):
        super().__init__()
        self.shared = HetConv2d(4, 4, 3, padding=1, p=2)
        self.anchors = nn.Buffer(torch.ones(2))

    def forward(self, x, *more):
        y = self.shared(x)
        return {"out": self.shared(y) + more[0].mean((1, 2, 3), keepdim=True), "pair": [y, self.anchors + 1]}


def test_two_inputs_dict_outputs_and_a_shared_layer(tmp_path):
    torch.manual_seed(0)
    example = ExampleSpec(((1, 4, 6, 6), (1, 2, 3, 3)))
    report = export_onnx(TwoInputs(), tmp_path / "net.onnx", example)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.input] == ["input_0", "input_1"]
    assert [value.name for value in graph.output] == ["out", "pair_0", "pair_1"]
    assert [shape_of(value)[0] for value in graph.input] == ["batch", "batch"]
    assert len([tensor for tensor in graph.initializer if len(tensor.dims) == 4]) == 2, "shared weights are stored once"
    assert report.verified


class Detector(nn.Module):
    """Takes a list of images, returns a list of dicts, as torchvision's detection models do."""

    def __init__(self):
        super().__init__()
        self.body = HetConv2d(4, 4, 3, padding=1, p=2)

    def forward(self, images):
        return [{"boxes": self.body(image[None]).mean((0, 2)), "scores": image.amax((0, 1))} for image in images]


def test_lists_of_images_go_through_torchscript(tmp_path):
    torch.manual_seed(0)
    report = export_onnx(Detector(), tmp_path / "net.onnx", ExampleSpec(((2, 4, 6, 6),), "images"))
    assert (report.exporter, report.dynamic_batch, report.verified) == ("torchscript", False, True)
    assert "number and size of the images are fixed" in report.notes[0]
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.input] == ["input_0", "input_1"]
    assert [value.name for value in graph.output] == ["boxes_0", "scores_0", "boxes_1", "scores_1"]


def silent_network():
    model = small_network()
    nn.init.zeros_(model[-1].weight)
    return model


def test_outputs_that_do_not_react_prove_nothing(tmp_path):
    with pytest.raises(
        NotProvenError, match=r"outputs do not react to the input .*'output' moves by 0\.0e\+00"
    ) as caught:
        export_onnx(silent_network(), tmp_path / "net.onnx", EXAMPLE)
    assert "--no-verify keeps the file" in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_fresh_network_is_proven_on_a_twin_that_reacts(tmp_path):
    report = export_onnx(silent_network(), tmp_path / "net.onnx", EXAMPLE, fresh=True)
    assert report.verified
    assert report.reaction > 1e-2
    assert "proven on a twin" in report.notes[0]
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    head = next(value for name, value in stored.items() if "6.weight" in name)
    assert not numpy_helper.to_array(head).any(), "the file holds the model's own weights, not the twin's"


def test_a_twin_that_does_not_react_either_proves_nothing(tmp_path):
    class Constant(nn.Module):
        def forward(self, x):
            return x * 0 + 1

    with pytest.raises(NotProvenError, match="even with BatchNorm statistics"):
        export_onnx(Constant(), tmp_path / "net.onnx", EXAMPLE, fresh=True)


def test_a_twin_with_another_graph_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "condition", lambda *_: nn.Flatten())
    with pytest.raises(NotProvenError, match="has other operators"):
        export_onnx(silent_network(), tmp_path / "net.onnx", EXAMPLE, fresh=True)


def test_a_difference_on_the_twin_is_said_to_be_there(tmp_path, monkeypatch):
    twins = iter([nn.Sequential(nn.Flatten(), nn.Linear(324, 3))])
    monkeypatch.setattr(onnx_file, "condition", lambda *_: next(twins))
    make, wrong = onnx_file.with_two_convolutions, nn.Linear(324, 3)

    def lower_and_swap(model):
        lowered = make(model)
        if lowered[-1].weight.any():
            lowered[-1] = wrong
        return lowered

    monkeypatch.setattr(onnx_file, "with_two_convolutions", lower_and_swap)
    silent = nn.Sequential(nn.Flatten(), nn.Linear(324, 3))
    nn.init.zeros_(silent[-1].weight)
    with pytest.raises(
        NotProvenError, match="on a twin of the network that reacts: not equal: output 'output' differs"
    ):
        export_onnx(silent, tmp_path / "net.onnx", EXAMPLE, fresh=True)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_wrong_weight_is_found(tmp_path, monkeypatch, verify):
    fold = onnx_file.fold_batchnorms

    def fold_and_corrupt(model):
        count = fold(model)
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.roll(value, 1, axis=0), tensor.name))
        return count

    monkeypatch.setattr(onnx_file, "fold_batchnorms", fold_and_corrupt)
    target = tmp_path / "net.onnx"
    if verify:
        with pytest.raises(NotProvenError, match=r"output 'output' differs from torch by .*, limit"):
            export_onnx(small_network(), target, EXAMPLE)
        assert names_in(tmp_path) == []
    else:
        report = export_onnx(small_network(), target, EXAMPLE, verify=False)
        assert (report.verified, report.max_abs_diff, report.reaction) == (False, None, None)
        assert target.exists()


def test_nothing_finite_nothing_proven(tmp_path):
    class Infinite(nn.Module):
        def forward(self, x):
            return x / 0

    with pytest.raises(NotProvenError, match="output 'output' is not finite"):
        export_onnx(Infinite(), tmp_path / "net.onnx", EXAMPLE)


def test_types_that_the_runtime_lacks_are_not_proven(tmp_path):
    model = nn.Conv2d(4, 2, 3).double()
    with pytest.raises(NotProvenError, match="ONNX Runtime on CPU cannot run the file"):
        export_onnx(model, tmp_path / "net.onnx", EXAMPLE.double())


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_a_batch_axis_that_cannot_be_dynamic(tmp_path):
    with pytest.raises(HetconvError, match=r"the batch axis is not dynamic .*: pass --static-batch"):
        export_onnx(FixedBatch(), tmp_path / "net.onnx", EXAMPLE)
    assert names_in(tmp_path) == []


def test_inputs_of_different_batch_sizes(tmp_path):
    example = (torch.randn(2, 4, 6, 6), torch.randn(1, 2, 3, 3))
    with pytest.raises(ArgumentError, match="inputs of one batch size, got 2x4x6x6, 1x2x3x3: pass --static-batch"):
        export_onnx(TwoInputs(), tmp_path / "net.onnx", example)
    assert export_onnx(TwoInputs(), tmp_path / "net.onnx", example, dynamic_batch=False).verified


def test_an_opset_that_the_exporter_cannot_write(tmp_path):
    with pytest.raises(HetconvError, match=r"asked for opset 11, but the exporter writes \[18\]"):
        export_onnx(nn.ReLU(), tmp_path / "net.onnx", EXAMPLE, opset=11)


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt("stop")], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("step", ["export_graph", "fold_batchnorms", "prove"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, failure):
    def fail(*_, **__):
        raise failure

    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")
    monkeypatch.setattr(onnx_file, step, fail)
    with pytest.raises(type(failure), match=str(failure)):
        export_onnx(nn.Conv2d(4, 2, 1), target, EXAMPLE, overwrite=True)
    assert names_in(tmp_path) == ["net.onnx"]
    assert target.read_bytes() == b"old"


@pytest.fixture
def no_work(monkeypatch):
    """Makes any start of work an error."""

    def work(*_):
        raise AssertionError("started to work")

    monkeypatch.setattr(onnx_file, "_on_cpu", work)


@pytest.mark.usefixtures("no_work")
class TestRefusedBeforeAnyWork:
    def test_an_existing_file(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(b"old")
        with pytest.raises(ArgumentError, match=r"net\.onnx exists: pass --force to replace it"):
            export_onnx(nn.ReLU(), tmp_path / "net.onnx", EXAMPLE)
        assert (tmp_path / "net.onnx").read_bytes() == b"old"

    def test_a_folder(self, tmp_path):
        with pytest.raises(ArgumentError, match="is a folder; name a file"):
            export_onnx(nn.ReLU(), tmp_path, EXAMPLE, overwrite=True)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(ArgumentError, match="no such folder"):
            export_onnx(nn.ReLU(), tmp_path / "no" / "net.onnx", EXAMPLE)

    def test_a_folder_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
        with pytest.raises(ArgumentError, match=r"cannot write in .*: Permission denied"):
            export_onnx(nn.ReLU(), tmp_path / "net.onnx", EXAMPLE)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rtol": -1.0}, "rtol must be a number >= 0, got -1"),
            ({"atol": float("nan")}, "atol must be a number >= 0, got nan"),
            ({"opset": 0}, "opset must be an integer from 1"),
            ({"opset": 1000}, "opset must be an integer from 1"),
        ],
    )
    def test_numbers_out_of_range(self, tmp_path, options, message):
        with pytest.raises(ArgumentError, match=message):
            export_onnx(nn.ReLU(), tmp_path / "net.onnx", EXAMPLE, **options)


def test_a_model_without_weights_or_of_another_shape(tmp_path):
    with pytest.raises(ArgumentError, match=r"no weights .*meta device"):
        export_onnx(nn.Conv2d(4, 2, 1, device="meta"), tmp_path / "net.onnx", EXAMPLE)
    with pytest.raises(HetconvError, match=r"does not run on input 1x4x9x9 \(batch 2\)"):
        export_onnx(nn.Conv2d(5, 2, 1), tmp_path / "net.onnx", EXAMPLE)


def test_weights_beyond_one_file_go_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1000)
    report = export_onnx(nn.Conv2d(4, 512, 3), tmp_path / "net.onnx", EXAMPLE)
    assert names_in(tmp_path) == ["net.onnx", "net.onnx.data"]
    assert report.verified
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_nothing_is_printed(tmp_path, capfd):
    export_onnx(nn.Conv2d(4, 2, 3), tmp_path / "net.onnx", EXAMPLE)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_proof_leaves_the_precision_of_products_as_it_was(tmp_path):
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before, seen = [place.fp32_precision for place in places], []

    class Watched(nn.Conv2d):
        def forward(self, input):
            if not torch.compiler.is_exporting():
                seen.append([place.fp32_precision for place in places])
            return super().forward(input)

    export_onnx(nn.Sequential(Watched(3, 4, 3)), tmp_path / "a.onnx", torch.randn(1, 3, 8, 8))
    assert seen[-1] == ["ieee", "ieee"]
    assert [place.fp32_precision for place in places] == before
