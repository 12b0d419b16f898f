"""The file that convert writes: back bit for bit, read without running anything, written whole or not at all."""

import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hetconv_cli.convert import checkpoint
from hetconv_cli.convert.checkpoint import load, read_recipe, save
from hetconv_cli.convert.conversion import Conversion, convert
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Rules, Wish


class Net(nn.Module):
    """Convertible, kept and grouped convolutions, statistics, a buffer of integers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.grouped = nn.Conv2d(12, 12, 3, groups=3)
        self.head = nn.Linear(12, 5)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        return self.head(self.grouped(self.body(self.stem(x))).mean((2, 3)))


def image(size: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def written(net, tmp_path) -> Path:
    return save(convert(net, p=4, example=image()), tmp_path / "net.safetensors")


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor, b[name])


def rewritten(source: Path, change=lambda data: data, *, tensors=lambda state: state) -> Path:
    """A copy of a file with other metadata or tensors, everything else as it was."""
    with safe_open(source, framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    data = change(yaml.safe_load(metadata["hetconv"]))
    target = source.with_name("changed.safetensors")
    text = data if isinstance(data, str) else yaml.safe_dump(data)
    save_file(tensors(state), target, metadata={"hetconv": text})
    return target


def one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value)


# --- there and back ---


@pytest.mark.parametrize(
    "wish", [Wish(p=4), Wish(p="pc", arrangement="shifted"), Wish("dwc"), Wish("gwc", groups=2), Wish(p=2, se=4)]
)
def test_a_conversion_comes_back_bit_for_bit(net, tmp_path, wish):
    conversion = convert(net, rules=Rules(wish), example=image())
    path = save(conversion, tmp_path / "net.safetensors")
    assert path == tmp_path / "net.safetensors"
    again = load(path, net)
    assert_same_state(conversion.model, again.model)
    assert (again.plan, again.example, again.weights) == (conversion.plan, conversion.example, conversion.weights)
    assert torch.equal(again.model(image()), conversion.model(image()))
    assert not again.model.training


def test_a_known_network_is_rebuilt_from_its_name(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    conversion = convert(model, p=4)
    save(conversion, tmp_path / "net.safetensors", source="squeezenet1_1")
    before = torch.get_rng_state()
    again = load(tmp_path / "net.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.model(x), conversion.model(x))
    # 8 fire modules with one 3x3 each, M * M * 9 * 4 weights, of which P = 4 leaves a third
    dense = sum(9 * m * 4 * m for m in (16, 16, 32, 32, 48, 48, 64, 64))
    assert sum(p.numel() for p in again.model.parameters()) == 1_235_496 - 2 * dense // 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_weights_comes_back_whatever_the_original_has(net, tmp_path, dtype):
    conversion = convert(net.to(dtype), p=4)
    save(conversion, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", Net())
    assert_same_state(conversion.model, again.model)
    assert again.model.stem.weight.dtype == dtype
    assert again.model.steps.dtype == torch.int64


def test_special_numbers_and_empty_tensors_come_back(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    model.register_buffer("special", torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]))
    model.register_buffer("empty", torch.empty(0, 3))
    model.register_buffer("flags", torch.tensor([True, False]))
    save(convert(model, p=4), tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", model).model
    assert again.special.view(torch.int32).tolist() == model.special.view(torch.int32).tolist()
    assert again.empty.shape == (0, 3)
    assert again.flags.tolist() == [True, False]


def test_memory_format_and_views_are_no_obstacle(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)).to(memory_format=torch.channels_last)
    model.register_buffer("row", torch.arange(12.0).view(3, 4).t()[1])
    conversion = convert(model, p=4)
    save(conversion, tmp_path / "net.safetensors")
    assert_same_state(conversion.model, load(tmp_path / "net.safetensors", model).model)


class Tied(nn.Module):
    """Two linear layers with one weight, a convolution under two names, two buffers that are one."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.decode.weight = self.encode.weight
        self.register_buffer("one", torch.ones(3))
        self.register_buffer("two", self.one)

    def forward(self, x):
        return self.decode(self.encode(self.b(self.a(x)).mean((2, 3))))


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    conversion = convert(model, p=4)
    path = save(conversion, tmp_path / "net.safetensors")
    with safe_open(path, framework="pt") as file:
        assert len(file.keys()) == 3 + 1 + 1 + 1  # the HetConv, the weight, decode's bias, the buffer
    again = load(path, Tied()).model
    assert_same_state(conversion.model, again)
    assert again.a is again.b
    assert again.encode.weight is again.decode.weight
    assert again.one is again.two
    assert len(list(again.parameters())) == len(list(model.parameters())) + 1  # a HetConv has two weights
    with torch.no_grad():
        again.encode.weight.zero_()
    assert not again.decode.weight.any()


def test_equal_numbers_that_are_not_one_tensor_are_not_tied(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    save(convert(model, p=4), tmp_path / "net.safetensors")
    assert read_recipe(tmp_path / "net.safetensors").tied == {}


def test_frozen_layers_are_frozen_as_in_the_original(net, tmp_path):
    net.body.requires_grad_(False)
    save(convert(net, p=4), tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", net).model
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == {
        "body.0.weight_1x1",
        "body.0.weight_ring",
        "body.1.weight",
        "body.1.bias",
    }


def test_the_original_that_is_passed_to_load_is_not_changed(net, written):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    again = load(written, net.train()).model
    assert net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in again.parameters()}


kernels = st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)))
layers = st.tuples(st.sampled_from((2, 4, 8)), kernels, st.booleans(), st.booleans())
wishes = st.sampled_from(
    [Wish(p=2), Wish(p="pc"), Wish(p=2, arrangement="shifted"), Wish("dwc"), Wish("gwc", groups=2), Wish(p=2, se=2)]
)


@given(
    st.lists(layers, min_size=1, max_size=3), wishes, st.sampled_from((torch.float32, torch.float64, torch.bfloat16))
)
@settings(max_examples=30)
def test_any_small_network_comes_back_bit_for_bit(shape, wish, dtype):
    modules: list[nn.Module] = []
    channels = 8
    for filters, kernel, bias, norm in shape:
        modules.append(nn.Conv2d(channels, filters, kernel, padding="same", bias=bias))
        modules += [nn.BatchNorm2d(filters)] if norm else []
        channels = filters
    model = nn.Sequential(*modules).to(dtype).eval()
    conversion = convert(model, rules=Rules(wish))
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(conversion, Path(folder) / "net.safetensors"), model)
    assert again.plan == conversion.plan
    assert_same_state(conversion.model, again.model)
    x = torch.randn(1, 8, 5, 4).to(dtype)
    assert torch.equal(again.model(x), conversion.model.eval()(x))


# --- the recipe ---


def test_the_recipe_is_readable_by_people_and_other_programs(net, tmp_path):
    conversion = convert(net, p=4, example=image())
    path = save(conversion, tmp_path / "net.safetensors", source="net.py:build")
    with safe_open(path, framework="pt") as file:
        data = yaml.safe_load(file.metadata()["hetconv"])
    assert {key: data[key] for key in ("hetconv", "source", "input", "input_kind", "weights", "tied")} == {
        "hetconv": 1,
        "source": "net.py:build",
        "input": "2x3x6x6",
        "input_kind": "tensors",
        "weights": "the given model's, by centre taps",
        "tied": {},
    }
    assert set(data["versions"]) >= {"torch", "safetensors"}
    assert {layer["name"]: layer.get("change", layer.get("reason")) for layer in data["plan"]} == {
        "stem": "image stem, 3 channels",
        "body.0": {"variant": "hetconv", "p": 4, "arrangement": "blocked"},
        "grouped": "grouped (3 groups)",
    }


def test_the_recipe_is_read_without_the_tensors(written, net):
    recipe = read_recipe(written)
    assert (recipe.source, recipe.example, recipe.tied) == (None, ExampleSpec(((2, 3, 6, 6),)), {})
    assert recipe.plan == convert(net, p=4).plan
    assert len(recipe.sha256) == 64


def test_images_come_back_as_images(net, tmp_path):
    example = ExampleSpec(((2, 3, 6, 6),), kind="images")
    conversion = convert(net, p=4)
    path = save(Conversion(conversion.model, conversion.plan, example), tmp_path / "net.safetensors")
    assert read_recipe(path).example == example


# --- which network it is ---


def test_a_file_that_names_no_network_needs_it(written):
    with pytest.raises(
        ArgumentError, match=r"does not say which network it is; pass the original: hc\.load\(path, model"
    ):
        load(written)


def test_a_python_file_that_the_recipe_names_is_not_run(net, tmp_path):
    ran = tmp_path / "ran"
    code = tmp_path / "evil.py"
    code.write_text(f"import os\nos.mkdir({str(ran)!r})\nbuild = None\n")
    path = save(convert(net, p=4), tmp_path / "net.safetensors", source=f"{code}:build")
    with pytest.raises(ArgumentError, match=r"code of your own, which is not run because a file names it") as caught:
        load(path)
    assert one_line(caught)
    assert not ran.exists()
    assert load(path, net).plan.converted
    assert not ran.exists()


@pytest.mark.parametrize(
    "source", ["missing.py:build", "resnet1800", "timm/no_such", "", "other.safetensors", "../x.pt"]
)
def test_a_source_that_is_not_there_is_one_line(net, tmp_path, source):
    path = save(convert(net, p=4), tmp_path / "net.safetensors", source=source)
    with pytest.raises(HetconvError, match=r"model|network") as caught:
        load(path)
    assert one_line(caught)


def test_another_network_is_refused_with_the_layer(written):
    with pytest.raises(ArgumentError, match=r"the plan converts 'body\.0', but the model has no Conv2d of that name"):
        load(written, nn.Sequential(nn.Conv2d(8, 8, 3)))


def test_a_network_with_another_geometry_is_refused_with_both(written, net):
    net.body[0] = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    with pytest.raises(
        ArgumentError,
        match=r"body\.0: the plan was made for 3x3, 8 -> 12, padding 1x1, no bias; the model has 3x3, 8 -> 16",
    ):
        load(written, net)


def test_a_network_that_differs_elsewhere_is_refused_with_the_tensor(written, net):
    net.head = nn.Linear(12, 7)
    with pytest.raises(ArgumentError, match=r"net\.safetensors: does not fit the network .*head\.weight") as caught:
        load(written, net)
    assert one_line(caught)
    del net.head
    with pytest.raises(ArgumentError, match=r"does not fit the network .*head\.weight") as caught:
        load(written, net)
    assert one_line(caught)


# --- damaged and hostile files ---


def test_a_file_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(ArgumentError, match=r"nowhere\.safetensors: no such file$"):
        load(tmp_path / "nowhere.safetensors")


def test_a_folder_is_one_line(tmp_path):
    with pytest.raises(ArgumentError, match="not a readable safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 1500, -1000, -1])
def test_a_truncated_file_is_one_line(written, net, keep):
    content = written.read_bytes()
    assert len(content) > 4000
    written.write_bytes(content[:keep])
    with pytest.raises(ArgumentError, match=r"net\.safetensors: not a readable safetensors file") as caught:
        load(written, net)
    assert one_line(caught)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 1000,
        b"\xff" * 1000,
        b"#!/bin/sh\necho",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 4) + b"null",
    ],
)
def test_garbage_is_one_line(tmp_path, net, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=r"net\.safetensors: ") as caught:
        load(path, net)
    assert one_line(caught)


class Hostile:
    """Unpickled, it creates a folder."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("dump", ["pickle", "torch"])
def test_a_pickle_of_that_name_is_not_unpickled(tmp_path, net, dump):
    ran, path = tmp_path / "ran", tmp_path / "net.safetensors"
    if dump == "pickle":
        path.write_bytes(pickle.dumps(Hostile(ran)))
    else:
        torch.save({"a": Hostile(ran)}, path)
    with pytest.raises(ArgumentError, match="not a readable safetensors file"):
        load(path, net)
    assert not ran.exists()


def test_somebody_elses_safetensors_file_is_refused(tmp_path, net):
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    save_file(net.state_dict(), tmp_path / "b.safetensors", metadata={"format": "pt"})
    for name in ("a", "b"):
        with pytest.raises(ArgumentError, match=r"not one that `hetconv convert` wrote \(no recipe in it\)"):
            load(tmp_path / f"{name}.safetensors", net)


def test_tensors_that_are_not_those_that_were_written_are_refused(written, net):
    def flip(state):
        state["head.bias"][0] += 1
        return state

    with pytest.raises(ArgumentError, match=r"the tensors are not those that were written \(sha256 differs\)"):
        load(rewritten(written, tensors=flip), net)


@pytest.mark.parametrize("digest", ["", "0" * 64, None])
def test_a_recipe_with_another_digest_is_refused(written, net, digest):
    with pytest.raises(ArgumentError, match="sha256 differs"):
        load(rewritten(written, lambda data: data | {"sha256": digest}), net)


@pytest.mark.parametrize("kind", ["renamed", "retyped", "reshaped", "removed", "added"])
def test_the_digest_covers_names_types_and_shapes(written, net, kind):
    def change(state):
        bias = state.pop("head.bias")
        match kind:
            case "renamed":
                return state | {"head.bias2": bias}
            case "retyped":
                return state | {"head.bias": bias.view(torch.int32)}
            case "reshaped":
                return state | {"head.bias": bias.view(5, 1)}
            case "added":
                return state | {"head.bias": bias, "more": torch.ones(1)}
        return state

    with pytest.raises(ArgumentError, match="sha256 differs"):
        load(rewritten(written, tensors=change), net)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "x" * 10_000])
def test_another_version_of_the_format_is_refused(written, net, version):
    with pytest.raises(ArgumentError, match=r"format .*, this version reads 1; update hetconv-cli") as caught:
        load(rewritten(written, lambda data: data | {"hetconv": version}), net)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("[1]", "expected a mapping"),
        ("{", "not readable as plain YAML"),
        ("hetconv: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("hetconv: 1\na: &a [1]\nb: *a", "aliases are not allowed"),
        ("hetconv: 1\nhetconv: 1", "stands twice"),
        ("hetconv: 1", "plan: expected a list of layers"),
        ("hetconv: 1\nplan: []\nsource: 5", "expected text in source"),
        ("hetconv: 1\nplan: []\nsha256: [a]", "expected text in .*sha256"),
        ("hetconv: 1\nplan: []\ntied: [a]", "expected text in .*tied"),
        ("hetconv: 1\nplan: []\ntied: {a: 1}", "expected text in .*tied"),
        ("hetconv: 1\nplan: []\ninput: 0x0", "expected text in .*input"),
        ("hetconv: 1\nplan: []\ninput: '0x0'", "expected positive whole sizes"),
        ("hetconv: 1\nplan: []\ninput: 9999999999x9999999999", "at most"),
        ("hetconv: 1\nplan: [{name: a}]", "geometry is missing"),
        ("hetconv: 1\nplan: [{name: a, geometry: {in_channels: 1, out_channels: 1, kernel: [3, -3]}}]", "kernel"),
        ("[" * 1000, "recursion"),
    ],
)
def test_a_hostile_recipe_is_one_line(written, net, text, message):
    path = rewritten(written, lambda _: text)
    for read in (read_recipe, lambda path: load(path, net)):
        with pytest.raises(ArgumentError, match=message) as caught:
            read(path)
        assert one_line(caught)


def with_change(name: str, **change):
    """A recipe whose layer `name` is converted in another way."""

    def edit(data):
        (layer,) = [layer for layer in data["plan"] if layer["name"] == name]
        layer.pop("reason", None)
        layer["change"] = change
        return data

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        with_change("body.0", variant="hetconv", p=3),
        with_change("body.0", variant="hetconv", p=2),
        with_change("body.0", variant="gwc", groups=5),
        with_change("body.0", variant="hetconv", p=4, se=1_000_000),
        with_change("grouped", variant="hetconv", p=4),
        with_change("grouped", variant="dwc"),
        lambda data: data | {"plan": []},
    ],
)
def test_a_plan_that_the_tensors_do_not_fit_is_one_line(written, net, edit):
    with pytest.raises(ArgumentError, match=r"changed\.safetensors|body|grouped|divisible") as caught:
        load(rewritten(written, edit), net)
    assert one_line(caught)


@pytest.mark.parametrize(
    "tied",
    [
        {"head.bias": "nope.weight"},
        {"head.bias": "head.nope"},
        {"nope.bias": "head.bias"},
        {"": "head.bias"},
        {"head.weight": "head.bias"},
        {"head.training": "stem.training"},
        {"forward": "head.forward"},
        {"head.bias": "head.__class__"},
        {"head.__class__": "stem.__class__"},
    ],
)
def test_tied_names_that_are_no_tensors_of_the_file_are_refused(written, net, tied):
    with pytest.raises(ArgumentError, match=r"changed\.safetensors: ") as caught:
        load(rewritten(written, lambda data: data | {"tied": tied}), net)
    assert one_line(caught)


# --- writing ---


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_file_is_refused_and_untouched(net, tmp_path):
    target = tmp_path / "net.safetensors"
    target.write_text("old")
    with pytest.raises(ArgumentError, match=r"net\.safetensors exists"):
        save(convert(net, p=4), target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["net.safetensors"]


def test_an_existing_file_is_replaced_where_that_was_asked(net, tmp_path):
    target = tmp_path / "net.safetensors"
    target.write_text("old")
    save(convert(net, p=4), str(target), overwrite=True)
    assert load(target, net).plan.converted
    assert names(tmp_path) == ["net.safetensors"]


def test_a_folder_that_is_missing_is_refused_before_any_work(net, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_distinct", None)
    with pytest.raises(ArgumentError, match="no such folder"):
        save(convert(net, p=4), tmp_path / "missing" / "net.safetensors")


FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left on device"), HetconvError), (FULL, HetconvError), (KeyboardInterrupt("x"), None)],
)
def test_a_failure_half_way_leaves_nothing(net, tmp_path, monkeypatch, error, expected, overwrite):
    target = tmp_path / "net.safetensors"
    if overwrite:
        target.write_text("old")

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(expected or type(error), match=r"No space left on device|x") as caught:
        save(convert(net, p=4), target, overwrite=overwrite)
    assert one_line(caught)
    assert names(tmp_path) == (["net.safetensors"] if overwrite else [])
    if overwrite:
        assert target.read_text() == "old"


def test_the_file_is_read_back_before_it_takes_its_name(net, tmp_path, monkeypatch):
    conversion, target = convert(net, p=4, example=image()), tmp_path / "net.safetensors"

    def other_numbers(tensors, path, metadata):
        data = yaml.safe_load(metadata["hetconv"])
        changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        data["sha256"] = checkpoint._digest(changed)  # a file that is whole, and wrong
        save_file(changed, path, metadata={"hetconv": yaml.safe_dump(data)})

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", other_numbers)
        with pytest.raises(HetconvError, match="does not give the same outputs bit for bit; it was not kept"):
            save(conversion, target, original=net)
    assert names(tmp_path) == []
    save(conversion, target, original=net)
    assert names(tmp_path) == ["net.safetensors"]


def test_outputs_that_are_not_numbers_are_equal_too(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    conversion = convert(model, p=4, example=torch.randn(1, 8, 5, 5))
    with torch.no_grad():
        conversion.model[0].bias.fill_(float("nan"))
    assert save(conversion, tmp_path / "net.safetensors", original=model).exists()


class WithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def get_extra_state(self):
        return {"code": 1}

    def set_extra_state(self, state):
        raise AssertionError("never")


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    with pytest.raises(HetconvError, match=r"_extra_state: the model's state holds a dict; only tensors can be saved"):
        save(convert(WithState(), p=4), tmp_path / "net.safetensors")
    assert names(tmp_path) == []


def test_a_model_without_numbers_cannot_be_saved(tmp_path):
    conversion = convert(nn.Sequential(nn.Conv2d(8, 8, 3)).to("meta"), p=4)
    with pytest.raises(HetconvError, match="meta"):
        save(conversion, tmp_path / "net.safetensors")
    assert names(tmp_path) == []


def test_the_models_own_tensors_are_not_touched_by_saving(net, tmp_path):
    conversion = convert(net.train(), p=4)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in conversion.model.state_dict().items()}
    save(conversion, tmp_path / "net.safetensors")
    for name, tensor in conversion.model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert conversion.model.training


def test_a_loaded_conversion_can_be_saved_again_into_an_equal_file(net, written, tmp_path):
    again = save(load(written, net), tmp_path / "again.safetensors")
    assert again.read_bytes() == written.read_bytes()


def test_the_header_is_json_that_any_safetensors_reader_takes(written):
    content = written.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert set(header["__metadata__"]) == {"hetconv"}
    # N = 12, M = 8, P = 4: 12 x 8 point weights, and 12 x 2 rings of 8
    assert header["body.0.weight_1x1"]["shape"] == [12, 8, 1, 1]
    assert header["body.0.weight_ring"]["shape"] == [12, 2, 8]


def test_a_reloaded_layer_runs_and_learns(net, written):
    model = load(written, net).model.train()
    assert isinstance(model.body[0], HetConv2d)
    model(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
