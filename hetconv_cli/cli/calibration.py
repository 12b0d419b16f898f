"""Calibration images on the command line."""

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetconv_cli.cli.output import Progress

if TYPE_CHECKING:
    from torch import nn

    from hetconv_cli.conversion.calibration.samples import Samples
    from hetconv_cli.models.example import ExampleSpec
    from hetconv_cli.models.images import Preprocessing
    from hetconv_cli.models.source import Source


class TransferChoice(StrEnum):
    """How weights are carried over."""

    centre_taps = "center"  # `center` is a method of str
    sums_of_taps = "sum"
    calibrated = "calibrated"


TransferOption = Annotated[
    TransferChoice | None,
    typer.Option("--transfer", help="How weights are carried over. [default: center; calibrated with --calibrate]"),
]
Calibrate = Annotated[
    Path | None,
    typer.Option("--calibrate", metavar="FOLDER", help="Unlabelled images (or .npy, .pt) to fit the weights to."),
]
Images = Annotated[int, typer.Option("--images", min=1, help="Of --calibrate: at most so many, drawn at random.")]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="Taken off pixels of 0 to 1. [default: the weights']")
]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Divided by. [default: the weights']")]
Size = Annotated[
    str | None, typer.Option("--size", metavar="224x224", help="To which images are cut. [default: the model's input]")
]

Memory = Annotated[
    float | None,
    typer.Option(
        "--memory", min=0, metavar="GB", help="Of --calibrate: activations held; beyond, slower. [default: 2]"
    ),
]


@dataclass(frozen=True)
class ImageOptions:
    """What the command line says of calibration images. `folder` None: there are none."""

    folder: Path | None
    images: int
    mean: str | None
    std: str | None
    size: str | None
    seed: int
    memory: float | None = None

    def files(self) -> list[Path]:
        """The images' files.

        Raises:
            ArgumentError: options that need --calibrate without it, or no images there.
        """
        from hetconv_cli.errors import ArgumentError
        from hetconv_cli.models.images import list_images, parse_numbers

        for option, text in (("--mean", self.mean), ("--std", self.std), ("--size", self.size)):
            if text is not None and self.folder is None:
                raise ArgumentError(f"{option} is for calibration images: give --calibrate FOLDER with it")
            if text is not None and option != "--size" and 0.0 in parse_numbers(text, option) and option == "--std":
                raise ArgumentError(f"--std: expected numbers other than 0, got {text!r}")
        if self.memory is not None and self.folder is None:
            raise ArgumentError("--memory is for calibration images: give --calibrate FOLDER with it")
        if self.memory is not None and not math.isfinite(self.memory):
            raise ArgumentError(f"--memory: expected a number of GB, got {self.memory}")
        if (self.mean is None) != (self.std is None):
            raise ArgumentError("--mean and --std go together: give both")
        return [] if self.folder is None else list_images(self.folder, self.images, self.seed)

    @property
    def memory_bytes(self) -> int:
        """Of activations that may be held."""
        from hetconv_cli.conversion.calibration.calibrate import MEMORY

        return MEMORY if self.memory is None else int(self.memory * 1e9)

    def read(
        self, source: "Source", weights: str, model: "nn.Module", example: "ExampleSpec", progress: Progress
    ) -> "Samples":
        """The images, read, checked and cut into chunks."""
        from hetconv_cli.conversion.calibration.samples import read_samples
        from hetconv_cli.errors import ArgumentError
        from hetconv_cli.models.example import ExampleSpec
        from hetconv_cli.models.images import load_images

        if len(example.shapes) != 1 or len(example.shapes[0]) != 4:
            raise ArgumentError(
                f"--calibrate: a folder gives one image at a time, the model takes {example.describe()}:"
                " use Python, hc.convert(model, calibration=batches)"
            )
        files = self.files()
        how = self._preprocessing(source, weights, example)
        channels = example.shapes[0][1]
        batches = load_images(
            files, channels, how, self.images, lambda number: progress("reading images", number, len(files))
        )
        plain = ExampleSpec(example.shapes, example.kind)
        if example.kind == "images":
            return read_samples([list(batch) for batch in batches], model, plain)
        return read_samples(batches, model, plain)

    def _preprocessing(self, source: "Source", weights: str, example: "ExampleSpec") -> "Preprocessing | None":
        from dataclasses import replace

        from hetconv_cli.models.example import parse_input
        from hetconv_cli.models.images import Preprocessing, parse_numbers, preprocessing_of

        crop = example.shapes[0][-2:]
        if self.size is not None:
            crop = parse_input(self.size, like=example).shapes[0][-2:]
        size = (crop[0], crop[1])
        if self.mean is not None and self.std is not None:
            return Preprocessing(parse_numbers(self.mean, "--mean"), parse_numbers(self.std, "--std"), size)
        how = preprocessing_of(source, weights)
        if how is None or how.crop == size:
            return how
        return replace(how, crop=size, resize=None)
