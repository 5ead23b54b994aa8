"""What each of several backbones takes of the one static space that they share.

Layer ``i`` is counted from the output in all of them, and a parameter has the values that any of
them can take. What a value means is a matter of the backbone: a depth beyond its layers tunes them
all, and a value that it cannot take is ``keep`` where the study file allows that, else the first
one that it can take. So each backbone has the plans that it would have in a study of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from autotune.config.fields import values_of_dimension
from autotune.config.schema import POOLS
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
        layers: How many layers it has.
        offers: What its last layers can become; a layer without an offer keeps its shape.
        pools: The global poolings that it can have.
    """

    name: str
    layers: int
    offers: Sequence[LayerCapabilities]
    pools: Sequence[str] = POOLS

    def in_layer(self, index: int, name: str, value: Any) -> Any:
        """Return what a value of a layer field means to a layer.

        Returns:
            The value; ``keep`` where the layer has it already, ``None`` where it cannot take it.
        """
        if value == KEEP:
            return KEEP
        offer = next((one for one in self.offers if one.index == index), None)
        if offer is None or offer.reason_unsupported(name, value):
            return None
        return KEEP if offer.is_noop(name, value) else value

    def in_head(self, pool: str) -> str | None:
        """Return a global pooling, ``None`` where the backbone cannot have it."""
        return pool if pool in self.pools else None


@dataclass(frozen=True)
class BackboneLimits:
    """What one backbone takes of a space that it shares with others.

    Args:
        layers: How many layers it has, so the most that it can tune.
        allowed: For each parameter of which it cannot take every value: those that it can.
    """

    layers: int
    allowed: Mapping[str, tuple[Any, ...]]

    def meaning(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the values of all parameters mean to the backbone."""
        meant = {**values, "depth": min(values["depth"], self.layers)}
        for name, allowed in self.allowed.items():
            if values[name] not in allowed:
                meant[name] = KEEP if KEEP in allowed else allowed[0]
        return meant

    def to_json(self) -> dict[str, Any]:
        """Return the limits as plain JSON values."""
        allowed = {name: list(values) for name, values in self.allowed.items()}
        return {"layers": self.layers, "allowed": allowed}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> BackboneLimits:
        """Build limits from what :meth:`to_json` returned."""
        refuse_unknown(values, ("layers", "allowed"), "the limits of a backbone")
        allowed = {name: tuple(found) for name, found in values["allowed"].items()}
        return BackboneLimits(values["layers"], allowed)


def limits_by_backbone(
    candidates: Sequence[Candidate], own: Mapping[str, AllowedValues]
) -> dict[str, BackboneLimits]:
    """Return what each backbone takes, by name.

    Args:
        candidates: The backbones.
        own: What :func:`share` found, by parameter.
    """
    return {
        candidate.name: BackboneLimits(
            candidate.layers,
            {name: one for name, values in own.items() if (one := values[position]) is not None},
        )
        for position, candidate in enumerate(candidates)
    }


def shared_dimension(
    dimension: Any, meanings: Sequence[Callable[[Any], Any]]
) -> tuple[Any, AllowedValues]:
    """Find the values of a dimension that some backbone can take.

    Args:
        dimension: A dimension of the study file; a range is taken as a whole or not at all.
        meanings: For each backbone: what a value means to it, ``None`` where it cannot take it.

    Returns:
        The dimension that is left, ``keep`` where that is nothing, and what each backbone can
        take of it.
    """
    if isinstance(dimension, dict):
        taken = [meaning(dimension["low"]) is not None for meaning in meanings]
        return dimension if any(taken) else KEEP, [None if one else (KEEP,) for one in taken]
    rows = [[meaning(value) for meaning in meanings] for value in values_of_dimension(dimension)]
    own = [_distinct(column) for column in zip(*rows, strict=True)]
    shared = _distinct(chain.from_iterable(rows))
    if all(len(one) == 1 for one in own):  # none has a choice
        shared = (next((one for one in shared if one != KEEP), KEEP),)
    return list(shared), [None if set(one) == set(shared) else one for one in own]


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(one for one in values if one is not None)) or (KEEP,)
