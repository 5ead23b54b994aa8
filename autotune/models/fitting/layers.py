"""Fit changed layers, one after another, to what the pretrained network computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autotune.models.fitting.regression import (
    STRENGTHS,
    Fit,
    Moments,
    Response,
    low_rank,
    ridge,
)
from autotune.models.fitting.rows import measure
from autotune.models.fitting.sites import Runner, Site

logger = logging.getLogger(__name__)

#: Every which batch is held out: the errors on it choose.
HELD_OUT = 4


@torch.no_grad()
def fit_layers(
    student: Runner, teacher: Runner, sites: Sequence[Site], batches: Callable[[], Iterable[Any]]
) -> None:
    """Fit layers in the order in which they run, each to the outputs of the pretrained one.

    A layer sees what the layers before it compute that were fitted already. For each of its
    outputs the images that are held out choose between the weights it has and fitted ones.

    Args:
        student: The changed network, whose layers are fitted in place.
        teacher: The pretrained network.
        sites: See :func:`~autotune.models.fitting.sites.find_sites`.
        batches: Gives the same batches at every call, at least :data:`HELD_OUT`.
    """
    for site in sites:
        sums: dict[bool, Moments] = {}
        for number, batch in enumerate(batches()):
            moments = measure(student, teacher, site, batch)
            held_out = is_held_out(number)
            sums[held_out] = sums[held_out] + moments if held_out in sums else moments
        left = _fit_site(student.module, teacher.module, site, sums[False], sums[True])
        logger.debug("%s: %.0f %% of the error is left", site.name, 100 * left)


def is_held_out(number: int) -> bool:
    """Tell whether a batch is not fitted, but chooses between fits."""
    return number % HELD_OUT == HELD_OUT - 1


def _fit_site(
    student: nn.Module, teacher: nn.Module, site: Site, train: Moments, held_out: Moments
) -> float:
    """Fit a layer from the moments of its rows; return the share of its error that is left."""
    module: Any = student.get_submodule(site.name)
    last: Any = student.get_submodule(site.bridge) if site.bridge else module
    norm: Any = student.get_submodule(site.norm) if site.norm else None
    has_intercept = norm is not None or last.bias is not None
    moments, check = (
        part.centered() if has_intercept else part.around_zero() for part in (train, held_out)
    )
    prior = _prior(module, last, len(train.inputs))
    bias = torch.zeros_like(prior[..., 0])
    if module is not norm and last.bias is not None:
        bias = _double(last.bias).view_as(bias)
    best, least, plain = None, torch.zeros(()), 0.0
    for number, weights in enumerate(_weights(module, site, moments, prior)):
        seen, judged = (Response.from_weights(weights, part) for part in (moments, check))
        if norm is not None:
            fit = seen.nearest(weights, moments)
        else:
            offset = moments.targets - seen.mean if has_intercept and number else bias
            fit = Fit(weights, torch.ones_like(bias), offset)
        errors = judged.errors(fit, check)
        if site.bridge:  # its outputs share their factors
            errors = errors.mean().expand_as(errors)
        if best is None:
            best, least, plain = fit, errors, float(errors.sum())
        best, least = fit.where(errors < least, best), torch.minimum(errors, least)
    assert best is not None
    if site.bridge and not torch.equal(best.weights, prior):
        back, reduced = low_rank(best.weights[0], moments, module.weight.shape[0])
        module.weight.copy_(reduced.view_as(module.weight))
        last.weight.copy_(back.view_as(last.weight))
    elif module is not norm and not site.bridge:
        module.weight.copy_(best.weights.reshape(module.weight.shape))
    if norm is not None:
        _set_norm(norm, teacher.get_submodule(site.norm or ""), site, best, bias, moments)
    elif last.bias is not None:
        last.bias.copy_(best.offset.flatten())
    return float(least.sum()) / plain if plain > 0 else 1.0


def _prior(module: Any, last: Any, groups: int) -> Tensor:
    """Return the weights that a layer has, ``(G, O, K)``."""
    if isinstance(module, _BatchNorm):
        return torch.ones(groups, 1, 1, dtype=torch.float64)
    prior = _double(module.weight).flatten(1)
    if last is not module:
        prior = _double(last.weight).flatten(1) @ prior
    return prior.view(groups, -1, prior.shape[1])


def _weights(module: Any, site: Site, moments: Moments, prior: Tensor) -> Iterator[Tensor]:
    """Yield the weights that a layer has, and those of fits of several strengths."""
    yield prior
    for strength in () if isinstance(module, _BatchNorm) else STRENGTHS:
        fitted = ridge(moments, prior, strength)
        if site.bridge:
            back, reduced = low_rank(fitted[0], moments, module.weight.shape[0])
            fitted = (back @ reduced)[None]
        yield fitted


def _set_norm(norm: Any, old: Any, site: Site, fit: Fit, bias: Tensor, moments: Moments) -> None:
    """Give a norm the statistics of the images; its weight and bias take up the difference.

    So it computes what the pretrained one makes of ``fit``, in training mode as well, where a
    norm takes the statistics of the batch.
    """
    every = slice(None) if site.channels is None else site.channels
    deviation = (_double(old.running_var)[every] + old.eps).sqrt()
    response = Response.from_weights(fit.weights, moments)
    mean, variance = response.mean, response.variance
    center = (fit.scale * mean + fit.offset).flatten() - _double(old.running_mean)[every]
    norm.running_mean.copy_((mean + bias).flatten())
    norm.running_var.copy_(variance.flatten() * moments.count / max(1, moments.count - 1))
    if norm.weight is not None:
        gain = _double(old.weight)[every] / deviation
        spread = fit.scale.flatten() * (variance.flatten() + norm.eps).sqrt()
        norm.weight.copy_(gain * spread)
        norm.bias.copy_(_double(old.bias)[every] + gain * center)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
