"""What each of several backbones makes of the static space that they share.

Layer ``i`` is counted from the output in every backbone, and a parameter has the values that any
of them can take. A backbone resolves a value that it cannot take: a depth beyond its layers tunes
all of them; any other value becomes ``keep`` if the study file allows that, else the first value
that it can take. So each backbone has the plans that it would have in its own study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from autotune.config.fields import values_of_dimension
from autotune.config.schema import PARAMETERS
from autotune.format_versions import refuse_unknown
from autotune.plan import KEEP

if TYPE_CHECKING:
    from autotune.models.surgery.capabilities import LayerCapabilities

#: For each backbone the values of a parameter that it can take, ``None`` for all of them.
AllowedValues = list[tuple[Any, ...] | None]


@dataclass(frozen=True)
class Candidate:
    """A backbone that a space may choose.

    Args:
        name: timm model name with its pretrained tag.
        layers: Number of its layers.
        offers: What its last layers can become; a layer that is not listed keeps its shape.
        pool_problem: Returns why it cannot have a global pooling, "" if it can.
        parameters: What can train of its layers.
    """

    name: str
    layers: int
    offers: Sequence[LayerCapabilities]
    pool_problem: Callable[[str], str] = lambda pool: ""
    parameters: Sequence[str] = PARAMETERS

    def resolve_layer_value(self, index: int, name: str, value: Any) -> Any:
        """Return what a value of a layer field means to a layer.

        Returns:
            The value; ``keep`` if the layer has it already, ``None`` if it cannot take it.
        """
        if value == KEEP:
            return KEEP
        offer = next((offer for offer in self.offers if offer.index == index), None)
        if offer is None or offer.reason_unsupported(name, value):
            return None
        return KEEP if offer.is_noop(name, value) else value

    def resolve_pool(self, pool: str) -> str | None:
        """Return a global pooling, ``None`` if the backbone does not support it."""
        return None if self.pool_problem(pool) else pool

    def resolve_parameters(self, parameters: str) -> str | None:
        """Return what is to train of a layer, ``None`` if the backbone has no such parameters."""
        return parameters if parameters in self.parameters else None


@dataclass(frozen=True)
class BackboneLimits:
    """What one backbone takes of a space that it shares with others."""

    layers: int
    allowed: Mapping[str, tuple[Any, ...]]

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of all parameters as the backbone takes them."""
        resolved = {**values, "depth": min(values["depth"], self.layers)}
        for name, allowed in self.allowed.items():
            if values[name] not in allowed:
                resolved[name] = KEEP if KEEP in allowed else allowed[0]
        return resolved

    def to_json(self) -> dict[str, Any]:
        """Return the limits as plain JSON values."""
        allowed = {name: list(values) for name, values in self.allowed.items()}
        return {"layers": self.layers, "allowed": allowed}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> BackboneLimits:
        """Build limits from what :meth:`to_json` returned."""
        refuse_unknown(values, ("layers", "allowed"), "the limits of a backbone")
        allowed = {name: tuple(choices) for name, choices in values["allowed"].items()}
        return BackboneLimits(values["layers"], allowed)


def limits_by_backbone(
    candidates: Sequence[Candidate], allowed: Mapping[str, AllowedValues]
) -> dict[str, BackboneLimits]:
    """Return the limits of each backbone by name, from what :func:`shared_dimension` returned."""
    return {
        candidate.name: BackboneLimits(
            candidate.layers,
            {name: own for name, values in allowed.items() if (own := values[i]) is not None},
        )
        for i, candidate in enumerate(candidates)
    }


def shared_dimension(
    dimension: Any, resolvers: Sequence[Callable[[Any], Any]]
) -> tuple[Any, AllowedValues]:
    """Find the values of a dimension that at least one backbone can take.

    Args:
        dimension: A dimension of the study file; a range is taken as a whole or not at all.
        resolvers: For each backbone: returns what a value means to it, ``None`` if it cannot take
            the value.

    Returns:
        The dimension that is left (``keep`` if nothing is), and what each backbone takes of it.
    """
    if isinstance(dimension, dict):
        taken = [resolve(dimension["low"]) is not None for resolve in resolvers]
        return dimension if any(taken) else KEEP, [None if ok else (KEEP,) for ok in taken]
    rows = [[resolve(value) for resolve in resolvers] for value in values_of_dimension(dimension)]
    allowed = [_distinct(column) for column in zip(*rows, strict=True)]
    shared = _distinct(chain.from_iterable(rows))
    if all(len(values) == 1 for values in allowed):  # no backbone has a choice
        shared = (next((value for value in shared if value != KEEP), KEEP),)
    return list(shared), [None if set(own) == set(shared) else own for own in allowed]


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(value for value in values if value is not None)) or (KEEP,)
