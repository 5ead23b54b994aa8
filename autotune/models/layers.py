"""The layers of a backbone, counted from the output: layer 1 is the last.

A layer is one group of parameters of timm's ``group_matcher``, the groups that timm uses for
layer-wise learning-rate decay. The head is not a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

from autotune.text import join_some


@dataclass(frozen=True)
class Layer:
    """One layer of a backbone.

    Args:
        index: Position counted from the output; 1 is the last layer.
        label: The modules it is made of, e.g. ``layer4.1``.
        names: Names of its parameters and buffers.
        modules: Names of all modules inside it.
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
    """List the layers of a backbone without classifier, the last one first.

    Groups that hold only vectors (a final norm) are joined to the layer before them: re-training
    them alone has little effect. The meta device suffices.
    """
    parameters = dict(backbone.named_parameters())
    tensors = parameters | dict(backbone.named_buffers())
    modules = [name for name, _ in backbone.named_modules() if name]
    group_of = _groups(backbone, [*tensors, *modules])
    with_matrix = {group_of[name] for name, tensor in tensors.items() if tensor.ndim > 1}
    merged: dict[int, int] = {}
    for group in sorted({group_of[name] for name in tensors}):
        last = max(merged.values(), default=-1)
        merged[group] = last + 1 if group in with_matrix or last < 0 else last
    position_of = {name: merged[group_of[name]] for name in tensors}
    owners: dict[str, set[int]] = defaultdict(set)
    for name, position in position_of.items():
        for prefix in _prefixes(name):
            owners[prefix].add(position)
    place_of = _places(modules, owners, group_of, merged)
    count = len(set(merged.values()))
    layers = []
    for position in reversed(range(count)):
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
    return tuple(layers)


def trained_names(backbone: nn.Module, layer: Layer, parameters: str) -> tuple[str, ...]:
    """Return the names of the parameters of a layer that train."""
    names = [name for name, _ in backbone.named_parameters() if name in set(layer.names)]
    if parameters == "norms":
        return tuple(name for name in names if _is_of_norm(backbone, name))
    if parameters == "biases":  # timm also has q_bias and v_bias
        return tuple(name for name in names if name.endswith("bias"))
    return tuple(names)


def _is_of_norm(backbone: nn.Module, name: str) -> bool:
    """Tell whether a parameter is a norm's; timm has two dozen classes, and all say so."""
    owner = backbone.get_submodule(name.rpartition(".")[0])
    return "norm" in type(owner).__name__.lower() and backbone.get_parameter(name).ndim <= 1


def _groups(backbone: nn.Module, names: list[str]) -> Mapping[str, int]:
    """Number the group of every name in the order of the network."""
    matcher = getattr(backbone, "group_matcher", None)
    rules = matcher(coarse=False) if matcher is not None else _order_of_children(backbone)
    named = ((name, None) for name in names)
    groups: dict[str, int] = group_with_matcher(named, rules, reverse=True)
    return groups


def _order_of_children(backbone: nn.Module) -> Any:
    """Return a matcher for the few timm models without one: children as registered."""
    children: list[str] = []
    for name, child in backbone.named_children():
        is_container = isinstance(child, nn.Sequential | nn.ModuleList)
        members = [f"{name}.{inner}" for inner, _ in child.named_children()]
        children += members if is_container else [name]
    order = {name: index for index, name in enumerate(children)}

    def number(name: str) -> float:
        for prefix in reversed(_prefixes(name)[:2]):
            if prefix in order:
                return order[prefix]
        # Position tables and class tokens go with the stem, as in timm's matchers; what no rule
        # matches comes last, as in timm's grouping.
        return 0 if name in dict(backbone.named_parameters(recurse=False)) else float("inf")

    return number


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _places(
    modules: list[str],
    owners: Mapping[str, set[int]],
    group_of: Mapping[str, int],
    merged: Mapping[int, int],
) -> Mapping[str, int | None]:
    """Return the position of the layer of each module, parents first; ``None`` for no layer.

    A module lies where its tensors do, whatever the matcher says of its name: some matchers know
    ``norm.weight`` but not ``norm``. A module without tensors lies where its parent does, else
    (pooling) with its group or the layer before it. The last group is what no rule matches, such
    as the head.
    """
    places: dict[str, int | None] = {}
    for name in modules:
        parent, group = places.get(name.rpartition(".")[0]), group_of[name]
        if name in owners:
            places[name] = next(iter(owners[name])) if len(owners[name]) == 1 else None
        elif parent is not None:
            places[name] = parent
        elif group in merged or group == max(group_of.values()):
            places[name] = merged.get(group)
        else:
            places[name] = max(
                (merged[earlier] for earlier in merged if earlier < group), default=None
            )
    return places


def _label(names: tuple[str, ...], owners: Mapping[str, set[int]]) -> str:
    """Name the largest modules that belong to one layer as a whole."""
    paths = (next(path for path in _prefixes(name) if len(owners[path]) == 1) for name in names)
    tops = list(dict.fromkeys(paths))
    return join_some(tops, 3)
