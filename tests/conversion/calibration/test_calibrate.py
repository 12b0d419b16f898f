"""Calibration: exact where it can be, independent of batches and of the way it walks, and clean when it fails."""

import threading

import pytest
import torch
from torch import nn

import hetconv_cli as hc
from hetconv_cli.conversion.calibration import calibrate as calibrate_module
from hetconv_cli.conversion.calibration.samples import Chunk, Samples
from hetconv_cli.conversion.calibration.solve import fit
from hetconv_cli.conversion.calibration.split import SplitMoments
from hetconv_cli.conversion.convert import convert
from hetconv_cli.plan import Rules, Wish


class Branches(nn.Module):
    """A residual sum, a concatenation, a layer that is called twice, BatchNorm before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True))
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 8, (1, 5), padding=(0, 2), padding_mode="circular")
        self.tall = nn.Conv2d(16, 12, (5, 3), padding=3, dilation=(2, 1))
        self.last = nn.Sequential(nn.BatchNorm2d(20), nn.Conv2d(20, 6, 3, stride=2, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + torch.relu(self.twice(x))
        x = x + torch.relu(self.twice(x))
        tall = self.tall(x)[..., : x.shape[-2], : x.shape[-1]]
        wide = self.wide(x)[..., : tall.shape[-2], : tall.shape[-1]]
        return self.last(torch.cat((wide, tall), 1))


def branches(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Branches().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def images(count: int, channels: int = 8, size: int = 12) -> torch.Tensor:
    """Not white: neighbours have much in common."""
    noise = torch.randn(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(5))
    return nn.functional.avg_pool2d(noise, 3, 1) * 3


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("memory", [10**9, 0])
def test_a_network_whose_kernels_are_hetconv_already_keeps_its_function(memory):
    model, x = branches(), images(24)
    sparse = convert(model, p=4, example=x[:1]).model
    for name, layer in sparse.named_modules():
        if isinstance(layer, hc.HetConv2d):
            model.get_submodule(name).weight.data.copy_(layer.dense_weight())
    conversion = convert(model, p=4, example=x[:1], calibration=x, memory=memory)
    assert len(conversion.calibration.layers) == len(conversion.plan.converted) == 5
    assert conversion.calibration.rerun_images == (0 if memory else 24)
    with torch.no_grad():
        assert relative(conversion.model.eval()(x), model(x)) < 1e-5


def test_one_image_is_enough_to_keep_a_function_that_is_hetconv_already():
    conv, x = nn.Conv2d(16, 8, 3, padding=1), images(1, 16, 6)
    conv.weight.data.copy_(convert(conv, p=4).model.dense_weight())
    conversion = convert(conv, p=4, calibration=x)
    with torch.no_grad():
        assert relative(conversion.model(x), conv(x)) < 1e-5
        assert relative(conversion.model(images(9, 16)), conv(images(9, 16))) < 1e-5


@pytest.mark.parametrize(("held", "rerun"), [(0, 40), (0.3, 32), (0.7, 16), (0.99, 5)])
def test_what_the_memory_holds_runs_once_and_the_rest_anew_to_the_same_bits(held, rerun):
    model, x = branches(), images(40)  # chunks of 8, 8, 8, 8, 3 images, and 5 that are held out
    whole = convert(model, calibration=x)
    memory = int(held * whole.calibration.held_bytes)
    part = convert(model, calibration=x, memory=memory)
    assert part.calibration.held_bytes <= memory
    assert (whole.calibration.rerun_images, part.calibration.rerun_images) == (0, rerun)
    assert all(torch.equal(a, b) for a, b in zip(*(c.model.state_dict().values() for c in (whole, part)), strict=True))


def test_the_result_depends_neither_on_batches_nor_on_the_walk():
    model, x = branches(), images(20)
    ways = [{"calibration": x}, {"calibration": x.split(3)}, {"calibration": [(part, 1) for part in x.split(7)]}]
    ways += [{"calibration": x, "memory": 0}, {"calibration": x, "example": x[:1], "p": 4}]
    states = [convert(model, **way).model.state_dict() for way in ways]
    for state in states[1:]:
        shared = [name for name in state if not name.startswith("last.1")]  # with an example it is shifted
        assert all(torch.equal(state[name], states[0][name]) for name in shared if name.startswith("first"))
    for state in states[1:4]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_calibrated_is_nearer_than_centre_taps_on_new_images_and_leaves_the_model_as_it_was():
    model, x, new = branches(), images(40), images(60)[40:]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    conversion = convert(model, p=4, calibration=x)
    assert model.training
    assert conversion.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in conversion.model.modules())
    model.eval(), conversion.model.eval()
    centre = convert(model, p=4).model.eval()
    with torch.no_grad():
        assert relative(conversion.model(new), model(new)) < 0.7 * relative(centre(new), model(new))
    assert conversion.calibration.calibrated.relative_error < conversion.calibration.center.relative_error
    assert all(layer.error_calibrated < layer.error_center for layer in conversion.calibration.layers)
    conversion.model.train()(x).sum().backward()  # trains on in any loop


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
def test_the_weights_are_those_of_a_plain_least_squares_solver(bias, arrangement):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, bias=bias, dtype=torch.float64)
    layer = hc.HetConv2d(
        4, 6, 3, stride=2, padding=2, dilation=2, bias=bias, p=2, arrangement=arrangement, dtype=torch.float64
    )
    x = torch.randn(8, 4, 11, 9, dtype=torch.float64)
    y = conv(x).detach() + 3
    sums = SplitMoments(layer, Samples((), 9, 1), "test")
    for held_out in (False, True):  # judged on the same images
        sums.add(x, y, Chunk(tuple(range(8)), (), held_out))
    found = fit(layer, conv.weight, sums, (1e-14,))  # a prior that weighs next to nothing
    windows = nn.functional.unfold(x, 3, dilation=2, padding=2, stride=2)
    for n in range(6):
        taps = torch.zeros(4, 9, dtype=torch.bool)
        taps[:, 4] = True
        taps[layer.class_channels()[n]] = True
        columns = windows[:, taps.flatten()].transpose(0, 1).flatten(1).T
        if bias:
            columns = torch.cat((columns, torch.ones(len(columns), 1, dtype=torch.float64)), 1)
        wanted = y[:, n].flatten()
        best = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
        got = layer.dense_weight()[n].flatten(1)[taps]
        torch.testing.assert_close(got, best[: len(got)], rtol=1e-4, atol=1e-6)
    exact = ((layer(x) - y) ** 2).sum() / ((y - y.mean((0, 2, 3), keepdim=True)) ** 2).sum()
    assert found.error_after == pytest.approx(float(exact.sqrt().detach()), rel=1e-6)


def test_where_images_are_few_the_error_told_is_that_on_what_was_not_fitted():
    torch.manual_seed(0)
    conv, x, new = nn.Conv2d(32, 32, 3, padding=1), images(1, 32, 16), images(61, 32, 16)[1:]
    conversion = convert(conv, p=4, calibration=x)  # 256 positions, 97 unknowns: it could be fitted far too well
    (layer,) = conversion.calibration.layers
    assert (layer.positions, conversion.calibration.held_out) == (256, 0)  # fitted on all of them in the end
    with torch.no_grad():
        y = conv(new)
        spread = (y - y.mean((0, 2, 3), keepdim=True)).norm()
        on_new = float((conversion.model(new) - y).norm() / spread)
        told = layer.error_calibrated
        assert 0.8 * on_new < told < 1.25 * on_new
        for transfer in ("center", "sum"):  # random weights and a small image: hard to do better, easy to do worse
            assert on_new < 1.05 * float((convert(conv, p=4, transfer=transfer).model(new) - y).norm() / spread)


def test_positions_are_drawn_where_there_are_plenty():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    x = images(8, size=64)
    first, second = (convert(model, p=4, calibration=x, seed=seed) for seed in (0, 1))
    assert 20_000 <= first.calibration.layers[0].positions < 7 * 64 * 64
    assert not torch.equal(first.model[0].weight_ring, second.model[0].weight_ring)
    assert relative(second.model[0].weight_ring.detach(), first.model[0].weight_ring.detach()) < 0.1


def test_control_flow_that_differs_between_the_networks_is_followed():
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.c(self.b(x)) if x[0, 0, 0, 0] > 0 else self.b(self.c(x))

    torch.manual_seed(0)
    model, x = Depends(), images(64)
    running = threading.active_count()  # other tests of this process may have left some
    report = convert(model, p=4, calibration=x).calibration
    assert report.rerun_images == 64
    assert sorted(layer.name for layer in report.layers) == ["a", "b", "c"]
    assert threading.active_count() == running


def test_with_too_few_positions_a_warning_says_how_many_images_would_do():
    model = nn.Sequential(nn.Conv2d(64, 8, 3, padding=1))
    conversion = convert(model, p=4, calibration=images(2, 64, 4))
    (warning,) = conversion.calibration.warnings
    assert "32 for 193 unknowns" in warning
    assert "about 15 images would do" in warning  # 16 positions each, one image in eight held out
    assert conversion.calibration.held_out == 0
    assert not convert(model, p=4, calibration=images(16, 64, 4)).calibration.warnings


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "expected at least one batch of images, got none"),
        (["a"], "calibration batch 0: expected a tensor"),
        ([torch.ones(2, 3, 8, 8)], "expected the channels of 8x12x12 as the model takes, got 3x8x8"),
        ([torch.full((1, 8, 12, 12), float("nan"))], "calibration image 0 holds NaN"),
    ],
)
def test_images_that_will_not_do_are_one_line(batches, said):
    with pytest.raises(hc.ArgumentError, match=said):
        convert(branches(), p=4, example=images(1), calibration=batches)


@pytest.mark.parametrize("rules", [Rules(Wish("dwc")), Rules(Wish(se=16))])
def test_only_plain_hetconv_layers_are_calibrated(rules):
    with pytest.raises(hc.ArgumentError, match="transfer 'calibrated' is for HetConv layers alone"):
        convert(branches(), rules=rules, calibration=images(2))


def test_images_and_transfer_go_together():
    for arguments in ({"transfer": "calibrated"}, {"transfer": "sum", "calibration": images(2)}):
        with pytest.raises(hc.ArgumentError, match="go together"):
            convert(branches(), p=4, **arguments)


def test_a_network_that_gives_nan_is_named_by_its_layer():
    model = branches()
    model.twice.bias.data.fill_(float("inf"))
    with pytest.raises(hc.HetconvError, match="twice: NaN or infinite numbers come out"):
        convert(model, p=4, calibration=images(4))


def test_interrupted_half_way_nothing_is_left_running_or_hooked(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    model = branches()
    running = threading.active_count()  # other tests of this process may have left some
    monkeypatch.setattr(calibrate_module, "correct", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(model, p=4, calibration=images(12))
    assert threading.active_count() == running
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_half_precision_networks_are_calibrated_in_double_and_stay_half():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)).to(torch.bfloat16)
    conversion = convert(model, p=4, calibration=images(16))
    assert {parameter.dtype for parameter in conversion.model.parameters()} == {torch.bfloat16}
    assert conversion.calibration.calibrated.relative_error < conversion.calibration.center.relative_error


def test_psnr_is_told_for_images_and_top1_for_logits():
    x = images(16)
    for model, has in ((nn.Conv2d(8, 8, 3, padding=1), "psnr"), (nn.Sequential(branches(), nn.Flatten()), "top1")):
        found = convert(model, p=4, calibration=x).calibration.calibrated
        assert (found.psnr is not None) == (has == "psnr")
        assert (found.top1 is not None) == (has == "top1")


def test_a_layer_that_never_runs_is_told_of():
    model = branches()
    model.idle = nn.Conv2d(8, 8, 3)
    report = convert(model, p=4, calibration=images(12)).calibration
    assert "idle" not in [layer.name for layer in report.layers]
    assert any("1 of the converted layers never ran and keep their centre taps (idle)" in w for w in report.warnings)
