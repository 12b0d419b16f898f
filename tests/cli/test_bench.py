"""hetconv bench, from the command line. No test looks at how long anything took."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hetconv_cli.bench import run as bench_run
from hetconv_cli.models.build import build
from hetconv_cli.models.source import resolve

QUICK = ("--batch", 2, "--rounds", 1, "--seconds", 0.001)
INT8 = ("--runtime", "onnxruntime", "--dtype", "int8", *QUICK)
COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.fixture
def converted(run, net):
    """A converted file of a network of the user's own, with other parts in each layer."""
    Path("plan.yaml").write_text("hetconv: 1\nlayers: {'1': {p: 2}}\n")
    assert run("convert", net, "--config", "plan.yaml", "-o", "mixed.safetensors").status == 0
    return "mixed.safetensors"


@pytest.fixture
def pictures(folder):
    """Four images for `net`, as tensors of a scale far from one."""
    (folder / "photos").mkdir()
    for number in range(4):
        image = 50 * np.random.default_rng(number).normal(size=(3, 12, 12)).astype(np.float32)
        np.save(folder / "photos" / f"{number}.npy", image)
    return "photos"


@pytest.fixture
def trained(net):
    """Weights for `net`, as somebody might have trained them."""
    state = build(resolve(net), seed=7).model.state_dict()
    torch.save(state, "trained.pt")
    return "trained.pt"


def rows_of(done):
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_json_holds_what_is_documented(run, net):
    done = run("bench", net, "--json", *QUICK)
    report = json.loads(done.stdout)
    text = COMMANDS.read_text("utf-8").partition("`hetconv bench M --json`")[2].partition("\n\n")[0]
    documented = set(re.findall(r"`(\w+)`", text))
    assert set(report) | set(report["rows"][0]) <= documented
    assert (report["schema"], report["model"], report["input"]) == ("hetconv.bench/1", "build", [1, 3, 12, 12])
    assert [(row["variant"], row["p"], row["parts"]) for row in report["rows"]] == [
        ("standard", None, {}),
        ("hetconv", 4, {"4": 2}),
    ]


def test_a_converted_file_is_timed_against_its_original(run, net, converted):
    rows = rows_of(run("bench", converted, "--source", net, "--json", *QUICK))
    assert [row["variant"] for row in rows] == ["standard", "hetconv"]
    assert (rows[1]["p"], rows[1]["parts"], rows[1]["origin"]) == (None, {"2": 1, "4": 1}, "file")
    planned = rows_of(run("bench", net, "--config", "plan.yaml", "--json", *QUICK))
    assert [row["origin"] for row in planned] == [None, "plan"]
    assert planned[1]["promised"] == rows[1]["promised"]


def test_parts_and_comparisons_are_more_rows_beside_the_file(run, net, converted):
    done = run("bench", converted, "--source", net, "--p", "2,pc", "--compare", "grouped,dwc", *QUICK)
    assert done.status == 0
    assert done.stdout.startswith("build (mixed.safetensors)  3x12x12  ")
    titles = [
        "standard",
        "P mixed (file)",
        "grouped P mixed (file)",
        "P=2",
        "grouped P=2",
        "PC",
        "grouped PC",
        "DWC+PWC",
    ]
    lines = [line for line in done.stdout.splitlines() if re.search(r"  \d+\.\d\d ", line)]
    assert [re.split(r"  +", line)[0] for line in lines] == titles
    assert "P mixed (file): P=2 in 1 layer, P=4 in 1 layer" in done.stdout


def test_layers_of_a_file_are_timed_too(run, net, converted):
    rows = rows_of(run("bench", converted, "--source", net, "--layers", "--json", *QUICK))
    assert [(row["layer"], row["p"]) for row in rows if row["variant"] == "hetconv"] == [
        (None, None),
        ("1", 2),
        ("4", 4),
    ]


def test_a_file_of_ones_own_code_needs_that_code(refuse, converted):
    refuse("bench", converted, status=2, says="code of your own.*--source FILE.py:CALLABLE")


def test_int8_is_calibrated_on_a_folder(run, net, pictures):
    done = run("bench", net, "--calibrate", pictures, "--images", 3, "--json", *INT8)
    report = json.loads(done.stdout)
    assert report["images"] == 3
    for row in report["rows"]:
        assert row["calibration"] == "images"
        assert row["int8"]["float_convolutions"] == 0
    shown = run("bench", net, "--calibrate", pictures, "--layers", *INT8).stdout
    assert "int8: calibrated on 4 images; layers alone on random inputs." in shown
    assert re.search(r"\n  P=4 in onnxruntime: 6 of 6 convolutions in int8; not in int8: ", shown)
    assert "calibrated on random inputs" in run("bench", net, *INT8).stdout


def test_trained_weights_are_those_of_the_network_and_of_what_is_made_from_it(run, net, trained, monkeypatch):
    seen = []
    real = bench_run.bench
    monkeypatch.setattr(bench_run, "bench", lambda *words, **named: seen.extend(words[1]) or real(*words, **named))
    done = run("bench", net, "--weights", trained, "--layers", "--json", *QUICK)
    assert json.loads(done.stdout)["weights"] == "file trained.pt"
    whole, first, _ = seen
    standard, hetconv = (subject.model for subject in whole.subjects)
    assert torch.equal(standard[1].weight, torch.load(trained)["1.weight"])
    taps = standard[1].weight[:, 0, 1, 1]  # of channel 0, whichever filters have K x K there
    for layer in (hetconv[1], first.subjects[1].model):
        assert torch.equal(layer.dense_weight()[:, 0, 1, 1], taps)
    shown = run("bench", net, "--weights", trained, *QUICK).stdout
    assert "  weights of the standard network: file trained.pt\n" in shown


def test_a_converted_file_keeps_its_own_weights(run, net, trained, converted):
    done = run("bench", converted, "--source", net, "--weights", trained, "--json", *QUICK)
    assert json.loads(done.stdout)["weights"] == "file trained.pt"
    assert [row["origin"] for row in rows_of(done)] == [None, "file"]


def test_with_trained_weights_and_images_int8_says_how_far_it_is_off(run, net, trained, pictures):
    options = ("--weights", trained, *INT8)
    on_images = run("bench", net, "--calibrate", pictures, *options).stdout
    assert len(re.findall(r"convolutions in int8; .*; off by [\d.e+-]+ % of the output's scale\n", on_images)) == 2
    assert "off by" not in run("bench", net, *options).stdout  # random inputs say nothing of accuracy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--weights", "nowhere.pt"], "weights 'nowhere.pt': no such file"),
        (["--weights", "DEFAULT"], "expected none or a file"),
        (["--calibrate", "nowhere", *INT8], "--calibrate nowhere: no such folder"),
        (["--calibrate", ".", *INT8], "no images in it"),
        (["--mean", "0,0,0", *INT8], "--mean is for calibration images"),
        (
            ["--runtime", "torch,onxruntime"],
            "--runtime: expected torch, compile, onnxruntime, openvino; got 'onxruntime'",
        ),
        (["--batch", "0"], "--batch: expected positive whole numbers such as 1,8; got '0'"),
        (["--batch", "1,"], "--batch: .* got ''"),
        (["--rounds", "0"], "--rounds: expected a positive number, got 0"),
        (["--compare", "gropued"], "--compare: expected dwc, gwc, gwc:GROUPS or grouped; got 'gropued'"),
        (["--compare", "gwc:x"], "p must be a positive integer"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read as a plan"),
        (["--plot", "picture.doc"], "expected a name that ends in .png, .svg, .pdf"),
        (["--dtype", "int8"], "int8 is measured in onnxruntime and openvino"),
    ],
)
def test_a_wrong_option_is_one_line(refuse, net, options, says):
    refuse("bench", net, *options, status=2, says=says)


def test_images_without_int8_or_of_another_size_are_refused(refuse, net, pictures):
    refuse("bench", net, "--calibrate", pictures, status=2, says="--calibrate is for int8")
    resized = ["--calibrate", pictures, "--input", 16, *INT8]
    refuse("bench", net, *resized, status=2, says="expected images of 3x16x16, got 3x12x12")


def test_a_gpu_that_is_not_there_is_said_before_anything_is_built(refuse, net, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("hetconv_cli.measure.network.open_source", None)
    refuse("bench", net, "--device", "cuda", status=2, says="torch sees no CUDA GPU here")


@pytest.mark.parametrize(("name", "says"), [("pointwise", "2 Conv2d are kept .*1x1"), ("without_conv2d", "no Conv2d")])
def test_a_network_with_nothing_to_convert_says_why(refuse, net, name, says):
    refuse("bench", f"net.py:{name}", status=2, says=f"nothing to convert.*{says}")


def test_interrupted_it_leaves_nothing_behind(refuse, net, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "time_alternately", stop)
    options = ["--plot", "plot.png", "--runtime", "onnxruntime", *QUICK]
    refuse("bench", net, *options, status=130, says="interrupted; nothing was written")


def test_the_plot_is_written_whole(run, net):
    done = run("bench", net, "--layers", "--compare", "grouped", "--plot", "plot.png", *QUICK)
    assert (done.status, done.stderr) == (0, "wrote plot.png\n")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_documented_part_of_a_network_can_be_timed(run, folder):
    (code,) = re.findall(r"^```py\n(.*?)^```$", COMMANDS.read_text("utf-8"), re.M | re.S)
    (folder / "features.py").write_text(code)
    (line,) = re.findall(r"hetconv (bench features\.py:\w+)", COMMANDS.read_text("utf-8"))
    rows = rows_of(run(*line.split(), "--input", 32, "--json", "--batch", 1, "--rounds", 1, "--seconds", 0.001))
    assert rows[1]["parts"] == {"4": 12}


def test_convert_says_how_to_time_what_it_wrote(run, net):
    assert "MACs are not time: hetconv bench build-p4.safetensors --source net.py:build\n" in run("convert", net).stderr
    assert "MACs are not time: hetconv bench vgg16_cifar-p4.safetensors\n" in run("convert", "vgg16_cifar").stderr
