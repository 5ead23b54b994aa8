"""In which precision trials computed, and on what: by that their values can be had again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from autotune.study.state import attrs

#: So many layers are named that were left in float32.
_NAMED = 3


def describe_precision(compute: Mapping[str, Any]) -> str:
    """Say in which precision a trial computed.

    Args:
        compute: What :func:`autotune.study.trial.run.describe_precision` returned.
    """
    half, kept = compute["half"], compute.get("kept", [])
    single = "float32" if compute["float32"] == "ieee" else "float32 with products in TF32"
    words = single if half == "off" else f"{half}, the rest in {single}"
    if not kept:
        return words
    named = ", ".join(kept[:_NAMED]) + (" and others" if len(kept) > _NAMED else "")
    layers = "1 layer" if len(kept) == 1 else f"{len(kept)} layers"
    return f"{words}, {layers} of it where {half} is slow or wrong on that machine: {named}"


def describe_precisions(trials: Sequence[FrozenTrial]) -> tuple[str, ...]:
    """Say on which devices the trials of a study computed, and in which precision.

    Returns:
        A sentence for each device and precision, what most trials had first; none of trials of
        which that is not known.
    """
    counts = Counter(
        (str(one.user_attrs.get(attrs.DEVICE, "")), _without_names(one.user_attrs))
        for one in trials
        if one.user_attrs.get(attrs.COMPUTE)
    )
    return tuple(
        f"{count:,} {'trial' if count == 1 else 'trials'} on {device or 'an unknown device'}: "
        f"{words}"
        for (device, words), count in counts.most_common()
    )


def _without_names(attributes: Mapping[str, Any]) -> str:
    """Say the precision of a trial without the layers, which differ from plan to plan."""
    compute = attributes[attrs.COMPUTE]
    words = describe_precision({**compute, "kept": []})
    return f"{words} (some layers are left in float32)" if compute.get("kept") else words
