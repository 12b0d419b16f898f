import os
import subprocess
import sys

import pytest

TRY = """
from hetconv_cli.errors import HetconvError
from hetconv_cli.models.torchvision_import import import_torchvision
try:
    import_torchvision()
except HetconvError as error:
    print(error)
"""


def message_with(folder, body):
    """What import_torchvision says in a fresh process in which torchvision (0.0.7) has this body."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    (folder / "torch").mkdir()  # a light one, so that the fresh process is quick
    (folder / "torch" / "__init__.py").write_text("")
    for name, version in (("torch", "9.9.1"), ("torchvision", "0.0.7")):
        (folder / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    path = os.pathsep.join([str(folder), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", TRY]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "operator torchvision::nms does not exist",
        ),
        ("raise ImportError('libc10.so:\\nundefined symbol')", "libc10.so:"),
        ("raise OSError('libtorch.so: cannot open')", "libtorch.so: cannot open"),
        ("import torch.of_another_time", "No module named 'torch.of_another_time'"),
    ],
)
def test_a_torchvision_that_does_not_fit_torch_is_named_with_both_versions(tmp_path, body, reason):
    assert message_with(tmp_path, body) == (
        f"torch 9.9.1 and torchvision 0.0.7 do not fit together ({reason}): "
        "install a matching pair, e.g. pip install -U torch torchvision\n"
    )


def test_a_missing_torchvision_is_named(tmp_path):
    body = "raise ModuleNotFoundError(\"No module named 'torchvision'\", name='torchvision')"
    assert message_with(tmp_path, body) == "torchvision is not installed: pip install -U torch torchvision\n"


def test_a_torchvision_that_fits_raises_nothing(tmp_path):
    assert message_with(tmp_path, "") == ""
