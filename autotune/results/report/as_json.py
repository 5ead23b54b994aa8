"""The report of a study for programs: everything that is known of it as JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.headline import ended_by, headline
from autotune.results.report.dataframe import trial_records
from autotune.results.values.objective import Objective
from autotune.results.values.pareto_front import front_of
from autotune.results.values.verdict import Verdict
from autotune.search import ranking
from autotune.storage.url import redact
from autotune.study.state import attrs
from autotune.text import escaped
from autotune.version import __version__

#: Raised when a key gets another meaning or goes; further keys do not raise it.
FORMAT = 1


def render_json(study: Study, storage_url: str = "") -> str:
    """Return the report of a study as JSON.

    ========================  ====================================================================
    key                       holds
    ========================  ====================================================================
    ``format``                1
    ``autotune``              version that has written it
    ``written``               when, ISO 8601, UTC
    ``study``, ``storage``    name, and URL without a password
    ``headline``              the answer in a sentence
    ``objectives``            of each: ``name``, ``direction``
    ``progress``              trials by how they ended, ``finished``, ``budget``
    ``ended``                 what ended the study: ``kind``, ``words``; ``null`` before its end
    ``best``, ``baseline``    trials as below, ``null`` where there is none
    ``front``                 numbers of the trials on the Pareto front, the best metric first
    ``confirmed``             verdict of ``autotune confirm``, or ``null``
    ``fit``                   every reading of the test part: ``time``, ``trial``, ``test``,
                              ``baseline``, ``gain`` and ``intervals``
    ``questions``             those of the tuning playbook: ``question``, ``answer``, ``mark``
                              (``fine``, ``look``, ``act``), ``advice``
    ``definition``            the study file, all defaults filled in
    ``dataset``, ``survey``   facts of the images
    ``environment``           versions of packages
    ``trials``                a trial each: the columns of :mod:`.dataframe` (those
                              with a dot as ``params``, ``metrics``, ``deviations``, ``costs``),
                              ``plan_in_full``, and ``curve``: epoch and value, pair by pair
    ========================  ====================================================================

    What is not known, and what is no number, is ``null``.

    Args:
        study: The study, at any stage.
        storage_url: URL of the storage. A password in it is left out.
    """
    text = json.dumps(_document(study, storage_url), indent=2, ensure_ascii=False)
    return escaped(text) + "\n"


def _document(study: Study, storage_url: str) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    attributes = study.user_attrs
    lines = [_line(facts, one) for facts, one in zip(trial_records(study), trials, strict=True)]
    best = ranking.best_trial(trials, attrs.metric_direction(study))
    baseline = attrs.find_baseline(trials)
    progress = attrs.count_progress(trials, attrs.trial_budget(study))
    ended, verdict = ended_by(study, progress), Verdict.from_study(study)
    objectives = [Objective.from_study(study), Objective.cost_from_study(study)]
    document = {
        "format": FORMAT,
        "autotune": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.study_name,
        "storage": redact(storage_url) if storage_url else None,
        "headline": headline(study),
        "objectives": [
            {"name": one.name, "direction": one.direction.name.lower()}
            for one in objectives
            if one is not None
        ],
        "progress": {**asdict(progress), "finished": progress.finished},
        "ended": ended.to_json() if ended else None,
        "best": lines[best.number] if best else None,
        "baseline": lines[baseline.number] if baseline else None,
        "front": [one.number for one in front_of(study)],
        "confirmed": {**verdict.to_json(), "beats": verdict.is_better} if verdict else None,
        "fit": attributes.get(attrs.TEST_READS, []),
        "questions": [asdict(one) for one in diagnose(study)],
        "definition": attrs.definition(attributes) or None,
        "dataset": attributes.get(attrs.DATASET),
        "survey": attributes.get(attrs.SURVEY),
        "environment": attributes.get(attrs.ENVIRONMENT),
        "trials": lines,
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def _line(facts: Mapping[str, Any], trial: FrozenTrial) -> dict[str, Any]:
    curve = sorted(trial.intermediate_values.items())
    return {
        **facts,
        "plan_in_full": trial.user_attrs.get(attrs.PLAN),
        "curve": [[epoch, value] for epoch, value in curve],
    }


def _plain(value: Any) -> Any:
    """Write times as text, and what is no number as ``null``: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
