"""Least squares from moments: the new layer's weights, class by class.

Minimises  sum |wanted - X W - b|^2 + ridge * (mean eigenvalue of X'X) * |W - W0|^2  where W0 are the weights that the
layer has (the centre taps). Where the data says nothing, W0 stays; where W0 is exact already, it stays to the last bit
that double precision holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hetconv_cli.arrangement import members
from hetconv_cli.conversion.calibration.moments import ClassMoments, Moments
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import HetConv2d

RIDGES = (1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # the one that does best on the images held out is taken, class by class
DEFAULT_RIDGE = 1e-3  # where no image is held out


@dataclass(frozen=True)
class Fit:
    """How near a layer comes to its wanted output, on what it was measured on: sums of squares over its filters."""

    spread: float
    before: float
    after: float

    @property
    def error_before(self) -> float:
        """Relative error with the weights it had: root of the squared error over the output's spread."""
        return _relative(self.before, self.spread)

    @property
    def error_after(self) -> float:
        """Relative error with the new weights."""
        return _relative(self.after, self.spread)


@torch.no_grad()
def fit(layer: HetConv2d, fitted: Moments, held_out: Moments | None) -> Fit:
    """Gives `layer` the weights (and bias) of least squared error, and says how near they come.

    Args:
        layer: Holds the weights W0 to start from; it is changed.
        fitted: Sums over the images to fit on.
        held_out: Sums over others: they choose the ridge, and the errors are measured on them. None: the errors are
            those on the fitted images.
    """
    g = layer.geometry
    device = layer.weight_1x1.device
    channels = members(g.in_channels, layer.p, layer.arrangement)
    filters = members(g.out_channels, layer.p, layer.arrangement)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for index, mine in enumerate(filters):
        if not mine:
            continue
        own = torch.tensor(mine, device=device)
        start = _weights(layer, own)
        sums = fitted.of_class(index, own)
        judge = sums if held_out is None else held_out.of_class(index, own)
        best = _best(sums, judge, start, g.bias, RIDGES if held_out is not None else (DEFAULT_RIDGE,))
        totals += torch.stack([judge.spread().sum(), judge.squared_error(start).sum(), judge.squared_error(best).sum()])
        _install(layer, own, best, len(channels[index]))
    spread, before, after = totals.tolist()
    return Fit(spread, before, after)


def _best(sums: ClassMoments, judge: ClassMoments, start: Tensor, bias: bool, ridges: tuple[float, ...]) -> Tensor:
    solved = _Class(sums, start, bias)
    if len(ridges) == 1:
        return solved.weights(ridges[0])
    best, least = start, judge.squared_error(start).sum()
    for ridge in ridges:
        weights = solved.weights(ridge)
        error = judge.squared_error(weights).sum()
        if error < least:
            best, least = weights, error
    return best


class _Class:
    """The normal equations of one class, to be solved with several ridges."""

    def __init__(self, sums: ClassMoments, start: Tensor, bias: bool) -> None:
        self._start, self._bias = start, bias
        self._gram, self._with_output = sums.gram[:-1, :-1], sums.with_output[:-1]
        self._means = sums.gram[-1, :-1] / sums.positions
        self._output_means = sums.with_output[-1] / sums.positions
        if bias:  # a bias of its own takes both means out
            self._gram = self._gram - sums.positions * torch.outer(self._means, self._means)
            self._with_output = self._with_output - sums.positions * torch.outer(self._means, self._output_means)
        self._missing = self._with_output - self._gram @ start[:-1]
        self._mean_eigenvalue = float(self._gram.diagonal().mean())

    def weights(self, ridge: float) -> Tensor:
        """The best weights [unknowns + 1, filters]; the last row is the bias, zero where there is none."""
        rows = self._start[:-1]
        if self._mean_eigenvalue > 0:
            system = self._gram.clone()
            system.diagonal().add_(ridge * self._mean_eigenvalue)
            factor, failed = torch.linalg.cholesky_ex(system)
            if int(failed):
                return self._start
            rows = rows + torch.cholesky_solve(self._missing, factor)
        last = self._start[-1:]
        if self._bias:
            last = (self._output_means - self._means @ rows)[None]
        return torch.cat((rows, last))


def _weights(layer: HetConv2d, own: Tensor) -> Tensor:
    """A class's weights as the unknowns stand in the equations: ring taps, centre taps, bias; [R + M + 1, filters]."""
    ring = layer.weight_ring[own].flatten(1).double()
    centre = layer.weight_1x1[own, :, 0, 0].double()
    bias = ring.new_zeros(len(own)) if layer.bias is None else layer.bias[own].double()
    return torch.cat((ring, centre, bias[:, None]), 1).T


def _install(layer: HetConv2d, own: Tensor, weights: Tensor, channels: int) -> None:
    if not weights.isfinite().all():
        raise HetconvError("calibration: the equations gave no finite weights; use other images")
    rings = weights.shape[0] - layer.in_channels - 1
    dtype = layer.weight_1x1.dtype
    layer.weight_ring[own] = weights[:rings].T.reshape(len(own), channels, -1).to(dtype)
    layer.weight_1x1[own, :, 0, 0] = weights[rings:-1].T.to(dtype)
    if layer.bias is not None:
        layer.bias[own] = weights[-1].to(dtype)


def _relative(error: float, spread: float) -> float:
    if spread > 0:
        return float((error / spread) ** 0.5)
    return 0.0 if error == 0 else float("inf")
