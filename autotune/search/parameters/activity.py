"""Which parameters have an effect under the values of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.plan import INHERITING, KEEP, OF_LAYERS, SOLVED
from autotune.search.parameters.by_optimizer import optimizer_of


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a parameter has an effect under the values of all others."""
    if name.startswith("layer."):
        return int(name.split(".")[1]) <= int(values["depth"])
    if name == "inherit":
        return changes_layer(values, INHERITING)
    if name in ("head.activation", "head.batch_norm"):
        return bool(values["head.hidden_layers"])
    if name.startswith(("head.units.", "head.dropout.")):
        return int(name.rsplit(".", 1)[1]) <= int(values["head.hidden_layers"])
    if name == "training.head_start":
        return not values["head.hidden_layers"]
    if name.startswith("training.") and not values["depth"]:
        is_linear = not values["head.hidden_layers"]
        if is_linear and values["training.head_start"] == SOLVED:
            return False  # nothing trains
        if name.removeprefix("training.") in OF_LAYERS:
            return False
    if optimizer := optimizer_of(name):
        return bool(values["training.optimizer"] == optimizer)
    return name != "training.momentum" or bool(values["training.optimizer"] == "sgd")


def changes_layer(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Tell whether a trainable layer changes one of some fields."""
    return any(
        values.get(f"layer.{index}.{name}", KEEP) != KEEP
        for index in range(1, values["depth"] + 1)
        for name in names
    )
