"""HetConv2d as a module: its parameters, its start, and everything PyTorch does to modules."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from hetconv_cli.arrangement import ARRANGEMENTS
from hetconv_cli.errors import ArgumentError
from hetconv_cli.layers import HetConv2d

EXACT = {"rtol": 0, "atol": 1e-10}
NAMES = {"weight_1x1", "weight_ring", "bias"}
# (M, N, P): as the paper has it, filters that p does not divide, fewer filters than classes
SHAPES = [(8, 12, 4), (8, 6, 4), (8, 3, 8)]


def make(m=8, n=6, kernel=3, *, p=4, padding=1, **more) -> HetConv2d:
    torch.manual_seed(0)
    return HetConv2d(m, n, kernel, padding=padding, p=p, **more)


def image(m=8, batch=2, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, m, 7, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)


# --- parameters ---


@pytest.mark.parametrize(
    ("m", "n", "kernel", "p", "weights"),
    [
        (64, 64, 3, 4, 12_288),  # 64 (16 * 9 + 48)
        (64, 128, 3, 1, 73_728),  # a standard convolution
        (8, 6, (1, 7), 2, 192),  # 6 (4 * 7 + 4)
        (8, 6, 3, "pc", 96),  # 6 (9 + 7)
        (8, 3, 1, 4, 24),  # 1 x 1: nothing to save
        (12, 5, (5, 3), 6, 200),  # 5 (2 * 15 + 10)
    ],
)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_has_exactly_the_papers_number_of_weights(m, n, kernel, p, weights, arrangement):
    layer = HetConv2d(m, n, kernel, p=p, arrangement=arrangement)
    assert sum(parameter.numel() for parameter in layer.parameters()) == weights + n
    bare = HetConv2d(m, n, kernel, bias=False, p=p, arrangement=arrangement)
    assert sum(parameter.numel() for parameter in bare.parameters()) == weights
    assert not list(layer.buffers())


@pytest.mark.parametrize(("m", "n", "p"), SHAPES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_parameter_takes_part(m, n, p, arrangement):
    layer = make(m, n, p=p, arrangement=arrangement)
    layer(image(m)).square().sum().backward()
    for parameter in layer.parameters():
        assert (parameter.grad != 0).all()


def test_dense_weight_has_a_number_for_each_weight_and_zeros_elsewhere():
    for arrangement in ARRANGEMENTS:
        dense = make(arrangement=arrangement).dense_weight()
        assert dense.shape == (6, 8, 3, 3)
        assert not dense.requires_grad
        assert dense.count_nonzero() == 6 * (2 * 9 + 6)
        assert (dense[:, :, 1, 1] != 0).all()


@pytest.mark.parametrize(
    ("arrangement", "expected"),
    [("blocked", [[0, 1], [0, 1], [2, 3], [4, 5], [4, 5], [6, 7]]), ("shifted", [[0, 4], [1, 5], [2, 6], [3, 7]] * 2)],
)
def test_class_channels_are_the_channels_with_a_kxk_kernel(arrangement, expected):
    layer = make(arrangement=arrangement)
    assert layer.class_channels().tolist() == expected[:6]
    has_kxk = layer.dense_weight()[..., 0, 0] != 0
    assert [row.nonzero().flatten().tolist() for row in has_kxk] == expected[:6]


def test_weights_start_within_the_bound_of_the_true_fan_in_and_fill_it():
    layer = make(64, 96, 3, p=4)
    bound = 1 / math.sqrt(16 * 9 + 48)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.9 * bound
    for weight in (layer.weight_1x1.detach(), layer.weight_ring.detach()):
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # uniform
        assert abs(weight.mean()) < 0.05 * bound


def test_part_one_starts_as_conv2d_does():
    conv = nn.Conv2d(16, 32, 3)
    assert 1 / math.sqrt(make(16, 32, p=1).fan_in) == pytest.approx(1 / math.sqrt(conv.weight[0].numel()))


def test_reset_parameters_draws_anew():
    layer = make()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert (value != before[name]).all()


# --- against Conv2d ---


def test_part_one_is_conv2d():
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=1, dtype=torch.float64)
    layer = HetConv2d(5, 7, 3, stride=2, padding=1, p=1, dtype=torch.float64)
    taps = conv.weight.detach().flatten(2)
    with torch.no_grad():
        layer.weight_1x1.copy_(conv.weight[:, :, 1:2, 1:2])
        layer.weight_ring.copy_(torch.cat((taps[..., :4], taps[..., 5:]), dim=-1))
        layer.bias.copy_(conv.bias)
    assert layer.dense_weight().equal(conv.weight)
    x = image(5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), **EXACT)


odd_pair = st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)))
small_pair = st.tuples(st.integers(1, 2), st.integers(1, 2))


@given(
    st.integers(1, 5), st.integers(1, 2), st.integers(1, 7), odd_pair, small_pair, small_pair,
    st.sampled_from(("zeros", "reflect", "replicate", "circular")), st.booleans(), st.sampled_from(ARRANGEMENTS),
)  # fmt: skip
def test_conv2d_with_the_dense_weight_computes_the_same(p, each, n, kernel, stride, dilation, mode, bias, arrangement):
    padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    same = (p * each, n, kernel, stride, padding, dilation)
    layer = HetConv2d(*same, bias, mode, p=p, arrangement=arrangement, dtype=torch.float64)
    conv = nn.Conv2d(*same, 1, bias, mode, dtype=torch.float64)
    conv.weight.data.copy_(layer.dense_weight())
    if bias:
        conv.bias.data.copy_(layer.bias)
    x = image(p * each, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), **EXACT)


@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2), [2, 0]])
def test_padding_is_conv2ds(padding):
    layer = HetConv2d(8, 6, (3, 5), padding=padding, p=4)
    conv = nn.Conv2d(8, 6, (3, 5), padding=tuple(padding) if isinstance(padding, list) else padding)
    assert layer(image()).shape == conv(image()).shape


def test_a_single_image_needs_no_batch_dimension():
    layer = make(padding_mode="circular")
    torch.testing.assert_close(layer(image()[0]), layer(image())[0])


def test_it_has_the_attributes_that_code_reads_off_a_conv2d():
    facts = {"stride": 2, "padding": (1, 0), "dilation": (1, 3), "padding_mode": "reflect"}
    layer, conv = HetConv2d(8, 6, (3, 1), p=4, **facts), nn.Conv2d(8, 6, (3, 1), **facts)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(layer, name) == getattr(conv, name)


# --- construction ---


@pytest.mark.parametrize("name", ["meta", "cpu"])
def test_parameters_are_made_on_the_device_and_in_the_type_asked_for(name):
    layer = HetConv2d(8, 6, 3, p=4, device=name, dtype=torch.bfloat16)
    for parameter in layer.parameters():
        assert parameter.device.type == name
        assert parameter.dtype == torch.bfloat16
    assert layer(torch.empty(2, 8, 5, 5, device=name, dtype=torch.bfloat16)).shape == (2, 6, 3, 3)


def test_meta_layers_can_be_materialised():
    layer = HetConv2d(8, 6, 3, p=4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(image()).isfinite().all()


def test_it_is_made_under_torch_device_meta():
    with torch.device("meta"):
        layer = HetConv2d(8, 6, 3, p=4)
    assert layer.weight_ring.is_meta


def test_to_a_dtype_changes_parameters_and_output():
    layer = make().to(torch.float64)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert layer(image(dtype=torch.float64)).dtype == torch.float64


def test_it_prints_what_conv2d_prints_then_p_and_arrangement():
    assert repr(HetConv2d(8, 6, 3, p=4)) == (
        "HetConv2d(8, 6, kernel_size=(3, 3), stride=(1, 1), p=4, arrangement=blocked)"
    )
    layer = HetConv2d(8, 6, (1, 7), 2, (0, 3), 2, False, "reflect", p="pc", arrangement="shifted")
    assert repr(layer) == (
        "HetConv2d(8, 6, kernel_size=(1, 7), stride=(2, 2), padding=(0, 3), dilation=(2, 2), bias=False, "
        "padding_mode=reflect, p=8, arrangement=shifted)"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"in_channels": 8.0}, "in_channels must be a positive integer, got 8.0"),
        ({"out_channels": -6}, "out_channels must be a positive integer, got -6"),
        ({"kernel_size": 4}, "kernel_size must be odd, so that the window has a centre; got 4"),
        ({"padding": -1}, "padding must be an integer >= 0, or a pair of them; got -1"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding_mode": "wrap"}, "padding_mode must be one of zeros, reflect, replicate, circular; got 'wrap'"),
        ({"p": 3}, r"`in_channels` \(=8\) must be divisible by `p` \(=3\)"),
        ({"p": 16}, r"`in_channels` \(=8\) must be divisible by `p` \(=16\)"),
        ({"p": 0}, "p must be a positive integer or 'pc', got 0"),
        ({"arrangement": "random"}, "arrangement must be one of blocked, shifted; got 'random'"),
    ],
)
def test_a_bad_argument_is_refused(arguments, said):
    good = {"in_channels": 8, "out_channels": 6, "kernel_size": 3, "p": 4}
    with pytest.raises(ArgumentError, match=said):
        HetConv2d(**(good | arguments))


def test_p_must_be_given_by_name():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'p'"):
        HetConv2d(8, 6, 3)


def test_an_input_with_other_channels_is_refused():
    with pytest.raises(ArgumentError, match=r"input must have shape \[batch, 8, H, W\] or \[8, H, W\], got \[2, 5"):
        make()(image(5))


# --- implementations ---


def test_the_layer_says_which_implementation_serves_it():
    layer = make()
    assert layer.implementation == "auto"
    assert layer.choice().implementation == "grouped"
    layer.implementation = "reference"
    assert layer.choice().implementation == "reference"


def test_an_unknown_implementation_is_refused_at_the_call():
    layer = make()
    layer.implementation = "fast"
    with pytest.raises(ArgumentError, match=r"implementation must be one of .*; got 'fast'"):
        layer(image())


# --- copies and files ---


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_computes_the_same_and_shares_nothing(copied, arrangement):
    layer = make(arrangement=arrangement).eval()
    layer.implementation = "reference"
    layer.weight_ring.requires_grad_(False)
    before = layer(image())
    twin = copied(layer)
    assert twin(image()).equal(before)
    assert not twin.training
    assert twin.implementation == "reference"
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in layer.parameters()]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert layer(image()).equal(before)


@pytest.mark.parametrize("bias", [True, False])
def test_a_state_dict_goes_through_a_file_read_without_running_code(bias):
    layer, other = make(bias=bias), HetConv2d(8, 6, 3, padding=1, bias=bias, p=4)
    assert set(layer.state_dict()) == (NAMES if bias else NAMES - {"bias"})
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert other(image()).equal(layer(image()))


@pytest.mark.parametrize(("name", "said"), [("weight_ring", "Missing key"), ("extra", "Unexpected key")])
def test_loading_is_strict_about_names(name, said):
    state = make().state_dict()
    if name in state:
        del state[name]
    else:
        state[name] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=rf"{said}.*{name}"):
        make().load_state_dict(state)


def test_loading_another_part_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for weight_ring"):
        make(p=2).load_state_dict(make(p=4).state_dict())


def test_train_and_eval_compute_the_same():
    layer = make()
    assert layer.train()(image()).equal(layer.eval()(image()))


def test_frozen_parameters_get_no_gradient_and_the_others_do():
    layer = make()
    layer.weight_1x1.requires_grad_(False)
    layer(image()).sum().backward()
    assert layer.weight_1x1.grad is None
    assert (layer.weight_ring.grad != 0).all()


# --- the compiler, the exporter, functional transforms ---


def compiles_and_agrees(layer: HetConv2d) -> None:
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = image(layer.in_channels)
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = compiled(ours), layer(plain)
    torch.testing.assert_close(output, expected)
    expected.square().sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    output.square().sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "n", "p"), SHAPES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_compiles_without_graph_breaks_or_warnings(m, n, p, arrangement):
    compiles_and_agrees(make(m, n, p=p, arrangement=arrangement))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_reference_compiles_too(arrangement):
    layer = make(arrangement=arrangement)
    layer.implementation = "reference"
    compiles_and_agrees(layer)


@pytest.mark.parametrize("implementation", ["reference", "grouped"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_it_exports_with_a_dynamic_batch(arrangement, implementation):
    layer = make(arrangement=arrangement).eval()
    layer.implementation = implementation
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (image(),), dynamic_shapes=({0: batch},))
    assert set(program.state_dict) == NAMES
    torch.testing.assert_close(program.module()(image(batch=5)), layer(image(batch=5)))


def test_functional_call_uses_the_parameters_it_is_given():
    layer, other = make(), HetConv2d(8, 6, 3, padding=1, p=4)
    called = torch.func.functional_call(layer, dict(other.named_parameters()), (image(),))
    assert called.equal(other(image()))


@pytest.mark.parametrize("implementation", ["reference", "grouped"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_vmap_over_images_gives_each_its_gradient(arrangement, implementation):
    layer = make(arrangement=arrangement)
    layer.implementation = implementation
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(given: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, given, (one,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, image(batch=3))
    for index, one in enumerate(image(batch=3)):
        layer.zero_grad()
        layer(one).square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-4)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_a_parametrized_weight_is_the_one_used():
    layer = make()
    kernel, bias = layer.dense_weight(), layer.bias.detach()
    kernel[:, :, 1, 1] *= 2
    parametrize.register_parametrization(layer, "weight_1x1", Doubled())
    torch.testing.assert_close(layer(image()), F.conv2d(image(), kernel, bias, padding=1))


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo")
def test_distributed_data_parallel_sees_every_gradient(tmp_path):
    layer, plain = make(arrangement="shifted"), make(arrangement="shifted")
    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(layer)
        for _ in range(2):  # a parameter without a gradient would stop the second pass
            parallel(image()).square().sum().backward()
            plain(image()).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for ours, expected in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_a_few_steps_of_training_lower_the_loss():
    layer = make()
    wanted = F.conv2d(image(), make(arrangement="shifted").dense_weight(), padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(layer(image()), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
