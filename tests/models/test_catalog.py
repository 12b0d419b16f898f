import warnings

import pytest
import torchvision
from regenerate_catalog import build_to_count, count
from torch import nn

from hetconv_cli.models.build import build
from hetconv_cli.models.catalog import catalog, match, nearest
from hetconv_cli.models.source import Source
from hetconv_cli.models.torchvision_models import native_example, task_of

NAMES = torchvision.models.list_models()


def test_the_table_has_every_name_of_torchvision_in_order():
    assert list(catalog()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_table_and_torchvision_agree_on_a_model_built_without_weights(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = build(Source("torchvision", name), device="meta")
    assert all_on_meta(built.model)
    assert not built.model.training
    assert built.weights == "random"
    entry = catalog()[name]
    if entry.task == "detection":  # no forward on meta: here the structure only
        convs = [module for module in built.model.modules() if isinstance(module, nn.Conv2d)]
        parameters = sum(parameter.numel() for parameter in built.model.parameters())
        assert (entry.task, entry.example) == (task_of(name), built.example)
        assert (entry.conv2d, entry.params_m) == (len(convs), round(parameters / 1e6, 3))
    else:
        assert entry == count(name, built)


def all_on_meta(model):
    return all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large"])
def test_the_counts_of_a_detection_model_come_from_one_real_run(name):
    assert catalog()[name] == count(name, build_to_count(name))


@pytest.mark.parametrize("name", [name for name in NAMES if catalog()[name].task in ("classification", "quantized")])
def test_counts_agree_with_those_that_torchvision_publishes(name):
    entry = catalog()[name]
    published = {
        member.meta["_ops"]
        for member in torchvision.models.get_model_weights(name)
        if native_example(name, member) == entry.example
    }
    assert [entry.gmac] == [pytest.approx(gmac, rel=0.01, abs=0.0006) for gmac in published]


def test_the_catalog_as_a_whole_has_the_known_sums():
    entries = catalog().values()
    assert (len(entries), sum(e.conv2d for e in entries), sum(e.convertible for e in entries)) == (121, 8097, 1370)
    resnet34 = catalog()["resnet34"]
    assert (resnet34.conv2d, resnet34.convertible, resnet34.gmac, resnet34.params_m) == (36, 33, 3.664, 21.798)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet*[0-9]", ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]),
        ("VGG1[16]", ["vgg11", "vgg16"]),
        ("raft_small", ["raft_small"]),
        ("nothing*", []),
    ],
)
def test_match_takes_shell_patterns_and_exact_names(pattern, names):
    assert [entry.name for entry in match(pattern)] == names


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("resnet43", "resnet34"), ("ResNet-34", "resnet34"), ("vgg", "vgg16"), ("mobilenet", "mobilenet_v2")],
)
def test_nearest_finds_what_was_meant(typed, expected):
    assert expected in nearest(typed)


@pytest.mark.parametrize("typed", ["", "qqqqqqqq"])
def test_nearest_finds_nothing_where_nothing_is_near(typed):
    assert nearest(typed) == []


def test_vit_h_14_is_built_for_the_small_crop_and_each_weight_has_its_own():
    weights = torchvision.models.ViT_H_14_Weights
    assert native_example("vit_h_14").shapes == ((1, 3, 224, 224),)
    assert native_example("vit_h_14", weights.IMAGENET1K_SWAG_E2E_V1).shapes == ((1, 3, 518, 518),)
