"""Ridge regression from sums of products, which do not grow with the number of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Weights of the distance to the prior that are tried, relative to the mean variance of an input.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
#: Variances below it are those of constants.
_TINY = 1e-12


@dataclass(frozen=True)
class Moments:
    """Sums, or means, over the rows of a regression, for each group of a convolution.

    Args:
        count: Number of rows.
        inputs: Of the inputs x, ``(G, K)``.
        targets: Of the targets y, ``(G, O)``.
        gram: Of ``x x^T``, ``(G, K, K)``.
        cross: Of ``x y^T``, ``(G, K, O)``.
        squares: Of ``y^2``, ``(G, O)``.
    """

    count: int
    inputs: Tensor
    targets: Tensor
    gram: Tensor
    cross: Tensor
    squares: Tensor

    @staticmethod
    def from_rows(inputs: Tensor, targets: Tensor) -> Moments:
        """Sum over the rows of inputs ``(G, R, K)`` and targets ``(G, R, O)``.

        Products are in single precision, around the means of the rows: those of channels that
        vary little would be lost in the squares of their means. All else is in double precision,
        on the CPU: not every device has it.
        """
        count, means = inputs.shape[1], (inputs.mean(1, True), targets.mean(1, True))
        x, y = (rows - mean for rows, mean in zip((inputs, targets), means, strict=True))
        parts = (*means, x.sum(1, True), y.sum(1, True), x.mT @ x, x.mT @ y, y.square().sum(1))
        mx, my, sx, sy, gram, cross, squares = (part.to("cpu", torch.float64) for part in parts)
        return Moments(
            count,
            (sx + count * mx)[:, 0],
            (sy + count * my)[:, 0],
            gram + mx.mT @ sx + sx.mT @ mx + count * mx.mT @ mx,
            cross + mx.mT @ sy + sx.mT @ my + count * mx.mT @ my,
            squares + (2 * my * sy + count * my.square())[:, 0],
        )

    def __add__(self, other: Moments) -> Moments:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(mine + theirs for mine, theirs in pairs))

    def centered(self) -> Moments:
        """Return means, those of products around the means: the intercept of a fit is free."""
        x, y = self.inputs / self.count, self.targets / self.count
        return Moments(
            self.count,
            x,
            y,
            self.gram / self.count - x[:, :, None] * x[:, None],
            self.cross / self.count - x[:, :, None] * y[:, None],
            self.squares / self.count - y.square(),
        )

    def around_zero(self) -> Moments:
        """Return means, those of products around zero: a fit has no intercept."""
        zeros = torch.zeros_like(self.inputs), torch.zeros_like(self.targets)
        products = (self.gram, self.cross, self.squares)
        return Moments(self.count, *zeros, *(part / self.count for part in products))


@dataclass(frozen=True)
class Fit:
    """A layer as ``scale * W x + offset``.

    Args:
        weights: ``(G, O, K)``.
        scale: ``(G, O)``; not 1 only where a norm follows.
        offset: ``(G, O)``.
    """

    weights: Tensor
    scale: Tensor
    offset: Tensor

    def where(self, chosen: Tensor, other: Fit) -> Fit:
        """Take the chosen outputs, ``(G, O)``, and the rest from another fit."""
        return Fit(
            torch.where(chosen[..., None], self.weights, other.weights),
            torch.where(chosen, self.scale, other.scale),
            torch.where(chosen, self.offset, other.offset),
        )


@dataclass(frozen=True)
class Response:
    """What weights make of the rows of some moments, without scale and offset.

    Args:
        mean: Of ``W x``, ``(G, O)``.
        variance: Of ``W x``.
        covariance: Of ``W x`` and the targets.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor

    @staticmethod
    def from_weights(weights: Tensor, moments: Moments) -> Response:
        """Compute the response of weights ``(G, O, K)``."""
        return Response(
            (weights @ moments.inputs[..., None])[..., 0],
            ((weights @ moments.gram) * weights).sum(2),
            (weights * moments.cross.mT).sum(2),
        )

    def errors(self, fit: Fit, moments: Moments) -> Tensor:
        """Return the mean squared error of each output with the scale and offset of a fit."""
        bias = fit.scale * self.mean + fit.offset - moments.targets
        spread = fit.scale.square() * self.variance - 2 * fit.scale * self.covariance
        return moments.squares + spread + bias.square()

    def nearest(self, weights: Tensor, moments: Moments) -> Fit:
        """Return the scale and offset of a norm behind a layer that come nearest to the targets.

        They lie between the statistics of the pretrained norm (1 and its offset) and those of the
        images (the deviation of the targets over that of the outputs): the less the outputs tell
        of the targets, the smaller the scale. A choice of the first two for each channel by the
        images held out was worse on photographs (kernel 3 to 1: 61.4 to 62.7 % against 81.0 %).
        """
        scale = self.covariance / self.variance.clamp_min(_TINY)
        scale = torch.where(self.variance > _TINY, scale, 1.0)
        return Fit(weights, scale, moments.targets - scale * self.mean)


def ridge(moments: Moments, prior: Tensor, strength: float) -> Tensor:
    """Solve for the weights with the least squared error and the least distance to prior ones.

    Args:
        moments: Means of the rows to fit.
        prior: ``(G, O, K)``.
        strength: Weight of the distance, relative to the mean variance of an input.

    Returns:
        Weights ``(G, O, K)``.
    """
    gram = moments.gram
    level = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY)[:, None, None] * strength
    factor = torch.linalg.cholesky(gram + level * torch.eye(gram.shape[1], dtype=gram.dtype))
    return torch.cholesky_solve(moments.cross + level * prior.mT, factor).mT


def low_rank(weights: Tensor, moments: Moments, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors ``(O, rank)`` and ``(rank, K)`` whose product keeps most of the outputs.

    Reduced-rank regression (Izenman 1975): the projection of the fitted outputs on their first
    principal components.
    """
    spread = weights @ moments.gram[0] @ weights.T
    back = torch.linalg.eigh(spread)[1][:, -rank:]
    reduced = back.T @ weights
    size = reduced.norm(dim=1).clamp_min(_TINY).sqrt()  # the factors get the same size
    return back * size, reduced / size[:, None]
