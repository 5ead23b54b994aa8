"""The layers of a backbone, counted from the output: layer 1 is the last.

A layer is one group of parameters as timm's ``group_matcher`` orders them, the same groups that
timm uses for layer-wise learning-rate decay. The head is not a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

#: Stands for "behind everything that the matcher knows", as timm's own grouping does.
_UNMATCHED = float("inf")


@dataclass(frozen=True)
class Layer:
    """One layer of a backbone.

    Args:
        index: Position counted from the output; 1 is the last layer.
        label: The modules it is made of, e.g. ``layer4.1``.
        names: Names of its parameters and buffers.
        modules: Names of all modules that lie in it.
        parameters: Number of trainable values.
    """

    index: int
    label: str
    names: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """Return what a report needs to draw the layer."""
        return {"index": self.index, "label": self.label, "parameters": self.parameters}


def list_layers(backbone: nn.Module) -> tuple[Layer, ...]:
    """List the layers of a backbone that has no classifier, the last one first.

    Groups that hold only vectors (a final norm) are joined to the layer before them: alone they
    are no layer that one could re-train to any effect.

    Args:
        backbone: A timm model built with ``num_classes=0``; the meta device will do.
    """
    parameters = dict(backbone.named_parameters())
    tensors = parameters | dict(backbone.named_buffers())
    modules = [name for name, _ in backbone.named_modules() if name]
    group_of = _groups(backbone, [*tensors, *modules])
    with_tensors = sorted({group_of[name] for name in tensors})
    merged = _join_vectors(with_tensors, group_of, tensors)
    count = len(set(merged.values()))
    position_of = {name: merged[group_of[name]] for name in tensors}
    owners = _owners(position_of)
    last = max(group_of.values())
    matched = {name: _position(group_of[name], merged, last) for name in modules}
    place_of = _places(modules, owners, matched)
    layers = []
    for position in range(count):
        names = tuple(name for name in tensors if position_of[name] == position)
        layers.append(
            Layer(
                index=count - position,
                label=_label(names, owners),
                names=names,
                modules=tuple(name for name in modules if place_of[name] == position),
                parameters=sum(parameters[name].numel() for name in names if name in parameters),
            )
        )
    return tuple(reversed(layers))


def _groups(backbone: nn.Module, names: list[str]) -> Mapping[str, int]:
    """Number the group of every name in the order of the network."""
    matcher = getattr(backbone, "group_matcher", None)
    rules = matcher(coarse=False) if matcher is not None else _order_of_children(backbone)
    named = ((name, None) for name in names)
    groups: dict[str, int] = group_with_matcher(named, rules, reverse=True)
    return groups


def _order_of_children(backbone: nn.Module) -> Any:
    """Number the children in the order they were registered, containers by their members.

    For the few timm models that have no ``group_matcher``.
    """
    order: dict[str, int] = {}
    for name, child in backbone.named_children():
        members = [f"{name}.{inner}" for inner, _ in child.named_children()]
        for one in members if isinstance(child, nn.Sequential | nn.ModuleList) else [name]:
            order[one] = len(order)

    def number(name: str) -> float:
        parts = name.split(".")
        for length in (2, 1):
            found = order.get(".".join(parts[:length]))
            if found is not None:
                return found
        # Position tables and class tokens go with the stem, as in timm's matchers.
        return 0 if name in dict(backbone.named_parameters(recurse=False)) else _UNMATCHED

    return number


def _join_vectors(
    groups: list[int], group_of: Mapping[str, int], tensors: Mapping[str, Any]
) -> dict[int, int]:
    """Map each group to the position of its layer, groups without a matrix to their neighbour."""
    merged: dict[int, int] = {}
    position = -1
    for group in groups:
        matrix = any(tensors[name].ndim > 1 for name in tensors if group_of[name] == group)
        if matrix or position < 0:
            position += 1
        merged[group] = position
    return merged


def _position(group: int, merged: Mapping[int, int], last: int) -> int | None:
    """Find the layer of a group: one without tensors (pooling) goes with the layer before it.

    The very last group is what the matcher does not know, the head for one; without tensors it
    belongs to no layer.
    """
    if group in merged or group == last:
        return merged.get(group)
    return merged[max(one for one in merged if one < group)] if group > min(merged) else None


def _owners(position_of: Mapping[str, int]) -> Mapping[str, set[int]]:
    """Find for every module and tensor the positions of the layers that have a part of it."""
    owners: dict[str, set[int]] = defaultdict(set)
    for name, position in position_of.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            owners[".".join(parts[:length])].add(position)
    return owners


def _places(
    modules: list[str], owners: Mapping[str, set[int]], matched: Mapping[str, int | None]
) -> Mapping[str, int | None]:
    """Find the position of the layer that each module lies in, ``None`` for none.

    A module lies where its tensors do, whatever the matcher says of its name: some matchers know
    ``norm.weight`` but not ``norm``. One without tensors lies where its parent does.

    Args:
        modules: Names of the modules, parents first.
        owners: What :func:`_owners` returned.
        matched: What the matcher says of the modules' names.
    """
    places: dict[str, int | None] = {}
    for name in modules:
        if name in owners:
            places[name] = next(iter(owners[name])) if len(owners[name]) == 1 else None
        else:
            parent = places.get(name.rpartition(".")[0])
            places[name] = matched[name] if parent is None else parent
    return places


def _label(names: tuple[str, ...], owners: Mapping[str, set[int]]) -> str:
    """Name the largest modules that lie in the layer with all that they have."""
    tops = []
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        tops.append(next(path for path in paths if len(owners[path]) == 1))
    tops = list(dict.fromkeys(tops))
    return ", ".join(tops[:3]) + (f" and {len(tops) - 3} more" if len(tops) > 3 else "")
