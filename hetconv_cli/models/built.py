"""What building a model gives."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from hetconv_cli.models.example import ExampleSpec

Device = Literal["cpu", "meta"]


@dataclass(frozen=True)
class BuiltModel:
    """A model, ready to be called.

    Attributes:
        model: In eval mode.
        example: What it is called with.
        weights: Where its weights come from, for people: "random", "ResNet34_Weights.IMAGENET1K_V1",
            "file weights.pt", "from net.py:build".
    """

    model: nn.Module
    example: ExampleSpec
    weights: str
