import os
import pickle
import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.build import build
from hetconv_cli.models.source import Source

NAME = "squeezenet1_1"  # small: 1.2 M weights
SOURCE = Source("torchvision", NAME)


class Hostile:
    """Unpickled with code execution allowed, it creates a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.fixture(scope="module")
def state():
    return build(SOURCE, seed=7).model.state_dict()


def assert_loaded(built, state):
    own = built.model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_a_torch_file_is_loaded_however_a_training_script_wrapped_it(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "weights.pt")
    built = build(SOURCE, weights=str(tmp_path / "weights.pt"))
    assert_loaded(built, state)
    assert built.weights == "file weights.pt"
    assert not built.model.training


def test_a_safetensors_file_is_loaded(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    assert_loaded(build(SOURCE, weights=str(tmp_path / "weights.safetensors")), state)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_module_that_asks_for_its_version_loads_from_plain_tensors(tmp_path, save):
    source = Source("torchvision", "mnasnet0_5")
    state = build(source, seed=7).model.state_dict()
    file = tmp_path / ("weights.pt" if save is torch.save else "weights.safetensors")
    save(dict(state), file)
    assert_loaded(build(source, weights=str(file)), state)


def test_on_meta_the_file_is_checked_and_its_weights_dropped(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    model = build(SOURCE, weights=str(tmp_path / "weights.pt"), device="meta").model
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_file_of_hetconv_convert_is_not_a_weights_file(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors", metadata={"hetconv": "1"})
    with pytest.raises(ArgumentError, match="written by hetconv convert: give it as MODEL"):
        build(SOURCE, weights=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a state dict, got list"),
        ({}, "expected a state dict, got dict"),
        ({"state_dict": {"a": 1}}, "expected a state dict of tensors, got int at 'a'"),
        ({1: torch.zeros(1)}, "expected a state dict of tensors, got Tensor at 1"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ArgumentError, match=message):
        build(SOURCE, weights=str(tmp_path / "weights.pt"))


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "features.0.weight"), r"model: 1 missing \(features\.0\.weight\)$"),
        (
            lambda s: {"a": torch.zeros(1)},
            r"52 missing \(features\.0\.weight, features\.0\.bias, features\.3\.squeeze\.weight, \.\.\.\) "
            r"and 1 unexpected \(a\)$",
        ),
        (
            lambda s: {**s, "classifier.1.bias": torch.zeros(10)},
            r"classifier\.1\.bias: expected \[1000\], got \[10\]$",
        ),
        (
            lambda s: {name: tensor.unsqueeze(0) for name, tensor in s.items()},
            r"features\.0\.weight: expected \[64, 3, 3, 3\], got \[1, 64, 3, 3, 3\] \(and 51 more\)$",
        ),
        (lambda s: {**s, "classifier.1.bias": torch.empty(1000, device="meta")}, "does not fit the model: "),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_names(tmp_path, state, change, message):
    torch.save(change(state), tmp_path / "weights.pt")
    with pytest.raises(ArgumentError, match=message) as caught:
        build(SOURCE, weights=str(tmp_path / "weights.pt"))
    assert "\n" not in str(caught.value)


def test_counts_of_seen_batches_may_be_missing(tmp_path):
    source = Source("torchvision", "shufflenet_v2_x0_5")
    state = build(source).model.state_dict()
    torch.save({n: t for n, t in state.items() if "num_batches" not in n}, tmp_path / "weights.pt")
    assert_loaded(build(source, weights=str(tmp_path / "weights.pt")), state)


@pytest.mark.parametrize("aux_loss", [True, False])
def test_auxiliary_heads_are_built_where_the_file_has_them(tmp_path, aux_loss):
    options = {"weights": None, "weights_backbone": None, "aux_loss": aux_loss}
    model = torchvision.models.get_model("deeplabv3_mobilenet_v3_large", **options)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    built = build(Source("torchvision", "deeplabv3_mobilenet_v3_large"), weights=str(tmp_path / "weights.pt"))
    assert_loaded(built, model.state_dict())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_code_in_a_pickle_never_runs(tmp_path, suffix, protocol, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"a": Hostile(target)}, protocol=protocol))
    with pytest.raises(ArgumentError, match="refused, it is damaged or holds more than tensors"):
        build(SOURCE, weights=str(path))
    torch.save({"a": Hostile(target)}, path)
    with pytest.raises(ArgumentError, match="refused, it is damaged or holds more than tensors"):
        build(SOURCE, weights=str(path))
    assert not target.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.load(path, weights_only=False)
    assert target.exists(), "the file above is hostile indeed"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -100])
def test_a_truncated_file_is_one_line(tmp_path, state, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArgumentError, match=r"weights file .* (cannot be read|refused)") as caught:
        build(SOURCE, weights=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing.pt", "weights 'missing.pt': no such file"),
        ("folder/missing", "no such file"),
        (".", "unknown weights '.'"),
        ("./", "expected a file, got a folder"),
        ("", "unknown weights ''"),
        ("NOPE", f"unknown weights 'NOPE' for {NAME}: expected none, DEFAULT, IMAGENET1K_V1 or a file"),
        ("ResNet18_Weights.IMAGENET1K_V1", "unknown weights"),
        ("unquantized", "unknown weights"),
    ],
)
def test_unknown_weights_are_refused_with_what_there_is(weights, message):
    with pytest.raises(ArgumentError, match=message):
        build(SOURCE, weights=weights)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network."""

    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_weights_nothing_is_downloaded(hub, device):
    for name in ("fcn_resnet50", "ssdlite320_mobilenet_v3_large", "quantized_mobilenet_v2"):
        build(Source("torchvision", name), device=device)
    assert not hub.exists()


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_a_download_that_fails_is_one_line_that_says_what_to_do(hub, weights, capsys):
    expected = (
        r"weights SqueezeNet1_1_Weights\.IMAGENET1K_V1 could not be downloaded \(.*not known.*\): "
        r"fetch https://.*\.pth on a machine with a network and give it with --weights FILE$"
    )
    with pytest.raises(HetconvError, match=expected) as caught:
        build(SOURCE, weights=weights)
    assert caught.value.exit_status == 1
    assert capsys.readouterr().out == ""


def cached(hub, name=NAME):
    hub.mkdir(parents=True)
    return hub / torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]


def test_named_weights_come_from_the_cache_of_torch_hub(hub, state):
    torch.save(state, cached(hub))
    built = build(SOURCE, weights="DEFAULT")
    assert_loaded(built, state)
    assert built.weights == "SqueezeNet1_1_Weights.IMAGENET1K_V1"


def test_a_quantized_model_takes_the_weights_of_its_float_twin(hub):
    state = build(Source("torchvision", "shufflenet_v2_x0_5"), seed=1).model.state_dict()
    torch.save(state, cached(hub, "shufflenet_v2_x0_5"))
    built = build(Source("torchvision", "quantized_shufflenet_v2_x0_5"), weights="DEFAULT")
    assert built.weights == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert torch.equal(built.model.fc.weight, state["fc.weight"])


def test_code_in_a_cached_file_never_runs(hub, tmp_path):
    path = cached(hub)
    torch.save({"a": Hostile(tmp_path / "ran")}, path)
    with pytest.raises(HetconvError, match=rf"could not be loaded \(.*\): delete {path} and try again"):
        build(SOURCE, weights="DEFAULT")
    assert not (tmp_path / "ran").exists()
