"""`hetconv convert`: what it writes, what it says, and what it refuses."""

import json
import pickle
import tempfile
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torchvision.ops import SqueezeExcitation

import hetconv_cli as hc
from hetconv_cli.conversion import checkpoint
from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
from hetconv_cli.measure import network
from hetconv_cli.models.build import build
from hetconv_cli.models.source import Source

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PIXELS = 12 * 12


def layers(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def reload(file, net="net.py:build"):
    return hc.load(file, build(Source("file", net)).model).model


def test_resnet34_at_p_4(run, folder, monkeypatch):
    written = []
    save = checkpoint.save

    def save_and_tell(conversion, *arguments, **options):
        written.append(conversion)
        return save(conversion, *arguments, **options)

    monkeypatch.setattr(checkpoint, "save", save_and_tell)
    done = run("convert", "resnet34", "--p", "4", "--input", "64", "--json")
    assert done.status == 0
    assert "wrote resnet34-p4.safetensors (31.1 MB, reloaded, outputs equal bit for bit)" in done.stderr
    assert "These weights are random: train them" in done.stderr
    assert "hetconv convert resnet34 --weights DEFAULT" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["resnet34-p4.safetensors"]

    report = json.loads(done.stdout)
    assert report["schema"] == "hetconv.convert/1"
    assert (report["model"], report["output"]) == ("resnet34", "resnet34-p4.safetensors")
    assert (report["p"], report["arrangement"], report["variant"]) == (4, "blocked", "hetconv")
    assert len(report["converted"]) == 32
    assert {layer["name"]: layer["reason"] for layer in report["kept"]} == {
        "conv1": "image stem, 3 channels",
        **{f"layer{stage}.0.downsample.0": "1x1: nothing to save" for stage in (2, 3, 4)},
    }
    assert report["params"] == {"before": 21_797_672, "after": 7_740_200}
    assert report["weights"] == "random"

    (conversion,) = written
    reloaded = hc.load("resnet34-p4.safetensors")
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(reloaded.model(images), conversion.model.eval()(images))
    converted = layers(reloaded.model, HetConv2d)
    assert list(converted) == report["converted"]
    for layer in converted.values():
        m, n = layer.in_channels, layer.out_channels
        assert sum(p.numel() for p in layer.parameters()) == n * (m // 4 * 9 + m - m // 4)


def test_resnet34_saves_64_percent_of_its_macs(run, folder):
    done = run("convert", "resnet34", "--p", "4", "--dry-run", "--json")
    assert (done.status, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["macs"] == {"before": 3_663_761_408, "after": 1_313_116_160}
    assert report["params"] == {"before": 21_797_672, "after": 7_740_200}
    assert report["output"] is None
    assert list(folder.iterdir()) == []


def test_the_table_says_what_was_converted_kept_and_why(run, net):
    done = run("convert", net)
    assert done.status == 0
    assert done.stdout.startswith("net.py:build  1x3x12x12  HetConv, P=4, arrangement blocked, weights: ")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["total", "4", "547,280", "215,504", "3,954", "1,650"] in rows
    assert ["-60.62", "%", "-58.27", "%"] in rows
    assert "kept: 0 (image stem, 3 channels)" in done.stdout
    assert "kept: 5 (1x1: nothing to save)" in done.stdout
    assert "execute 179,712 MAC for 165,888 on paper (+8.33 %)" in done.stdout
    assert "wrote build-p4.safetensors" in done.stderr
    assert "accuracy is lost: train on" in done.stderr


def test_formats_for_other_programs(run, net):
    csv, markdown = (run("convert", net, "--dry-run", "--format", name) for name in ("csv", "markdown"))
    assert (csv.status, csv.stderr, markdown.status, markdown.stderr) == (0, "", 0, "")
    assert csv.stdout.splitlines()[0] == "layer,convolution,becomes,reason"
    assert [line.split(",")[0] for line in csv.stdout.splitlines()[1:]] == ["0", "1", "4", "5"]
    assert "| total | 4 | 547,280 | 215,504 | 3,954 | 1,650 |" in markdown.stdout


def test_a_plan_file_rules_over_single_layers(run, net, folder):
    (folder / "plan.yaml").write_text(
        'hetconv: 1\ndefault: {p: 8}\nlayers:\n  "0": {p: 3, arrangement: shifted}\n  "re:[4-9]": keep\n'
    )
    done = run("convert", net, "--config", "plan.yaml", "--json")
    assert done.status == 0
    assert "wrote build-p4.safetensors" in done.stderr
    report = json.loads(done.stdout)
    assert (report["p"], report["arrangement"]) == (None, None), "they differ from layer to layer"
    assert report["converted"] == ["0", "1"]
    assert [layer["name"] for layer in report["kept"]] == ["4", "5"]
    assert report["kept"][0]["reason"] == "kept by rule (pattern)"
    found = layers(reload("build-p4.safetensors"), HetConv2d)
    assert {name: (layer.p, layer.arrangement) for name, layer in found.items()} == {
        "0": (3, "shifted"),
        "1": (8, "blocked"),
    }


@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
def test_the_arrangement_is_what_was_asked_for(run, net, arrangement):
    done = run("convert", net, "--arrangement", arrangement, "--json")
    assert (done.status, "wrote" in done.stderr) == (0, True)
    assert json.loads(done.stdout)["arrangement"] == arrangement
    found = layers(reload("build-p4.safetensors"), HetConv2d).values()
    assert [layer.arrangement for layer in found] == [arrangement] * 2


def test_pc_is_one_channel_for_each_filter(run, net):
    done = run("convert", net, "--p", "PC", "--json")
    assert (done.status, "wrote build-ppc.safetensors" in done.stderr) == (0, True)
    assert [layer.p for layer in layers(reload("build-ppc.safetensors"), HetConv2d).values()] == [8, 16]


@pytest.mark.parametrize(
    ("options", "file", "kind", "macs"),
    [
        (("--variant", "dwc"), "build-dwc", DepthwisePointwise, 8 * 9 + 8 * 16 + 16 * 9 + 16 * 16),
        (("--variant", "gwc"), "build-gwc4", GroupwisePointwise, 8 * 2 * 9 + 8 * 16 + 16 * 4 * 9 + 16 * 16),
        (("--variant", "gwc", "--p", "2"), "build-gwc2", GroupwisePointwise, 8 * 4 * 9 + 8 * 16 + 16 * 8 * 9 + 16 * 16),
    ],
)
def test_other_variants_take_the_place_of_a_convolution(run, net, options, file, kind, macs):
    done = run("convert", net, *options, "--json")
    assert (done.status, f"wrote {file}.safetensors" in done.stderr) == (0, True)
    report = json.loads(done.stdout)
    assert report["variant"] == options[1]
    assert report["converted_macs"] == {"analytic": macs * PIXELS, "executed": macs * PIXELS}
    assert list(layers(reload(f"{file}.safetensors"), kind)) == ["1", "4"]


def test_a_squeeze_and_excitation_behind_each_new_layer(run, net):
    plain, squeezed = (json.loads(run("convert", net, "--dry-run", "--json", *more).stdout) for more in ((), ("--se",)))
    done = run("convert", net, "--se")
    assert (done.status, "wrote build-p4.safetensors" in done.stderr) == (0, True)
    assert "SE reduction 16" in done.stdout
    assert len(layers(reload("build-p4.safetensors"), SqueezeExcitation)) == 2
    one = 16 * 1 + 1 + 1 * 16 + 16  # 16 -> 1 -> 16, both with bias
    assert squeezed["params"]["after"] == plain["params"]["after"] + 2 * one
    assert squeezed["macs"]["after"] == plain["macs"]["after"] + 2 * (16 + 16)


def test_the_output_goes_where_it_was_asked_to(run, net, folder):
    (folder / "there").mkdir()
    done = run("convert", net, "-o", "there/mine.safetensors", "--json")
    assert (done.status, "wrote there/mine.safetensors" in done.stderr) == (0, True)
    assert json.loads(done.stdout)["output"] == "there/mine.safetensors"
    assert [path.name for path in (folder / "there").iterdir()] == ["mine.safetensors"]
    assert not (folder / "build-p4.safetensors").exists()


def test_a_dry_run_writes_nothing_even_where_it_could_not(run, net, folder):
    (folder / "build-p4.safetensors").write_text("old")
    done = run("convert", net, "--dry-run")
    assert (done.status, done.stderr) == (0, "")
    assert "-60.62 %" in done.stdout
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["build-p4.safetensors", "net.py"]
    assert (folder / "build-p4.safetensors").read_text() == "old"


def test_the_seed_decides_the_weights(run, net):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        done = run("convert", net, "--seed", seed, "-o", f"{name}.safetensors")
        assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    a, b, c = (load_file(f"{name}.safetensors") for name in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)
    assert not torch.equal(a["1.weight_1x1"], c["1.weight_1x1"])


@pytest.mark.parametrize("file", ["trained.pt", "trained.safetensors"])
def test_weights_are_carried_over_from_a_file(run, net, file):
    trained = build(Source("file", net), seed=9).model
    if file.endswith(".pt"):
        torch.save({"state_dict": trained.state_dict()}, file)
    else:
        save_file(trained.state_dict(), file)
    done = run("convert", net, "--weights", file, "--json")
    assert done.status == 0
    assert f"Weights carried over (file {file})" in done.stderr
    assert "centre taps elsewhere" in done.stderr
    assert json.loads(done.stdout)["weights"] == f"file {file}"
    reloaded = reload("build-p4.safetensors")
    assert torch.equal(reloaded[0].weight, trained[0].weight)
    for name in ("1", "4"):
        layer, original = reloaded.get_submodule(name), trained.get_submodule(name)
        dense, used = layer.dense_weight(), layer.dense_weight() != 0
        m, n = original.in_channels, original.out_channels
        assert used.sum() == n * (m // 4 * 9 + m - m // 4)
        assert used[:, :, 1, 1].all(), "every channel is read at the centre"
        assert torch.equal(dense[used], original.weight[used])
    assert torch.equal(reloaded[4].bias, trained[4].bias)


def test_without_a_network_trained_weights_are_one_clear_line(refuse, monkeypatch):
    def no_network(*arguments, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    says = r"could not be downloaded.*fetch https://.*squeezenet1_1.*--weights FILE"
    refuse("convert", "squeezenet1_1", "--weights", "DEFAULT", "--input", "64", status=1, says=says)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "pointwise",
            "net.py:pointwise: nothing to convert: its 2 Conv2d are kept (1 1x1: nothing to save; 1 even kernel 2x2:"
            " no centre tap). No file was written.\n",
        ),
        (
            "without_conv2d",
            "net.py:without_conv2d: nothing to convert: it has no Conv2d. No file was written.\n",
        ),
    ],
)
def test_nothing_to_convert_is_a_plain_sentence_and_no_failure(run, net, folder, name, sentence):
    done = run("convert", f"net.py:{name}")
    assert (done.status, done.stdout, done.stderr) == (0, sentence, "")
    report = run("convert", f"net.py:{name}", "--json")
    assert (report.status, report.stderr) == (0, "")
    assert (json.loads(report.stdout)["converted"], json.loads(report.stdout)["output"]) == ([], None)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["net.py"]


def test_an_existing_file_is_refused_before_any_work(refuse, net, folder, monkeypatch):
    monkeypatch.setattr(network, "open_source", lambda *_: pytest.fail("the network was built"))
    (folder / "build-p4.safetensors").write_text("old")
    refuse("convert", net, status=2, says=r"build-p4\.safetensors exists: pass --force to replace it")


def test_force_replaces_an_existing_file(run, net, folder):
    (folder / "build-p4.safetensors").write_text("old")
    done = run("convert", net, "--force")
    assert (done.status, "HetConv" in done.stdout, "wrote build-p4" in done.stderr) == (0, True, True)
    assert list(layers(reload("build-p4.safetensors"), HetConv2d)) == ["1", "4"]


@pytest.mark.parametrize(
    ("target", "says"),
    [("nowhere/x.safetensors", "no such folder: nowhere"), (".", "is a folder; name a file")],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(refuse, net, monkeypatch, target, says):
    monkeypatch.setattr(network, "open_source", lambda *_: pytest.fail("the network was built"))
    refuse("convert", net, "-o", target, status=2, says=says)


def test_a_folder_without_permission_is_refused_before_any_work(refuse, net, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(network, "open_source", lambda *_: pytest.fail("the network was built"))
    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    refuse("convert", net, status=2, says="cannot write in .: Permission denied")


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (OSError(28, "No space left on device"), 1, "could not be written: No space left on device"),
    ],
)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_stop_half_way_leaves_nothing_and_spares_the_old_file(
    refuse, net, folder, monkeypatch, failure, status, says, old
):
    reached = []

    def half_way(tensors, file, **options):
        Path(file).write_bytes(b"half")
        reached.append(file)
        raise failure

    monkeypatch.setattr(checkpoint, "save_file", half_way)
    if old:
        (folder / "build-p4.safetensors").write_text(old)
    refuse("convert", net, "--force", status=status, says=says)
    assert len(reached) == 1


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("resnet43", r"unknown model 'resnet43': did you mean resnet34, .*\? `hetconv list` shows all"),
        ("qqqq", "unknown model 'qqqq'; `hetconv list` shows all"),
        ("", "expected a name or a file, got nothing"),
        ("nowhere.py:build", r"no such file: nowhere\.py"),
        ("net.py", r"expected what to call in the file, such as net\.py:build"),
        ("net.py:nothing", "net.py has no 'nothing'; it defines build, pointwise, without_conv2d"),
        ("timm/nothing_at_all", "unknown timm model 'nothing_at_all'"),
    ],
)
def test_an_unknown_model_is_refused(refuse, net, model, says):
    refuse("convert", model, status=2, says=says)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit(0)", r"net\.py:build raised SystemExit: 0"),
        ("1 / 0", r"net\.py:build raised ZeroDivisionError: division by zero"),
        ("def build(): return 3", "expected a torch.nn.Module"),
        ("def", r"net\.py:build raised SyntaxError"),
    ],
)
def test_a_users_file_that_fails_is_one_line(refuse, net, folder, code, says):
    (folder / "net.py").write_text(code)
    refuse("convert", net, status=2 if "expected" in says else 1, says=says)


@pytest.mark.parametrize("p", ["0", "-1", "1.5", "nan", "1_000", "", "four", "1e1", "٤", "99999999999999999999"])
def test_a_part_that_is_none_is_refused(refuse, net, p):
    refuse("convert", net, "--p", p, status=2, says=f"p must be a positive integer or 'pc', got '{p}'")


@pytest.mark.parametrize("p", ["7", "1000"])
def test_a_part_that_fits_no_layer_is_refused_with_those_that_would(refuse, net, p):
    says = rf"p = {p} divides the input channels of none of the 2 convolutions.*\(8, 16\); choose 2, 4, 8 or pc"
    refuse("convert", net, "--p", p, status=2, says=says)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("", "expected positive whole sizes such as 1x3x12x12"),
        ("0x3x8x8", "expected positive whole sizes"),
        ("1x3x-8x8", "expected positive whole sizes"),
        ("1x3x8.5x8", "expected positive whole sizes"),
        ("1,3,8,8", r"expected 1 shape\(s\)"),
        ("axb", "expected positive whole sizes"),
        ("1x3x8", "expected 4 sizes"),
        ("1x4x8x8", "expected 3 channels"),
        ("1x3x100000x100000", r"expected at most 2\*\*31 elements"),
    ],
)
def test_a_bad_input_size_is_refused(refuse, net, size, says):
    refuse("convert", net, "--input", size, status=2, says=says)


def test_an_input_that_the_network_cannot_take_fails_in_one_line(refuse):
    refuse("convert", "alexnet", "--input", "8", status=1, says="does not run on this input.*is --input right")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"plan\.yaml"),
        ("- 1", r"plan\.yaml: expected a mapping"),
        ("{", r"plan\.yaml"),
        ("hetconv: 2", "expected 'hetconv: 1'"),
        ("hetconv: 1\nlayer: {}", "unknown key 'layer'; expected hetconv, default, layers"),
        ("hetconv: 1\ndefault: {p: yes}", "default: p"),
        ("hetconv: 1\ndefault: {p: 1.5}", "default: p"),
        ("hetconv: 1\ndefault: {part: 4}", "unknown key 'part'"),
        ("hetconv: 1\nlayers: {'41': {p: 2}}", "the plan names '41', which is no Conv2d of this model"),
        ("hetconv: 1\nlayers: {'re:x.*': keep}", "matches no Conv2d"),
        ("hetconv: 1\nlayers: {'re:(': keep}", "is no regular expression"),
        ("hetconv: 1\nlayers: {'1': drop}", "expected 'keep' or a mapping"),
        ("hetconv: 1\nhetconv: 1", r"plan\.yaml"),
        ("hetconv: !!python/object/apply:os.mkdir [pwned]", r"plan\.yaml"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nhetconv: [*b, *b]", r"plan\.yaml"),
        ("hetconv: 1\ndefault: " + "[" * 5000, r"plan\.yaml"),
        (b"hetconv: \xff\xfe", "cannot be read as a plan: not UTF-8 text"),
    ],
)
def test_a_hostile_or_mistyped_plan_is_refused(refuse, net, folder, text, says):
    (folder / "plan.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refuse("convert", net, "--config", "plan.yaml", status=2, says=says)


@pytest.mark.parametrize(("name", "reason"), [("nowhere.yaml", "No such file"), (".", "Is a directory")])
def test_a_plan_that_is_not_there_is_refused(refuse, net, name, reason):
    refuse("convert", net, "--config", name, status=2, says=f"cannot be read as a plan: {reason}")


class Hostile:
    """Unpickled with code execution allowed, it creates a folder."""

    def __reduce__(self):
        return (Path.mkdir, (Path("pwned"),))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read|refused"),
        (b"garbage", "cannot be read|refused"),
        (pickle.dumps(Hostile()), "refused, it is damaged or holds more than tensors"),
    ],
)
def test_weights_that_are_none_are_refused_and_never_unpickled(refuse, net, folder, content, says):
    (folder / "weights.pt").write_bytes(content)
    refuse("convert", net, "--weights", "weights.pt", status=2, says=f"weights file weights.pt: ({says})")
    torch.save(Hostile(), folder / "weights.pt")
    refuse("convert", net, "--weights", "weights.pt", status=2, says="holds more than tensors")


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("nowhere.pt", "'nowhere.pt': no such file"),
        ("IMAGENET", r"'IMAGENET' for net\.py:build: expected none or a file"),
    ],
)
def test_unknown_weights_are_refused(refuse, net, weights, says):
    refuse("convert", net, "--weights", weights, status=2, says=says)


def test_weights_of_another_network_are_refused(refuse, net):
    save_file({"0.weight": torch.zeros(1)}, "other.safetensors")
    refuse("convert", net, "--weights", "other.safetensors", status=2, says="does not fit the model: 12 missing")


def test_what_is_converted_is_not_converted_again(run, refuse, net):
    done = run("convert", net)
    assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    refuse("convert", "build-p4.safetensors", status=2, says="is converted already: name the network that it came from")


def test_a_dry_run_says_where_the_weights_will_come_from(run, net):
    for weights, arguments in {"from net.py:build": (), "DEFAULT": ("--weights", "DEFAULT")}.items():
        done = run("convert", net, "--dry-run", "--json", *arguments)
        assert (done.status, done.stderr) == (0, "")
        assert json.loads(done.stdout)["weights"] == weights
