"""What the dashboard shows beside studies and trials: notes, and attributes that can be read.

Both follow from what a study stores, so they are made when they are asked for: a study of an older
version has them, they are those of now, and no trial waits for them. optuna-dashboard keeps notes
of trials with the study and goes through all of them for each trial; see
``benchmarks/dashboard_scale.py``. A note that somebody has written is shown in place of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi
from optuna_dashboard._inmemory_cache import InMemoryCache, _CachedExtraStudyProperty

from autotune import optuna_private
from autotune.errors import FormatError
from autotune.results.dashboard.attributes import study_attributes, trial_attributes
from autotune.results.dashboard.notes import study_note, trial_note
from autotune.results.study_results import StudyResults
from autotune.results.values.markdown import escape
from autotune.runtime import gc_paused
from autotune.study.state import attrs
from autotune.text import one_line

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: What the page of a study asks for: all trials, then those from the first unfinished one on.
_STUDY = ("GET", "/api/studies/<study_id:int>")


def annotated_app(
    storage: BaseStorage, artifacts: FileSystemArtifactStore, url: str
) -> WSGIApplication:
    """Make a dashboard whose studies and trials have notes and short attributes.

    Args:
        storage: What it shows; one that keeps finished trials, because it is asked every time.
        artifacts: Where the files of trials are.
        url: URL of the storage; a password in it is left out.
    """
    bottle = wsgi(storage, artifact_store=artifacts)
    bottle.install(_Annotations(storage, url, bottle._inmemory_cache))
    app: WSGIApplication = bottle
    return app


@dataclass(frozen=True)
class TrialAnnotation:
    """What is shown beside a trial: a note, and attributes by name and as the page takes them."""

    note: str
    numeric: Mapping[str, bool]
    listed: Sequence[Mapping[str, str]]

    @staticmethod
    def of(trial: FrozenTrial, results: StudyResults) -> TrialAnnotation:
        """Return the annotation of a trial."""
        attributes = trial_attributes(trial)
        numeric = {key: not isinstance(value, str) for key, value in attributes.items()}
        return TrialAnnotation(trial_note(trial, results), numeric, _listed(attributes))


class _SearchSpaces(_CachedExtraStudyProperty):  # type: ignore[misc]
    """The search spaces of a study's trials, of which each is looked at once.

    optuna-dashboard compares every parameter of a trial with every parameter known so far, for all
    trials, and again for every answer where none of them is unfinished. The trials of a study of
    ours have the same distributions, which ``storage/trials.py`` shares, and a second trial with
    them adds nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended: set[int] = set()
        self._compared: dict[tuple[tuple[str, int], ...], dict[str, BaseDistribution]] = {}

    def update(self, trials: list[FrozenTrial]) -> None:
        """Look at the trials that are new, or had not ended."""
        for trial in reversed(trials):
            if optuna_private.trial_id(trial) in self._ended:
                continue
            if trial.state.is_finished():
                self._ended.add(optuna_private.trial_id(trial))
            self._update_user_attrs(trial)
            if trial.state != TrialState.FAIL:
                self._update_intermediate_values(trial)
                self._update_search_space(trial)

    def _update_search_space(self, trial: FrozenTrial) -> None:
        # Kept, because another distribution could have the id of one that is gone.
        key = tuple((name, id(found)) for name, found in trial.distributions.items())
        if key not in self._compared:
            self._compared[key] = trial.distributions
            super()._update_search_space(trial)


class _Annotations:
    """A plug-in of Bottle, which gets answers before they become text: 17 MB of 2,000 trials."""

    name = "annotations"
    api = 2

    def __init__(self, storage: BaseStorage, url: str, cache: InMemoryCache) -> None:
        self._storage = storage
        self._url = url
        self._cache = cache
        self._lock = threading.Lock()
        self._known: dict[tuple[int, float | None], TrialAnnotation] = {}

    def apply(self, answer: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Put what is ours into the answers of one route."""
        if (route.method, route.rule) != _STUDY:
            return answer

        def annotated_answer(study_id: int) -> Any:
            with self._cache._cached_extra_study_property_cache_lock:
                spaces = self._cache._cached_extra_study_property_cache
                spaces.setdefault(study_id, _SearchSpaces())
            with gc_paused():
                shown = answer(study_id)
                if "trials" in shown:  # no error
                    try:
                        self._annotate(study_id, shown)
                    except (
                        FormatError
                    ) as error:  # optuna-dashboard shows such a study all the same
                        _fill_in(shown, escape(str(error)))
            return shown

        return annotated_answer

    def _annotate(self, study_id: int, shown: dict[str, Any]) -> None:
        study = Study(self._storage.get_study_name_from_id(study_id), self._storage)
        attributes = study.user_attrs
        if attrs.DEFINITION not in attributes:  # not a study of ours
            return
        attrs.check_version(study)
        results = StudyResults.from_study(study)
        beside = self._beside(results)
        _fill_in(shown, study_note(results, self._url))
        shown["user_attrs"] = _listed(study_attributes(results.attributes))
        for one in (*shown["trials"], *shown["best_trials"]):
            if (found := beside.get(one["trial_id"])) is not None:
                _fill_in(one, found.note)
                one["user_attrs"] = found.listed
        shown["union_user_attrs"] = _columns(beside.values())

    def _beside(self, results: StudyResults) -> dict[int, TrialAnnotation]:
        """Annotate the trials; what a finished one says changes with the baseline alone."""
        value = None if results.baseline is None else attrs.metric_value(results.baseline)
        found = {}
        with self._lock:
            for trial in results.trials:
                key = (optuna_private.trial_id(trial), value)
                beside = self._known.get(key)
                if beside is None:
                    beside = TrialAnnotation.of(trial, results)
                    if trial.state.is_finished():
                        self._known[key] = beside
                found[optuna_private.trial_id(trial)] = beside
        return found


def _fill_in(shown: dict[str, Any], note: str) -> None:
    """Show a note where nobody has written one; its version stays, so that one can be written."""
    if not shown["note"]["body"]:
        shown["note"]["body"] = note


def _listed(attributes: Mapping[str, str | float]) -> list[dict[str, str]]:
    return [
        {"key": one_line(key), "value": one_line(str(value))} for key, value in attributes.items()
    ]


def _columns(found: Iterable[TrialAnnotation]) -> list[dict[str, Any]]:
    """Name the attributes that any trial has; those that are numbers in all can be sorted by."""
    columns: dict[str, bool] = {}
    for one in found:
        for key, numeric in one.numeric.items():
            columns[key] = columns.get(key, True) and numeric
    return [{"key": one_line(key), "sortable": numeric} for key, numeric in columns.items()]
