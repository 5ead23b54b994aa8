"""What the dashboard shows beside studies and trials: notes, and attributes that can be read.

Both follow from what a study stores, so they are made when they are asked for: a study of an older
version has them, they are those of now, and no trial waits for them. optuna-dashboard keeps notes
of trials with the study and goes through all of them for each trial; see
``benchmarks/dashboard_scale.py``. A note that somebody has written is shown in place of ours.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.results.attributes import of_study, of_trial
from autotune.results.notes import Setting, study_note, trial_note
from autotune.study import record

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: What the page of a study asks for.
_STUDY = re.compile(r"/api/studies/(\d+)/?")
Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class _Annotation:
    """What is shown beside a trial."""

    note: str
    attributes: Mapping[str, str | float]


class Annotated:
    """A dashboard whose studies and trials have notes and short attributes.

    Args:
        app: optuna-dashboard.
        storage: Its storage; one that keeps finished trials, because it is asked every time.
        url: URL of the storage; a password in it is left out.
    """

    def __init__(self, app: WSGIApplication, storage: BaseStorage, url: str) -> None:
        self._app = app
        self._storage = storage
        self._url = url
        self._lock = threading.Lock()
        self._known: dict[tuple[int, float | None], _Annotation] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        asked = _STUDY.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None or environ.get("REQUEST_METHOD") != "GET":
            return self._app(environ, start_response)
        begun: list[tuple[str, Headers]] = []

        def begin(status: str, headers: Headers, *rest: Any) -> Any:
            begun.append((status, headers))
            return lambda data: None

        answer = self._app(environ, begin)
        try:
            body = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        status, headers = begun[-1]
        if status.startswith("200"):
            body = self._annotate(int(asked[1]), body)
        others = [one for one in headers if one[0].lower() != "content-length"]
        start_response(status, [*others, ("Content-Length", str(len(body)))])
        return [body]

    def _annotate(self, study_id: int, body: bytes) -> bytes:
        study = Study(self._storage.get_study_name_from_id(study_id), self._storage)
        attributes = study.user_attrs
        if record.DEFINITION not in attributes:  # not a study of ours
            return body
        shown = json.loads(body)
        trials = study.get_trials(deepcopy=False)
        beside = self._beside(study, trials)
        _fill_in(shown, study_note(study, self._url))
        shown["user_attrs"] = _listed(of_study(attributes))
        for one in [*shown["trials"], *shown["best_trials"]]:
            if (found := beside.get(one["trial_id"])) is not None:
                _fill_in(one, found.note)
                one["user_attrs"] = _listed(found.attributes)
        shown["union_user_attrs"] = _columns(beside.values())
        return json.dumps(shown, separators=(",", ":"), ensure_ascii=False).encode()

    def _beside(self, study: Study, trials: Sequence[FrozenTrial]) -> dict[int, _Annotation]:
        """Annotate the trials; what a finished one says changes with the baseline alone."""
        setting = Setting.of(study)
        start = setting.baseline
        value = record.metric_of(start) if start is not None else None
        found = {}
        with self._lock:
            for trial in trials:
                annotation = self._known.get((trial._trial_id, value))
                if annotation is None:
                    annotation = _Annotation(trial_note(trial, setting), of_trial(trial))
                if trial.state.is_finished():
                    self._known[trial._trial_id, value] = annotation
                found[trial._trial_id] = annotation
        return found


def _fill_in(shown: dict[str, Any], note: str) -> None:
    """Show a note where nobody has written one; its version stays, so that one can be written."""
    if not shown["note"]["body"]:
        shown["note"]["body"] = note


def _listed(attributes: Mapping[str, str | float]) -> list[dict[str, str]]:
    return [{"key": key, "value": str(value)} for key, value in attributes.items()]


def _columns(found: Iterable[_Annotation]) -> list[dict[str, Any]]:
    """Name the attributes that any trial has; those that are numbers in all can be sorted by."""
    numeric: dict[str, bool] = {}
    for one in found:
        for key, value in one.attributes.items():
            numeric[key] = numeric.get(key, True) and not isinstance(value, str)
    return [{"key": key, "sortable": value} for key, value in numeric.items()]
