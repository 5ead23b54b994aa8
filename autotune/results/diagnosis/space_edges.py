"""Does the best plan lie at the edge of the space? Then a wider range may hold a better one.

The question is that of the Deep Learning Tuning Playbook (Godbole et al. 2023, "Identifying bad
search space boundaries"): https://github.com/google-research/tuning_playbook
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from autotune.config.fields import values_of_dimension
from autotune.config.loading import get_dotted
from autotune.config.old_names import KEYS
from autotune.results.study_results import StudyResults
from autotune.search.parameters.by_optimizer import (
    RANGES,
    optimizer_of,
    own_dimensions,
    shared_name,
)
from autotune.search.space_checks import rule_problem

#: Share of a range that is its edge.
_MARGIN = 0.05
_OPTIMIZER = "space.training.optimizer"
_KEYS_OF_IMAGES = {
    "image_size": "data.image_size",
    "augment_strength": "training.augment.strength",
}


@dataclass(frozen=True)
class Edge:
    """A parameter whose best value lies at the edge of the space.

    Args:
        parameter: Its name.
        value: The best value, written.
        side: ``lower`` or ``upper``.
        bound: The bound of the space, written.
        can_be_widened: Whether a study file could ask for values beyond it.
    """

    parameter: str
    value: str
    side: str
    bound: str
    can_be_widened: bool


def space_edges(results: StudyResults, trial: FrozenTrial) -> tuple[Edge, ...]:
    """Find the parameters of a trial that lie at the edge of the space.

    A number is at the edge within 5 % of the range (in decades where the range is logarithmic);
    a choice among three or more numbers when it is the smallest or the largest.
    """
    layers = len(results.layers_of(trial))
    # What bounds these is not a rule of the key but the backbone, or the rest of the study file.
    most = {"depth": layers, "training.head_epochs": results.epochs - 1}
    edges = []
    for name, distribution in trial.distributions.items():
        if not results.is_active(trial, name):
            continue
        value = trial.params[name]
        if name == "depth" and layers:
            distribution, value = _up_to(layers, distribution), min(value, layers)
        if edge := _edge(distribution, value):
            side, bound, beyond = edge
            can_be_widened = not rule_problem(name, beyond) and not (
                beyond > most.get(name, 0) > 0
            )
            edges.append(Edge(name, f"{value:.3g}", side, f"{bound:.3g}", can_be_widened))
    return tuple(edges)


def _up_to(layers: int, distribution: BaseDistribution) -> BaseDistribution:
    """Return the depths that a backbone can have; of several, others may have more layers."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [min(depth, layers) for depth in distribution.choices if isinstance(depth, int)]
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    if isinstance(distribution, IntDistribution) and distribution.low < layers < distribution.high:
        return IntDistribution(distribution.low, layers, log=distribution.log)
    return distribution


def _edge(distribution: BaseDistribution, value: Any) -> tuple[str, float, float] | None:
    """Return the side a value is at, if any, the bound there, and a value beyond it."""
    scale: Callable[[float], float] = float
    step = margin = 0.0
    if isinstance(distribution, IntDistribution | FloatDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step or 0.0
        scale = math.log10 if distribution.log else float
        if step and (high - low) / step < 2:
            return None  # of two values one is always at the edge
        margin = _MARGIN * (scale(high) - scale(low))
    else:
        choices = getattr(distribution, "choices", ())
        numbers = [choice for choice in choices if isinstance(choice, int | float)]
        if len(numbers) < max(3, len(choices)):
            return None
        low, high = min(numbers), max(numbers)
    is_whole = isinstance(low, int) and isinstance(high, int)
    doubles = scale is math.log10 and not is_whole
    further = max(step, 1) if is_whole else step or 0.1 * (high - low)
    if scale(value) - scale(low) <= margin:
        return "lower", low, low / 2 if doubles else low - further
    if scale(high) - scale(value) <= margin:
        return "upper", high, high * 2 if doubles else high + further
    return None


def wider_range(results: StudyResults, edge: Edge, layers: int) -> tuple[str, Any] | None:
    """Return the key of a study file that widens a range beyond an edge, and its new value.

    A range is widened by half of it, in decades where it is logarithmic, or by as much of that as
    the key allows.

    Args:
        results: The study.
        edge: One of its edges.
        layers: Layers of the backbone: no more can train.

    Returns:
        ``None`` where the study file has no range of numbers there.
    """
    key = _key_of(edge.parameter)
    searched, owned = get_dotted(results.definition, key), {}
    if (shared := shared_name(edge.parameter)) in RANGES:
        optimizers = values_of_dimension(get_dotted(results.definition, _OPTIMIZER))
        owned = own_dimensions(shared, searched, optimizers)
        searched = owned.get(edge.parameter)
    if not edge.can_be_widened:
        return None
    side = "low" if edge.side == "lower" else "high"
    sign = -1.0 if edge.side == "lower" else 1.0
    for share in (0.5, 0.25, 0.1, 0.05):
        if isinstance(searched, Mapping) and {"low", "high"} <= searched.keys():
            bound = _beyond(searched, side, sign * share)
            bound = min(bound, layers) if edge.parameter == "depth" else bound
            wider: Any = {**searched, side: bound}
        elif isinstance(searched, list) and all(isinstance(v, int | float) for v in searched):
            bound = max(searched) * 2 if sign > 0 else min(searched) / 2
            bound = int(bound) if isinstance(searched[0], int) else bound
            wider = [*searched, bound] if sign > 0 else [bound, *searched]
        else:
            return None
        if wider != searched and not rule_problem(edge.parameter, wider):
            others = {optimizer_of(name): own for name, own in owned.items()}
            own = optimizer_of(edge.parameter)
            return key, {**others, own: wider} if own else wider
    return None


def _beyond(searched: Mapping[str, Any], side: str, share: float) -> Any:
    """Return the bound of a range, moved outwards by a share of the range."""
    low, high, step = searched["low"], searched["high"], searched.get("step")
    if searched.get("log"):
        bound = searched[side] * (high / low) ** share
        bound = float(f"{bound:.1g}")  # two digits would look as if they mattered
        return int(bound) if isinstance(low, int) else bound
    move = share * (high - low)
    if step or isinstance(low, int):
        size = step or 1
        move = math.copysign(max(1, round(abs(move) / size)) * size, share)
    bound = searched[side] + move
    return int(bound) if isinstance(low, int) else float(f"{bound:.6g}")


def _key_of(parameter: str) -> str:
    """Return the key of the study file that gives a parameter its range."""
    if parameter in _KEYS_OF_IMAGES:
        return _KEYS_OF_IMAGES[parameter]
    section, _, key = parameter.partition(".")
    if section == "layer":  # layer.1.dropout is the key layers.dropout
        section, key = "layers", key.partition(".")[2]
    else:
        key = key.rsplit(".", 1)[0]  # head.units.1 is the key head.units
    # Parameters are stored under the names that keys had in version 0.1.
    old = f"space.{section}.{key}" if key else f"space.{section}"
    return KEYS.get(old, old)
