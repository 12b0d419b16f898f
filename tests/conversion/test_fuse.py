"""hc.fuse: what is folded computes the same, and what is not provably the same is left alone."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from hetconv_cli.conversion.convert import convert
from hetconv_cli.conversion.fuse import fold_batchnorms, fuse
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import FusedHetConv2d, HetConv2d


def norm(channels: int = 8) -> nn.BatchNorm2d:
    return randomised(nn.BatchNorm2d(channels, dtype=torch.float64))


def randomised(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
        tensor.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


def hetconv(**more) -> HetConv2d:
    return HetConv2d(8, 8, 3, padding=1, p=4, dtype=torch.float64, **more)


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 8, 6, 5, dtype=torch.float64)


def kinds(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if not list(module.children())]


def fused_equal(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The fused model, after checking that it computes the same and that the model was left alone."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model.training
    fused = fuse(model, x)
    assert model.training == training
    assert not any(module.training for module in fused.modules())
    assert not any(module._forward_hooks for module in [*fused.modules(), *model.modules()])
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        x = torch.randn_like(x)
        torch.testing.assert_close(fused(x), model.eval()(x), rtol=0, atol=1e-10)
    return fused


def test_resnet18_keeps_no_batchnorm_behind_a_hetconv():
    model = torchvision.models.resnet18().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            randomised(layer)
            layer.weight.data.mul_(0.3)  # or the sums through the residuals leave float64's exact range
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    converted = convert(model, p=4, example=x).model.eval()
    fused = fuse(converted, x)
    names = kinds(fused)
    assert names.count("FusedHetConv2d") == 16
    assert names.count("BatchNorm2d") == 0
    assert names.count("ReLU") == 1  # behind the stem
    y = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = converted(y)
        assert (fused(y) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_without_an_example_a_random_image_with_the_first_convolutions_channels_is_taken():
    first = nn.Conv2d(1, 8, 3, stride=8, dtype=torch.float64)
    fused = fuse(nn.Sequential(first, norm(), nn.ReLU(), hetconv(), norm(), nn.ReLU()))
    assert kinds(fused) == ["Conv2d", "Identity", "ReLU", "FusedHetConv2d", "Identity", "Identity"]
    assert kinds(fuse(nn.Sequential(nn.MaxPool2d(2)))) == ["MaxPool2d"]


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_chain_becomes_one_layer(bias, inplace, arrangement):
    chain = nn.Sequential(hetconv(bias=bias, arrangement=arrangement), norm(), nn.ReLU(inplace))
    fused = fused_equal(chain, image())
    assert kinds(fused) == ["FusedHetConv2d", "Identity", "Identity"]
    assert fused[0].relu
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8, affine=False), nn.SyncBatchNorm(8)])
def test_a_norm_without_weights_and_a_synchronised_one(layer):
    layer.double().running_mean.normal_()
    assert kinds(fused_equal(nn.Sequential(hetconv(), layer), image())) == ["FusedHetConv2d", "Identity"]


def test_a_layer_alone_is_prepared_and_a_relu_behind_it_goes_in():
    assert kinds(fused_equal(hetconv(), image())) == ["FusedHetConv2d"]
    assert kinds(fused_equal(nn.Sequential(hetconv(), nn.ReLU()), image())) == ["FusedHetConv2d", "Identity"]


def test_a_norm_with_statistics_of_the_batch_stays():
    layer = nn.BatchNorm2d(8, track_running_stats=False, dtype=torch.float64)
    assert kinds(fused_equal(nn.Sequential(hetconv(), layer), image())) == ["FusedHetConv2d", "BatchNorm2d"]


class Parts(nn.Module):
    """A HetConv, a BatchNorm and a ReLU, put together by a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = hetconv(), norm(), nn.ReLU()


class ReadsTwice(Parts):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class ReadsAView(Parts):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y.flatten(1)[:, :1, None, None]


class KeepsIt(Parts):
    def forward(self, x):
        self.seen = self.conv(x)
        return self.norm(self.seen)


class CallsTwice(Parts):
    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class SharesTheNorm(Parts):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.norm(x)


@pytest.mark.parametrize("network", [ReadsTwice, ReadsAView, KeepsIt, CallsTwice, SharesTheNorm])
def test_a_norm_that_is_not_the_only_reader_stays(network):
    assert kinds(fused_equal(network(), image()))[:2] == ["FusedHetConv2d", "BatchNorm2d"]


class ReturnsBoth(Parts):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y), y


def test_an_output_that_the_network_returns_is_kept():
    network = ReturnsBoth().eval()
    fused = fuse(network, image())
    assert kinds(fused)[:2] == ["FusedHetConv2d", "BatchNorm2d"]


class ReluElsewhereToo(Parts):
    def forward(self, x):
        return self.relu(self.norm(self.conv(x)) - 1) + self.relu(x)


class NormReadTwice(Parts):
    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.relu(y) + y


class ReluLast(Parts):
    """The sum reads the BatchNorm's output before the in-place ReLU changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        total = y + 1
        return total + self.relu(y)


class Functional(Parts):
    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


@pytest.mark.parametrize("network", [ReluElsewhereToo, NormReadTwice, ReluLast, Functional])
def test_a_relu_that_is_not_provably_next_stays_and_the_norm_is_folded(network):
    fused = fused_equal(network(), image())
    assert kinds(fused) == ["FusedHetConv2d", "Identity", "ReLU"]
    assert not fused.conv.relu


class InPlaceThenRead(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.relu(y) + y  # y is what ReLU made of it


def test_a_relu_in_place_counts_whoever_reads_afterwards():
    assert kinds(fused_equal(InPlaceThenRead(), image())) == ["FusedHetConv2d", "Identity", "Identity"]


def test_hooks_are_not_lost():
    for place in range(3):
        chain = nn.Sequential(hetconv(), norm(), nn.ReLU())
        seen: list[torch.Tensor] = []
        chain[place].register_forward_hook(lambda *given, seen=seen: seen.append(given[-1]))
        fused = fuse(chain, image())
        assert type(fused[place]) is type(chain[place])


def test_a_layer_under_two_names_is_replaced_under_both():
    chain = nn.ModuleDict({"a": hetconv(), "n": norm()})
    chain["b"] = chain["a"]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = chain

        def forward(self, x):
            return self.parts["n"](self.parts["b"](x))

    fused = fused_equal(Twice(), image())
    assert fused.parts["a"] is fused.parts["b"]
    assert isinstance(fused.parts["a"], FusedHetConv2d)


def test_a_forward_that_fails_is_an_error_of_ours():
    with pytest.raises(HetconvError, match="does not run on this input"):
        fuse(nn.Sequential(hetconv(), norm(), nn.Linear(3, 2)), image())


def test_a_fused_layer_prints_its_relu_and_adds_a_residual():
    layer = hetconv()
    fused = FusedHetConv2d(layer, relu=True)
    assert repr(fused).endswith("p=4, arrangement=blocked, relu=True, runs_as='torch')")
    x, residual = image(), image()
    torch.testing.assert_close(fused(x, residual), F.relu(layer(x) + residual).detach(), rtol=0, atol=1e-12)
    assert fused.prepare().packed is None  # the fused GPU kernel does not serve here


class ReadsItsWeight(nn.Module):
    """Its convolution's weight is used elsewhere, so it must stay what it is."""

    def __init__(self, conv) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm()

    def forward(self, x):
        weight = next(self.conv.parameters())
        return self.norm(self.conv(x)) + weight.square().sum()


@pytest.mark.parametrize("conv", [hetconv(), nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float64)])
def test_a_convolution_whose_weight_is_read_elsewhere_keeps_it(conv):
    assert "BatchNorm2d" in kinds(fused_equal(ReadsItsWeight(conv), image()))


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_plain_convolutions_take_their_batchnorm(groups):
    conv = nn.Conv2d(8, 16, (3, 1), 2, "valid", 2, groups, bias=False, padding_mode="reflect", dtype=torch.float64)
    assert kinds(fused_equal(nn.Sequential(conv, norm(16)), image())) == ["Conv2d", "Identity"]


def test_fold_batchnorms_keeps_the_kinds_of_layers():
    chain = nn.Sequential(hetconv(), norm(), nn.ReLU(), nn.Conv2d(8, 8, 1, dtype=torch.float64), norm())
    x = image()
    folded = fold_batchnorms(chain, x)
    assert kinds(folded) == ["HetConv2d", "Identity", "ReLU", "Conv2d", "Identity"]
    with torch.no_grad():
        torch.testing.assert_close(folded(x), chain.eval()(x), rtol=0, atol=1e-12)


def test_a_basic_block_with_a_norm_of_batch_statistics_is_left_whole():
    def norm_of_the_batch(channels):
        return nn.BatchNorm2d(channels, track_running_stats=False)

    model = torchvision.models.resnet18(norm_layer=norm_of_the_batch).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    converted = convert(model, p=4, example=x).model.eval()
    fused = fuse(converted, x)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), converted(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", [lambda model, x: model, fuse, fold_batchnorms], ids=["converted", "fused", "folded"])
def test_a_whole_network_compiles_without_a_graph_break(form):
    x = torch.randn(1, 3, 64, 64)
    model = form(convert(torchvision.models.resnet18(), p=4, example=x).model.eval(), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-4 * float(model(x).abs().max()))
