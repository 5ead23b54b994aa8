"""The report of a study for programs, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.report.dataframe import trial_records
from autotune.results.report.images import images_json
from autotune.results.study_results import StudyResults
from autotune.storage.url import redact
from autotune.study.state import attrs
from autotune.text import escaped
from autotune.version import __version__, commit

#: Raised when a key is renamed, removed or gets another meaning; further keys do not raise it.
FORMAT = 2


def render_json(results: StudyResults, storage_url: str = "") -> str:
    """Return the report of a study as JSON; docs/python.md lists its keys.

    ``trials`` has the columns of :mod:`.dataframe`, those with a dot as dictionaries. Unknown
    values, and numbers that JSON cannot hold, are ``null``.
    """
    text = json.dumps(_document(results, storage_url), indent=2, ensure_ascii=False)
    return escaped(text) + "\n"


def _document(results: StudyResults, storage_url: str) -> Any:
    attributes, progress, ended = results.attributes, results.progress, results.stop_reason
    trials = [
        {
            **record,
            "plan_in_full": trial.user_attrs.get(attrs.PLAN),
            "curve": sorted(trial.intermediate_values.items()),
            "curves": trial.user_attrs.get(attrs.CURVES),
        }
        for record, trial in zip(trial_records(results), results.trials, strict=True)
    ]
    best, baseline, answer = results.best, results.baseline, find_answer(results)
    objectives, verdict = (results.objective, results.cost), results.verdict
    document = {
        "format": FORMAT,
        "autotune": __version__,
        "commit": commit() or None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": results.name,
        "storage": redact(storage_url) if storage_url else None,
        "headline": answer.text,
        "answer": {
            "evidence": answer.evidence,
            "plain": answer.plain,
            "is_better": answer.is_better,
            "trial": answer.trial.number if answer.trial else None,
        },
        "next_steps": [asdict(step) for step in next_steps(results, storage_url)],
        "objectives": [
            {"name": objective.name, "direction": objective.direction.name.lower()}
            for objective in objectives
            if objective is not None
        ],
        "progress": {**asdict(progress), "finished": progress.finished},
        "ended": ended.to_json() if ended else None,
        "no_result": asdict(results.no_result) if results.no_result else None,
        "best": trials[best.number] if best else None,
        "baseline": trials[baseline.number] if baseline else None,
        "front": [trial.number for trial in results.front],
        "selection": results.selection.to_json() if results.selection else None,
        "confirmed": verdict and {**asdict(verdict), "is_better": verdict.is_better},
        "images": images_json(results),
        "fit": attributes.get(attrs.TEST_READS, []),
        "diagnostics": [
            {"question": question, **asdict(finding)}
            for question, finding in diagnose(Facts(results)).items()
        ],
        "definition": results.definition,
        "dataset": attributes.get(attrs.DATASET),
        "race": attributes.get(attrs.RACE),
        "survey": attributes.get(attrs.SURVEY),
        "environment": attributes.get(attrs.ENVIRONMENT),
        "trials": trials,
    }
    return _as_json(document)


def _as_json(value: Any) -> Any:
    """Write times as text, and numbers that JSON cannot hold as ``null``."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
