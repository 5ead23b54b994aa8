"""Does the best plan lie at the edge of the space? Then look further out.

The question is that of the Deep Learning Tuning Playbook (Godbole et al. 2023, "Identifying bad
search space boundaries"): https://github.com/google-research/tuning_playbook
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from autotune.config.schema import SpaceConfig
from autotune.results.figures.parameters import is_active
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs


@dataclass(frozen=True)
class Edge:
    """A parameter whose best value lies at the edge of the space.

    Args:
        parameter: Its name.
        value: The best value, in words.
        side: ``lower`` or ``upper``.
        bound: The bound of the space, in words.
        can_be_widened: Whether a study file could ask for values beyond it.
    """

    parameter: str
    value: str
    side: str
    bound: str
    can_be_widened: bool


def edges_of_space(study: Study | StudyResults, trial: FrozenTrial) -> tuple[Edge, ...]:
    """Find the parameters that say: look further out.

    A number is at the edge within 5 % of the range (in decades where the range is logarithmic);
    a choice among three or more numbers when it is the smallest or the largest.

    Args:
        study: The study.
        trial: Its best trial.
    """
    results = StudyResults.from_study(study)
    space = results.space
    layers = len(attrs.backbone_layers(results.attributes, attrs.trial_plan(trial)))
    epochs = results.attributes.get(attrs.DEFINITION, {}).get("training", {}).get("epochs", 0)
    # What bounds them is not a rule of the key: the backbone, the rest of the study file.
    most = {"depth": layers, "training.head_epochs": epochs - 1}
    edges = []
    for name, found in trial.distributions.items():
        if not is_active(space, trial, name):
            continue
        value = trial.params[name]
        if name == "depth" and layers:
            found, value = _up_to(layers, found), min(value, layers)
        side, bound, beyond = _side(found, value)
        if side:
            possible = _is_allowed(name, beyond) and not (beyond > most.get(name, 0) > 0)
            edges.append(Edge(name, f"{value:.3g}", side, f"{bound:.3g}", possible))
    return tuple(edges)


def _up_to(layers: int, found: BaseDistribution) -> BaseDistribution:
    """Return the depths that a backbone can have; of several, others may have more layers."""
    if isinstance(found, CategoricalDistribution):
        choices = [min(one, layers) for one in found.choices if isinstance(one, int)]
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    if isinstance(found, IntDistribution) and found.low < layers < found.high:
        return IntDistribution(found.low, layers, log=found.log)
    return found


def _side(found: BaseDistribution, value: Any) -> tuple[str, float, float]:
    """Return the side a value is at, if any, the bound there, and a value beyond it."""
    place: Callable[[float], float] = _identity
    if isinstance(found, CategoricalDistribution):
        numbers = [one for one in found.choices if isinstance(one, int | float)]
        if len(numbers) < max(3, len(found.choices)):
            return "", 0.0, 0.0
        low, high, step = min(numbers), max(numbers), 0.0
    else:
        assert isinstance(found, IntDistribution | FloatDistribution)
        low, high = found.low, found.high
        place = math.log10 if found.log else _identity
        step = found.step or 0.0
        if found.step and (high - low) / found.step < 2:
            return "", 0.0, 0.0  # of two values one is always at the edge
    span = place(high) - place(low)
    margin = 0.0 if isinstance(found, CategoricalDistribution) else 0.05 * span
    whole = isinstance(low, int) and isinstance(high, int)
    further = max(step, 1) if whole else step or 0.1 * (high - low)
    if place(value) - place(low) <= margin:
        return "lower", low, low / 2 if place is math.log10 and not whole else low - further
    if place(high) - place(value) <= margin:
        return "upper", high, high * 2 if place is math.log10 and not whole else high + further
    return "", 0.0, 0.0


def _identity(value: float) -> float:
    return value


def _is_allowed(parameter: str, value: float) -> bool:
    """Ask the rules of the study file whether a parameter could have a value."""
    section, _, key = parameter.partition(".")
    if section == "layer":  # layer.1.dropout is the key layers.dropout
        section, key = "layers", key.partition(".")[2]
    else:
        key = key.rsplit(".", 1)[0]  # head.units.1 is the key head.units
    try:
        SpaceConfig.model_validate({section: {key: value} if key else value})
    except ValidationError:
        return False
    return True
