"""Images of a folder as tensors for a model: pictures, .npy and .pt files."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.one_line import one_line
from hetconv_cli.models.source import Source

if TYPE_CHECKING:
    import torch

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TENSORS = (".npy", ".pt")
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input.

    The shorter side is scaled to `resize` (height or width of `crop` if None), the middle is cut out, pixels are taken
    as 0 to 1, then `mean` is taken off and `std` divided by, channel by channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: tuple[int, int]
    resize: int | None = None


def preprocessing_of(source: Source, weights: str) -> Preprocessing | None:
    """What the authors of a model's trained weights say of its input; None where nobody says."""
    if source.kind == "torchvision":
        from hetconv_cli.models.torchvision_models import transforms_of

        transforms = transforms_of(source.name, weights)
        if transforms is None or not hasattr(transforms, "crop_size"):
            return None
        size = transforms.crop_size
        return Preprocessing(
            tuple(transforms.mean), tuple(transforms.std), (size[0], size[-1]), transforms.resize_size[0]
        )
    if source.kind == "timm":
        from hetconv_cli.models.timm_models import pretrained_cfg

        said = pretrained_cfg(source.name)
        height, width = said["input_size"][-2:]
        resize = int(min(height, width) / said.get("crop_pct", 1.0))
        return Preprocessing(tuple(said["mean"]), tuple(said["std"]), (height, width), resize)
    return None


def list_images(folder: Path, most: int, seed: int = 0) -> list[Path]:
    """The files of `folder` and the folders in it, or at most `most` of them drawn at random, in order of name.

    `folder` may also be one file.

    Raises:
        ArgumentError: no such folder, or no image in it.
    """
    if folder.is_file():
        found = [folder] if folder.suffix.lower() in PICTURES + TENSORS else []
    elif folder.is_dir():
        found = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in PICTURES + TENSORS and path.is_file()
        )
    else:
        raise ArgumentError(f"--calibrate {folder}: no such folder")
    if not found:
        raise ArgumentError(
            f"--calibrate {folder}: no images in it; expected {', '.join(PICTURES + TENSORS)}, in folders below too"
        )
    return found if len(found) <= most else sorted(random.Random(seed).sample(found, most))


def load_images(
    files: list[Path], channels: int, how: Preprocessing | None, most: int, told: Callable[[int], None] = lambda n: None
) -> "list[torch.Tensor]":
    """Batches [n, C, H, W] from files; at most `most` images in all.

    Pictures are prepared as `how` says; tensors, [C, H, W] or [n, C, H, W], are taken as they are.

    Raises:
        ArgumentError: a file that cannot be read; pictures without `how`; pictures for a model of other channels.
    """
    batches: list[torch.Tensor] = []
    left = most
    for number, path in enumerate(files):
        told(number)
        batch = _tensor(path) if path.suffix.lower() in TENSORS else _picture(path, channels, how)[None]
        batch = batch[None] if batch.dim() == 3 else batch
        batches.append(batch[:left])
        left -= len(batches[-1])
        if left <= 0:
            break
    return batches


def _tensor(path: Path) -> "torch.Tensor":
    import numpy as np
    import torch

    from hetconv_cli.models.weights_file import torch_loads_weights_only

    try:
        if path.suffix.lower() == ".npy":
            tensor: Any = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            with torch_loads_weights_only():
                tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise nearly anything
        raise ArgumentError(f"{path}: cannot be read as a tensor ({one_line(error)})") from error
    if not isinstance(tensor, torch.Tensor) or tensor.dim() not in (3, 4):
        got = f"{tensor.dim()} dimensions" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ArgumentError(f"{path}: expected a tensor [C, H, W] or [n, C, H, W], got {got}")
    return tensor.float()


def _picture(path: Path, channels: int, how: Preprocessing | None) -> "torch.Tensor":
    import numpy as np
    import torch
    from PIL import Image

    if how is None:
        raise ArgumentError(
            f"{path.name}: how a picture becomes this model's input is not known: give --mean and --std,"
            " for instance --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225; or give .npy or .pt files"
        )
    mode = _MODES.get(channels)
    if mode is None:
        raise ArgumentError(f"{path.name}: a picture has 1 or 3 channels, the model takes {channels}: give .npy files")
    try:
        with Image.open(path) as file:
            picture = _middle(file.convert(mode), how)
    except Exception as error:
        raise ArgumentError(f"{path}: cannot be read as a picture ({one_line(error)})") from error
    tensor = torch.from_numpy(np.array(picture, dtype=np.float32)) / 255
    tensor = tensor[None] if tensor.dim() == 2 else tensor.permute(2, 0, 1)
    mean, std = (torch.tensor(_spread(values, channels))[:, None, None] for values in (how.mean, how.std))
    return (tensor - mean) / std


def _middle(picture: Any, how: Preprocessing) -> Any:
    from PIL import Image

    height, width = how.crop
    scale = max(height / picture.height, width / picture.width)
    if how.resize is not None:
        scale = max(scale, how.resize / min(picture.height, picture.width))
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _spread(values: tuple[float, ...], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        raise ArgumentError(f"--mean and --std: expected 1 or {channels} numbers, got {len(values)}")
    return list(values) * (channels if len(values) == 1 else 1)


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        ArgumentError: anything else.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"{option}: expected numbers such as 0.485,0.456,0.406; got {text!r}") from None
    if not all(-1e6 < value < 1e6 for value in values):
        raise ArgumentError(f"{option}: expected finite numbers, got {text!r}")
    return values
