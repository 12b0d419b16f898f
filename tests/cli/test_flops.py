"""`hetconv flops`: the documented JSON with exact integers, every format, and what it refuses."""

import csv
import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from hetconv_cli.measure import network

VARIANT = {
    "name": str,
    "p": (int, str, type(None)),
    "groups": (int, type(None)),
    "se": bool,
    "converted_layers": int,
    "kept_layers": int,
    "macs": {"analytic": int, "thop": int, "dispatcher": int, "executed": int},
    "converted_macs": {"analytic": int, "measured": int, "executed": int},
    "ratio": {
        "equation": (int, type(None)),
        "by_equation": (float, type(None)),
        "analytic": (float, type(None)),
        "measured": (float, type(None)),
    },
    "params": int,
    "macs_reduced_pct": float,
    "params_reduced_pct": float,
    "notes": list,
}
LAYER = {
    "name": str,
    "m": int,
    "n": int,
    "kernel": list,
    "stride": list,
    "output": (list, type(None)),
    "calls": int,
    "macs": int,
    "params": int,
    "convertible": bool,
    "reason": (str, type(None)),
    "pair": (str, type(None)),
}
# What it does depends on values, so that it cannot run on the meta device.
CAREFUL = """
import torch
from torch import nn


class Careful(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.abs().sum() > 0 else x + 1)


def build():
    return Careful(nn.Conv2d(8, 8, 3)), torch.randn(1, 8, 6, 6)
"""
REPORT = {"schema": str, "model": str, "input": list, "unit": str, "variants": list, "layers": list}


def assert_has(structure, expected):
    """Every documented key, of the documented type; more keys may come."""
    assert set(expected) <= set(structure)
    for key, kind in expected.items():
        if isinstance(kind, dict):
            assert_has(structure[key], kind)
        else:
            assert isinstance(structure[key], kind), key
            assert kind is not int or type(structure[key]) is int, key


def flops_json(run, *arguments):
    done = run("flops", *arguments, "--json")
    assert (done.status, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_vgg16_in_all_columns(run):
    report = flops_json(run, "vgg16", "--p", "4", "--compare", "dwc,gwc")
    assert_has(report, REPORT)
    assert (report["schema"], report["model"], report["unit"]) == ("hetconv.flops/1", "vgg16", "MAC")
    assert report["input"] == [1, 3, 224, 224]
    for variant in report["variants"]:
        assert_has(variant, VARIANT)
    for layer in report["layers"]:
        assert_has(layer, LAYER)
    assert [(v["name"], v["p"], v["groups"], v["ratio"]["equation"]) for v in report["variants"]] == [
        ("standard", None, None, None),
        ("hetconv", 4, None, 3),
        ("dwc", None, None, 5),
        ("gwc", None, 4, 8),
    ]
    standard, hetconv, dwc, gwc = report["variants"]
    total = 15_470_264_320
    assert standard["macs"] == {"analytic": total, "dispatcher": total, "thop": total + 50_176, "executed": total}
    assert any("50,176 in AdaptiveAvgPool2d" in note for note in standard["notes"])
    at_4 = 5_296_979_968
    assert hetconv["macs"] == {"analytic": at_4, "dispatcher": at_4, "thop": at_4 + 50_176, "executed": 5_720_866_816}
    assert (hetconv["converted_layers"], hetconv["kept_layers"]) == (12, 1)
    assert hetconv["macs_reduced_pct"] == pytest.approx(65.76, abs=0.005)
    assert hetconv["ratio"]["by_equation"] == pytest.approx(1 / 3, rel=1e-15)
    for variant in (hetconv, dwc, gwc):
        assert variant["converted_macs"]["analytic"] == variant["converted_macs"]["measured"]

    # The equations, written out here once more over the converted layers.
    layers = report["layers"][1:]
    pixels = [layer["output"][0] * layer["output"][1] for layer in layers]
    old = sum(px * 9 * x["m"] * x["n"] for px, x in zip(pixels, layers, strict=True))
    assert old == sum(layer["macs"] for layer in layers)
    assert hetconv["converted_macs"]["measured"] * 3 == old
    depthwise = sum(px * (9 * x["m"] + x["m"] * x["n"]) for px, x in zip(pixels, layers, strict=True))
    assert dwc["converted_macs"]["measured"] == depthwise
    assert dwc["ratio"]["by_equation"] == pytest.approx(depthwise / old, rel=1e-12)
    groupwise = sum(px * (9 * x["m"] ** 2 // 4 + x["m"] * x["n"]) for px, x in zip(pixels, layers, strict=True))
    assert gwc["converted_macs"]["measured"] == groupwise
    assert gwc["ratio"]["measured"] == pytest.approx(groupwise / old, rel=1e-12)
    assert gwc["ratio"]["by_equation"] == pytest.approx(1 / 4 + 1 / 9, rel=1e-12), "equation (8) as printed"
    assert any("equation (8) holds only for M = N" in note for note in gwc["notes"])


def test_the_layers_of_the_standard_network(run, net):
    layers = flops_json(run, net, "--p", "4")["layers"]
    assert layers[1] == {
        "name": "1",
        "m": 8,
        "n": 16,
        "kernel": [3, 3],
        "stride": [1, 1],
        "output": [12, 12],
        "calls": 1,
        "macs": 8 * 16 * 9 * 144,
        "params": 8 * 16 * 9,
        "convertible": True,
        "reason": None,
        "pair": None,
    }
    assert [(layer["convertible"], layer["reason"]) for layer in layers] == [
        (True, "image stem, 3 channels"),
        (True, None),
        (True, None),
        (False, "1x1: nothing to save"),
    ]


def test_parts_that_fit_no_layer_are_left_out_unless_they_were_asked_for(run, refuse, net):
    assert [v["p"] for v in flops_json(run, net)["variants"]] == [None, 2, 4, 8, 16, "pc"]
    assert [v["p"] for v in flops_json(run, net, "--p", "8,PC,2")["variants"]] == [None, 8, "pc", 2]
    refuse("flops", net, "--p", "4,32", status=2, says="p = 32 divides the input channels of none")


def test_groups_are_4_as_in_the_paper_or_the_first_part_or_what_was_said(run, net):
    def groups(*options):
        return [v["groups"] for v in flops_json(run, net, *options)["variants"] if v["name"] == "gwc"]

    assert groups("--compare", "gwc") == [4]
    assert groups("--p", "8,2", "--compare", "gwc") == [8]
    assert groups("--p", "8", "--compare", "gwc:2,gwc") == [2, 8]


def test_flops_are_two_for_each_mac_and_change_nothing_else(run, net):
    macs, flops = (flops_json(run, net, "--p", "4", "--compare", "dwc", "--unit", unit) for unit in ("mac", "flops"))
    assert (macs.pop("unit"), flops.pop("unit")) == ("MAC", "FLOPs")
    for variant in macs["variants"]:
        for counts in ("macs", "converted_macs"):
            variant[counts] = {key: 2 * value for key, value in variant[counts].items()}
    for layer in macs["layers"]:
        layer["macs"] *= 2
    assert flops == macs


def test_csv_has_the_same_numbers_as_json(run, net):
    report = flops_json(run, net, "--p", "4", "--compare", "dwc,gwc")
    done = run("flops", net, "--p", "4", "--compare", "dwc,gwc", "--format", "csv")
    assert (done.status, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["variant"] for row in rows] == ["standard", "hetconv", "dwc", "gwc"]
    for row, variant in zip(rows, report["variants"], strict=True):
        assert {column: int(row[column]) for column in variant["macs"]} == variant["macs"]
        assert int(row["params"]) == variant["params"]
        assert row["p"] == ("" if variant["p"] is None else str(variant["p"]))
    assert float(rows[1]["by_equation"]) == report["variants"][1]["ratio"]["by_equation"]


def test_csv_of_layers(run, net):
    done = run("flops", net, "--p", "4", "--per-layer", "--format", "csv")
    assert (done.status, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["layer"] for row in rows] == ["0", "1", "4", "5"]
    assert (rows[1]["kernel"], rows[1]["output"], int(rows[1]["macs"])) == ("3x3", "12x12", 8 * 16 * 9 * 144)


def test_markdown_is_a_table(run, net):
    done = run("flops", net, "--p", "2,4", "--per-layer", "--format", "markdown")
    assert (done.status, done.stderr) == (0, "")
    grids = [block.splitlines() for block in done.stdout.split("\n\n") if block.startswith("|")]
    assert [len(grid) for grid in grids] == [2 + 3, 2 + 4], "headers, marks, and a row each"
    for grid in grids:
        assert len({line.count("|") for line in grid}) == 1
        assert set(grid[1]) == set("|- :")


LONG = "a_name_that_nobody_would_want_to_type_" * 8


def test_a_piped_table_is_never_cut(run, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        f"    inner = nn.ModuleDict({{'{LONG}': nn.Conv2d(8, 8, 3)}})\n"
        "    class Net(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.inner = inner\n"
        "        def forward(self, x):\n"
        f"            return self.inner['{LONG}'](x)\n"
        "    return Net(), torch.randn(1, 8, 9, 9)\n"
    )
    done = run("flops", "net.py:build", "--p", "4", "--per-layer")
    assert (done.status, done.stderr) == (0, "")
    assert f"inner.{LONG}" in done.stdout
    assert not {"…", "..."} & set(done.stdout.split())
    assert "…" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines) > len(LONG)
    assert len([line for line in lines if line.startswith(("standard ", "P=4 "))]) == 2


def test_a_gpu_that_is_not_there_is_said_before_anything_is_built(refuse, net, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(network, "build", lambda *_, **__: pytest.fail("built"))
    refuse("flops", net, "--device", "cuda", status=2, says="--device cuda: torch sees no CUDA GPU here")
    refuse("flops", net, "--device", "gpu", status=2, says="--device: expected cpu, cuda; got 'gpu'")


def test_the_device_is_where_a_network_runs_that_needs_values(run, folder, monkeypatch):
    (folder / "net.py").write_text(CAREFUL)
    places = []
    real = network.inputs_for
    monkeypatch.setattr(network, "inputs_for", lambda example, place: places.append(place) or real(example, place))
    report = json.loads(run("flops", "net.py:build", "--p", "4", "--device", "cpu", "--json").stdout)
    assert (report["replayed"], places) == (True, ["meta", "cpu"])


def test_the_table_says_units_counts_and_reasons(run, net):
    done = run("flops", net, "--p", "4", "--compare", "gwc", "--per-layer")
    assert (done.status, done.stderr) == (0, "")
    assert "unit MAC (FLOPs = 2 x MACs)" in done.stdout
    assert "2 of 4 Conv2d can be converted" in done.stdout
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("P=4")]
    assert row[1:5] == ["215.504", "215.504", "225.880", "229.328"]
    assert ["(3)", "0.3333", "0.3333"] == row[5:8]
    assert "[a] thop: + 9,216 in BatchNorm2d, + 1,160 in AdaptiveAvgPool2d" in done.stdout
    assert "image stem, 3 channels" in done.stdout


def test_with_squeeze_and_excitation_the_standard_network_has_one_too(run, net):
    report = flops_json(run, net, "--p", "4", "--se")
    assert [(v["name"], v["se"]) for v in report["variants"]] == [
        ("standard", False),
        ("standard", True),
        ("hetconv", True),
    ]
    plain, squeezed, _ = report["variants"]
    assert squeezed["macs"]["dispatcher"] == plain["macs"]["dispatcher"] + 2 * (16 + 16)


def test_nothing_to_convert_is_counted_all_the_same(run, net):
    report = flops_json(run, "net.py:pointwise")
    assert [variant["name"] for variant in report["variants"]] == ["standard"]
    assert report["variants"][0]["macs"]["dispatcher"] == 8 * 8 * 36 + 8 * 4 * 4 * 25
    done = run("flops", "net.py:pointwise")
    assert (done.status, done.stderr) == (0, "")
    assert "Nothing to convert: its 2 Conv2d are kept" in done.stdout


def test_two_inputs_of_a_users_file(run, folder):
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(4, 8, 3)\n"
        "    def forward(self, x, y):\n"
        "        return self.a(x).mean() + self.b(y).mean()\n"
        "def build():\n"
        "    return Net(), (torch.randn(1, 8, 6, 6), torch.randn(1, 4, 5, 5))\n"
    )
    report = flops_json(run, "net.py:build", "--p", "4")
    assert report["input"] == [[1, 8, 6, 6], [1, 4, 5, 5]]
    assert report["variants"][0]["macs"]["dispatcher"] == 8 * 8 * 9 * 36 + 4 * 8 * 9 * 9
    report = flops_json(run, "net.py:build", "--p", "4", "--input", "2x8x9x9, 1x4x3x3")
    assert report["input"] == [[2, 8, 9, 9], [1, 4, 3, 3]]
    assert report["variants"][0]["macs"]["dispatcher"] == 2 * 8 * 8 * 9 * 81 + 4 * 8 * 9


def test_stdout_holds_json_only_though_the_users_file_prints(run, folder, net):
    text = (folder / "net.py").read_text()
    (folder / "net.py").write_text(text + "print('hello from the file')\n")
    done = run("flops", net, "--p", "4", "--json")
    assert done.status == 0
    assert json.loads(done.stdout)["model"] == "build"
    assert set(done.stderr.splitlines()) == {"hello from the file"}


def test_a_network_of_the_paper_goes_by_name(run):
    report = flops_json(run, "resnet20_cifar", "--p", "4")
    assert report["input"] == [1, 3, 32, 32]
    assert report["variants"][1]["converted_macs"]["measured"] * 3 == sum(x["macs"] for x in report["layers"][1:])


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_counted_as_it_was_saved_beside_other_parts(run, folder):
    (folder / "plan.yaml").write_text(
        "hetconv: 1\ndefault: keep\nlayers:\n  features.3.expand3x3: {p: 4}\n  features.4.expand3x3: {p: 2}\n"
    )
    done = run("convert", "squeezenet1_1", "--config", "plan.yaml", "--input", "64")
    assert (done.status, "total" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    report = flops_json(run, "squeezenet1_1-p4.safetensors", "--p", "8", "--input", "64")
    assert report["input"] == [1, 3, 64, 64]
    assert [(v["name"], v["p"], v["converted_layers"]) for v in report["variants"]] == [
        ("standard", None, 0),
        ("hetconv", 8, 8),
        ("hetconv", None, 2),
    ]
    by_name = {layer["name"]: layer["macs"] for layer in report["layers"]}
    third, fourth = by_name["features.3.expand3x3"], by_name["features.4.expand3x3"]
    saved = report["variants"][2]["converted_macs"]
    assert saved["measured"] == saved["analytic"] == third // 3 + fourth * 5 // 9
    table = run("flops", "squeezenet1_1-p4.safetensors", "--p", "8", "--input", "64")
    assert (table.status, table.stderr) == (0, "")
    assert "as saved" in table.stdout


def test_a_checkpoint_of_a_users_own_file_is_refused_with_options_that_exist(run, net):
    done = run("convert", net)
    assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    done = run("flops", "build-p4.safetensors")
    assert (done.status, done.stdout) == (2, "")
    assert "code of your own, which is not run because a file names it" in done.stderr
    offered = {word.strip(",;:") for word in done.stderr.split() if word.startswith("--")}
    assert {option for option in offered if option not in run("flops", "--help").stdout} == set()


class Hostile:
    """Unpickled with code execution allowed, it creates a folder."""

    def __reduce__(self):
        return (Path.mkdir, (Path("pwned"),))


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, pickle.dumps(Hostile()), b"{" * 4096]
)
@pytest.mark.parametrize("command", ["flops", "convert"])
def test_a_checkpoint_that_is_none_is_one_line(refuse, folder, command, content):
    (folder / "bad.safetensors").write_bytes(content)
    refuse(command, "bad.safetensors", status=2, says=r"bad\.safetensors")


def test_a_truncated_checkpoint_is_one_line(run, refuse, net, folder):
    done = run("convert", net)
    assert (done.status, "HetConv" in done.stdout, "wrote" in done.stderr) == (0, True, True)
    file = folder / "build-p4.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    refuse("flops", file.name, status=2, says="not a readable safetensors file")


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "begins"), [("a.png", b"\x89PNG\r\n\x1a\n"), ("a.PDF", b"%PDF-"), ("a.svg", b"<?xml")]
)
def test_a_plot_is_written_and_said_on_stderr(run, net, folder, file, begins):
    done = run("flops", net, "--p", "2,4", "--plot", file, "--json")
    assert (done.status, done.stderr) == (0, f"wrote {file}\n")
    assert len(json.loads(done.stdout)["variants"]) == 3
    assert (folder / file).read_bytes().startswith(begins)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {file, "net.py"}


@pytest.mark.parametrize("file", ["a.gif", "a", ".png", "a.png.txt"])
def test_a_plot_of_another_kind_is_refused_before_any_work(refuse, net, monkeypatch, file):
    monkeypatch.setattr(network, "open_source", lambda *_: pytest.fail("the network was built"))
    refuse("flops", net, "--plot", file, status=2, says=r"expected a name that ends in \.png, \.svg, \.pdf")


def test_an_existing_plot_is_refused_before_any_work_unless_forced(run, refuse, net, folder, monkeypatch):
    (folder / "a.png").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(network, "open_source", lambda *_: pytest.fail("the network was built"))
        refuse("flops", net, "--plot", "a.png", status=2, says=r"a\.png exists: pass --force")
        refuse("flops", net, "--plot", "no/a.png", status=2, says="no such folder: no")
    done = run("flops", net, "--p", "4", "--plot", "a.png", "--force")
    assert (done.status, "P=4" in done.stdout, done.stderr) == (0, True, "wrote a.png\n")
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("resnet43",), "unknown model 'resnet43': did you mean resnet34"),
        (("--p", "4,,8"), "p must be a positive integer or 'pc', got ''"),
        (("--p", "0"), "got '0'"),
        (("--p", "1.5"), r"got '1\.5'"),
        (("--p", "1_000"), "got '1_000'"),
        (("--p", "7"), "p = 7 divides"),
        (("--compare", "hetconv"), "compare: expected dwc, gwc or gwc:GROUPS, got 'hetconv'"),
        (("--compare", "gwc:"), "got"),
        (("--compare", "gwc:0"), "got"),
        (("--compare", "gwc:pc"), "expected dwc, gwc or gwc:GROUPS, got 'gwc:pc'"),
        (("--compare", "dwc:2"), "got 'dwc:2'"),
        (("--compare", "gwc:7"), "7 groups divides the input channels of none"),
        (("--input", "1x3x0x8"), "expected positive whole sizes"),
        (("--input", "1x3x8x8,1x3x8x8"), r"expected 1 shape\(s\)"),
        (("--unit", "parsecs"), "'parsecs' is not one of 'mac', 'flops'"),
        (("--format", "yaml"), "'yaml' is not one of"),
    ],
)
def test_a_bad_argument_is_one_line(refuse, net, arguments, says):
    model = [] if len(arguments) == 1 else [net]
    refuse("flops", *model, *arguments, status=2, says=says)


def test_a_checkpoint_is_counted_on_the_input_it_was_made_for(run):
    done = run("convert", "squeezenet1_1", "--input", "64")
    assert done.status == 0
    done = run("flops", "squeezenet1_1-p4.safetensors", "--p", "2", "--json")
    assert (done.status, done.stderr) == (0, "")
    assert json.loads(done.stdout)["input"] == [1, 3, 64, 64]
