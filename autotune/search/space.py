"""The static space of a study: dimensions of the study file <-> Optuna distributions <-> plans.

Every trial of a study suggests the same parameters with the same distributions (TPE and the GP
model jointly only what all trials share, optuna issue 5299). A parameter that a choice makes
meaningless takes its inert value: the *canonical form*. Equal canonical parameters mean equal
plans, and the samplers learn from all of them.

A layer has only the values that it can take, and the one that it has already is called ``keep``.
What a layer can take is worked out once; a study stores its space.

Where a study has several backbones, ``backbone`` is the first parameter, and
:mod:`autotune.search.backbone_limits` says what the others mean to each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)

from autotune.config.fields import Dimension, largest, values_of_dimension
from autotune.config.schema import BaselineConfig, SpaceConfig
from autotune.format_versions import refuse_unknown
from autotune.plan import (
    INHERITING,
    KEEP,
    HeadPlan,
    HiddenLayer,
    LayerPlan,
    TrainingPolicy,
    TrialPlan,
)
from autotune.search.backbone_limits import (
    AllowedValues,
    BackboneLimits,
    Candidate,
    limits_by_backbone,
    shared_dimension,
)
from autotune.search.dimensions import (
    contains,
    inactive_value,
    integer_values,
    nearest_in,
    only_value,
    to_distribution,
)

if TYPE_CHECKING:
    from autotune.models.surgery.capabilities import LayerCapabilities

Params = dict[str, Any]
LAYER_FIELDS = tuple(one.name for one in fields(LayerPlan))
POLICY_FIELDS = tuple(one.name for one in fields(TrainingPolicy))
#: Fields of plans whose key in a study file has another name.
KEY_NAMES = {"bridge": "low_rank", "head_epochs": "head_only_epochs"}

#: The name of any parameter of a space.
_PARAMETER = re.compile(
    r"backbone|depth|inherit|head\.(pool|hidden_layers|activation|batch_norm|(units|dropout)\.\d+)"
    rf"|layer\.\d+\.({'|'.join(LAYER_FIELDS)})|training\.({'|'.join(POLICY_FIELDS)})"
)

#: Fields of the policy that mean nothing without trainable layers (``momentum``: without SGD),
#: with the value that they have then.
INACTIVE_POLICY = {
    name: getattr(TrainingPolicy(), name)
    for name in ("layer_decay", "momentum", "head_epochs", "l2_sp")
}


def num_shaped_layers(config: SpaceConfig) -> int:
    """Return how many of the last layers a space may reshape: 0 where all fields are ``keep``."""
    dimensions = [getattr(config.layers, KEY_NAMES.get(name, name)) for name in LAYER_FIELDS]
    if all(values_of_dimension(one) == [KEEP] for one in dimensions):
        return 0
    return min(int(largest(config.trainable_layers)), config.layers.max_layers)


@dataclass(frozen=True)
class Space:
    """The static space of one study.

    Args:
        backbone: timm model name with its pretrained tag; of several, the one of the baseline.
        fixed: Parameters that have one value, by name.
        distributions: The searched parameters, by name, always in the same order.
        limits: What each of several backbones takes of it, by name; empty where there is one.
    """

    backbone: str
    fixed: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    limits: Mapping[str, BackboneLimits] = field(default_factory=dict)

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of all backbones, that of the baseline first."""
        return tuple(self.limits) or (self.backbone,)

    @property
    def deepest(self) -> int:
        """The greatest depth of any plan of any backbone."""
        searched = self.distributions.get("depth")
        return int(self.fixed["depth"]) if searched is None else max(integer_values(searched))

    @staticmethod
    def from_config(
        backbone: str, config: SpaceConfig, inherit: Dimension, offers: Sequence[LayerCapabilities]
    ) -> Space:
        """Build the space that a study file with one backbone describes.

        Args:
            backbone: timm model name with its pretrained tag.
            config: The ``space`` section.
            inherit: The ``init`` key, as plans store it.
            offers: What the last :func:`reach` layers can become; a layer without an offer keeps
                its shape.
        """
        return Space.from_candidates([Candidate(backbone, len(offers), offers)], config, inherit)

    @staticmethod
    def from_candidates(
        candidates: Sequence[Candidate], config: SpaceConfig, inherit: Dimension
    ) -> Space:
        """Build the space that a study file describes.

        Parameters that no trial could give a meaning (the units of a hidden layer that is never
        there, a field that the layer has to keep) are left out.

        Args:
            candidates: The backbones, that of the baseline first.
            config: The ``space`` section.
            inherit: The ``init`` key, as plans store it.
        """
        names = [candidate.name for candidate in candidates]
        dimensions: dict[str, tuple[Any, bool]] = {}
        own: dict[str, AllowedValues] = {}
        if len(names) > 1:
            dimensions["backbone"] = (names, False)
        dimensions["depth"] = (config.trainable_layers, True)
        for index in range(1, num_shaped_layers(config) + 1):
            for name in LAYER_FIELDS:
                meanings = [partial(one.in_layer, index, name) for one in candidates]
                shared, values = shared_dimension(
                    getattr(config.layers, KEY_NAMES.get(name, name)), meanings
                )
                if values_of_dimension(shared) != [KEEP]:
                    dimensions[f"layer.{index}.{name}"] = (shared, False)
                    own[f"layer.{index}.{name}"] = values
        if any(name.endswith(INHERITING) for name in dimensions):
            dimensions["inherit"] = (inherit, False)
        head = config.head
        pool, own["head.pool"] = shared_dimension(head.pool, [one.in_head for one in candidates])
        dimensions["head.pool"] = (pool, False)
        dimensions["head.hidden_layers"] = (head.hidden_layers, True)
        hidden = largest(head.hidden_layers)
        if hidden:
            dimensions["head.activation"] = (head.activation, False)
            dimensions["head.batch_norm"] = (head.batch_norm, False)
        for layer in range(1, hidden + 1):
            dimensions[f"head.units.{layer}"] = (head.units, True)
            dimensions[f"head.dropout.{layer}"] = (head.dropout, False)
        for name in POLICY_FIELDS:
            whole = isinstance(getattr(TrainingPolicy(), name), int)
            dimensions[f"training.{name}"] = (
                getattr(config.training, KEY_NAMES.get(name, name)),
                whole,
            )
        fixed: Params = {}
        distributions: dict[str, BaseDistribution] = {}
        for name, (dimension, integer) in dimensions.items():
            found = to_distribution(dimension, integer)
            if found is None:
                fixed[name] = only_value(dimension)
            else:
                distributions[name] = found
        limits = limits_by_backbone(candidates, own) if len(names) > 1 else {}
        return Space(names[0], fixed, distributions, limits)

    @property
    def most_head_epochs(self) -> int:
        """The most epochs for which a plan of the space trains its head alone."""
        name = "training.head_epochs"
        found = self.distributions.get(name)
        if found is None:
            return int(self.fixed.get(name, 0))
        return max(integer_values(found))

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON values, ready for a study's user attributes."""
        limits = {name: one.to_json() for name, one in self.limits.items()}
        return {
            "backbone": self.backbone,
            **({"limits": limits} if limits else {}),
            "fixed": dict(self.fixed),
            "distributions": {
                name: json.loads(distribution_to_json(found))
                for name, found in self.distributions.items()
            },
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Space:
        """Build a space from what :meth:`to_json` returned.

        A field of the training policy that it does not have, because it was stored before there
        was one, has its default.

        Raises:
            KeyError: When a part is missing.
            TypeError: When there is a part or a parameter that no space has.
            ValueError: When there is a distribution that Optuna does not know.
        """
        refuse_unknown(values, ("backbone", "limits", "fixed", "distributions"), "a space")
        for name in (*values["distributions"], *values["fixed"]):
            if not _PARAMETER.fullmatch(name):
                raise TypeError(f"a space has no parameter {name!r}")
        distributions = {
            name: json_to_distribution(json.dumps(found))
            for name, found in values["distributions"].items()
        }
        policy = asdict(TrainingPolicy())
        unknown = {
            f"training.{name}": policy[name]
            for name in POLICY_FIELDS
            if f"training.{name}" not in {*distributions, *values["fixed"]}
        }
        return Space(
            values["backbone"],
            {**values["fixed"], **unknown},
            distributions,
            {
                name: BackboneLimits.from_json(one)
                for name, one in values.get("limits", {}).items()
            },
        )

    def canonical(self, params: Mapping[str, Any]) -> Params:
        """Replace parameters that have no meaning under the others by their inert value.

        Args:
            params: A value for every searched parameter.

        Returns:
            The same parameters in canonical form, in the order of the space.
        """
        values = self._meant(params)
        result = {
            name: self._written(name, values) if is_active(name, values) else inactive_value(found)
            for name, found in self.distributions.items()
        }
        if result.get("inherit") == "data" and not _changes(values, ("width",)):
            # There is nothing that training images could choose.
            chosen = self.distributions["inherit"]
            result["inherit"] = "weights" if contains(chosen, "weights") else "data"
        return result

    def _meant(self, params: Mapping[str, Any]) -> Params:
        """Return the values of all parameters as the chosen backbone takes them."""
        values = {**self.fixed, **params}
        return self.limits[values["backbone"]].meaning(values) if self.limits else values

    def _written(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the value by which a parameter says what the chosen backbone makes of it.

        That is another one only where the distribution does not have it: the depth of all of its
        layers where one can only ask for more, and ``keep`` where no other backbone has that.
        """
        found, value = self.distributions[name], values[name]
        if not self.limits or contains(found, value):
            return value
        limits = self.limits[values["backbone"]]
        if name == "depth" and value == limits.layers:
            return min((one for one in integer_values(found) if one > value), default=value)
        return inactive_value(found) if name in limits.allowed else value

    def plan(self, params: Mapping[str, Any]) -> TrialPlan:
        """Build the trial plan that parameters describe.

        Args:
            params: A value for every searched parameter.
        """
        values = self._meant(self.canonical(params))
        hidden = tuple(
            HiddenLayer(int(values[f"head.units.{i}"]), float(values[f"head.dropout.{i}"]))
            for i in range(1, values["head.hidden_layers"] + 1)
        )
        policy = {name: values[f"training.{name}"] for name in POLICY_FIELDS}
        for name, inert in INACTIVE_POLICY.items():
            if not is_active(f"training.{name}", values):
                policy[name] = inert
        layers = tuple(
            LayerPlan(**{name: values.get(f"layer.{i}.{name}", KEEP) for name in LAYER_FIELDS})
            for i in range(1, values["depth"] + 1)
        )
        head = HeadPlan(hidden, values["head.pool"])
        if hidden:
            head = replace(
                head, activation=values["head.activation"], batch_norm=values["head.batch_norm"]
            )
        inherits = "inherit" in values and is_active("inherit", values)
        return TrialPlan(
            backbone=values.get("backbone", self.backbone),
            depth=values["depth"],
            layers=layers,
            head=head,
            policy=TrainingPolicy(**policy),
            inherit=values["inherit"] if inherits else "weights",
        )

    def params(self, plan: TrialPlan) -> Params | None:
        """Return the canonical parameters of a plan, ``None`` when it is not in the space."""
        if plan.backbone not in self.backbones:
            return None
        values = plan_values(plan)
        searched = {
            name: values.get(name, inactive_value(found))
            for name, found in self.distributions.items()
        }
        canonical = self.canonical(searched)
        if not all(contains(found, canonical[name]) for name, found in self.distributions.items()):
            return None
        return canonical if self.plan(canonical) == plan else None

    def nearest(self, plan: TrialPlan) -> Params:
        """Return the canonical parameters of what is nearest to a plan in the space."""
        values = plan_values(plan)
        return self.canonical(
            {
                name: nearest_in(found, values.get(name, inactive_value(found)))
                for name, found in self.distributions.items()
            }
        )

    def baseline(self, config: BaselineConfig | None = None) -> TrialPlan:
        """Return the plan of trial 0: the untouched backbone, only a linear head trained.

        This is step 1 of AutoTune (Basha et al. 2020): replace the softmax layer, train it
        alone. Of several backbones it is the first one.

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
                policy[name] = nearest_in(self.distributions[key], default)
        momentum = (
            policy["momentum"] if policy["optimizer"] == "sgd" else INACTIVE_POLICY["momentum"]
        )
        policy |= {**INACTIVE_POLICY, "momentum": momentum}
        return TrialPlan(self.backbone, policy=TrainingPolicy(**policy))


def plan_values(plan: TrialPlan) -> Params:
    """Return what a plan says, under the names that parameters of a space have."""
    values: Params = {
        "backbone": plan.backbone,
        "depth": plan.depth,
        "inherit": plan.inherit,
        "head.pool": plan.head.pool,
        "head.hidden_layers": len(plan.head.hidden),
        "head.activation": plan.head.activation,
        "head.batch_norm": plan.head.batch_norm,
    }
    for index, planned in enumerate(plan.layers, start=1):
        for name in LAYER_FIELDS:
            values[f"layer.{index}.{name}"] = getattr(planned, name)
    for index, layer in enumerate(plan.head.hidden, start=1):
        values[f"head.units.{index}"] = layer.units
        values[f"head.dropout.{index}"] = layer.dropout
    for name in POLICY_FIELDS:
        values[f"training.{name}"] = getattr(plan.policy, name)
    return values


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a parameter has an effect under the values of all others."""
    if name.startswith("layer."):
        return int(name.split(".")[1]) <= int(values["depth"])
    if name == "inherit":
        return _changes(values, INHERITING)
    if name in ("head.activation", "head.batch_norm"):
        return bool(values["head.hidden_layers"])
    if name.startswith(("head.units.", "head.dropout.")):
        return int(name.rsplit(".", 1)[1]) <= int(values["head.hidden_layers"])
    if name == "training.momentum":
        return bool(values["training.optimizer"] == "sgd")
    return name.removeprefix("training.") not in INACTIVE_POLICY or bool(values["depth"])


def _changes(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Tell whether a trainable layer changes one of some fields."""
    return any(
        values.get(f"layer.{index}.{name}", KEEP) != KEEP
        for index in range(1, values["depth"] + 1)
        for name in names
    )
