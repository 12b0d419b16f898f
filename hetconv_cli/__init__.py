"""HetConv for any convolutional network: what it saves on paper, what is counted, what is faster, and the network.

The public names load on first use, so that `import hetconv_cli` costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetconv_cli.conversion.checkpoint import load, save
    from hetconv_cli.conversion.convert import Conversion, convert
    from hetconv_cli.conversion.fuse import fuse
    from hetconv_cli.conversion.reorder.reorder import reorder
    from hetconv_cli.errors import ArgumentError, HetconvError, NotProvenError
    from hetconv_cli.export.lowering import lower
    from hetconv_cli.export.onnx_file import export_onnx
    from hetconv_cli.layers import DepthwisePointwise, GroupwisePointwise, HetConv2d
    from hetconv_cli.measure.analyze import analyze
    from hetconv_cli.measure.choice import choose_parts
    from hetconv_cli.ops.hetconv2d import hetconv2d
    from hetconv_cli.plan import Plan, Rules, Wish

_HOMES = {
    "ArgumentError": "errors",
    "Conversion": "conversion.convert",
    "DepthwisePointwise": "layers",
    "GroupwisePointwise": "layers",
    "HetConv2d": "layers",
    "HetconvError": "errors",
    "NotProvenError": "errors",
    "Plan": "plan",
    "Rules": "plan",
    "Wish": "plan",
    "analyze": "measure.analyze",
    "choose_parts": "measure.choice",
    "convert": "conversion.convert",
    "export_onnx": "export.onnx_file",
    "fuse": "conversion.fuse",
    "hetconv2d": "ops.hetconv2d",
    "load": "conversion.checkpoint",
    "lower": "export.lowering",
    "reorder": "conversion.reorder.reorder",
    "save": "conversion.checkpoint",
}

__all__ = [
    "ArgumentError",
    "Conversion",
    "DepthwisePointwise",
    "GroupwisePointwise",
    "HetConv2d",
    "HetconvError",
    "NotProvenError",
    "Plan",
    "Rules",
    "Wish",
    "analyze",
    "choose_parts",
    "convert",
    "export_onnx",
    "fuse",
    "hetconv2d",
    "load",
    "lower",
    "reorder",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hetconv_cli' has no attribute {name!r}")
    return getattr(import_module(f"hetconv_cli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
