"""How near one network's output is to another's."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hetconv_cli.conversion.calibration.report import Agreement
from hetconv_cli.conversion.calibration.samples import Chunk


@torch.no_grad()
def agreement(original: nn.Module, converted: nn.Module, chunks: Iterable[Chunk]) -> Agreement:
    """Both networks on the same images. Outputs of different shapes (other boxes found) are left out."""
    sums = _Sums()
    for chunk in chunks:
        theirs, ours = (_leaves(model(*chunk.inputs)) for model in (original, converted))
        for wanted, got in zip(theirs, ours, strict=False):
            if wanted.shape == got.shape:
                sums.add(wanted.double(), got.double())
    return sums.agreement()


def _leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class _Sums:
    def __init__(self) -> None:
        self.difference = self.wanted = self.got = self.product = 0.0
        self.low, self.high = math.inf, -math.inf
        self.numbers = self.rows = self.same = 0
        self.images = self.logits = True

    def add(self, wanted: Tensor, got: Tensor) -> None:
        self.difference += float(((wanted - got) ** 2).sum())
        self.wanted += float((wanted**2).sum())
        self.got += float((got**2).sum())
        self.product += float((wanted * got).sum())
        if wanted.numel():
            self.low, self.high = min(self.low, float(wanted.min())), max(self.high, float(wanted.max()))
        self.numbers += wanted.numel()
        self.images &= wanted.dim() == 4 and min(wanted.shape[-2:]) > 1
        self.logits &= wanted.dim() == 2 and wanted.shape[1] > 1
        if self.logits:
            self.rows += len(wanted)
            self.same += int((wanted.argmax(1) == got.argmax(1)).sum())

    def agreement(self) -> Agreement:
        if not self.numbers:
            return Agreement(math.nan, math.nan)
        lengths = math.sqrt(self.wanted * self.got)
        return Agreement(
            relative_error=math.sqrt(self.difference / self.wanted) if self.wanted else math.inf,
            cosine=self.product / lengths if lengths else 0.0,
            psnr=self._psnr() if self.images else None,
            top1=self.same / self.rows if self.logits else None,
        )

    def _psnr(self) -> float:
        mean = self.difference / self.numbers
        return math.inf if mean == 0 else 10 * math.log10((self.high - self.low) ** 2 / mean)
