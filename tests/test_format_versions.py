"""The names of everything that is stored, held against the number of its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest

from autotune import format_versions
from autotune.config.validation import all_keys
from autotune.errors import FormatError
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrainingPolicy, TrialPlan
from autotune.results.model import model_folder
from autotune.results.values.verdict import Verdict
from autotune.search.backbone_limits import BackboneLimits
from autotune.search.space import Space
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.race_record import RaceEntry, RaceRecord
from autotune.study.trial import retrain
from autotune.training.metrics import Metrics

PLAN = (TrialPlan, LayerPlan, HiddenLayer, HeadPlan, TrainingPolicy)
#: What each kind of thing stores, by name.
STORED: dict[str, Sequence[Any]] = {
    format_versions.STUDY: [
        sorted(all_keys()),
        sorted(
            value
            for name, value in vars(attrs).items()
            if name.isupper() and not name.startswith("_") and isinstance(value, str)
        ),
        *(
            [kind.__name__, *(field.name for field in fields(kind))]
            for kind in (
                *(*PLAN, Space, BackboneLimits, Budget, StopReason, Verdict, Metrics),
                *(RaceRecord, RaceEntry),
            )
        ),
    ],
    format_versions.MODEL: [
        *([kind.__name__, *(field.name for field in fields(kind))] for kind in PLAN),
        model_folder.FIELDS,
        model_folder.MEMBER_FIELDS,
    ],
    format_versions.CONFIRMATION: [
        *([kind.__name__, *(field.name for field in fields(kind))] for kind in PLAN),
        retrain.FIELDS,
    ],
}
#: Format and digest of the names. Where this test fails, raise the number of the format in
#: autotune/format_versions.py, put both here, and say so in CHANGELOG.md.
PINNED = {
    format_versions.STUDY: (5, "6e94eb5e4a8090ce"),
    format_versions.MODEL: (2, "31e24aebc1e0a33f"),
    format_versions.CONFIRMATION: (3, "24c3bd5ad6fcb4df"),
}


@pytest.mark.parametrize("kind", PINNED)
def test_a_change_of_what_is_stored_raises_the_format(kind: str) -> None:
    digest = hashlib.sha256(json.dumps(STORED[kind]).encode()).hexdigest()[:16]
    assert (format_versions.FORMATS[kind], digest) == PINNED[kind], (
        f"the names of what a {kind} stores have changed: raise its number in "
        "autotune/format_versions.py, pin both here, and say so in CHANGELOG.md"
    )


def test_what_was_written_before_there_were_formats_is_read() -> None:
    for stored in (None, {}, "1", {"format": None}, {"format": 1}):
        format_versions.check_format(stored, format_versions.STUDY, "it")


def test_the_message_of_a_later_format() -> None:
    with pytest.raises(FormatError) as caught:
        format_versions.check_format(
            {"format": 7, "autotune": "3.1"}, format_versions.MODEL, "the model in x"
        )
    assert str(caught.value) == (
        "the model in x was written by autotune 3.1, and cannot be read (it has format 7); this "
        f"is autotune {format_versions.version('autotune')}, which reads the format 2 of a model; "
        "use autotune 3.1, or a later one"
    )


@pytest.mark.parametrize("error", [KeyError("depth"), TypeError("x"), ValueError("a\nb")])
def test_reading_says_what_it_was(error: Exception) -> None:
    with (
        pytest.raises(FormatError, match="the plan was written by another version of autotune"),
        format_versions.reading("the plan"),
    ):
        raise error
