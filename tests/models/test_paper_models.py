import pytest
import torch
from regenerate_catalog import count_paper
from torch import nn
from torchvision.ops import SqueezeExcitation

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.build import build
from hetconv_cli.models.catalog import match, nearest, paper_catalog
from hetconv_cli.models.cifar import ResidualBlock
from hetconv_cli.models.paper_models import paper_models
from hetconv_cli.models.source import Source, resolve

PLAIN = [name for name in paper_models() if not name.endswith("_se")]


def test_the_table_has_every_network_in_order():
    assert list(paper_catalog()) == paper_models()


@pytest.mark.parametrize("name", [*PLAIN, "vgg16_cifar_se", "resnet20_cifar_se", "mobilenet_cifar_se"])
def test_the_table_and_the_networks_agree(name):
    assert paper_catalog()[name] == count_paper(name)


@pytest.mark.parametrize("name", PLAIN)
def test_each_network_runs_forward_and_backward(name):
    model = build(resolve(name)).model.train()
    size = 64 if name == "resnet34_option_a" else 32
    output = model(torch.randn(2, 3, size, size))
    output.square().mean().backward()
    assert output.shape == (2, 1000 if name == "resnet34_option_a" else 10)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vgg16_cifar_se", "resnet20_cifar_se", "mobilenet_cifar_se"])
def test_se_forms_squeeze_behind_every_convolution_or_pair(name):
    model = build(resolve(name)).model.train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    spatial = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules())
    squeezes = sum(isinstance(m, SqueezeExcitation) for m in model.modules())
    assert squeezes == (14 if name == "mobilenet_cifar_se" else spatial)
    if name == "mobilenet_cifar_se":
        assert spatial == 14


def test_names_are_found_listed_and_suggested():
    assert resolve("VGG16_cifar") == Source("paper", "vgg16_cifar")
    assert [entry.name for entry in match("resnet*_cifar")] == [
        f"resnet{depth}_cifar" for depth in (110, 20, 32, 44, 56)
    ]
    assert nearest("resnet65_cifar")[0] == "resnet56_cifar"
    with pytest.raises(ArgumentError, match="did you mean mobilenet_cifar"):
        resolve("mobilnet_cifar")


def test_option_a_takes_every_second_pixel_and_fills_up_with_zeros():
    block = ResidualBlock(2, 4, 2, se=False).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    image = torch.rand(1, 2, 4, 4)
    output = block(image)
    assert torch.equal(output[:, :2], image[:, :, ::2, ::2])
    assert not output[:, 2:].any()


def test_convolutions_begin_with_he_s_variance():
    model = build(resolve("vgg16_cifar")).model
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.var().item() == pytest.approx(2 / (9 * conv.out_channels), rel=0.1)


def test_the_paper_s_networks_have_no_trained_weights_but_take_a_file(tmp_path):
    with pytest.raises(ArgumentError, match="unknown weights 'DEFAULT' for resnet20_cifar: expected none or a file"):
        build(resolve("resnet20_cifar"), weights="DEFAULT")
    torch.save(build(resolve("resnet20_cifar"), seed=3).model.state_dict(), tmp_path / "own.pt")
    built = build(resolve("resnet20_cifar"), weights=str(tmp_path / "own.pt"))
    assert built.weights == "file own.pt"
    other = build(resolve("resnet20_cifar"), seed=3).model
    assert torch.equal(built.model.stem.conv1.weight, other.stem.conv1.weight)
