"""The linear head that fits features best: logistic regression, solved and not trained.

A frozen network needs no epochs for its head. The features are computed once, and L-BFGS finds the
weights in seconds, along a path of strengths of the penalty; the strength is that with the lowest
log loss on held-out images (the linear probe of Radford et al. 2021, CLIP, appendix A.3, which
searches the strength for each data set).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

#: Strengths of the penalty, the strongest first: each solution is the start of the next one.
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(0, -11, -1))
#: Strengths after the best one that are tried before the path ends.
PATIENCE = 2
#: Steps of L-BFGS for each strength.
ITERATIONS = 50
#: Share of the training images that choose the strength where there are no other images.
HELD_OUT = 5


@dataclass(frozen=True)
class LinearHead:
    """A solved head.

    Args:
        weight: ``(classes, F)``.
        bias: ``(classes,)``.
        strength: The chosen strength of the penalty.
        loss: Mean log loss on the training images, in nats.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    loss: float


def solve_head(
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None,
    classes: int,
    balanced: bool = False,
) -> LinearHead:
    """Solve multinomial logistic regression with an L2 penalty on the weights.

    Features are standardized, so that the penalty treats all of them alike; the returned weights
    take the features as they are. The penalty of the strength ``s`` adds ``s / 2`` times the mean
    of the squared weights of all classes to the mean log loss.

    Args:
        train: Features ``(N, F)`` and labels, int64 ``(N,)``.
        held_out: The same of images that choose the strength; ``None`` takes every fifth training
            image of each class for it, and solves again with all of them.
        classes: Number of classes.
        balanced: Whether every class has the same weight in the loss.
    """
    features, labels = train
    if held_out is None:
        chosen = _every_fifth(labels)
        kept, rest = (features[~chosen], labels[~chosen]), (features[chosen], labels[chosen])
        if len(rest[1]) == 0:
            return _Problem(features, labels, classes, balanced).path(STRENGTHS[:1], None)
        strength = _Problem(*kept, classes, balanced).path(STRENGTHS, rest).strength
        down_to = [value for value in STRENGTHS if value >= strength]
        return _Problem(features, labels, classes, balanced).path(down_to, None)
    return _Problem(features, labels, classes, balanced).path(STRENGTHS, held_out)


def _every_fifth(labels: Tensor) -> Tensor:
    """Mark every fifth image of each class; of a class with fewer than five none."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in set(labels.tolist()):
        positions = torch.nonzero(labels == label).flatten()
        chosen[positions[HELD_OUT - 1 :: HELD_OUT]] = True
    return chosen


class _Problem:
    """One set of training images, standardized."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, balanced: bool) -> None:
        self.mean = features.mean(0)
        # A feature that never changes says nothing; it must not be divided by zero.
        spread = features.std(0, correction=0)
        changes = (spread > 0) & (spread > 1e-5 * self.mean.abs())  # beyond rounding
        self.scale = torch.where(changes, spread, math.inf)
        self.features = (features - self.mean) / self.scale
        self.labels = labels
        self.class_weights: Tensor | None = None
        if balanced:
            counts = torch.bincount(labels, minlength=classes).clamp_min(1)
            self.class_weights = (len(labels) / counts).to(features.dtype)
        self.weight = torch.zeros(classes, features.shape[1], device=features.device)
        self.bias = torch.zeros(classes, device=features.device)

    def path(
        self, strengths: Sequence[float], held_out: tuple[Tensor, Tensor] | None
    ) -> LinearHead:
        """Solve for each strength; return the best on held-out images, else the last."""
        best, lowest, waited = None, math.inf, 0
        for strength in strengths:
            self._solve(strength)
            solution = self._solution(strength)
            if held_out is None:
                best = solution
                continue
            features, labels = held_out
            logits = features @ solution.weight.T + solution.bias
            loss = float(cross_entropy(logits, labels))
            waited += 1
            if best is None or loss < lowest:
                best, lowest, waited = solution, loss, 0
            elif waited > PATIENCE:
                break
        assert best is not None, "there is at least one strength"
        return best

    def _solve(self, strength: float) -> None:
        weight, bias = (tensor.clone().requires_grad_() for tensor in (self.weight, self.bias))
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=ITERATIONS,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = self.features @ weight.T + bias
            penalty = 0.5 * strength * weight.square().sum() / weight.shape[1]
            loss: Tensor = cross_entropy(logits, self.labels, self.class_weights) + penalty
            torch.autograd.backward(loss)
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self.weight, self.bias = weight.detach(), bias.detach()

    def _solution(self, strength: float) -> LinearHead:
        weight = self.weight / self.scale
        bias = self.bias - weight @ self.mean
        loss = cross_entropy(self.features @ self.weight.T + self.bias, self.labels)
        return LinearHead(weight, bias, strength, float(loss))
