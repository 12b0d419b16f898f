"""The two counters, on tiny networks whose work is counted by hand."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from small_networks import Net, conv
from torch import nn

from hetconv_cli.conversion.trace import Call
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.measure import counters
from hetconv_cli.measure.counters import count, count_dispatched, replay


def ones(*shape: int) -> tuple[torch.Tensor]:
    return (torch.ones(shape),)


# --- counts by hand ---

# module, input, MACs
PRODUCTS = [
    (conv(3, 8), (2, 3, 6, 5), 2 * 30 * 8 * 27),
    (nn.Conv2d(8, 4, (1, 7), stride=(2, 1)), (1, 8, 9, 9), 5 * 3 * 4 * 8 * 7),
    (conv(groups=2), (1, 8, 6, 6), 36 * 8 * 4 * 9),
    (conv(groups=8), (1, 8, 6, 6), 36 * 8 * 9),
    (nn.Conv1d(4, 6, 3), (2, 4, 9), 2 * 7 * 6 * 12),
    (nn.Conv3d(4, 6, 3), (1, 4, 5, 5, 5), 27 * 6 * 4 * 27),
    (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
]


@pytest.mark.parametrize(("module", "shape", "macs"), PRODUCTS, ids=[type(module).__name__ for module, *_ in PRODUCTS])
def test_both_counters_see_a_product_as_it_is(module, shape, macs):
    counts = count(nn.Sequential(module), ones(*shape))
    assert counts.dispatcher == {"0": macs}
    assert counts.thop == {"0": macs}


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 9), 2 * 9 * 4 * 6 * 3),
    ],
)
def test_the_dispatcher_counts_a_transposed_convolution_by_its_input(module, shape, macs):
    assert count_dispatched(nn.Sequential(module), ones(*shape)) == {"0": macs}


def test_work_is_listed_by_the_module_that_does_it():
    def forward(self, x):
        return F.linear(self.body(x).flatten(1), self.weight)

    model = Net(forward, body=nn.Sequential(conv(), nn.ReLU(), conv(8, 4)))
    model.weight = nn.Parameter(torch.ones(5, 4 * 36))
    counts = count(model, ones(1, 8, 6, 6))
    assert counts.dispatcher == {"": 720, "body.0": 20_736, "body.2": 10_368}
    assert counts.thop == {"body.0": 20_736, "body.2": 10_368}  # thop knows no products outside of modules


def test_what_does_nothing_is_not_listed():
    assert count(nn.Sequential(nn.ReLU(), nn.Flatten()), ones(1, 8, 6, 6)).dispatcher == {}


def test_a_bare_layer_is_listed_under_its_empty_name():
    counts = count(conv(), ones(1, 8, 6, 6))
    assert counts.dispatcher == {"": 20_736}
    assert counts.thop == {"": 20_736}


def test_a_module_that_is_called_twice_counts_twice():
    model = Net(lambda self, x: self.a(self.a(x)), a=conv())
    counts = count(model, ones(1, 8, 6, 6))
    assert counts.dispatcher == {"a": 2 * 20_736}
    assert counts.thop == {"a": 2 * 20_736}


def test_a_module_under_two_names_is_listed_once_under_the_first():
    shared = conv()
    model = Net(lambda self, x: self.b(self.a(x)), a=shared, b=shared)
    counts = count(model, ones(1, 8, 6, 6))
    assert counts.dispatcher == {"a": 2 * 20_736}
    assert sum(counts.thop.values()) == 2 * 20_736


def test_a_module_in_two_parents_takes_nothing_from_either():
    shared = conv()
    one, other = Net(lambda self, x: self.c(x), c=shared), Net(lambda self, x: self.c(x), c=shared)
    counts = count(Net(lambda self, x: self.b(self.a(x)), a=one, b=other), ones(1, 8, 6, 6))
    assert counts.dispatcher == {"a.c": 2 * 20_736}
    assert counts.thop == {"a.c": 4 * 20_736, "b.c": 4 * 20_736}  # thop hooks it and adds it up once for each parent


def attention(**more) -> nn.Module:
    return Net(lambda self, q, k: self.m(q, k, k)[0], m=nn.MultiheadAttention(16, 2, **more))


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_attention_is_seen_in_full(batch_first):
    # L = 5 queries, S = 9 keys, E = 16, two samples: projections 2 (2 L E E + 2 S E E), scores and sum 2 (2 L S E)
    q, k = ((2, 5, 16), (2, 9, 16)) if batch_first else ((5, 2, 16), (9, 2, 16))
    tally = count_dispatched(attention(batch_first=batch_first), (torch.ones(q), torch.ones(k)))
    assert tally == {"m": 2 * (2 * 5 * 256 + 2 * 9 * 256) + 2 * (2 * 5 * 9 * 16)}


def test_the_fused_path_of_a_transformer_layer_is_taken_apart():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.ones(2, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled()
    tally = count_dispatched(nn.Sequential(layer), (x,))
    assert tally == {"0.self_attn": 2 * (4 * 5 * 256 + 2 * 25 * 16), "0.linear1": 2 * 5 * 512, "0.linear2": 2 * 5 * 512}
    assert torch.backends.mha.get_fastpath_enabled()  # put back


@pytest.mark.parametrize("enabled", [False, True])
def test_the_switch_of_the_fused_path_is_put_back_even_after_a_failure(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with pytest.raises(Exception, match="does not run on this input"):
            count_dispatched(conv(), ones(1, 5, 6, 6))
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_scaled_dot_product_attention_outside_of_a_module_is_seen():
    model = Net(lambda self, x: F.scaled_dot_product_attention(x, x, x))
    assert count_dispatched(model, ones(1, 2, 5, 8)) == {"": 2 * 2 * 25 * 8}


# --- the layers ---


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
@pytest.mark.parametrize(
    ("m", "n", "p"), [(8, 12, 1), (8, 12, 2), (8, 12, 4), (8, 12, 8), (8, 6, 4), (8, 3, 8), (6, 5, 3)]
)
def test_both_counters_see_exactly_a_hetconvs_work_in_its_class_by_class_form(m, n, p, arrangement):
    layer = HetConv2d(m, n, (3, 5), stride=(1, 2), padding=(1, 2), p=p, arrangement=arrangement)
    layer.implementation = "reference"
    # 6 x 4 positions, two samples, a filter has 15 taps on M/P channels and 1 on the others
    macs = 2 * 24 * n * (m // p * 15 + m - m // p)
    counts = count(nn.Sequential(layer), ones(2, m, 6, 7))
    assert counts.dispatcher == {"0": macs}
    assert counts.thop == {"0": macs}


def test_the_grouped_form_does_more_work_and_thop_counts_what_the_layer_is():
    layer = HetConv2d(8, 8, 3, padding=1, p=4)
    layer.implementation = "grouped"
    counts = count(nn.Sequential(layer), ones(1, 8, 6, 6))
    assert counts.dispatcher == {"0": 36 * 8 * (2 * 9 + 8)}  # the 1 x 1 over all channels
    assert counts.thop == {"0": 36 * 8 * (2 * 9 + 6)}


@pytest.mark.parametrize(
    ("layer", "spatial"),
    [
        (DepthwisePointwise(8, 6, 3, padding=1), 36 * 8 * 9),
        (GroupwisePointwise(8, 6, 3, padding=1, groups=2), 36 * 8 * 36),
    ],
)
def test_both_counters_see_a_pair_as_its_two_convolutions(layer, spatial):
    counts = count(nn.Sequential(layer), ones(1, 8, 6, 6))
    assert counts.dispatcher == {"0.spatial": spatial, "0.pointwise": 36 * 48}
    assert counts.thop == counts.dispatcher


def test_thops_rule_reads_the_real_weights():
    layer = HetConv2d(8, 8, 3, padding=1, p=4)
    layer.weight_ring = nn.Parameter(torch.zeros(8, 2, 100))  # what no equation would say
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert count(nn.Sequential(layer), ones(1, 8, 6, 6)).thop == {"0": 36 * (8 * 8 + 8 * 2 * 100)}


# --- nothing is left behind ---


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), HetConv2d(8, 8, 3, p=4)).train()
    model[1].eval()
    keys, flags = list(model.state_dict()), [module.training for module in model.modules()]
    values = [value.clone() for value in model.state_dict().values()]
    count(model, ones(2, 8, 6, 6))
    count_dispatched(model, ones(2, 8, 6, 6))
    assert list(model.state_dict()) == keys
    assert all(torch.equal(now, old) for now, old in zip(model.state_dict().values(), values, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("total_ops" in module._buffers for module in model.modules())


def test_counting_again_gives_the_same():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), HetConv2d(8, 8, 3, p=4), nn.AdaptiveAvgPool2d(1))
    first = count(model, ones(2, 8, 6, 6))
    assert count(model, ones(2, 8, 6, 6)) == first
    assert count_dispatched(model, ones(2, 8, 6, 6)) == first.dispatcher


def test_both_counters_watch_one_and_the_same_forward_pass():
    calls = []

    def forward(self, x):
        calls.append(1)
        return self.a(x)

    count(Net(forward, a=conv()), ones(1, 8, 6, 6))
    assert len(calls) == 1


def test_nothing_is_printed(capfd):
    count(nn.Sequential(conv(), HetConv2d(8, 8, 3, p=4)), ones(1, 8, 6, 6))
    assert capfd.readouterr() == ("", "")


# --- replay ---


def test_a_layer_is_counted_on_every_traced_call():
    calls = [Call("x", ((1, 8, 6, 6),), (1, 8, 6, 6)), Call("x", ((3, 8, 2, 2),), (3, 8, 2, 2))] * 2
    counts = replay(conv(device="meta"), calls)
    assert counts.dispatcher == {"": 2 * 576 * (36 + 12)}
    assert counts.thop == counts.dispatcher
    assert replay(conv(device="meta"), calls, thop=False).thop == {}
    assert replay(conv(device="meta"), []).dispatcher == {}


def test_each_shape_is_run_once(monkeypatch):
    shapes = []
    real = counters.count
    monkeypatch.setattr(
        counters, "count", lambda module, inputs: shapes.append(inputs[0].shape) or real(module, inputs)
    )
    calls = [Call("x", ((1, 8, 6, 6),), (1, 8, 6, 6))] * 50 + [Call("x", ((1, 8, 2, 2),), (1, 8, 2, 2))]
    assert replay(conv(device="meta"), calls).dispatcher == {"": 50 * 20_736 + 4 * 576}
    assert shapes == [(1, 8, 6, 6), (1, 8, 2, 2)]


def test_who_counts_by_the_dispatcher_alone_loads_no_thop():
    loaded = "import sys, hetconv_cli.measure.summary; print('thop' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
