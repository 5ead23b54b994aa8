"""The user attributes of studies and trials as people read them: short, flat, numbers as numbers.

What autotune stores is for autotune (:mod:`autotune.study.state.attrs`): plans, costs and metrics
are JSON, and much of it says where a trial ran or how it was given back. Attributes that are not
autotune's stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from autotune.study.state import attrs

#: Of a trial: what its note says better, or only autotune needs.
_LEFT_OUT = frozenset(
    {
        *(attrs.PLAN, attrs.COSTS, attrs.METRICS, attrs.DEVIATIONS, attrs.RETRIES),
        *(
            attrs.CLAIMED_AT,
            attrs.DEVICE_SECONDS,
            attrs.LOST_ATTEMPTS,
            attrs.RESUMED,
            attrs.FAILED_PLAN,
        ),
        *(attrs.DEVICE_MEMORY_MB, attrs.THREADS, attrs.COMPUTE),
    }
)
#: Of a study: what its note says, or only autotune needs.
_LEFT_OUT_OF_STUDY = frozenset(
    {
        *(attrs.DEFINITION, attrs.BUDGET, attrs.CACHE, attrs.ENDED, attrs.DATASET),
        *(attrs.SPLIT, attrs.SURVEY, attrs.BACKBONES, attrs.SPACE, attrs.PLUGINS),
        *(attrs.CONFIRMED, attrs.WARM_START, attrs.PRECISION, attrs.FLOAT32),
        *(attrs.ENVIRONMENT, attrs.FORMAT, attrs.FIT, attrs.UUID),
    }
)
#: Digits that are shown of a number that was measured.
_DIGITS = 4
#: Longest text: the page does not wrap it, and the notes beside it get as wide. What is cut off
#: (a reason) is in the note.
_LONGEST = 80


def trial_attributes(trial: FrozenTrial) -> dict[str, str | float]:
    """Return the attributes of a trial: texts and numbers, its metrics and costs first."""
    stored = trial.user_attrs
    shown: dict[str, str | float] = {}
    for name, value in {**stored.get(attrs.METRICS, {}), **stored.get(attrs.COSTS, {})}.items():
        shown[name] = _short(value)
    for name, value in stored.get(attrs.DEVIATIONS, {}).items():
        shown[f"{name}_deviation"] = _short(value)
    if earlier := attrs.earlier_attempts(trial):
        shown["earlier_attempts"] = ", ".join(map(str, earlier))
    return shown | {
        key: _short(value)
        for key, value in stored.items()
        if key not in _LEFT_OUT and value is not None
    }


def study_attributes(stored: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the attributes of a study, given as they are stored."""
    versions: Mapping[str, str] = stored.get(attrs.ENVIRONMENT, {})
    shown: dict[str, str | float] = dict(versions.items())
    for backbone, devices in stored.get(attrs.PRECISION, {}).items():
        for device, precision in devices.items():
            shown[f"precision of {backbone} on {device}"] = str(precision)
    for device, precision in stored.get(attrs.FLOAT32, {}).items():
        shown[f"float32 on {device}"] = str(precision)
    return shown | {
        key: _short(value)
        for key, value in stored.items()
        if key not in _LEFT_OUT_OF_STUDY and value is not None
    }


def _short(value: Any) -> str | float:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return value if value.is_integer() else float(f"{value:.{_DIGITS}g}")
    if isinstance(value, int):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
