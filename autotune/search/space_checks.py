"""Whether a space is valid: the rules of the study file, and what layers can take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from autotune.config.fields import choice_dimension, largest
from autotune.config.old_names import VALUES
from autotune.config.schema import (
    HeadSpace,
    LayerSpace,
    PolicySpace,
    SpaceConfig,
    StudyConfig,
)
from autotune.errors import did_you_mean, join_sentences
from autotune.plan import KEEP
from autotune.search.dimensions import to_dimension
from autotune.search.space import KEY_NAMES, Space

if TYPE_CHECKING:
    from autotune.models.surgery.capabilities import LayerCapabilities

#: Parameters of integers, ``head.units.N`` apart.
_INTEGERS = ("depth", "head.hidden_layers", "training.head_epochs")


def find_space_problem(changed: Space, space: Space, offers: Sequence[LayerCapabilities]) -> str:
    """Describe the first problem of a changed space; empty if there is none."""
    before = {*space.fixed, *space.distributions}
    names = [*changed.fixed, *changed.distributions]
    for name in names:
        if name not in before:
            return join_sentences(
                f"{name!r} is no parameter of the space", did_you_mean(name, before)
            )
        if names.count(name) > 1:
            return f"{name} must be fixed or searched, but is both"
    if missing := sorted(before - set(names)):
        return f"{', '.join(missing)} must be fixed or searched, but is missing"
    if changed.backbone != space.backbone:
        return f"the backbone must stay {space.backbone!r}, but is {changed.backbone!r}"
    offer_by_index = {offer.index: offer for offer in offers}
    for name in names:
        dimension = dimension_of(changed, name)
        problem = rule_problem(name, dimension) or _offer_problem(name, dimension, offer_by_index)
        if problem:
            return f"{name}: {problem}"
    hidden = largest(dimension_of(changed, "head.hidden_layers"))
    units = sum(name.startswith("head.units.") for name in names)
    if hidden > units:
        return (
            f"head.hidden_layers: must be at most {units}, that of space.head.hidden_layers, but "
            f"got {hidden}"
        )
    try:
        reread = Space.from_json(json.loads(json.dumps(changed.to_json())))
    except (TypeError, ValueError) as error:
        return f"must be plain JSON values, but {error}"
    return (
        "" if reread == changed else "must be plain JSON values: lists for tuples, texts for keys"
    )


def dimension_of(space: Space, name: str) -> Any:
    """Write a parameter of a space as a study file would."""
    return space.fixed[name] if name in space.fixed else to_dimension(space.distributions[name])


def rule_problem(name: str, dimension: Any) -> str:
    """Check a parameter against the rule of its key in the study file; "" if it keeps to it.

    Args:
        name: The name of a parameter.
        dimension: A value or a dimension, as a study file has it.
    """
    section, _, field = name.partition(".")
    models: Mapping[str, tuple[type[BaseModel], str]] = {
        "layer": (LayerSpace, field.partition(".")[2]),
        "head": (HeadSpace, field.partition(".")[0]),
        "training": (PolicySpace, field),
        "depth": (SpaceConfig, "trainable_layers"),
        "inherit": (StudyConfig, "init"),
    }
    model, key = models.get(section, (SpaceConfig, name))
    key = KEY_NAMES.get(key, key)
    if key not in model.model_fields:
        return "is no key of a study file"
    is_integer = name in _INTEGERS or name.startswith("head.units.")
    if is_integer and isinstance(dimension, dict) and isinstance(dimension["low"], float):
        return "must be an IntDistribution or a choice of whole numbers, but is of any numbers"
    rule: TypeAdapter[Any] = TypeAdapter(model.model_fields[key].rebuild_annotation())
    if name == "inherit":  # a space has the values of plans
        rule = TypeAdapter(Annotated[Any, choice_dimension(tuple(VALUES[key]))])
    try:
        rule.validate_python(dimension)
    except ValidationError as error:
        first = error.errors()[0]
        return str(first.get("ctx", {}).get("error", first["msg"]))
    return ""


def _offer_problem(name: str, dimension: Any, offers: Mapping[int, LayerCapabilities]) -> str:
    """Describe the first value of a layer's field that the layer cannot take."""
    section, _, rest = name.partition(".")
    if section != "layer":
        return ""
    index, _, field = rest.partition(".")
    values = dimension if isinstance(dimension, list) else [dimension]
    if isinstance(dimension, dict):
        values = [dimension["low"], dimension["high"]]
    offer = offers[int(index)]
    problems = (offer.reason_unsupported(field, value) for value in values if value != KEEP)
    return next(filter(None, problems), "")
