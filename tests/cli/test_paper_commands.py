import csv
import io
import json

import pytest

from hetconv_cli.cli.main import main


@pytest.fixture
def hetconv(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        with pytest.raises(SystemExit, match=r"^\d+$") as stop:
            main(line.split())
        return (stop.value.code or 0, *capsys.readouterr())

    return run


def test_reproduce_gives_the_documented_json(hetconv):
    status, out, err = hetconv("reproduce table4 --json")
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert data["schema"] == "hetconv.reproduce/1"
    (table,) = data["tables"]
    assert table["table"] == "table4"
    row = table["rows"][1]
    assert {"model", "printed", "ours", "deviation_pct", "kind"} == set(row)
    assert {"macs_m", "params_m", "macs_reduced_pct", "params_reduced_pct"} <= set(row["ours"])
    assert (row["model"], row["kind"], row["ours"]["converted_layers"]) == ("MobileNet_P32", "rebuilt", 13)
    assert row["ours"]["macs_m"] == pytest.approx(55.945216)


def test_reproduce_says_what_was_not_rerun_and_who_is_quoted(hetconv, tmp_path):
    status, out, err = hetconv("reproduce table5 --plot five.png")
    assert (status, err) == (0, "wrote five.png\n")
    assert (tmp_path / "five.png").read_bytes().startswith(b"\x89PNG")
    assert "[a] printed, not rerun." in out
    assert "CP 2X (quoted)" in out
    assert "65.76" in out


@pytest.mark.parametrize("format", ["csv", "markdown"])
def test_reproduce_in_other_formats(hetconv, format):
    status, out, err = hetconv(f"reproduce table5 --format {format}")
    assert (status, err) == (0, "")
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["kind"] for row in rows] == ["quoted"] * 3 + ["rebuilt"] * 2
        assert rows[4]["ours_macs_analytic"] == rows[4]["ours_macs_dispatcher"] == "5296979968"
    else:
        assert "| VGG-16_P4 |" in out


def test_reproduce_refuses_another_table(hetconv):
    status, out, err = hetconv("reproduce table7")
    assert (status, out) == (2, "")
    assert err.startswith("hetconv: unknown table 'table7': expected table1, ")


def test_sweep_marks_both_crossings(hetconv, tmp_path):
    status, out, err = hetconv("sweep resnet20_cifar --p 2,4,pc --plot over.svg")
    assert (status, err) == (0, "wrote over.svg\n")
    assert "(6) HetConv costs what DWC+PWC costs at P = " in out
    assert "(9) HetConv costs less than GWC+PWC at every P = G" in out
    assert b"crossing" in (tmp_path / "over.svg").read_bytes() or (tmp_path / "over.svg").stat().st_size > 10_000


def test_sweep_gives_the_documented_json_in_either_unit(hetconv):
    macs = json.loads(hetconv("sweep resnet20_cifar --p 4 --json")[1])
    flops = json.loads(hetconv("sweep resnet20_cifar --p 4 --json --unit flops")[1])
    assert macs["schema"] == "hetconv.sweep/1"
    assert [(point["variant"], point["p"]) for point in macs["points"]] == [
        *[("standard", None), ("hetconv", 4), ("gwc", 4), ("dwc", None)]
    ]
    assert [2 * point["macs"] for point in macs["points"]] == [point["macs"] for point in flops["points"]]
    assert set(macs["crossings"]) == {"layers", "equation_6", "equation_9"}


def test_sweep_of_a_converted_file_takes_the_input_that_it_was_made_for(hetconv):
    hetconv("convert resnet20_cifar --p 4 --input 1x3x64x64")
    from_file = json.loads(hetconv("sweep resnet20_cifar-p4.safetensors --p 4 --json")[1])
    assert from_file == json.loads(hetconv("sweep resnet20_cifar --p 4 --input 1x3x64x64 --json")[1])
    assert from_file["input"] == [[1, 3, 64, 64]]


@pytest.mark.parametrize("format", ["csv", "markdown"])
def test_sweep_in_other_formats(hetconv, format):
    status, out, err = hetconv(f"sweep resnet20_cifar --p 4 --format {format}")
    assert (status, err) == (0, "")
    assert "hetconv,4" in out if format == "csv" else "| P=4 |" in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sweep mobilenet_cifar", "nothing to convert"),
        ("sweep resnet20_cifar --p x", "p must be a positive integer or 'pc', got 'x'"),
        ("sweep resnet20_cifar --plot over.gif", "expected a name that ends in .png, .svg, .pdf"),
    ],
)
def test_sweep_refuses_what_it_cannot_do(hetconv, line, said):
    status, out, err = hetconv(line)
    assert (status, out) == (2, "")
    assert said in err


def test_convert_with_pairs_says_which_were_taken(hetconv, tmp_path):
    status, out, _ = hetconv("convert mobilenet_cifar --pairs --p 32")
    assert status == 0
    assert "pairs taken as one convolution each (13): features.1.depthwise.conv + features.1.pointwise.conv" in out
    status, out, err = hetconv("flops mobilenet_cifar-p32.safetensors --p 32 --pairs --json")
    assert (status, err) == (0, "")
    variants = json.loads(out)["variants"]
    assert [variant["macs"]["dispatcher"] for variant in variants[1:]] == [55945216, 55945216]
    unasked = json.loads(hetconv("flops mobilenet_cifar-p32.safetensors --p 32 --json")[1])
    assert unasked["variants"] == variants


def test_flops_counts_pairs_among_what_can_be_converted(hetconv):
    _, plain, _ = hetconv("flops mobilenet_cifar --p 32")
    status, paired, err = hetconv("flops mobilenet_cifar --p 32 --pairs")
    assert (status, err) == (0, "")
    assert plain.splitlines()[0].endswith("0 of 27 Conv2d can be converted")
    assert paired.splitlines()[0].endswith("26 of 27 Conv2d can be converted (26 as 13 pairs)")


def test_flops_says_of_each_convolution_which_pair_it_is_in_or_why_it_is_in_none(hetconv):
    layers = json.loads(hetconv("flops mobilenet_v3_small --p 4 --pairs --json")[1])["layers"]
    found = {layer["name"]: (layer["pair"], layer["convertible"], layer["reason"]) for layer in layers}
    assert found["features.2.block.1.0"] == ("features.2.block.2.0", True, None)
    assert found["features.2.block.2.0"] == ("features.2.block.1.0", True, None)
    assert found["features.1.block.0.0"] == (None, False, "depthwise, no pair: SqueezeExcitation stands between")
    assert found["features.2.block.0.0"] == (None, False, "1x1: nothing to save")
    assert found["features.0.0"] == (None, True, "image stem, 3 channels")


def test_convert_lists_pairs_in_json_only_where_they_were_asked_for(hetconv):
    plain = json.loads(hetconv("convert mobilenet_v3_small --p 4 --dry-run --json")[1])
    paired = json.loads(hetconv("convert mobilenet_v3_small --p 4 --pairs --dry-run --json")[1])
    assert "pairs" not in plain
    assert [pair["absorbs"][-1] for pair in paired["pairs"]] == ["features.2.block.2.0", "features.3.block.2.0"]
    reasons = {entry["reason"] for entry in paired["kept"]}
    assert "depthwise, no pair: SqueezeExcitation stands between" in reasons
    assert {entry["reason"] for entry in plain["kept"]} >= {"depthwise"}


def test_list_shows_the_paper_s_networks(hetconv):
    status, out, err = hetconv("list *_cifar")
    assert (status, err) == (0, "")
    assert "vgg16_cifar" in out
    assert "mobilenet_cifar" in out
