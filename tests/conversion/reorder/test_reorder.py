"""A reordered network computes the same, keeps more, is the same for a seed; and what would not be is found out."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import hetconv_cli as hc
from hetconv_cli.conversion.copying import full_copy
from hetconv_cli.conversion.reorder.flow import tensors_of, watch
from hetconv_cli.conversion.reorder.labels import Piece
from hetconv_cli.conversion.reorder.proof import prove
from hetconv_cli.conversion.reorder.reorder import apply_orders

# Streams that may move; what a network keeps in its order is what its architecture needs, so numbers are held.
NETWORKS = {
    "resnet18": (12, 64),
    "vgg11_bn": (10, 64),
    "densenet121": (120, 64),
    "mobilenet_v2": (25, 64),
    "googlenet": (61, 64),
    "inception_v3": (96, 299),
    "shufflenet_v2_x0_5": (18, 64),
    "squeezenet1_1": (25, 64),
}


def network(name, seed=0):
    """A network of torchvision whose BatchNorms are none of them alike, so that a channel out of place would show."""
    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(seed)
    model = torchvision.models.get_model(name, **more)
    return uneven(model)


def uneven(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    return model.eval()


def shuffled(model, x, seed=0):
    """A copy with every free stream in a random order, and what is known of the streams."""
    flow = watch(full_copy(model), (x,))
    generator = torch.Generator().manual_seed(seed)
    free = [root for root in flow.streams.roots() if flow.streams.pinned(root) is None]
    orders = {root: torch.randperm(flow.streams.size(root), generator=generator) for root in free}
    copy = full_copy(model)
    apply_orders(copy, flow, orders)
    return copy, flow, orders


@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_of_the_free_streams_is_the_same_function(name):
    streams, size = NETWORKS[name]
    model, x = network(name), torch.randn(1, 3, size, size)
    copy, flow, orders = shuffled(model, x)
    assert len(orders) == streams
    assert not flow.unseen
    assert prove(model, copy, (x,)) < 1e-11
    assert any(not torch.equal(one, other) for one, other in zip(model.parameters(), copy.parameters(), strict=True))


def test_auxiliary_classifiers_move_with_what_they_read():
    model = network("googlenet")
    copy, _, _ = shuffled(model, torch.randn(1, 3, 64, 64))
    copy, model = copy.double(), model.double()
    for part in (copy, model):
        part.training = True  # its layers stay in eval mode, so that nothing is drawn at random
    with torch.no_grad():
        ours, theirs = (tensors_of(part(torch.ones(1, 3, 64, 64, dtype=torch.float64))) for part in (copy, model))
    assert len(ours) == 3
    assert all(torch.allclose(*pair, rtol=1e-10) for pair in zip(ours, theirs, strict=True))


class LayerNorm(nn.Module):
    """Over channels, as users write it."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Odd(nn.Module):
    """Everything at once: calls in a loop, functions, lists, cuts, shared weights, hooks, a mapping for output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.normed = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = LayerNorm(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.gamma = nn.Parameter(torch.randn(1, 32, 1, 1))
        self.wide = nn.Conv2d(32, 8, 3, padding=1)
        self.shared = nn.Conv2d(16, 8, 3, padding=1)
        self.shared_too = nn.Conv2d(16, 8, 3, padding=1)
        self.shared_too.weight = self.shared.weight
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 8, 3, padding=1))
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.slopes = nn.PReLU(12)
        self.head = nn.Linear(12 * 16, 5)
        self.shared.register_forward_hook(lambda module, args, output: output * torch.arange(1.0, 9)[:, None, None])

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for _ in range(2):
            x = x + 0.1 * self.twice(x)
        maps = [x, F.conv2d(x, self.weight, padding=1)]
        maps.append(self.norm(self.normed(maps[-1])))
        low, high = torch.chunk(self.grouped(maps.pop()), 2, dim=1)
        x = maps[0] + torch.cat((high, low), 1) * torch.einsum("nchw,dc->ndhw", x, torch.eye(16).to(x))[:, :1]
        wide = self.wide(F.silu(self.depthwise(x) * self.gamma))
        x = torch.cat([self.shared(x), self.shared_too(maps[1]), wide + self.computed(x)], 1)
        x = self.slopes(self.up(F.max_pool2d(x, 2)))
        return {"first": wide[:, :3], "scores": self.head(F.adaptive_avg_pool2d(x.abs(), 4).flatten(1))}


@pytest.mark.parametrize("seed", range(4))
def test_an_odd_network_keeps_its_function(seed):
    torch.manual_seed(seed)
    model, x = Odd().eval(), torch.randn(2, 3, 12, 12)
    copy, _, orders = shuffled(model, x, seed)
    assert [len(order) for order in orders.values()] == [12]  # shared weights tie the functional convolution's as well
    assert prove(model, copy, (x,)) < 1e-11
    assert hc.reorder(model, 4, x).report.error < 1e-11


class Trained(nn.Module):
    """Residual and plain layers; the last convolution's filters are bound to the output's order."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        blocks = [(nn.Conv2d(32, 48, 3, padding=1), nn.PReLU(48), nn.Conv2d(48, 32, 3, padding=1)) for _ in range(3)]
        self.blocks = nn.ModuleList(nn.Sequential(*block, nn.BatchNorm2d(32)) for block in blocks)
        self.down = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Conv2d(64, 16, 5), nn.Flatten())
        self.head = nn.Linear(16 * 9, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(self.down(x))


def sparse(p, seed=0):
    """A dense network that a HetConv network with part `p` equals, and its input."""
    torch.manual_seed(seed)
    model, x = uneven(Trained()), torch.randn(4, 3, 16, 16)
    conversion = hc.convert(model, p=p, example=x)
    for layer in conversion.plan.converted:
        model.get_submodule(layer.name).weight.data.copy_(conversion.model.get_submodule(layer.name).dense_weight())
    return model, x


@pytest.mark.parametrize("p", [2, 4, 8])
def test_classes_that_were_hidden_by_an_order_are_found_again(p):
    model, x = sparse(p)
    hidden, _, _ = shuffled(model, x)
    assert hc.convert(hidden, p=p, example=x, reorder=True).reordering.before < 0.7
    with torch.no_grad():
        wanted = model(x)
        lost = hc.convert(hidden, p=p, example=x).model.eval()(x)
        for more in ({}, {"calibration": x}):
            conversion = hc.convert(hidden, p=p, example=x, reorder=True, **more)
            assert conversion.reordering.after > 1 - 1e-9
            found = conversion.model.eval()(x)
            assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert (lost - wanted).norm() / wanted.norm() > 0.1


def test_a_reader_that_is_left_behind_is_found_out():
    model, x = network("resnet18"), torch.randn(1, 3, 32, 32)
    flow = watch(full_copy(model), (x,))
    (piece,) = flow.labels.pop(("layer2.0.conv1.weight", 1))
    copy = full_copy(model)
    apply_orders(copy, flow, {piece.stream: torch.arange(flow.streams.size(piece.stream)).flip(0)})
    with pytest.raises(hc.HetconvError, match="computes something else"):
        prove(model, copy, (x,))


def test_the_model_stays_as_it_was_and_the_same_seed_gives_the_same():
    model, x = network("resnet18"), torch.randn(1, 3, 32, 32)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = hc.reorder(model, 4, x), hc.reorder(model, 4, x)
    assert model.training
    assert first.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    states = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in before)
    assert first.report.after > first.report.before
    assert [layer.p for layer in first.report.layers] == [4] * 16
    assert {stream.pinned for stream in first.report.streams} == {None, "reaches the network's output"}
    assert first.report.free == 12
    assert all(stream.moved == 0 for stream in first.report.streams if stream.pinned)


def test_calibration_after_a_reordering_is_the_same_bit_for_bit_however_batches_come():
    model, x = sparse(4)
    images = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    ways = [images, images.split(3), [(part, 0) for part in images.split(7)]]
    states = [
        hc.convert(shuffled(model, x)[0], p=8, example=x, calibration=way, reorder=True).model.state_dict()
        for way in ways
    ]
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


def test_a_reordered_conversion_is_saved_and_loaded_with_the_original(tmp_path):
    model, x = sparse(4)
    conversion = hc.convert(model, p=8, example=x, reorder=True)
    assert any(stream.moved for stream in conversion.reordering.streams)
    path = hc.save(conversion, tmp_path / "net.safetensors", original=model)  # whose order is another one
    with torch.no_grad():
        assert torch.equal(hc.load(path, model).model(x), conversion.model.eval()(x))


def test_a_plan_with_several_parts_is_taken_as_it_is():
    model, x = sparse(4)
    rules = hc.Rules(exact={"blocks.0.0": hc.Wish(p=16, arrangement="shifted"), "blocks.1.0": "keep"})
    plan = hc.convert(model, rules=rules, example=x).plan
    report = hc.reorder(model, plan, x).report
    assert [layer.name for layer in report.layers] == [layer.name for layer in plan.converted]
    assert report.after >= report.before


def test_what_there_are_no_classes_for_is_refused():
    model, x = Trained().eval(), torch.randn(1, 3, 16, 16)
    for arguments, says in (
        ({"variant": "dwc"}, "HetConv layers alone, but blocks.0.0 becomes DWC"),
        ({"se": True}, "becomes HetConv P=4 blocked . SE16"),
        ({"transfer": "fresh"}, "for trained weights"),
        ({"example": None}, "expected an example, got None"),
    ):
        with pytest.raises(hc.ArgumentError, match=says):
            hc.convert(model, **{"example": x, "reorder": True} | arguments)
    with pytest.raises(hc.ArgumentError, match="converts no layer"):
        hc.reorder(nn.Conv2d(3, 8, 3), 3, x)
    with pytest.raises(hc.ArgumentError, match="no weights"):
        hc.reorder(full_copy(model).to("meta"), 4, x.to("meta"))
    model.blocks[0][0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(hc.HetconvError, match=r"blocks.0.0: its weights hold NaN"):
        hc.reorder(model, 4, x)


def test_a_network_that_cannot_be_proven_is_given_up():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, x):
            return self.body(x.float())

    with pytest.raises(hc.HetconvError, match="does not run in float64"):
        hc.reorder(Single(), 4, torch.randn(1, 8, 9, 9))
    with pytest.raises(hc.HetconvError, match="NaN or infinity"):
        hc.reorder(Single().body, 4, torch.full((1, 8, 9, 9), torch.inf))


def test_a_bare_convolution_has_nothing_to_move():
    report = hc.reorder(nn.Conv2d(8, 8, 3), 4, torch.randn(1, 8, 9, 9)).report
    assert (report.free, report.before) == (0, report.after)


def test_a_label_joins_pieces_of_several_streams():
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 12, 1, groups=6), nn.Conv2d(12, 4, 1))
    flow = watch(model.eval(), (torch.randn(1, 4, 5, 5),))
    (piece,) = flow.labels[("2.weight", 1)]
    assert piece == Piece(piece.stream, 2)
