import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models import timm_models
from hetconv_cli.models.build import build
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.models.source import Source, resolve


def state_of(source, **options):
    return build(source, **options).model.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_the_global_random_state_is_left_alone(name, device):
    before = torch.get_rng_state()
    build(Source("torchvision", name), device=device, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_decides_the_random_weights():
    source = Source("torchvision", "shufflenet_v2_x0_5")
    assert equal(state_of(source, seed=1), state_of(source, seed=1))
    assert not equal(state_of(source, seed=1), state_of(source, seed=2))


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "ssdlite320_mobilenet_v3_large", "raft_small", "lraspp_mobilenet_v3_large"]
)
def test_a_model_runs_on_its_example(name):
    built = build(Source("torchvision", name))
    example = built.example
    if name == "raft_small":
        example = ExampleSpec(((1, 3, 128, 128),) * 2)
    with torch.no_grad():
        assert built.model(*example.make()) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_the_largest_model_that_needs_the_second_way_to_meta_is_never_allocated():
    code = """
        import resource
        from hetconv_cli.models.build import build
        from hetconv_cli.models.source import Source
        build(Source("torchvision", "regnet_y_400mf"), device="meta")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        build(Source("torchvision", "regnet_y_128gf"), device="meta")  # 2,460 MiB of weights
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("checkpoint", "x.safetensors"), "x.safetensors is a checkpoint: load it with"),
        (Source("torchvision", "resnet43"), "unknown torchvision model 'resnet43' .*resnet34"),
    ],
)
def test_a_source_that_cannot_be_built_is_refused(source, message):
    with pytest.raises(ArgumentError, match=message):
        build(source)


@pytest.fixture
def net(tmp_path):
    """Writes a user's file and gives the source of one of its names."""

    def write(body, attribute="build"):
        path = tmp_path / "net.py"
        path.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(body))
        return resolve(f"{path}:{attribute}")

    return write


@pytest.mark.parametrize(
    "body",
    [
        "def build(): return nn.Conv2d(3, 8, 3)",
        "build = nn.Conv2d(3, 8, 3)",
        """
        class build(nn.Conv2d):
            def __init__(self): super().__init__(3, 8, 3)
        """,
        "from functools import partial\nbuild = partial(nn.Conv2d, 3, 8, 3)",
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_gives_a_model_by_function_instance_or_class(net, body, device):
    built = build(net(body), device=device)
    assert isinstance(built.model, nn.Conv2d)
    assert not built.model.training
    assert built.model.weight.device.type == device
    assert built.example == ExampleSpec(((1, 3, 224, 224),), assumed=True)
    assert built.weights.endswith("net.py:build")


@pytest.mark.parametrize(
    ("example", "spec"),
    [
        ("torch.zeros(2, 3, 8, 8)", ExampleSpec(((2, 3, 8, 8),))),
        ("(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4))", ExampleSpec(((1, 3, 8, 8), (1, 4)))),
        ("[torch.zeros(3, 8, 8)]", ExampleSpec(((1, 3, 8, 8),), kind="images")),
    ],
)
def test_a_file_may_give_an_example_too(net, example, spec):
    assert build(net(f"def build(): return nn.Conv2d(3, 8, 3), {example}")).example == spec


def test_a_file_that_cannot_be_built_on_meta_is_built_on_the_cpu(net):
    source = net("def build():\n    torch.zeros(1).item()\n    return nn.Conv2d(3, 8, 3)")
    assert build(source, device="meta").model.weight.device.type == "cpu"


def test_a_file_imports_its_neighbours_and_its_prints_stay_off_stdout(net, tmp_path, capsys):
    (tmp_path / "hetconv_test_neighbour.py").write_text("width = 8")
    source = net("""
        from hetconv_test_neighbour import width
        print("loading")
        def build(): return nn.Conv2d(3, width, 3)
    """)
    before = list(sys.path)
    assert build(source).model.out_channels == 8
    assert sys.path == before
    del sys.modules["hetconv_test_neighbour"]
    assert capsys.readouterr() == ("", "loading\n")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def build(): return 1 / 0", "net.py:build raised ZeroDivisionError: division by zero"),
        ("def build(x): return x", "raised TypeError: build.. missing 1 required"),
        ("raise ValueError('two\\nlines')", "raised ValueError: two$"),
        ("def build(:", "raised SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
        ("import nothing_of_this_name", "raised ModuleNotFoundError: No module named"),
    ],
)
def test_an_error_in_a_users_file_is_one_line_with_the_original_behind_it(net, body, message, device):
    with pytest.raises(HetconvError, match=message) as caught:
        build(net(body), device=device)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)
    assert type(caught.value.__cause__).__name__ in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(): pass\nclass Net: pass", "has no 'build'; it defines make, Net"),
        ("", "has no 'build'; it defines nothing to call"),
        ("def build(): return 5", "expected a torch.nn.Module, or a pair of one and an example, got int"),
        ("def build(): return 5, 6", "expected a torch.nn.Module, or a pair of one and an example, got tuple"),
        ("def build(): return nn.Identity(), 'x'", "net.py:build: example: expected a tensor"),
    ],
)
def test_a_file_that_gives_no_model_is_refused(net, body, message, device):
    with pytest.raises(ArgumentError, match=message):
        build(net(body), device=device)


def test_a_users_model_takes_weights_from_a_file_but_not_by_name(net, tmp_path):
    source = net("def build(): return nn.Conv2d(3, 8, 3)")
    state = nn.Conv2d(3, 8, 3).state_dict()
    torch.save(state, tmp_path / "w.pt")
    assert equal(state_of(source, weights=str(tmp_path / "w.pt")), state)
    with pytest.raises(ArgumentError, match=r"weights 'DEFAULT' for .*net.py:build: expected none or a file"):
        build(source, weights="DEFAULT")


def test_timm_models_are_built_and_know_their_input(tmp_path):
    pytest.importorskip("timm")
    source = Source("timm", "resnet18.a1_in1k")
    built = build(source, device="meta")
    assert built.example == ExampleSpec(((1, 3, 224, 224),))
    assert built.weights == "random"
    assert all(tensor.is_meta for tensor in built.model.state_dict().values())
    state = state_of(source, seed=3)
    torch.save(state, tmp_path / "w.pt")
    assert equal(state_of(source, weights=str(tmp_path / "w.pt")), state)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet81", "none", "unknown timm model 'resnet81': did you mean resnet18"),
        ("resnet18.nope", "none", "unknown timm model 'resnet18.nope': expected none, DEFAULT, .*a1_in1k"),
        ("hf_hub:someone/model", "none", "unknown timm model"),
        ("resnet18", "nope", "unknown weights 'nope' for timm/resnet18: expected none, DEFAULT, .*a1_in1k.* or a file"),
    ],
)
def test_unknown_timm_names_and_weights_are_refused_with_what_there_is(name, weights, message):
    pytest.importorskip("timm")
    with pytest.raises(ArgumentError, match=message):
        build(Source("timm", name), weights=weights)


def test_timm_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = []

    def refuse(name, pretrained):
        asked.append((name, pretrained))
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(HetconvError, match=r"timm/resnet18\.a1_in1k could not be downloaded \(no network\): use --w"):
        build(Source("timm", "resnet18"), weights="a1_in1k")
    assert asked == [("resnet18.a1_in1k", True)]


def test_a_missing_timm_is_said_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArgumentError, match=r"pip install 'hetconv-cli\[timm\]'"):
        timm_models.build_timm("resnet18", "none", "cpu")
