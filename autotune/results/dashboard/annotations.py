"""Notes and short attributes that the dashboard shows beside studies and trials.

They are made when they are requested, from what a study stores: a study of an older version has
them too, they are up to date, and no trial waits for them. optuna-dashboard stores notes of trials
with the study and searches all of them for each trial; see ``benchmarks/dashboard_scale.py``. A
note that a user has written replaces the generated one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi
from optuna_dashboard._inmemory_cache import InMemoryCache, _CachedExtraStudyProperty
from optuna_dashboard._serializer import serialize_frozen_trial

from autotune import optuna_private
from autotune.errors import FormatError
from autotune.results.dashboard.attributes import study_attributes, trial_attributes
from autotune.results.dashboard.notes import study_note, trial_note
from autotune.results.figures.parameters import importances
from autotune.results.study_results import StudyResults
from autotune.results.values.markdown import escape
from autotune.runtime import gc_paused
from autotune.study.state import attrs
from autotune.text import one_line

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: The request of a study's page: first all trials, then those from the first unfinished one on.
_STUDY = ("GET", "/api/studies/<study_id:int>")
_IMPORTANCES = ("GET", f"{_STUDY[1]}/param_importances")


def annotated_app(
    storage: BaseStorage, artifacts: FileSystemArtifactStore, url: str
) -> WSGIApplication:
    """Make a dashboard whose studies and trials have notes and short attributes.

    Args:
        storage: The storage. It should cache finished trials, because it is read for every
            request.
        artifacts: The files of trials.
        url: URL of the storage; a password in it is removed.
    """
    app = wsgi(storage, artifact_store=artifacts)
    app.install(_AnnotationPlugin(storage, url, app._inmemory_cache))
    annotated: WSGIApplication = app
    return annotated


@dataclass(frozen=True)
class TrialAnnotation:
    """The note and the attributes of a trial; ``listed`` is what the page takes."""

    note: str
    attributes: Mapping[str, str | float]
    listed: Sequence[Mapping[str, str]]


class _SearchSpaces(_CachedExtraStudyProperty):  # type: ignore[misc]
    """The search spaces of a study; each trial is added once.

    optuna-dashboard compares every parameter of a trial with every parameter so far, for all
    trials, and again for every response where all trials have ended. The trials of an autotune
    study share their distributions (``storage/rdb/trial_reader.py``), so a second trial with them
    adds nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finished: set[int] = set()
        self._compared: dict[tuple[tuple[str, int], ...], dict[str, BaseDistribution]] = {}

    def update(self, trials: list[FrozenTrial]) -> None:
        """Add the trials that are new, or had not ended."""
        for trial in reversed(trials):
            trial_id = optuna_private.trial_id(trial)
            if trial_id in self._finished:
                continue
            if trial.state.is_finished():
                self._finished.add(trial_id)
            self._update_user_attrs(trial)
            if trial.state != TrialState.FAIL:
                self._update_intermediate_values(trial)
                self._update_search_space(trial)

    def _update_search_space(self, trial: FrozenTrial) -> None:
        # The distributions stay referenced: after a deletion another one could get the same id.
        key = tuple((name, id(value)) for name, value in trial.distributions.items())
        if key not in self._compared:
            self._compared[key] = trial.distributions
            super()._update_search_space(trial)


class _AnnotationPlugin:
    """A Bottle plug-in. It changes responses before they become text: 17 MB of 2,000 trials."""

    name = "annotations"
    api = 2

    def __init__(self, storage: BaseStorage, url: str, cache: InMemoryCache) -> None:
        self._storage = storage
        self._url = url
        self._cache = cache
        self._lock = threading.Lock()
        self._annotations: dict[tuple[int, float | None], TrialAnnotation] = {}

    def apply(self, respond: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Annotate the responses of the routes of a study."""
        if (route.method, route.rule) == _IMPORTANCES:
            return self._with_importances(respond)
        if (route.method, route.rule) != _STUDY:
            return respond

        def respond_annotated(study_id: int) -> Any:
            with self._cache._cached_extra_study_property_cache_lock:
                spaces = self._cache._cached_extra_study_property_cache
                spaces.setdefault(study_id, _SearchSpaces())
            with gc_paused():
                response = respond(study_id)
                if "trials" in response:  # not an error
                    try:
                        self._annotate(study_id, response)
                    except FormatError as error:  # the study is shown without annotations
                        _set_note(response, escape(str(error)))
            return response

        return respond_annotated

    def _with_importances(self, respond: Callable[..., Any]) -> Callable[..., Any]:
        """Show the importances of the report: those of parameters that have an effect.

        Of two objectives, the first one, the metric, has them; those of the cost stay.
        """

        def respond_with_importances(study_id: int) -> Any:
            response = respond(study_id)
            drawn = response.get("param_importances")
            if not drawn:  # an error
                return response
            study = Study(self._storage.get_study_name_from_id(study_id), self._storage)
            if attrs.DEFINITION in study.user_attrs:
                ours = importances(StudyResults.from_study(study))
                kinds = {entry["name"]: entry["distribution"] for entry in drawn[0]}
                drawn[0] = [
                    {"name": name, "importance": value, "distribution": kinds[name]}
                    for name, value in ours.items()
                    if name in kinds
                ]
            return response

        return respond_with_importances

    def _annotate(self, study_id: int, response: dict[str, Any]) -> None:
        study = Study(self._storage.get_study_name_from_id(study_id), self._storage)
        if attrs.DEFINITION not in study.user_attrs:  # a study of another program
            return
        attrs.check_version(study)
        results = StudyResults.from_study(study)
        annotations = self._annotate_trials(results)
        if results.cost is None:  # Optuna knows neither the limits nor what orders equal values
            stored = self._storage.get_study_system_attrs(study_id)
            best = [] if results.best is None else [results.best]
            response["best_trials"] = [
                serialize_frozen_trial(study_id, trial, stored) for trial in best
            ]
        _set_note(response, study_note(results, self._url))
        response["user_attrs"] = _to_list(study_attributes(results.attributes))
        for trial in (*response["trials"], *response["best_trials"]):
            if (annotation := annotations.get(trial["trial_id"])) is not None:
                _set_note(trial, annotation.note)
                trial["user_attrs"] = annotation.listed
        # An attribute is sortable where all trials have numbers.
        sortable: dict[str, bool] = {}
        for annotation in annotations.values():
            for key, value in annotation.attributes.items():
                sortable[key] = sortable.get(key, True) and not isinstance(value, str)
        response["union_user_attrs"] = [
            {"key": one_line(key), "sortable": is_number} for key, is_number in sortable.items()
        ]

    def _annotate_trials(self, results: StudyResults) -> dict[int, TrialAnnotation]:
        """Annotate the trials; that of a finished one changes only with the baseline."""
        baseline = None if results.baseline is None else attrs.metric_value(results.baseline)
        annotations = {}
        with self._lock:
            for trial in results.trials:
                key = (optuna_private.trial_id(trial), baseline)
                annotation = self._annotations.get(key)
                if annotation is None:
                    note, attributes = trial_note(trial, results), trial_attributes(trial)
                    annotation = TrialAnnotation(note, attributes, _to_list(attributes))
                    if trial.state.is_finished():
                        self._annotations[key] = annotation
                annotations[key[0]] = annotation
        return annotations


def _set_note(response: dict[str, Any], note: str) -> None:
    """Set a note unless a user has written one; its version stays, so that it can be edited."""
    if not response["note"]["body"]:
        response["note"]["body"] = note


def _to_list(attributes: Mapping[str, str | float]) -> list[dict[str, str]]:
    return [
        {"key": one_line(key), "value": one_line(str(value))} for key, value in attributes.items()
    ]
