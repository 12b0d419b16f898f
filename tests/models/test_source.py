import subprocess
import sys

import pytest

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.source import Source, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("")
    (tmp_path / "resnet34-p4.safetensors").write_text("")
    (tmp_path / "weights.pt").write_text("")
    (tmp_path / "models").mkdir()
    (tmp_path / "models.py").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("model", "kind", "name", "label"),
    [
        ("resnet34", "torchvision", "resnet34", "resnet34"),
        ("ResNet34", "torchvision", "resnet34", "resnet34"),
        ("timm/resnet50.a1_in1k", "timm", "resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("net.py:build", "file", "net.py:build", "build"),
        ("resnet34-p4.safetensors", "checkpoint", "resnet34-p4.safetensors", "resnet34-p4"),
    ],
)
def test_each_kind_of_model_argument_is_told_apart(folder, model, kind, name, label):
    source = resolve(model)
    assert source == Source(kind, name)
    assert source.label == label
    assert str(source).lower() == model.lower()


def test_a_full_path_is_a_file_too(folder):
    assert resolve(f"{folder}/net.py:build").label == "build"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet43", r"unknown model 'resnet43': did you mean resnet34.*\? `hetconv list` shows all"),
        ("qqqqqqqq", "unknown model 'qqqqqqqq'; `hetconv list` shows all"),
        ("", "expected a name or a file, got nothing"),
        ("  ", "expected a name or a file, got nothing"),
        ("\0", "unknown model"),
        ("timm/", "expected a name after it"),
        ("models", "expected a name or a file, got a folder"),
        ("models.py:build", "expected a file, got a folder"),
        ("net.py", "expected what to call in the file, such as net.py:build"),
        ("net.py:", "expected what to call in the file"),
        ("net.py:a b", "expected a Python name after the colon, got 'a b'"),
        ("missing.py:build", "no such file: missing.py"),
        ("missing.safetensors", "no such file: missing.safetensors"),
        ("weights.pt", "holds weights, not a network.*--weights"),
    ],
)
def test_anything_else_is_refused_in_one_line(folder, model, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        resolve(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "a/b", "con\nfig", "日本"])
def test_a_label_is_always_safe_as_a_file_name(name):
    label = Source("timm", name).label
    assert label
    assert not label.startswith(".")
    assert not set(label) & set("/\\\n:\0")


def test_finding_out_what_a_model_is_imports_no_torch():
    code = (
        "import sys; from hetconv_cli.models import catalog, example, source, torchvision_import; "
        "source.resolve('resnet34'); catalog.match('vgg*'); example.parse_input('1x3x8x8'); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
