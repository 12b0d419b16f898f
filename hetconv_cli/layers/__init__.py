"""The layers as nn.Modules: HetConv2d, DepthwisePointwise, GroupwisePointwise."""

from hetconv_cli.layers.fused import FusedHetConv2d
from hetconv_cli.layers.hetconv2d import HetConv2d, use_implementation
from hetconv_cli.layers.separable import DepthwisePointwise, GroupwisePointwise

__all__ = ["DepthwisePointwise", "FusedHetConv2d", "GroupwisePointwise", "HetConv2d", "use_implementation"]
