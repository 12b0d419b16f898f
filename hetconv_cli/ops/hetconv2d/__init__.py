"""The HetConv operator: public function, validation, and its implementations."""

from hetconv_cli.ops.hetconv2d.api import (
    IMPLEMENTATIONS,
    Choice,
    Implementation,
    choose_implementation,
    hetconv2d,
)

__all__ = ["IMPLEMENTATIONS", "Choice", "Implementation", "choose_implementation", "hetconv2d"]
