"""Which channels are free to move: what pins them, and what ties them together."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

from hetconv_cli.conversion.reorder.flow import tensors_of, watch
from hetconv_cli.errors import HetconvError


class Between(nn.Module):
    """Two convolutions and a function between them."""

    def __init__(self, function, channels=8):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.function = function
        self.last = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def pins(model, x=None):
    """Of each bound axis of a weight, why it is pinned, or None."""
    flow = watch(model.eval(), (torch.randn(2, 4, 8, 8) if x is None else x,))
    return {axis: {flow.streams.pinned(piece.stream) for piece in label} for axis, label in flow.labels.items()}


class Unsaved(nn.Module):
    """A file of the network would not bring this buffer back in the new order."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.arange(8.0)[:, None, None], persistent=False)

    def forward(self, x):
        return x * self.scale


class Running(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean((0, 2, 3)))
        return x


FREE = {
    "relu": torch.relu,
    "in place": lambda x: F.relu_(x).mul_(2).add_(1),
    "pooling": lambda x: F.interpolate(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 3), size=(5, 7), mode="bilinear"),
    "dropout": nn.Dropout2d(),
    "batch_norm": nn.BatchNorm2d(8),
    "prelu": nn.PReLU(8),
    "one prelu": nn.PReLU(),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "padding": lambda x: F.pad(F.pad(x, (1, 1, 1, 1), mode="reflect"), (1, 0)),
    "squeeze and excitation": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "control flow on sizes": lambda x: x[:, :, : x.shape[2] // 2].clone() if x.shape[1] == 8 else x[:1],
    "images apart": lambda x: x.clamp(-1, 1).flatten(2).view(x.shape).contiguous(memory_format=torch.channels_last),
    "a maximum, and zeros like it": lambda x: (x - x.amax(2, keepdim=True)) + torch.zeros_like(x) * x.new_ones(1),
    "a frozen batch norm": FrozenBatchNorm2d(8),
    "sum with itself": lambda x: x + 0.5 * torch.tanh(x),
}
PINNED = {
    "a weight kept beside its parts": prune.random_unstructured(nn.Conv2d(8, 8, 1, groups=8), "weight", 2),
    "a buffer that no file holds": Unsaved(),
    "a buffer written to": Running(),
    "a slice": lambda x: torch.cat((x[:, :3], x[:, 3:]), 1),
    "a part written": lambda x: x[:, :1].add_(1) * 0 + x,
    "chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "constants": lambda x: x * torch.arange(8.0).view(8, 1, 1),
    "groups": nn.Conv2d(8, 8, 3, groups=2),
    "a layer norm": nn.LayerNorm([8, 8, 8]),
    "einsum": lambda x: torch.einsum("nchw,dc->ndhw", x, torch.eye(8)),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "past its channels": lambda x: x.data.view(2, 64, 8)[:, ::1].reshape(2, 8, 8, 8),
    "another shape": lambda x: x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8),
    "sorting": lambda x: x.sort(1).values,
    "softmax over channels": lambda x: x.softmax(1),
    "a constant written to": lambda x: torch.zeros(2, 8, 8, 8).copy_(x),
    "pooling of one image": lambda x: F.max_pool2d(x.flatten(2), 1).view(x.shape),
    "the network's input": lambda x: x + torch.ones(2, 8, 8, 8),
    "batches": lambda x: x.view(16, 8, 8)[:, None].expand(16, 8, 8, 8)[:2],
}


@pytest.mark.parametrize("name", FREE)
def test_what_keeps_channels_apart_leaves_them_free(name):
    found = pins(Between(FREE[name]))
    assert found[("first.weight", 0)] == found[("last.weight", 1)] == {None}
    assert found[("last.weight", 0)] == {"reaches the network's output"}


@pytest.mark.parametrize("name", PINNED)
def test_what_needs_channels_in_their_order_pins_them(name):
    found = pins(Between(PINNED[name]))
    assert all(why is not None for why in found[("first.weight", 0)])
    assert all(why is not None for why in found.get(("last.weight", 1), ()))


def test_a_concatenation_carries_its_streams_one_behind_the_other():
    flow = watch(Between(lambda x: torch.cat((x, x.abs(), x), 1), 24).eval(), (torch.randn(1, 4, 8, 8),))
    one = flow.labels[("first.weight", 0)]
    assert flow.labels[("last.weight", 1)] == one * 3


def test_a_flattened_map_moves_in_blocks():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 6), nn.ReLU(), nn.Linear(6, 2))
    flow = watch(model.eval(), (torch.randn(2, 4, 8, 8),))
    (piece,) = flow.labels[("2.weight", 1)]
    assert (piece.repeat, flow.streams.size(piece.stream), flow.streams.pinned(piece.stream)) == (36, 8, None)
    assert flow.labels[("2.weight", 0)] == flow.labels[("2.bias", 0)] == flow.labels[("4.weight", 1)]


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("scale", torch.ones(8, 1, 1), persistent=False)
        self.features = []

    def forward(self, x):
        x = self.first(x) * (self.scale if self.training else 1)
        self.features.append(x)
        return self.last(x)


def test_what_a_module_keeps_after_the_pass_is_pinned():
    assert pins(Kept())[("first.weight", 0)] == {"is kept by the network after the pass"}


def test_shared_and_recurrent_weights_tie_their_axes():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x)
            for _ in range(3):
                x = x + torch.relu(self.again(x))
            return self.last(x)

    model = Recurrent().eval()
    flow = watch(model, (torch.randn(1, 4, 8, 8),))
    axes = [("first.weight", 0), ("again.weight", 0), ("again.weight", 1), ("last.weight", 1)]
    assert len({flow.labels[axis] for axis in axes}) == 1
    model.last.weight = nn.Parameter(torch.randn(4, 8, 1, 1))
    model.first.weight = nn.Parameter(model.last.weight.detach().transpose(0, 1))  # one memory, two parameters
    assert ("again.weight", 1) not in pins(model)  # nothing is known of what it reads


def test_a_computed_weight_pins_what_it_reads_and_writes():
    model = Between(nn.ReLU())
    nn.utils.parametrizations.weight_norm(model.last)
    assert pins(model)[("first.weight", 0)] != {None}


def test_an_auxiliary_branch_of_training_is_seen():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.aux = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            x = self.first(x)
            return (self.last(x), self.aux(x)) if self.training else self.last(x)

    flow = watch(Auxiliary().eval(), (torch.randn(1, 4, 8, 8),))
    assert flow.labels[("aux.weight", 1)] == flow.labels[("first.weight", 0)]
    assert flow.unseen == ()


def test_inference_mode_is_looked_into():
    model = Between(nn.BatchNorm2d(8))
    model.forward = torch.inference_mode()(model.forward)
    assert pins(model)[("first.weight", 0)] == {None}


def test_tensors_are_found_in_any_output():
    class Output:
        def __init__(self, inner):
            self.inner = inner

    x = torch.ones(1)
    assert len(tensors_of({"a": [x, (x, Output({"b": x}))], "c": 1, "d": None})) == 3
    with pytest.raises(HetconvError, match="holds a generator"):
        tensors_of(tensor for tensor in [x])
