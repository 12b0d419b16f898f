"""One forward pass, watched: which calls are seen, and how far a concatenation is followed."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import Net, conv
from torch import nn

from hetconv_cli.conversion.trace import Call, trace
from hetconv_cli.errors import HetconvError


def image(m=8, size=6, batch=2) -> torch.Tensor:
    return torch.ones(batch, m, size, size)


# --- calls ---


def test_calls_come_in_order_with_their_shapes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 3, 5))
    seen = trace(model, (torch.ones(2, 3, 9, 7),))
    assert seen.calls == (
        Call("0", ((2, 3, 9, 7),), (2, 8, 4, 3)),
        Call("3", ((2, 96),), (2, 5)),
    )
    assert not seen.on_meta


def test_a_module_used_twice_is_called_twice_under_its_first_name():
    shared = conv()
    model = Net(lambda self, x: self.b(F.max_pool2d(self.a(x), 2)), a=shared, b=shared)
    seen = trace(model, (image(),))
    assert seen.calls == (Call("a", ((2, 8, 6, 6),), (2, 8, 6, 6)), Call("a", ((2, 8, 3, 3),), (2, 8, 3, 3)))
    assert seen.of("a") == seen.calls
    assert seen.of("b") == ()


def test_a_module_that_is_not_called_is_not_in_the_trace():
    assert trace(Net(lambda self, x: self.a(x), a=conv(), b=conv()), (image(),)).of("b") == ()


def test_keyword_inputs_are_seen():
    model = Net(lambda self, x: self.c(input=x), c=conv())
    assert trace(model, (image(),)).calls == (Call("c", ((2, 8, 6, 6),), (2, 8, 6, 6)),)


def test_an_attention_is_one_call_with_query_key_and_value_and_its_first_output():
    model = Net(lambda self, q, k: self.m(q, k, k)[0], m=nn.MultiheadAttention(16, 2, batch_first=True))
    calls = trace(model, (torch.ones(2, 5, 16), torch.ones(2, 9, 16))).calls
    assert calls == (Call("m", ((2, 5, 16), (2, 9, 16), (2, 9, 16)), (2, 5, 16)),)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
        (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 9, 9)),
        (nn.ConvTranspose3d(4, 6, 3), (2, 4, 3, 3, 3)),
        (nn.Linear(4, 6), (2, 3, 4)),
    ],
)
def test_every_kind_of_product_is_watched(module, shape):
    (call,) = trace(nn.Sequential(module), (torch.ones(shape),)).calls
    assert (call.module, call.inputs, call.output) == ("0", (shape,), tuple(module(torch.ones(shape)).shape))


def test_a_bare_convolution_has_an_empty_name():
    assert trace(conv(), (image(),)).calls == (Call("", ((2, 8, 6, 6),), (2, 8, 6, 6)),)


def test_on_meta_nothing_is_computed_and_the_trace_says_so():
    model = nn.Sequential(conv()).to("meta")
    seen = trace(model, (torch.empty(2, 8, 6, 6, device="meta"),))
    assert seen.on_meta
    assert seen.calls == (Call("0", ((2, 8, 6, 6),), (2, 8, 6, 6)),)


# --- the model is left as it was ---


def test_training_flags_come_back_each_as_it_was():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Sequential(nn.Dropout(), conv()))
    model.train()
    model[1].eval()
    model[2][0].eval()
    before = [module.training for module in model.modules()]
    trace(model, (image(),))
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_it_runs_in_eval_mode_without_gradients_and_leaves_statistics_hooks_and_random_numbers():
    modes = []
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Dropout())
    model[0].register_forward_hook(lambda *_: modes.append((model.training, torch.is_grad_enabled())))
    before, numbers = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    trace(model.train(), (image(),))
    assert modes == [(False, False)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [len(module._forward_hooks) for module in model.modules()] == [0, 1, 0, 0]


def test_a_model_that_does_not_run_is_one_line_and_is_left_as_it_was():
    model = nn.Sequential(conv(), nn.Dropout()).train()
    with pytest.raises(HetconvError, match=r"does not run on this input \(RuntimeError: .*\); is --input right\?") as e:
        trace(model, (image(5),))
    assert "\n" not in str(e.value)
    assert isinstance(e.value.__cause__, RuntimeError)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert not hasattr(model[0](image()), "_hetconv_concatenated")  # nobody follows any more


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("first\nsecond"), "ValueError: first"), (KeyError(), "KeyError")]
)
def test_only_the_first_line_of_a_models_own_error_is_told(error, said):
    def forward(self, x):
        raise error

    with pytest.raises(HetconvError, match=rf"\({said}.*\); is --input right") as caught:
        trace(Net(forward), (image(),))
    assert "\n" not in str(caught.value)


# --- concatenations ---


def reads(between, before=lambda x: torch.cat((x, x), 1), m: int = 16, **modules) -> bool:
    """Whether a convolution reads a concatenation that went through `between`."""
    model = Net(lambda self, x: self.last(between(self, before(x))), last=conv(m, 4), **modules)
    return trace(model, (image(),)).reads_concatenation() == {"last"}


def test_a_concatenation_of_channels_is_seen():
    assert reads(lambda self, x: x)


def test_a_network_without_one_has_none():
    assert not reads(lambda self, x: x, before=lambda x: x, m=8)


@pytest.mark.parametrize(
    "cat",
    [
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.cat([x, x], dim=-3),
        lambda x: torch.cat([x, x], axis=1),
        lambda x: torch.cat(tensors=(x, x), dim=1),
        lambda x: torch.concat((x, x), 1),
        lambda x: torch.concatenate((x, x), 1),
        lambda x: torch.hstack((x, x)),
    ],
    ids=["dim", "negative", "axis", "keywords", "concat", "concatenate", "hstack"],
)
def test_every_way_to_concatenate_channels_is_seen(cat):
    assert reads(lambda self, x: x, cat)


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_a_concatenation_along_another_dimension_is_none(dim):
    assert not reads(lambda self, x: x, lambda x: torch.cat((x, x), dim), m=8)


@pytest.mark.parametrize(
    "between",
    [
        lambda self, x: self.bn(x),
        lambda self, x: F.relu(self.bn(x)),
        lambda self, x: self.relu(self.bn(x)),
        lambda self, x: F.max_pool2d(x, 2),
        lambda self, x: F.avg_pool2d(x, 2),
        lambda self, x: F.adaptive_avg_pool2d(x, 3),
        lambda self, x: F.interpolate(x, scale_factor=2),
        lambda self, x: self.drop(x),
        lambda self, x: x + 1,
        lambda self, x: torch.ones_like(x) + x,
        lambda self, x: x * 2 - x,
        lambda self, x: F.pad(x, (1, 1, 1, 1)),
        lambda self, x: F.silu(x).sigmoid().contiguous(),
        lambda self, x: F.relu(input=x),
        lambda self, x: torch.cat((x, x), 0),
    ],
    ids=[
        *("batch_norm", "batch_norm_relu", "inplace", "max_pool", "avg_pool", "adaptive", "interpolate", "dropout"),
        *("plus_one", "plus_tensor", "arithmetic", "pad", "methods", "keyword", "batches_joined"),
    ],
)
def test_it_is_followed_through_what_keeps_channels_apart(between):
    assert reads(between, bn=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True), drop=nn.Dropout2d())


@pytest.mark.parametrize(
    "between",
    [
        lambda self, x: self.mix(x),
        lambda self, x: self.up(x),
        lambda self, x: F.conv2d(x, self.mix.weight),
        lambda self, x: x.flatten(1).view(2, 16, 6, 6),
        lambda self, x: self.lin(x.flatten(1)).view(2, 16, 3, 3),
        lambda self, x: x[:, :8].repeat(1, 2, 1, 1)[:, :16].flatten(1).view(2, 16, 6, 6),
        lambda self, x: torch.einsum("nchw,cd->ndhw", x, torch.ones(16, 16)),
    ],
    ids=["conv", "transposed", "functional", "flatten", "linear", "slice_flatten", "einsum"],
)
def test_it_ends_where_channels_are_mixed_or_flattened(between):
    mixing = {"mix": nn.Conv2d(16, 16, 1), "up": nn.ConvTranspose2d(16, 16, 2), "lin": nn.Linear(576, 144)}
    assert not reads(between, **mixing)


def test_one_call_of_several_that_reads_a_concatenation_is_enough():
    def forward(self, x):
        return self.a(torch.cat((self.a(torch.cat((x, x), 0).view(2, 16, 6, 6)), x), 1))

    seen = trace(Net(forward, a=conv(16, 8)), (image(),))
    assert [call.reads_concatenation for call in seen.calls] == [False, True]
    assert seen.reads_concatenation() == {"a"}


def test_it_is_followed_on_meta_too():
    model = Net(lambda self, x: self.a(F.relu(torch.cat((x, x), 1))), a=conv(16, 8)).to("meta")
    assert trace(model, (image().to("meta"),)).reads_concatenation() == {"a"}
