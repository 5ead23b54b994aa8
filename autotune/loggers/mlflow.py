"""Trials as runs of MLflow, in an experiment for each study."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from autotune.events import EpochEnded, Event, StudyEnded, StudyStarted, TrialEnded, TrialStarted
from autotune.loggers.packages import import_extra

#: Tags by which experiments and runs are found again.
STUDY, TRIAL = "autotune.study", "autotune.trial"
#: How the state of a trial is called in MLflow; a requeued one runs again later.
_STATUS = {"failed": "FAILED", "requeued": "KILLED"}
#: Limits of MLflow for the texts of parameters and tags.
MAX_PARAM, MAX_TAG = 6000, 5000


class MLflow:
    """Logs each trial as a run, and the result of the study as tags of its experiment.

    Every attempt at a trial continues the run of the first one.

    Args:
        tracking_uri: Where to; default: that of MLflow, ``MLFLOW_TRACKING_URI``.
        experiment: Name of the experiment; default: ``MLFLOW_EXPERIMENT_NAME``, else the name of
            the study.

    Raises:
        UserError: When the package is missing.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None) -> None:
        mlflow = import_extra("mlflow", "mlflow")
        self._entities = import_extra("mlflow.entities", "mlflow")
        # Of its own seven, each waits twice as long as the one before: minutes without a server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._make_client: Callable[[], Any] = lambda: mlflow.MlflowClient(tracking_uri)
        self._client: Any = None
        self._experiment_name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        self._study: StudyStarted | None = None
        self._experiment = ""
        self._runs: dict[int, str] = {}

    def __call__(self, event: Event) -> None:
        """Log one event."""
        match event:
            case StudyStarted():
                self._study = event
                self._find_experiment()
            case TrialStarted():
                self._start(event)
            case EpochEnded():
                metrics = event.metrics(self._started().objective)
                self._log(event.first, metrics, event.epoch)
            case TrialEnded():
                self._end(event)
            case StudyEnded():
                self._tag_experiment(event)

    def _started(self) -> StudyStarted:
        assert self._study is not None, "the first event is that of the study"
        return self._study

    def _find_experiment(self) -> str:
        """Return the experiment of the study; make it at the first call that reaches a server."""
        if self._experiment:
            return self._experiment
        study = self._started()
        # The first contact may create tables, and fail: not in the constructor.
        self._client = self._client or self._make_client()
        name = self._experiment_name or study.study
        query = f"tags.`{STUDY}` = '{study.uuid}'"
        stored = None if self._experiment_name else next(iter(self._search(query)), None)
        stored = stored or self._client.get_experiment_by_name(name)
        if stored is None:
            tags = {STUDY: study.uuid, "autotune.objective": study.objective}
            self._experiment = self._client.create_experiment(name, tags=tags)
        else:
            self._experiment = stored.experiment_id
        return self._experiment

    def _search(self, query: str) -> list[Any]:
        return list(self._client.search_experiments(filter_string=query, max_results=1))

    def _run(self, first: int) -> str:
        """Return the run of a trial, that of an earlier attempt or process if there is one."""
        if first not in self._runs:
            study, experiment = self._started(), self._find_experiment()
            query = f"tags.`{STUDY}` = '{study.uuid}' and tags.`{TRIAL}` = '{first}'"
            runs = self._client.search_runs([experiment], query, max_results=1)
            if runs:
                self._runs[first] = runs[0].info.run_id
            else:
                tags = {STUDY: study.uuid, TRIAL: str(first)}
                run = self._client.create_run(experiment, tags=tags, run_name=f"trial {first}")
                self._runs[first] = run.info.run_id
        return self._runs[first]

    def _start(self, event: TrialStarted) -> None:
        run = self._run(event.first)
        values = {**event.params, "plan": event.plan, "backbone": event.backbone}
        param = self._entities.Param
        params = [param(name, str(value)[:MAX_PARAM]) for name, value in values.items()]
        self._client.log_batch(run, params=params)
        self._client.set_tag(run, "mlflow.note.content", event.plan[:MAX_TAG])
        if event.is_baseline:
            self._client.set_tag(run, "autotune.role", "baseline")
        self._client.update_run(run, status="RUNNING")

    def _log(self, first: int, metrics: dict[str, float], step: int) -> None:
        now, metric = round(1000 * time.time()), self._entities.Metric
        values = [metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run(first), metrics=values)

    def _end(self, event: TrialEnded) -> None:
        run = self._run(event.first)
        if event.value is not None:
            self._log(event.first, {"value": event.value}, 0)
        self._client.set_tag(run, "autotune.state", event.state)
        if event.reason:
            self._client.set_tag(run, "autotune.reason", event.reason[:MAX_TAG])
        self._client.set_terminated(run, _STATUS.get(event.state, "FINISHED"))

    def _tag_experiment(self, event: StudyEnded) -> None:
        tags = {"autotune.state": event.state, "autotune.reason": event.reason[:MAX_TAG]}
        for name in ("best", "baseline"):
            if result := getattr(event, name):
                text = f"trial {result.trial}: {result.value:.6g}, {result.plan}"
                tags[f"autotune.{name}"] = text[:MAX_TAG]
        experiment = self._find_experiment()
        for name, text in tags.items():
            self._client.set_experiment_tag(experiment, name, text)
