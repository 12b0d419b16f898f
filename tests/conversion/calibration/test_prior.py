"""What is believed before any image is seen, and what is held back of a map to choose how much that counts."""

import pytest
import torch
from torch import nn

import hetconv_cli as hc
from hetconv_cli.conversion.calibration.moments import BLOCKS, Moments
from hetconv_cli.conversion.calibration.prior import GRAIN, EvenSurfaces
from hetconv_cli.conversion.calibration.samples import Chunk, Samples
from hetconv_cli.conversion.calibration.solve import fit, weights_to_try
from hetconv_cli.conversion.calibration.split import SplitMoments


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
@pytest.mark.parametrize("kernel", [3, (1, 5), (5, 3)])
def test_the_prior_alone_gives_the_best_weights_on_its_windows(arrangement, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, kernel, bias=False, dtype=torch.float64)
    layer = hc.HetConv2d(6, 4, kernel, bias=False, p=2, arrangement=arrangement, dtype=torch.float64)
    x = torch.randn(8, 6, 9, 9, dtype=torch.float64)
    sums = SplitMoments(layer, Samples((), 9, 1), "test")
    for held_out in (False, True):
        sums.add(x, conv(x).detach(), Chunk(tuple(range(8)), (), held_out))
    energy = EvenSurfaces.of(sums.fitted.mean_squares, conv.weight).energy
    fit(layer, conv.weight, sums, (1e9,))
    taps = conv.weight[0, 0].numel()
    second = torch.kron(energy.diag(), torch.ones(taps, taps).double() * (1 - GRAIN) + torch.eye(taps).double() * GRAIN)
    for n in range(4):
        free = torch.zeros(6, taps, dtype=torch.bool)
        free[:, taps // 2] = True
        free[layer.class_channels()[n]] = True
        free = free.flatten()
        best = torch.linalg.solve(second[free][:, free], second[free] @ conv.weight[n].flatten())
        torch.testing.assert_close(layer.dense_weight()[n].flatten()[free], best, rtol=1e-5, atol=1e-7)


def test_one_noisy_image_is_not_trusted_with_the_colours_of_others():
    """Two channels that are one in the image: only the prior knows what each would do alone, on an even surface."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3)
    conv.weight.data += 0.1  # sums of taps that matter
    same = torch.randn(1, 1, 32, 32).expand(1, 8, 32, 32)
    conversion = hc.convert(conv, p=4, calibration=same)
    new = torch.eye(8)[:, :, None, None].expand(8, 8, 3, 3)  # one channel at a time is bright
    with torch.no_grad():
        errors = {
            name: float((model(new) - conv(new)).norm() / conv(new).norm())
            for name, model in (("calibrated", conversion.model), ("center", hc.convert(conv, p=4).model))
        }
    assert errors["calibrated"] < 0.5 * errors["center"]


def test_the_prior_weighs_as_one_image_at_least():
    assert weights_to_try(1) == (1, 10, 100)
    assert weights_to_try(14) == (1 / 14, 0.1, 1, 10, 100)
    assert weights_to_try(448)[:2] == (1 / 448, 0.01)


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (8, 8), (13, 30), (2, 3), (1, 1)])
@pytest.mark.parametrize("image", range(5))
def test_blocks_part_every_map_without_a_rest(size, image):
    layer = hc.HetConv2d(4, 4, 1, p=2)
    parts = {}
    for blocks in ("all", "diagonal", "others"):
        parts[blocks] = Moments(layer, 1, "test")
        parts[blocks].add(torch.ones(1, 4, *size), torch.ones(1, 4, *size), (image,), blocks=blocks)
    everything = parts["others"].positions + parts["diagonal"].positions
    assert everything == parts["all"].positions == size[0] * size[1]
    if min(size) >= BLOCKS:
        assert everything / 8 < parts["diagonal"].positions < everything / 2
    parts["others"].absorb(parts["diagonal"])
    ours, whole = (parts[key].of_class(0, torch.tensor([0, 1])) for key in ("others", "all"))
    torch.testing.assert_close(ours.gram, whole.gram)
    torch.testing.assert_close(ours.with_output, whole.with_output)
