"""From a source to a module, with or without real weights."""

from collections.abc import Callable

import torch

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.built import BuiltModel, Device
from hetconv_cli.models.paper_models import build_paper_model
from hetconv_cli.models.python_file import build_python_file
from hetconv_cli.models.source import Source
from hetconv_cli.models.timm_models import build_timm
from hetconv_cli.models.torchvision_models import build_torchvision

__all__ = ["BuiltModel", "build"]

_BUILDERS: dict[str, Callable[[str, str, Device], BuiltModel]] = {
    "torchvision": build_torchvision,
    "paper": build_paper_model,
    "timm": build_timm,
    "file": build_python_file,
}


def build(source: Source, *, weights: str = "none", device: Device = "cpu", seed: int = 0) -> BuiltModel:
    """Build a model in eval mode, together with its example input.

    Args:
        source: What `resolve` found.
        weights: "none" (random), "DEFAULT" or a name of the library's own weights (downloaded once, then cached), or
            a file with a state dict. Without it nothing is ever downloaded.
        device: "meta" builds without allocating weights; with `weights` they are loaded and checked, then dropped.
            A user's file that cannot be built on meta is built on the CPU.
        seed: Of the random initialisation. The global random state is left as it was.

    Raises:
        ArgumentError: If the name, the weights or the file are not what is expected.
        HetconvError: If a download or a user's file fails, or torch and torchvision do not fit together.
    """
    if source.kind not in _BUILDERS:
        raise ArgumentError(f"{source} is a checkpoint: load it with hetconv_cli.load")
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would also reseed the GPUs, which fork_rng(devices=[]) does not restore
        torch.default_generator.manual_seed(seed)
        built = _BUILDERS[source.kind](source.name, weights, device)
    built.model.eval()
    return built
