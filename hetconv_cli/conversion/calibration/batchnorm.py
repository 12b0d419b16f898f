"""BatchNorm statistics, corrected by what calibration images show of both networks.

Statistics of a few images are noisy, and those that training left are not. So only their CHANGE is taken from the
images: mean + (mean in the converted network - mean in the original), variance * (variance there / variance here).
Where a BatchNorm reads the same in both, nothing changes, to the last bit.
"""

import torch
from torch import Tensor, nn

_BatchNorm = nn.modules.batchnorm._BatchNorm


def has_statistics(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that normalises by running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


class Statistics:
    """Mean and variance of what a BatchNorm reads, channel by channel, over any number of calls."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._shift: Tensor | None = None

    def add(self, input: Tensor) -> None:
        """Adds what a call reads: [n, C, ...]."""
        values = input.double().transpose(0, 1).flatten(1)
        if self._shift is None or self._sum is None or self._squares is None:
            self._shift = values.mean(1)  # near the mean, so that the difference of squares loses nothing
            self._sum, self._squares = torch.zeros_like(self._shift), torch.zeros_like(self._shift)
        values = values - self._shift[:, None]
        self._count += values.shape[1]
        self._sum += values.sum(1)
        self._squares += (values**2).sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor] | None:
        """Over everything added, in double precision; None where nothing was."""
        if self._shift is None or self._sum is None or self._squares is None:
            return None
        mean = self._sum / self._count
        return self._shift + mean, (self._squares / self._count - mean**2).clamp_min(0)


@torch.no_grad()
def correct(module: nn.Module, original: Statistics, converted: Statistics) -> bool:
    """Moves a BatchNorm's running statistics as the images say; whether there was anything to move."""
    before, after = original.mean_and_variance(), converted.mean_and_variance()
    if before is None or after is None or not isinstance(module, _BatchNorm):
        return False
    running_mean, running_var = module.running_mean, module.running_var
    if running_mean is None or running_var is None:
        return False
    shift, scale = after[0] - before[0], (after[1] + module.eps) / (before[1] + module.eps)
    if bool((shift == 0).all()) and bool((scale == 1).all()):
        return False
    running_mean.copy_(running_mean.double() + shift)
    running_var.copy_((running_var.double() + module.eps) * scale - module.eps).clamp_(min=0)
    return True
