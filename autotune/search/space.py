"""The static space of a study: dimensions of the study file <-> Optuna distributions <-> plans.

Every trial of a study suggests the same parameters with the same distributions (TPE and the GP
model jointly only what all trials share, optuna issue 5299). A parameter that a choice makes
meaningless takes its inert value: the *canonical form*. Equal canonical parameters mean equal
plans, and the samplers learn from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from autotune.config import BaselineConfig, SpaceConfig
from autotune.plan import (
    KEEP,
    HeadPlan,
    HiddenLayer,
    LayerPlan,
    TrainingPolicy,
    TrialPlan,
)

Params = dict[str, Any]
POLICY_FIELDS = ("optimizer", "lr", "layer_decay", "weight_decay", "label_smoothing")


def distribution(dimension: Any, integer: bool = False) -> BaseDistribution | None:
    """Turn a dimension of the study file into an Optuna distribution.

    Args:
        dimension: A single value, a list, or a range with ``low`` and ``high``.
        integer: Whether the numbers are whole.

    Returns:
        The distribution, or ``None`` when only one value is possible.
    """
    if isinstance(dimension, list):
        return CategoricalDistribution(dimension) if len(dimension) > 1 else None
    if not isinstance(dimension, dict) or dimension["low"] == dimension["high"]:
        return None
    if integer:
        return IntDistribution(
            dimension["low"],
            dimension["high"],
            log=dimension.get("log", False),
            step=dimension.get("step", 1),
        )
    return FloatDistribution(
        dimension["low"],
        dimension["high"],
        log=dimension.get("log", False),
        step=dimension.get("step"),
    )


def _only_value(dimension: Any) -> Any:
    """Return the value of a dimension that has just one."""
    if isinstance(dimension, list):
        return dimension[0]
    return dimension["low"] if isinstance(dimension, dict) else dimension


def _largest(dimension: Any) -> int:
    if isinstance(dimension, dict):
        return int(dimension["high"])
    return max(dimension) if isinstance(dimension, list) else int(dimension)


@dataclass(frozen=True)
class Space:
    """The static space of one study.

    Args:
        backbone: timm model name with its pretrained tag.
        fixed: Parameters that have one value, by name.
        distributions: The searched parameters, by name, always in the same order.
    """

    backbone: str
    fixed: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]

    @staticmethod
    def from_config(backbone: str, config: SpaceConfig) -> Space:
        """Build the space that the ``space`` section of a study file describes."""
        dimensions: dict[str, tuple[Any, bool]] = {
            "depth": (config.depth, True),
            "head.pool": (config.head.pool, False),
            "head.hidden_layers": (config.head.hidden_layers, True),
        }
        for layer in range(1, _largest(config.head.hidden_layers) + 1):
            dimensions[f"head.units.{layer}"] = (config.head.units, True)
            dimensions[f"head.dropout.{layer}"] = (config.head.dropout, False)
        for name in POLICY_FIELDS:
            dimensions[f"training.{name}"] = (getattr(config.training, name), False)
        fixed: Params = {}
        distributions: dict[str, BaseDistribution] = {}
        for name, (dimension, integer) in dimensions.items():
            found = distribution(dimension, integer)
            if found is None:
                fixed[name] = _only_value(dimension)
            else:
                distributions[name] = found
        return Space(backbone, fixed, distributions)

    def canonical(self, params: Mapping[str, Any]) -> Params:
        """Replace parameters that have no meaning under the others by their inert value.

        Args:
            params: A value for every searched parameter.

        Returns:
            The same parameters in canonical form, in the order of the space.
        """
        everything = {**self.fixed, **params}
        inert = {
            name
            for name in everything
            if (
                name.startswith(("head.units.", "head.dropout."))
                and int(name.rsplit(".", 1)[1]) > everything["head.hidden_layers"]
            )
            or (name == "training.layer_decay" and everything["depth"] == 0)
        }
        return {
            name: inert_value(found) if name in inert else params[name]
            for name, found in self.distributions.items()
        }

    def plan(self, params: Mapping[str, Any]) -> TrialPlan:
        """Build the trial plan that parameters describe.

        Args:
            params: A value for every searched parameter.
        """
        values = {**self.fixed, **self.canonical(params)}
        hidden = tuple(
            HiddenLayer(int(values[f"head.units.{i}"]), float(values[f"head.dropout.{i}"]))
            for i in range(1, values["head.hidden_layers"] + 1)
        )
        policy = {name: values[f"training.{name}"] for name in POLICY_FIELDS}
        if values["depth"] == 0:
            policy["layer_decay"] = 1.0
        return TrialPlan(
            backbone=self.backbone,
            depth=values["depth"],
            layers=(LayerPlan(),) * values["depth"],
            head=HeadPlan(hidden, values["head.pool"]),
            policy=TrainingPolicy(**policy),
        )

    def params(self, plan: TrialPlan) -> Params | None:
        """Return the canonical parameters of a plan, ``None`` when it is not in the space."""
        values: Params = {
            "depth": plan.depth,
            "head.pool": plan.head.pool,
            "head.hidden_layers": len(plan.head.hidden),
        }
        for index, layer in enumerate(plan.head.hidden, start=1):
            values[f"head.units.{index}"] = layer.units
            values[f"head.dropout.{index}"] = layer.dropout
        for name in POLICY_FIELDS:
            values[f"training.{name}"] = getattr(plan.policy, name)
        searched = {
            name: values.get(name, inert_value(found))
            for name, found in self.distributions.items()
        }
        canonical = self.canonical(searched)
        if not all(contains(found, canonical[name]) for name, found in self.distributions.items()):
            return None
        return canonical if self.plan(canonical) == plan else None

    def baseline(self, config: BaselineConfig | None = None) -> TrialPlan:
        """Return the plan of trial 0: the untouched backbone, only a linear head trained.

        This is step 1 of AutoTune (Basha et al. 2020): replace the softmax layer, train it
        alone.

        Args:
            config: The ``baseline`` section of the study file. What it leaves out takes the
                study's own value where that is fixed, and the default or the value of the space
                nearest to it where it is searched.
        """
        given = (config or BaselineConfig()).model_dump(exclude_none=True)
        policy: dict[str, Any] = {}
        for name in POLICY_FIELDS:
            key = f"training.{name}"
            default = getattr(TrainingPolicy(), name)
            if name in given:
                policy[name] = given[name]
            elif key in self.fixed:
                policy[name] = self.fixed[key]
            else:
                policy[name] = within(self.distributions[key], default)
        return TrialPlan(self.backbone, policy=TrainingPolicy(**{**policy, "layer_decay": 1.0}))


def suggest(trial: Trial, name: str, found: BaseDistribution) -> Any:
    """Have a trial suggest a parameter with a given distribution."""
    if isinstance(found, CategoricalDistribution):
        return trial.suggest_categorical(name, found.choices)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
    assert isinstance(found, FloatDistribution)
    return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)


def contains(found: BaseDistribution, value: Any) -> bool:
    """Tell whether a distribution can take a value."""
    if isinstance(found, CategoricalDistribution):
        return value in found.choices
    try:
        return found._contains(found.to_internal_repr(value))
    except ValueError:  # 0 on a logarithmic range
        return False


def within(found: BaseDistribution, value: Any) -> Any:
    """Return the value itself when a distribution can take it, else the nearest that it can.

    Near is meant by ratio on a logarithmic range and among positive choices, which are learning
    rates and the like. Among names none is near: the first one is returned.
    """
    if contains(found, value):
        return value
    if isinstance(found, CategoricalDistribution):
        numbers = [one for one in found.choices if isinstance(one, int | float)]
        if isinstance(value, str) or len(numbers) < len(found.choices):
            return found.choices[0]
        return _nearest(numbers, value, by_ratio=min(numbers) > 0 < value)
    assert isinstance(found, IntDistribution | FloatDistribution)
    clipped = min(max(value, found.low), found.high)
    if found.step is None or contains(found, clipped):
        return clipped
    steps = round((clipped - found.low) / found.step)
    # In decimals, as Optuna counts its steps.
    on_grid = Decimal(str(found.low)) + steps * Decimal(str(found.step))
    return min(type(found.low)(on_grid), found.high)


def _nearest(numbers: Sequence[float], value: float, by_ratio: bool) -> float:
    if by_ratio:
        return min(numbers, key=lambda one: abs(math.log(one / value)))
    return min(numbers, key=lambda one: abs(one - value))


def inert_value(found: BaseDistribution) -> Any:
    """Return the value that a parameter without meaning takes: its first choice or upper end.

    The upper end, because it is the neutral one where it matters: a layer decay of 1.
    """
    if isinstance(found, CategoricalDistribution):
        return KEEP if KEEP in found.choices else found.choices[0]
    assert isinstance(found, IntDistribution | FloatDistribution)
    return found.high
