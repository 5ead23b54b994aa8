"""The static space of a study: dimensions of the study file <-> Optuna distributions <-> plans.

Every trial of a study suggests the same parameters with the same distributions (TPE and the GP
model jointly only what all trials share, optuna issue 5299). A parameter that another choice
makes inactive takes a fixed value: the *canonical form*. Equal canonical parameters mean equal
plans, and the samplers learn from all trials.

A layer has only the values that it can take, and the one that it has already is called ``keep``.
What a layer can take is found out once; a study stores its space.

In a study of several backbones, ``backbone`` is the first parameter, and
:mod:`autotune.search.backbone_limits` resolves the others for each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from autotune.config.fields import Dimension, largest, values_of_dimension, without_all
from autotune.config.schema import OPTIMIZERS, BaselineConfig, SpaceConfig
from autotune.format_versions import refuse_unknown
from autotune.plan import (
    INHERITING,
    KEEP,
    OF_IMAGES,
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
from autotune.search.parameters.activity import changes_layer, is_active
from autotune.search.parameters.by_optimizer import (
    LR_RANGES,
    RANGES,
    head_lr,
    optimizer_of,
    own_dimensions,
    own_name,
    shared_name,
)
from autotune.search.parameters.dimensions import (
    contains,
    ends,
    inactive_value,
    integer_values,
    is_integer,
    nearest_in,
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
    rf"backbone|depth|inherit|{'|'.join(OF_IMAGES)}"
    r"|head\.(pool|hidden_layers|activation|batch_norm|(units|dropout)\.\d+)"
    rf"|layer\.\d+\.({'|'.join(LAYER_FIELDS)})|training\.({'|'.join(POLICY_FIELDS)})"
    rf"|({'|'.join(map(re.escape, RANGES))})\.({'|'.join(OPTIMIZERS)})"
)


def num_shaped_layers(config: SpaceConfig) -> int:
    """Return how many of the last layers a space may reshape: 0 where all fields are ``keep``."""
    dimensions = [getattr(config.layers, KEY_NAMES.get(name, name)) for name in LAYER_FIELDS]
    if all(values_of_dimension(dimension) == [KEEP] for dimension in dimensions):
        return 0
    most = config.layers.max_layers
    return min(int(largest(without_all(config.trainable_layers, most))), most)


@dataclass(frozen=True)
class Space:
    """The static space of one study.

    Args:
        backbone: timm model name with its pretrained tag; of several, that of the baseline.
        fixed: Parameters that have one value, by name.
        distributions: The searched parameters, by name, always in the same order.
        limits: What each of several backbones takes of it, by name; empty if there is only one.
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
    def max_depth(self) -> int:
        """The greatest depth of any plan of any backbone."""
        return self._largest("depth")

    @property
    def max_head_epochs(self) -> int:
        """The most epochs for which a plan trains its head only."""
        return self._largest("training.head_epochs")

    def _largest(self, name: str) -> int:
        searched = self.distributions.get(name)
        return int(self.fixed.get(name, 0)) if searched is None else max(integer_values(searched))

    @staticmethod
    def from_config(
        backbone: str, config: SpaceConfig, inherit: Dimension, offers: Sequence[LayerCapabilities]
    ) -> Space:
        """Build the space of a study file with one backbone."""
        return Space.from_candidates([Candidate(backbone, len(offers), offers)], config, inherit)

    @staticmethod
    def from_candidates(
        candidates: Sequence[Candidate],
        config: SpaceConfig,
        inherit: Dimension,
        images: Mapping[str, Dimension] = MappingProxyType({}),
    ) -> Space:
        """Build the space of a study file.

        ``images`` are the dimensions of :attr:`StudyConfig.image_dimensions`.

        Parameters that are inactive in every trial (the units of a hidden layer that no head has,
        a field that the layer has to keep) are left out.
        """
        names = [candidate.name for candidate in candidates]
        dimensions: dict[str, Any] = {}
        allowed: dict[str, AllowedValues] = {}
        if len(names) > 1:
            dimensions["backbone"] = names
        layers = max(candidate.layers for candidate in candidates)
        dimensions["depth"] = without_all(config.trainable_layers, layers)
        for index in range(1, num_shaped_layers(config) + 1):
            for name in LAYER_FIELDS:
                resolvers = [
                    partial(candidate.resolve_layer_value, index, name) for candidate in candidates
                ]
                shared, values = shared_dimension(
                    getattr(config.layers, KEY_NAMES.get(name, name)), resolvers
                )
                if values_of_dimension(shared) != [KEEP]:
                    dimensions[f"layer.{index}.{name}"] = shared
                    allowed[f"layer.{index}.{name}"] = values
        if any(name.endswith(INHERITING) for name in dimensions):
            dimensions["inherit"] = inherit
        head = config.head
        pools = [candidate.resolve_pool for candidate in candidates]
        dimensions["head.pool"], allowed["head.pool"] = shared_dimension(head.pool, pools)
        dimensions["head.hidden_layers"] = head.hidden_layers
        hidden = largest(head.hidden_layers)
        if hidden:
            dimensions["head.activation"] = head.activation
            dimensions["head.batch_norm"] = head.batch_norm
        for layer in range(1, hidden + 1):
            dimensions[f"head.units.{layer}"] = head.units
            dimensions[f"head.dropout.{layer}"] = head.dropout
        for name in POLICY_FIELDS:
            dimension = getattr(config.training, KEY_NAMES.get(name, name))
            if (parameter := f"training.{name}") in RANGES:
                optimizers = values_of_dimension(config.training.optimizer)
                dimensions |= own_dimensions(parameter, dimension, optimizers)
            else:
                dimensions[parameter] = dimension
        kinds = [candidate.resolve_parameters for candidate in candidates]
        dimensions["training.parameters"], allowed["training.parameters"] = shared_dimension(
            config.training.parameters, kinds
        )
        dimensions |= images
        fixed: Params = {}
        distributions: dict[str, BaseDistribution] = {}
        for name, dimension in dimensions.items():
            distribution = to_distribution(dimension, is_integer(name))
            if distribution is None:
                (fixed[name],) = values_of_dimension(dimension)
            else:
                distributions[name] = distribution
        limits = limits_by_backbone(candidates, allowed) if len(names) > 1 else {}
        return Space(names[0], fixed, distributions, limits)

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON values, ready for a study's user attributes."""
        limits = {name: own.to_json() for name, own in self.limits.items()}
        return {
            "backbone": self.backbone,
            **({"limits": limits} if limits else {}),
            "fixed": dict(self.fixed),
            "distributions": {
                name: json.loads(distribution_to_json(distribution))
                for name, distribution in self.distributions.items()
            },
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Space:
        """Build a space from what :meth:`to_json` returned.

        A field of the training policy that is missing, because the space was stored before the
        field existed, has its default.

        Raises:
            KeyError: When a part is missing.
            TypeError: When there is a part or a parameter that no space has.
            ValueError: When there is a distribution that Optuna does not know.
        """
        refuse_unknown(values, ("backbone", "limits", "fixed", "distributions"), "a space")
        given = {**values["distributions"], **values["fixed"]}
        for name in given:
            if not _PARAMETER.fullmatch(name):
                raise TypeError(f"a space has no parameter {name!r}")
        policy = {f"training.{name}": value for name, value in asdict(TrainingPolicy()).items()}
        for name in {shared_name(name) for name in given if optimizer_of(name)}:
            del policy[name]
        missing = {name: value for name, value in policy.items() if name not in given}
        return Space(
            values["backbone"],
            {**values["fixed"], **missing},
            {
                name: json_to_distribution(json.dumps(distribution))
                for name, distribution in values["distributions"].items()
            },
            {
                name: BackboneLimits.from_json(own)
                for name, own in values.get("limits", {}).items()
            },
        )

    def canonical(self, params: Mapping[str, Any]) -> Params:
        """Replace the values of inactive parameters by their fixed value."""
        values = self._resolve(params)
        result = {
            name: self._write(name, values)
            if is_active(name, values)
            else inactive_value(distribution)
            for name, distribution in self.distributions.items()
        }
        if result.get("inherit") == "data" and not changes_layer(values, ("width",)):
            # There are no channels that training images could choose.
            inherit = self.distributions["inherit"]
            result["inherit"] = "weights" if contains(inherit, "weights") else "data"
        return result

    def _resolve(self, params: Mapping[str, Any]) -> Params:
        """Return the values of all parameters as the chosen backbone takes them."""
        values = {**self.fixed, **params}
        return self.limits[values["backbone"]].resolve(values) if self.limits else values

    def _write(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return a value of the distribution that the chosen backbone resolves to a value.

        It is another one only if the distribution does not have the value: the depth of all of its
        layers if one can only ask for more, and ``keep`` if no other backbone has that.
        """
        distribution, value = self.distributions[name], values[name]
        if not self.limits or contains(distribution, value):
            return value
        limits = self.limits[values["backbone"]]
        if name == "depth" and value == limits.layers:
            return min((n for n in integer_values(distribution) if n > value), default=value)
        return inactive_value(distribution) if name in limits.allowed else value

    def plan(self, params: Mapping[str, Any]) -> TrialPlan:
        """Build the trial plan of parameters, a value for every searched one."""
        values = self._resolve(self.canonical(params))
        hidden = tuple(
            HiddenLayer(int(values[f"head.units.{i}"]), float(values[f"head.dropout.{i}"]))
            for i in range(1, values["head.hidden_layers"] + 1)
        )
        for name in RANGES:
            values[name] = values[own_name(values, name, values["training.optimizer"])]
        policy = {
            name: values[f"training.{name}"]
            for name in POLICY_FIELDS
            if is_active(f"training.{name}", values)
        }
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
            **{name: values[name] for name in OF_IMAGES if name in values},
        )

    def params(self, plan: TrialPlan) -> Params | None:
        """Return the canonical parameters of a plan, ``None`` if it is not in the space."""
        if plan.backbone not in self.backbones:
            return None
        canonical = self.canonical(self._values(plan))
        searched = self.distributions.items()
        if not all(contains(distribution, canonical[name]) for name, distribution in searched):
            return None
        return canonical if self.plan(canonical) == plan else None

    def nearest(self, plan: TrialPlan) -> Params:
        """Return the canonical parameters of the plan in the space that is nearest to a plan."""
        values = self._values(plan)
        return self.canonical(
            {
                name: nearest_in(distribution, values[name])
                for name, distribution in self.distributions.items()
            }
        )

    def _values(self, plan: TrialPlan) -> Params:
        """Return a value for every searched parameter, from a plan if it has one."""
        values = plan_values(plan)
        return {
            name: values.get(name, inactive_value(distribution))
            for name, distribution in self.distributions.items()
        }

    def baseline(self, config: BaselineConfig | None = None) -> TrialPlan:
        """Return the plan of trial 0: the unchanged backbone, only a linear head trained.

        This is step 1 of AutoTune (Basha et al. 2020): replace the softmax layer, train it
        alone. Of several backbones it is the first one, of several image sizes the largest, of
        several strengths of augmentation the smallest: what one would take without a search.

        Args:
            config: The ``baseline`` section of the study file. For a key that it omits, the value
                is that of the study if fixed, else the value of the space nearest to the default.
        """
        given = (config or BaselineConfig()).model_dump(exclude_none=True)
        policy: dict[str, Any] = {}
        for name, default in asdict(TrainingPolicy()).items():
            key = f"training.{name}"
            if key in RANGES:
                key = own_name({**self.fixed, **self.distributions}, key, policy["optimizer"])
            if name == "lr":
                default = self._default_lr(key, policy["optimizer"], default)
            if name in given:
                policy[name] = given[name]
            elif key in self.distributions:
                policy[name] = nearest_in(self.distributions[key], default)
            else:  # neither of an optimizer that the space does not have
                policy[name] = self.fixed.get(key, default)
        values = {f"training.{name}": value for name, value in policy.items()}
        values |= {"depth": 0, "head.hidden_layers": 0}
        active = {name: policy[name] for name in policy if is_active(f"training.{name}", values)}
        images = {name: self.fixed[name] for name in OF_IMAGES if name in self.fixed}
        for name, choose in (("image_size", max), ("augment_strength", min)):
            if name in self.distributions:
                images[name] = choose(ends(self.distributions[name]))
        return TrialPlan(self.backbone, policy=TrainingPolicy(**active), **images)

    def _default_lr(self, name: str, optimizer: str, default: float) -> float:
        """Return the rate that the baseline should have: its optimizer's where that has a range.

        A range of the study file keeps the default, as in earlier versions.
        """
        is_own = self.distributions.get(name) == to_distribution(LR_RANGES[optimizer])
        return head_lr(optimizer) if optimizer_of(name) or is_own else default


def plan_values(plan: TrialPlan) -> Params:
    """Return the values of a plan, under the names that parameters of a space have."""
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
        values |= {f"layer.{index}.{name}": getattr(planned, name) for name in LAYER_FIELDS}
    for index, layer in enumerate(plan.head.hidden, start=1):
        values |= {f"head.units.{index}": layer.units, f"head.dropout.{index}": layer.dropout}
    given = {name: getattr(plan, name) for name in OF_IMAGES}
    values |= {name: value for name, value in given.items() if value is not None}
    values |= {f"training.{name}": getattr(plan.policy, name) for name in POLICY_FIELDS}
    return values | {f"{name}.{plan.policy.optimizer}": values[name] for name in RANGES}


def active_params(space: Space | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a trial that have an effect under its other ones."""
    return {name: value for name, value in params.items() if has_effect(space, params, name)}


def has_effect(space: Space | None, params: Mapping[str, Any], parameter: str) -> bool:
    """Tell whether a searched parameter has an effect under the other ones of its trial.

    An inactive parameter has the same canonical form whatever its value.
    """
    if parameter not in params:
        return False
    if space is None or set(params) != set(space.distributions):
        return True
    distribution = space.distributions[parameter]
    if not space.limits and parameter != "inherit":
        # The same as below at a fiftieth of the time: whether a parameter is active does not
        # depend on its own value, and equal values have equal forms.
        values = {**space.fixed, **params}
        return not distribution.single() and is_active(parameter, values)
    # To a backbone, some choices may mean the same.
    forms = [space.canonical({**params, parameter: value}) for value in ends(distribution)]
    return any(form != forms[0] for form in forms)
