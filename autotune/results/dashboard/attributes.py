"""The user attributes of studies and trials for the dashboard: short, flat, numbers as numbers.

What autotune stores is for autotune (:mod:`autotune.study.state.attrs`): plans, costs and metrics
are JSON, and much of it says where a trial ran or how it was requeued. Attributes of other
programs stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from autotune.study.state import attrs

#: Attributes of a trial that its note shows, or that only autotune needs.
_HIDDEN_OF_TRIAL = frozenset(
    {
        *(attrs.PLAN, attrs.COSTS, attrs.METRICS, attrs.DEVIATIONS, attrs.RETRIES, attrs.COMPUTE),
        *(attrs.CLAIMED_AT, attrs.DEVICE_SECONDS, attrs.LOST_ATTEMPTS, attrs.RESUMED),
        *(attrs.FAILED_PLAN, attrs.DEVICE_MEMORY_MB, attrs.THREADS, attrs.IMAGE_SCORES),
        attrs.CURVES,
    }
)
#: Attributes of a study that its note shows, or that only autotune needs.
_HIDDEN_OF_STUDY = frozenset(
    {
        *(attrs.DEFINITION, attrs.BUDGET, attrs.CACHE, attrs.ENDED, attrs.DATASET),
        *(attrs.SPLIT, attrs.SURVEY, attrs.BACKBONES, attrs.SPACE, attrs.PLUGINS),
        *(attrs.CONFIRMED, attrs.WARM_START, attrs.PRECISION, attrs.FLOAT32),
        *(attrs.ENVIRONMENT, attrs.FORMAT, attrs.FIT, attrs.UUID),
    }
)
#: Significant digits of a measured number.
_DIGITS = 4
#: Most characters of a text: the page does not wrap it, and the notes beside it get as wide. The
#: note has the whole text (a reason).
_MAX_CHARACTERS = 80


def trial_attributes(trial: FrozenTrial) -> dict[str, str | float]:
    """Return the attributes of a trial: texts and numbers, its metrics and costs first."""
    stored = trial.user_attrs
    measured = {
        **stored.get(attrs.METRICS, {}),
        **stored.get(attrs.COSTS, {}),
        **{f"{name}_deviation": value for name, value in stored.get(attrs.DEVIATIONS, {}).items()},
    }
    attributes = {name: _shorten(value) for name, value in measured.items()}
    if earlier := attrs.earlier_attempts(trial):
        attributes["earlier_attempts"] = ", ".join(map(str, earlier))
    return attributes | _others(stored, _HIDDEN_OF_TRIAL)


def study_attributes(stored: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the attributes of a study, given as they are stored."""
    attributes: dict[str, str | float] = {**stored.get(attrs.ENVIRONMENT, {})}
    for backbone, devices in stored.get(attrs.PRECISION, {}).items():
        for device, precision in devices.items():
            attributes[f"precision of {backbone} on {device}"] = str(precision)
    for device, precision in stored.get(attrs.FLOAT32, {}).items():
        attributes[f"float32 on {device}"] = str(precision)
    return attributes | _others(stored, _HIDDEN_OF_STUDY)


def _others(stored: Mapping[str, Any], hidden: frozenset[str]) -> dict[str, str | float]:
    return {
        key: _shorten(value)
        for key, value in stored.items()
        if key not in hidden and value is not None
    }


def _shorten(value: Any) -> str | float:
    if isinstance(value, float):
        return value if value.is_integer() else float(f"{value:.{_DIGITS}g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
