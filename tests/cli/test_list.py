"""`hetconv list`: torchvision's names and the paper's, with what of them can be converted."""

import csv
import io
import json

import pytest
import torchvision

RESNETS = ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]


def names(run, *arguments):
    done = run("list", *arguments, "--json")
    assert (done.status, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["schema"] == "hetconv.list/1"
    return [model["name"] for model in report["models"]]


def test_all_of_torchvisions_names_are_listed(run):
    assert set(torchvision.models.list_models()) <= set(names(run))


def test_a_pattern_chooses_among_them(run):
    assert [name for name in names(run, "resnet*") if name in torchvision.models.list_models()] == RESNETS
    assert names(run, "VGG1[16]") == ["vgg11", "vgg16"]


def test_the_documented_fields(run):
    done = run("list", "resnet34", "--json")
    assert (done.status, done.stderr) == (0, "")
    assert json.loads(done.stdout)["models"] == [
        {
            "name": "resnet34",
            "task": "classification",
            "input": [[1, 3, 224, 224]],
            "conv2d": 36,
            "convertible": 33,
            "gmac": 3.664,
            "params_m": 21.798,
        }
    ]


def test_a_row_a_model(run):
    done = run("list", "raft_*")
    assert (done.status, done.stderr) == (0, "")
    small = ["raft_small", "optical_flow", "1x3x520x960,", "1x3x520x960", "53", "22"]
    assert small in [line.split()[:6] for line in done.stdout.splitlines()]


def test_formats_for_other_programs(run):
    text, markdown = (run("list", "vgg1*", "--format", name) for name in ("csv", "markdown"))
    assert (text.status, text.stderr, markdown.status, markdown.stderr) == (0, "", 0, "")
    rows = list(csv.DictReader(io.StringIO(text.stdout)))
    assert [row["model"] for row in rows if row["model"] == "vgg16"] == ["vgg16"]
    assert all(float(row["gmac"]) > 0 for row in rows)
    assert "\n| vgg16 | classification | 1x3x224x224 | 13 | 13 | 15.470 | 138.36 |\n" in markdown.stdout


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("restnet*", r"no model matches 'restnet\*'; did you mean resnet"),
        ("qqqq", "no model matches 'qqqq'; `hetconv list` shows all"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(refuse, pattern, says):
    refuse("list", pattern, status=2, says=says)
