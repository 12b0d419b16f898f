"""What is believed of a layer's input before any image is seen: surfaces are even.

A few images show few of the directions in which an input can vary, and one picture's colours are not those of the next.
So a layer shall also be right on windows u [M, taps] that no image showed: every channel on its own, as large as the
images say, nearly the same all over the window. Their second moments are

    E[u_mt u_m't'] = energy_m  if m = m', else 0;  times S_tt' = (1 - grain) + grain (t = t')

The squared error that weights W make there against the convolution's D is a quadratic form as the images' is, and both
are added. On such windows alone the best 1 x 1 weights are close to the sums of the dense taps; on white ones (a grain
of 1) they are the centre taps. Where D is a HetConv already, no W does better than D, whatever the windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GRAIN = 0.01  # the part of the energy that differs from tap to tap; it also keeps the equations solvable
_LEAST_ENERGY = 1e-3  # of the mean: a channel that is silent on these images may speak on others


@dataclass(frozen=True)
class EvenSurfaces:
    """The belief about one layer's input.

    Attributes:
        energy: [M], the mean square of each input channel.
        dense: [N, M, taps], the convolution's weights, taps row by row.
    """

    energy: Tensor
    dense: Tensor

    @classmethod
    def of(cls, mean_squares: Tensor, weight: Tensor) -> "EvenSurfaces":
        """From the images' mean squares [M] and the convolution's weight [N, M, K_h, K_w]."""
        energy = mean_squares + _LEAST_ENERGY * mean_squares.mean()
        return cls(energy, weight.detach().double().flatten(2))

    def gram(self, channels: Tensor) -> Tensor:
        """Second moments [R + M, R + M] of what a class sees: the ring taps of its own `channels`, all centres."""
        ring, count = self._even(self._taps - 1), len(channels)
        rings = torch.kron(torch.diag(self.energy[channels]), ring)
        cross = self.energy.new_zeros(count, self._taps - 1, len(self.energy))
        own = torch.arange(count, device=channels.device)
        cross[own, :, channels] = (1 - GRAIN) * self.energy[channels][:, None]
        cross = cross.flatten(0, 1)
        return torch.cat((torch.cat((rings, cross), 1), torch.cat((cross.T, torch.diag(self.energy)), 1)))

    def missing(self, channels: Tensor, filters: Tensor, weights: Tensor) -> Tensor:
        """Products [R + M, filters] of the same with what `weights` [R + M + 1, filters] leave of the dense output."""
        middle = self._taps // 2
        ring = torch.tensor([t for t in range(self._taps) if t != middle], device=channels.device)
        rings = len(channels) * len(ring)
        left = self.dense[filters]  # indexing has made a copy
        left[:, :, middle] -= weights[rings:-1].T
        left[:, channels[:, None], ring] -= weights[:rings].T.reshape(len(filters), len(channels), len(ring))
        product = (left @ self._even(self._taps)) * self.energy[:, None]
        return torch.cat((product[:, channels[:, None], ring].flatten(1), product[:, :, middle]), 1).T

    @property
    def _taps(self) -> int:
        return self.dense.shape[-1]

    def _even(self, taps: int) -> Tensor:
        same = self.energy.new_full((taps, taps), 1 - GRAIN)
        same.diagonal().fill_(1)
        return same
