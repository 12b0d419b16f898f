"""A conditioned twin reacts to its input; the model it is made from does not change."""

import copy

import torch
from torch import nn

from hetconv_cli.export.conditioning import condition
from hetconv_cli.layers import HetConv2d


class Dull(nn.Module):
    """A network whose output is nothing but constants: dominated by biases, then a matrix of zeros."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3)
        self.het = HetConv2d(8, 8, 3, p=2)
        self.norm = nn.BatchNorm2d(8, momentum=0.3)
        self.untracked = nn.BatchNorm2d(8, track_running_stats=False)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.stem.weight *= 1e-3
            self.head.weight.zero_()

    def forward(self, x):
        return self.head(self.untracked(self.norm(self.het(self.stem(x)))).relu().mean((2, 3)))


def reaction(model):
    first, second = torch.randn(2, 3, 4, 7, 7).unbind()
    with torch.no_grad():
        return ((model(first) - model(second)).abs().max() / model(first).abs().max()).item()


def test_a_dull_network_reacts_after_conditioning():
    torch.manual_seed(0)
    model = Dull().eval()
    before = copy.deepcopy(model.state_dict())
    twin = condition(model, (torch.randn(3, 4, 7, 7),))
    assert reaction(model) == 0
    assert reaction(twin) > 0.1
    assert not twin.training
    assert twin.norm.momentum == 0.3
    assert not twin.stem._forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_rescaled_layer_puts_out_variance_one_around_zero():
    torch.manual_seed(0)
    x = torch.randn(64, 4, 7, 7)
    twin = condition(Dull().eval(), (x,))
    with torch.no_grad():
        variance, mean = torch.var_mean(twin.stem(x), (0, 2, 3), correction=0)
    torch.testing.assert_close(variance.mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(mean, torch.zeros(8), rtol=0, atol=1e-3)
