"""Where a network runs."""

from typing import Literal, get_args

from hetconv_cli.errors import ArgumentError

DeviceName = Literal["cpu", "cuda"]
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)


def check_device(name: str) -> DeviceName:
    """`name`, if it is a device that is here.

    Raises:
        ArgumentError: an unknown device; cuda where torch sees no GPU.
    """
    import torch

    for known in DEVICES:
        if name == known:
            if known == "cuda" and not torch.cuda.is_available():
                raise ArgumentError("--device cuda: torch sees no CUDA GPU here")
            return known
    raise ArgumentError(f"--device: expected {', '.join(DEVICES)}; got {name!r}")
