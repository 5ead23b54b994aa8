"""In which precision trials computed, and on which devices: their values depend on both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from autotune.study.state import attrs

#: Layers that are named of those that stay in float32.
_MAX_NAMED = 3


def describe_precision(compute: Mapping[str, Any]) -> str:
    """Describe in which precision a trial computed."""
    half, kept = compute["half"], compute.get("kept", [])
    single = "float32" if compute["float32"] == "ieee" else "float32 with products in TF32"
    text = single if half == "off" else f"{half}, the rest in {single}"
    if not kept:
        return text
    named = ", ".join(kept[:_MAX_NAMED]) + (" and others" if len(kept) > _MAX_NAMED else "")
    layers = "1 layer" if len(kept) == 1 else f"{len(kept)} layers"
    return f"{text}, {layers} of it where {half} is slow or wrong on that machine: {named}"


def describe_precisions(trials: Sequence[FrozenTrial]) -> tuple[str, ...]:
    """Describe on which devices trials computed, and in which precision.

    Returns:
        A line for each device and precision, the one of most trials first; trials that did not
        record their precision are left out.
    """
    counts = Counter(
        (str(trial.user_attrs.get(attrs.DEVICE, "")), _without_layers(compute))
        for trial in trials
        if (compute := trial.user_attrs.get(attrs.COMPUTE))
    )
    return tuple(
        f"{count:,} {'trial' if count == 1 else 'trials'} on {device or 'an unknown device'}: "
        f"{precision}"
        for (device, precision), count in counts.most_common()
    )


def _without_layers(compute: Mapping[str, Any]) -> str:
    """Describe a precision without naming layers, which differ from plan to plan."""
    text = describe_precision({**compute, "kept": []})
    return f"{text} (some layers are left in float32)" if compute.get("kept") else text
