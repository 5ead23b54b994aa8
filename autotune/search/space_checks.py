"""Whether a space is valid: the rules of the study file, and what backbones can take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from autotune.config.fields import (
    all_values,
    choice_dimension,
    largest,
    values_of_dimension,
    without_all,
)
from autotune.config.old_names import VALUES
from autotune.config.schema import (
    POOLS,
    AugmentConfig,
    DataConfig,
    HeadSpace,
    LayerSpace,
    PolicySpace,
    SpaceConfig,
    StudyConfig,
)
from autotune.errors import Problem, did_you_mean, format_yaml, join_sentences
from autotune.plan import KEEP, OF_IMAGES
from autotune.search.backbone_limits import Candidate
from autotune.search.parameters.dimensions import ends, is_integer, to_dimension
from autotune.search.space import KEY_NAMES, LAYER_FIELDS, Space
from autotune.text import join_some

if TYPE_CHECKING:
    from autotune.models.surgery.capabilities import LayerCapabilities


def file_problems(space: SpaceConfig, candidates: Sequence[Candidate]) -> Iterator[Problem]:
    """Yield what no backbone can do of the space of a study file."""
    yield from _depth_problems(space, candidates)
    yield from _layer_problems(space, candidates)
    yield from _pool_problems(space, candidates)
    yield from _parameter_problems(space, candidates)


def _depth_problems(space: SpaceConfig, candidates: Sequence[Candidate]) -> Iterator[Problem]:
    deepest = max(candidates, key=lambda backbone: backbone.layers)
    layers = deepest.layers
    largest_depth = int(largest(without_all(space.trainable_layers, layers)))
    if largest_depth > layers:
        most = ", which has most" if len(candidates) > 1 else ""
        yield Problem(
            "space.trainable_layers",
            f"must be at most {layers}, the number of layers of {deepest.name!r}{most}, but got "
            f"{largest_depth}; 'all' takes what the backbone has",
        )
    changed = [name for name, _ in _changes(space)]
    if not largest_depth and changed:
        yield Problem(
            "space.trainable_layers",
            f"must be above 0 in some trials because space.layers.{changed[0]} changes trainable "
            f"layers alone, but got {format_yaml(space.trainable_layers)}; give a range such as "
            "{low: 0, high: 4}",
        )


def _changes(space: SpaceConfig) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of every layer field that is not ``keep``."""
    for name in LAYER_FIELDS:
        for value in values_of_dimension(getattr(space.layers, KEY_NAMES.get(name, name))):
            if value != KEEP:
                yield name, value


def _layer_problems(space: SpaceConfig, candidates: Sequence[Candidate]) -> Iterator[Problem]:
    """Find the values that no layer supports; a value that some layers support is fine."""
    for name, value in _changes(space):
        reasons = [_unsupported_reason(name, value, backbone.offers) for backbone in candidates]
        if all(reasons):
            if len(candidates) > 1:
                pairs = zip(candidates, reasons, strict=True)
                reasons = [f"{backbone.name!r} {reason}" for backbone, reason in pairs]
            yield Problem(f"space.layers.{name}", "; ".join(reasons))


def _unsupported_reason(name: str, value: Any, offers: Sequence[LayerCapabilities]) -> str:
    """Say why no layer of a backbone supports a value; empty if one does, or none is trainable."""
    if not offers or not all(offer.reason_unsupported(name, value) for offer in offers):
        return ""
    others = {1: "", 2: "; nor can layer 2 take it"}.get(
        len(offers), f"; nor can layers 2 to {len(offers)} take it"
    )
    return f"{offers[0].reason_unsupported(name, value)} (layer 1{others})"


def _pool_problems(space: SpaceConfig, candidates: Sequence[Candidate]) -> Iterator[Problem]:
    for pool in values_of_dimension(space.head.pool):
        reasons = [backbone.pool_problem(pool) for backbone in candidates]
        if all(reasons):
            allowed = "; ".join(
                f"{backbone.name!r} allows {', '.join(filter(backbone.resolve_pool, POOLS))}"
                for backbone in candidates
            )
            yield Problem("space.head.pool", f"{reasons[0]}; {allowed}")


def _parameter_problems(space: SpaceConfig, candidates: Sequence[Candidate]) -> Iterator[Problem]:
    for kind in values_of_dimension(space.training.parameters):
        if not any(kind in backbone.parameters for backbone in candidates):
            names = join_some([repr(backbone.name) for backbone in candidates])
            yield Problem(
                "space.training.parameters",
                f"{names} has no {kind} that could train alone; 'all' always works",
            )


def find_space_problem(changed: Space, space: Space, candidates: Sequence[Candidate]) -> str:
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
    offer_by_index = {offer.index: offer for offer in candidates[0].offers}
    for name in names:
        dimension = dimension_of(changed, name)
        problem = (
            rule_problem(name, dimension)
            or _offer_problem(name, changed, offer_by_index)
            or _image_problem(name, dimension, space)
        )
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
    if reread != changed:
        return "must be plain JSON values: lists for tuples, texts for keys"
    as_file = SpaceConfig(
        trainable_layers=dimension_of(changed, "depth"),
        head=HeadSpace(pool=dimension_of(changed, "head.pool")),
        training=PolicySpace(parameters=dimension_of(changed, "training.parameters")),
    )
    for unsupported in file_problems(as_file, candidates):
        return f"{unsupported.key.removeprefix('space.')}: {unsupported.message}"
    return ""


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
        "training": (PolicySpace, field.partition(".")[0]),
        "depth": (SpaceConfig, "trainable_layers"),
        "inherit": (StudyConfig, "init"),
        "image_size": (DataConfig, "image_size"),
        "augment_strength": (AugmentConfig, "strength"),
    }
    model, key = models.get(section, (SpaceConfig, name))
    key = KEY_NAMES.get(key, key)
    if key not in model.model_fields:
        return "is no key of a study file"
    if is_integer(name) and isinstance(dimension, dict) and isinstance(dimension["low"], float):
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


def _image_problem(name: str, dimension: Any, space: Space) -> str:
    """Describe the first size of images, or strength of augmentation, that the study has not."""
    if name not in OF_IMAGES:
        return ""
    allowed = all_values(dimension_of(space, name))
    other = [value for value in all_values(dimension) if value not in allowed]
    return f"must be {', '.join(map(str, allowed))}, but got {other[0]}" if other else ""


def _offer_problem(name: str, space: Space, offers: Mapping[int, LayerCapabilities]) -> str:
    """Describe the first value of a layer's field that the layer cannot take."""
    section, _, rest = name.partition(".")
    if section != "layer":
        return ""
    index, _, field = rest.partition(".")
    searched = space.distributions.get(name)
    values = [space.fixed[name]] if searched is None else ends(searched)
    offer = offers[int(index)]
    problems = (offer.reason_unsupported(field, value) for value in values if value != KEEP)
    return next(filter(None, problems), "")
