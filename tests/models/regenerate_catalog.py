"""Write `torchvision.csv` and `paper.csv` in `hetconv_cli/models` anew, from the installed torchvision and our own
networks.

Run it after an update of torchvision brings new models, or the paper's networks change, from the repository's root:

    python tests/models/regenerate_catalog.py

It takes about two minutes. `test_catalog.py` and `test_paper_models.py` use the functions below to hold the tables.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hetconv_cli.models.catalog as catalog_module
from hetconv_cli.models.build import BuiltModel, build
from hetconv_cli.models.catalog import COLUMNS, CatalogEntry
from hetconv_cli.models.paper_models import paper_models
from hetconv_cli.models.source import Source
from hetconv_cli.models.torchvision_models import task_of


def count(name: str, built: BuiltModel, task: str | None = None) -> CatalogEntry:
    """The row of a model; its MACs are counted on whatever device it was built on."""
    convs = [module for module in built.model.modules() if isinstance(module, nn.Conv2d)]
    return CatalogEntry(
        name=name,
        task=task or task_of(name),
        example=built.example,
        conv2d=len(convs),
        convertible=sum(convertible_in_kind(conv) for conv in convs),
        gmac=round(count_macs(built) / 1e9, 3),
        params_m=round(sum(parameter.numel() for parameter in built.model.parameters()) / 1e6, 3),
    )


def convertible_in_kind(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return type(conv) is nn.Conv2d and conv.groups == 1 and height % 2 == width % 2 == 1 and height * width > 1


def count_macs(built: BuiltModel) -> int:
    """Half the FLOPs that torch's dispatcher counts.

    Without gradients torch takes a fused path through attention that the counter does not see; on meta
    they cost nothing. The detection models have no attention and run for real, so they go without.
    """
    detection = built.example.kind == "images"
    inputs = built.example.make(device="cpu" if detection else "meta")
    with torch.set_grad_enabled(not detection), FlopCounterMode(display=False) as counter:
        built.model(*inputs)
    return counter.get_total_flops() // 2


def build_to_count(name: str) -> BuiltModel:
    detection = task_of(name) == "detection"
    return build(Source("torchvision", name), device="cpu" if detection else "meta")


def count_paper(name: str) -> CatalogEntry:
    return count(name, build(Source("paper", name), device="meta"), task="classification")


def main() -> None:
    write("torchvision.csv", (count(name, build_to_count(name)) for name in torchvision.models.list_models()))
    write("paper.csv", (count_paper(name) for name in paper_models()))


def write(file: str, entries: Iterable[CatalogEntry]) -> None:
    path = Path(catalog_module.__file__).with_name(file)
    rows = []
    for entry in entries:
        sizes = (entry.conv2d, entry.convertible, f"{entry.gmac:.3f}", f"{entry.params_m:.3f}")
        rows.append((entry.name, entry.task, entry.example.kind, entry.example.describe(), *sizes))
        sys.stderr.write(f"{rows[-1]}\n")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
