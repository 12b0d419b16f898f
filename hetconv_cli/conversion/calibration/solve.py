"""Least squares from moments: the new layer's weights, class by class.

Minimises  sum |wanted - X W - b|^2  +  weight * positions * E|D u - W u|^2  where the sum is over the images'
positions, and u is a window of even surfaces (`prior`), on which the new layer shall be near the convolution D too.
Where the centre taps W0 are exact already, neither term changes them, to the last bit that double precision holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hetconv_cli.arrangement import members
from hetconv_cli.conversion.calibration.moments import ClassMoments
from hetconv_cli.conversion.calibration.prior import EvenSurfaces
from hetconv_cli.conversion.calibration.split import SplitMoments
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import HetConv2d

WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the prior, against a weight of 1 of all positions together


def weights_to_try(images: int) -> tuple[float, ...]:
    """Of the prior: what it weighs is tried out, but never less than one of the images fitted on does.

    What is held out comes from the same few pictures, so it cannot say how the next one differs.
    """
    return tuple(sorted({max(weight, 1 / max(1, images)) for weight in WEIGHTS}))


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
def fit(layer: HetConv2d, dense: Tensor, sums: SplitMoments, weights: tuple[float, ...] | None = None) -> Fit:
    """Gives `layer` the weights (and bias) of least squared error, and says how near they come.

    Args:
        layer: Holds the centre taps W0; it is changed.
        dense: The convolution's weight, [N, M, K_h, K_w].
        sums: Over what is to be fitted on, and over what is held out: that chooses the prior's weight, class by class,
            and the errors are measured on it. Held-out blocks are fitted on too in the end, held-out images never.
        weights: Of the prior, to choose from; None: `weights_to_try`.
    """
    fitted = sums.fitted
    held = sums.held if sums.held.positions else fitted
    weights = weights or weights_to_try(sums.images)
    classes = _classes(layer)
    prior = EvenSurfaces.of(fitted.mean_squares, dense)
    totals = torch.zeros(3, dtype=torch.float64, device=dense.device)
    choices, found = [], []
    for index, (channels, filters) in enumerate(classes):
        equations = _Class(layer, fitted.of_class(index, filters), prior, channels, filters)
        choice, best, errors = _best(equations, held.of_class(index, filters), weights)
        choices.append(choice)
        found.append(best)
        totals += errors
    if sums.by_blocks and held is not fitted:
        fitted.absorb(held)
        prior = EvenSurfaces.of(fitted.mean_squares, dense)
        for index, (channels, filters) in enumerate(classes):
            equations = _Class(layer, fitted.of_class(index, filters), prior, channels, filters)
            found[index] = equations.solution(choices[index])
    for (channels, filters), best in zip(classes, found, strict=True):
        _install(layer, filters, best, len(channels))
    spread, before, after = totals.tolist()
    return Fit(spread, before, after)


def _classes(layer: HetConv2d) -> list[tuple[Tensor, Tensor]]:
    """Input channels and filters of each class that has any."""
    device = layer.weight_1x1.device
    both = zip(
        members(layer.in_channels, layer.p, layer.arrangement),
        members(layer.out_channels, layer.p, layer.arrangement),
        strict=True,
    )
    return [
        (torch.tensor(own, device=device), torch.tensor(filters, device=device)) for own, filters in both if filters
    ]


def _best(equations: "_Class", judge: ClassMoments, weights: tuple[float, ...]) -> tuple[float | None, Tensor, Tensor]:
    """The prior's weight of least error on `judge`, the solution, and [spread, error before, error after] there.

    None: no weight does better than the weights that the layer has.
    """
    before = judge.squared_error(equations.start).sum()
    choice, best, least = None, equations.start, before
    for weight in weights:
        solution = equations.solution(weight)
        error = judge.squared_error(solution).sum()
        if error < least:
            choice, best, least = weight, solution, error
    return choice, best, torch.stack([judge.spread().sum(), before, least])


class _Class:
    """The normal equations of one class, to be solved with several weights of the prior."""

    def __init__(
        self, layer: HetConv2d, sums: ClassMoments, prior: EvenSurfaces, channels: Tensor, filters: Tensor
    ) -> None:
        self.start = _weights(layer, filters)
        self._bias = layer.bias is not None
        self._gram, with_output = sums.gram[:-1, :-1], sums.with_output[:-1]
        self._means = sums.gram[-1, :-1] / sums.positions
        self._output_means = sums.with_output[-1] / sums.positions
        if self._bias:  # a bias of its own takes both means out
            self._gram = self._gram - sums.positions * torch.outer(self._means, self._means)
            with_output = with_output - sums.positions * torch.outer(self._means, self._output_means)
        self._missing = with_output - self._gram @ self.start[:-1]
        self._prior_gram = sums.positions * prior.gram(channels)
        self._prior_missing = sums.positions * prior.missing(channels, filters, self.start)

    def solution(self, weight: float | None) -> Tensor:
        """The best weights [unknowns + 1, filters]; the last row is the bias, zero where there is none."""
        if weight is None:
            return self.start
        factor, failed = torch.linalg.cholesky_ex(self._gram + weight * self._prior_gram)
        if int(failed):  # nothing but zeros came in
            return self.start
        rows = self.start[:-1] + torch.cholesky_solve(self._missing + weight * self._prior_missing, factor)
        last = self.start[-1:]
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
