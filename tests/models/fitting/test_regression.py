"""Regressions from sums of products are those of all rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autotune.models.fitting.regression import (
    Fit,
    Moments,
    Response,
    low_rank,
    ridge,
)

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


INPUTS = drawn(3, 200, 5) + 1.0  # three groups
WEIGHTS = drawn(3, 4, 5)
TARGETS = INPUTS @ WEIGHTS.mT + 2.0 + 0.1 * drawn(3, 200, 4)


def moments(inputs: Tensor = INPUTS, targets: Tensor = TARGETS) -> Moments:
    parts = zip(inputs.split(70, 1), targets.split(70, 1), strict=True)
    first, *rest = (Moments.from_rows(x, y) for x, y in parts)
    return sum(rest, first)


def errors(fit: Fit, part: Moments) -> Tensor:
    return Response.from_weights(fit.weights, part).errors(fit, part)


@pytest.mark.parametrize("has_intercept", [True, False])
def test_a_weak_ridge_is_least_squares(has_intercept: bool) -> None:
    sums = moments()
    part = sums.centered() if has_intercept else sums.around_zero()
    found = ridge(part, torch.zeros_like(WEIGHTS), 1e-12)
    ones = torch.ones(3, 200, 1, dtype=torch.float64)
    design = torch.cat([INPUTS, ones], 2) if has_intercept else INPUTS
    expected = torch.linalg.lstsq(design, TARGETS).solution.mT
    torch.testing.assert_close(found, expected[..., :5])


def test_a_strong_ridge_keeps_the_prior() -> None:
    torch.testing.assert_close(ridge(moments().centered(), WEIGHTS + 1, 1e9), WEIGHTS + 1)


def test_inputs_that_never_differ_keep_the_prior() -> None:
    inputs = INPUTS.clone()
    inputs[..., 2] = 0.0
    found = ridge(moments(inputs).centered(), WEIGHTS, 1e-3)
    torch.testing.assert_close(found[..., 2], WEIGHTS[..., 2])


def test_errors_are_those_of_the_rows() -> None:
    fit = Fit(WEIGHTS, torch.full((3, 4), 0.5), torch.full((3, 4), 0.3))
    rows = 0.5 * INPUTS @ WEIGHTS.mT + 0.3 - TARGETS
    torch.testing.assert_close(errors(fit, moments().centered()), rows.square().mean(1))
    without = Fit(WEIGHTS, torch.ones(3, 4), torch.zeros(3, 4))
    rows = INPUTS @ WEIGHTS.mT - TARGETS
    torch.testing.assert_close(errors(without, moments().around_zero()), rows.square().mean(1))


def test_the_nearest_norm_lies_between_kept_and_measured_statistics() -> None:
    part = moments().centered()
    weights = 0.7 * WEIGHTS + 0.3 * drawn(3, 4, 5)
    response = Response.from_weights(weights, part)
    nearest = response.nearest(weights, part)
    torch.testing.assert_close(nearest.scale * response.mean + nearest.offset, TARGETS.mean(1))
    measured = (part.squares / response.variance).sqrt()
    for scale in (measured, torch.ones_like(measured)):
        other = Fit(weights, scale, part.targets - scale * response.mean)
        assert bool((errors(nearest, part) <= errors(other, part)).all())


def test_factors_of_a_low_rank_keep_most_of_the_outputs() -> None:
    part = moments(INPUTS[:1], TARGETS[:1]).centered()
    back, reduced = low_rank(WEIGHTS[0], part, 2)
    assert back.shape == (4, 2) and reduced.shape == (2, 5)
    outputs = (INPUTS[0] - INPUTS[0].mean(0)) @ WEIGHTS[0].T
    off = outputs - (INPUTS[0] - INPUTS[0].mean(0)) @ (back @ reduced).T
    values = torch.linalg.svdvals(outputs)
    torch.testing.assert_close(off.square().sum(), values[2:].square().sum())
    back, reduced = low_rank(WEIGHTS[0], part, 4)
    torch.testing.assert_close(back @ reduced, WEIGHTS[0])
