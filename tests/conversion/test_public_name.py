"""`hetconv_cli.conversion` is a package and, for users, a function."""

import subprocess
import sys

TWICE = """
import hetconv_cli as hc
from torch import nn
for _ in range(2):
    conversion = hc.convert(nn.Conv2d(8, 8, 3), p=4)
    assert type(conversion) is hc.Conversion
    assert type(conversion.model) is hc.HetConv2d
"""


def test_convert_can_be_called_again_and_again():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
