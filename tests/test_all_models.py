"""Every one of torchvision's models through `flops` and `convert`, and converted networks of every family run."""

import json
from dataclasses import replace

import pytest
import torch
import torchvision
from torch.utils import _pytree

from hetconv_cli.cli.main import main
from hetconv_cli.conversion.convert import convert
from hetconv_cli.measure import network as networks
from hetconv_cli.measure.network import open_source
from hetconv_cli.models.build import build
from hetconv_cli.models.catalog import catalog
from hetconv_cli.models.source import Source
from hetconv_cli.models.torchvision_models import native_example

NAMES = torchvision.models.list_models()
STEM_ONLY = 1  # convertible in kind, but it reads the image
WITH_WORK = [name for name in NAMES if catalog()[name].convertible > STEM_ONLY]
DETECTION = [name for name in WITH_WORK if catalog()[name].task == "detection"]
# One network of each family, at the smallest height and width that it takes, and every detector: those need values.
REAL = {
    "alexnet": 63,
    "vgg11": 32,
    "vgg11_bn": 32,
    "resnet18": 32,
    "quantized_resnet18": 32,
    "wide_resnet50_2": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "squeezenet1_1": 32,
    "efficientnet_v2_s": 32,
    "maxvit_t": 224,
    "regnet_x_8gf": 32,
    "fcn_resnet50": 32,
    "deeplabv3_mobilenet_v3_large": 32,
    "raft_small": 128,
} | dict.fromkeys(DETECTION, 64)
ON_META = [name for name in WITH_WORK if name not in REAL]


@pytest.fixture
def report(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder and returns its JSON; the network it opens is opened once for one test."""
    opened = {}

    def open_once(source, input_size=None, device="cpu"):
        assert (input_size, device) == (None, "cpu")
        if source not in opened:
            opened[source] = open_source(source)
        return opened[source]

    def run(*arguments):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*arguments, "--json"])
        stdout, stderr = capsys.readouterr()
        assert stderr == ""
        return json.loads(stdout)

    monkeypatch.setattr(networks, "open_source", open_once)
    monkeypatch.chdir(tmp_path)
    yield run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_counted_and_planned(report, name):
    counted = report("flops", name, "--p", "4", "--compare", "dwc,gwc")
    planned = report("convert", name, "--p", "4", "--dry-run")
    assert_layers_as_listed(counted, name)
    assert_standard_as_published(counted, name)
    standard, *variants = counted["variants"]
    for variant in variants:
        assert_counted_alike(variant, standard)
    assert_planned_as_counted(planned, counted)
    if name in WITH_WORK:
        assert [variant["name"] for variant in variants] == ["hetconv", "dwc", "gwc"]
        assert variants[0]["macs"]["dispatcher"] < standard["macs"]["dispatcher"]


def assert_layers_as_listed(counted, name):
    entry = catalog()[name]
    layers = counted["layers"]
    assert (len(layers), sum(layer["convertible"] for layer in layers)) == (entry.conv2d, entry.convertible)
    assert counted["replayed"] == (entry.task == "detection")


def assert_standard_as_published(counted, name):
    """torchvision's own figure, of the weights whose crop was counted; 1 % apart at most, or the figure's rounding."""
    if catalog()[name].task not in ("classification", "quantized"):
        return
    published = {
        member.meta["_ops"]
        for member in torchvision.models.get_model_weights(name)
        if list(native_example(name, member).shapes[0]) == counted["input"]
    }
    assert published
    gmac = counted["variants"][0]["macs"]["dispatcher"] / 1e9
    assert [gmac] * len(published) == [pytest.approx(figure, rel=0.01, abs=0.0006) for figure in published]


def assert_counted_alike(variant, standard):
    """On the converted layers equations, dispatcher and thop agree to the last MAC; what runs is never less."""
    converted = variant["converted_macs"]
    assert converted["analytic"] == converted["measured"] <= converted["executed"]
    saved = {column: standard["macs"][column] - variant["macs"][column] for column in standard["macs"]}
    assert saved["analytic"] == saved["dispatcher"] == saved["thop"] >= saved["executed"]
    assert variant["ratio"]["measured"] == variant["ratio"]["analytic"]
    if variant["name"] != "gwc":  # equation (8) holds only for M = N
        assert variant["ratio"]["by_equation"] == pytest.approx(variant["ratio"]["measured"], rel=1e-12)


def assert_planned_as_counted(planned, counted):
    standard = counted["variants"][0]
    after = next((variant for variant in counted["variants"] if variant["name"] == "hetconv"), standard)
    assert len(planned["converted"]) == after["converted_layers"]
    assert len(planned["converted"]) + len(planned["kept"]) == len(counted["layers"])
    assert all(layer["reason"] for layer in planned["kept"])
    assert planned["params"] == {"before": standard["params"], "after": after["params"]}
    assert planned["macs"] == {"before": standard["macs"]["analytic"], "after": after["macs"]["analytic"]}
    assert planned["output"] is None


@pytest.mark.parametrize("name", REAL)
def test_a_converted_network_runs_and_keeps_its_output_shapes(name):
    model = small_detector(name) if name in DETECTION else build(Source("torchvision", name)).model
    inputs = small(native_example(name), REAL[name]).make()
    conversion = convert(model, p=4, example=inputs, transfer="fresh")
    assert conversion.plan.converted
    with torch.no_grad():
        before, after = model(*inputs), conversion.model.eval()(*inputs)
    assert shapes_of(after, name) == shapes_of(before, name)
    assert all(tensor.isfinite().all() for tensor in _pytree.tree_leaves(after))


@pytest.mark.parametrize("name", ON_META)
def test_a_converted_network_keeps_its_output_shapes_on_meta(name):
    network, _ = open_source(Source("torchvision", name))
    assert network.trace.on_meta
    conversion = convert(network.model, p=4, example=network.inputs)
    assert conversion.plan.converted
    with torch.no_grad():
        before, after = network.model(*network.inputs), conversion.model.eval()(*network.inputs)
    assert shapes_of(after, name) == shapes_of(before, name)


def small(example, size):
    """The same example at a height and width of `size`."""
    return replace(example, shapes=tuple((*shape[:-2], size, size) for shape in example.shapes))


def small_detector(name):
    """With little to look at: detectors enlarge their input to 800 pixels, and look at a thousand boxes."""
    builder = torchvision.models.get_model_builder(name)
    if name == "ssd300_vgg16":
        few = {"topk_candidates": 20, "detections_per_img": 5}  # its image size is fixed
    elif "rcnn" in name:
        few = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    else:
        few = {"min_size": 64, "max_size": 64, "topk_candidates": 20, "detections_per_img": 5}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return builder(weights=None, weights_backbone=None, **few).eval()


def shapes_of(output, name):
    """Names and shapes of all outputs; of detections without their number, which depends on the weights."""
    first = 1 if name in DETECTION else 0
    return [
        (_pytree.keystr(path), tuple(leaf.shape[first:]), leaf.dtype)
        for path, leaf in _pytree.tree_leaves_with_path(output)
    ]
