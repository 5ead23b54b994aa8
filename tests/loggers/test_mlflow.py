"""What MLflow gets: the same of a recording client, and of the real one where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autotune.loggers import MLflow
from tests.support.study.events import ODD, first_run, second_run

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow about SQLAlchemy


@dataclass
class _Store:
    """Experiments and runs, behind the calls of ``mlflow.MlflowClient`` that are used."""

    experiments: dict[str, Any] = field(default_factory=dict)
    runs: list[Any] = field(default_factory=list)

    def search_experiments(self, filter_string: str, max_results: int) -> list[Any]:
        key, value = filter_string.removeprefix("tags.`").split("` = ")
        found = self.experiments.values()
        return [one for one in found if one.tags.get(key) == value.strip("'")][:max_results]

    def get_experiment_by_name(self, name: str) -> Any:
        return next((one for one in self.experiments.values() if one.name == name), None)

    def create_experiment(self, name: str, tags: dict[str, str]) -> str:
        key = str(len(self.experiments))
        self.experiments[key] = SimpleNamespace(experiment_id=key, name=name, tags=dict(tags))
        return key

    def set_experiment_tag(self, experiment: str, name: str, value: str) -> None:
        self.experiments[experiment].tags[name] = value

    def search_runs(self, experiments: list[str], query: str = "", max_results: int = 9) -> Any:
        wanted = [
            part.split("` = ") for part in query.replace("tags.`", "").split(" and ") if part
        ]
        return [
            run
            for run in self.runs
            if run.info.experiment_id in experiments
            and all(run.data.tags.get(key) == value.strip("'") for key, value in wanted)
        ][:max_results]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        info = SimpleNamespace(
            run_id=str(len(self.runs)),
            experiment_id=experiment,
            run_name=run_name,
            status="RUNNING",
        )
        data = SimpleNamespace(params={}, metrics={}, tags=dict(tags))
        self.runs.append(SimpleNamespace(info=info, data=data, history=[]))
        return self.runs[-1]

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        stored = self.runs[int(run)]
        for param in params:
            before = stored.data.params.setdefault(param.key, param.value)
            assert before == param.value, "MLflow refuses another value of a parameter"
        for metric in metrics:
            stored.history.append(metric)
            stored.data.metrics[metric.key] = metric.value

    def set_tag(self, run: str, name: str, value: str) -> None:
        self.runs[int(run)].data.tags[name] = value

    def update_run(self, run: str, status: str) -> None:
        self.runs[int(run)].info.status = status

    set_terminated = update_run

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [metric for metric in self.runs[int(run)].history if metric.key == key]


@pytest.fixture(params=["recording", "real"])
def client(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    uri = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    if request.param == "real":
        mlflow = pytest.importorskip("mlflow")
        yield mlflow.MlflowClient(uri)
        return
    store, package, entities = _Store(), ModuleType("mlflow"), ModuleType("mlflow.entities")
    vars(package)["MlflowClient"] = lambda tracking_uri=None: store
    vars(entities)["Param"] = lambda key, value: SimpleNamespace(key=key, value=value)
    vars(entities)["Metric"] = lambda key, value, timestamp, step: SimpleNamespace(
        key=key, value=value, timestamp=timestamp, step=step
    )
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    yield store


def test_runs_of_two_processes_and_two_names(client: Any, tmp_path: Path) -> None:
    for events in (first_run(tmp_path), second_run(tmp_path, "renamed")):
        logger = MLflow()
        for event in events:
            logger(event)
    experiment = client.get_experiment_by_name(ODD)
    assert client.get_experiment_by_name("renamed") is None
    assert experiment.tags["autotune.best"] == "trial 2: 0.8, last 2 layers"
    assert experiment.tags["autotune.state"] == "finished"
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"trial 0", "trial 1", "trial 3"}
    first, second, third = (runs[f"trial {number}"] for number in (0, 1, 3))
    assert first.info.status == second.info.status == third.info.status == "FINISHED"
    assert first.data.params["training.lr"] == "0.01" and "layer" not in first.data.params
    assert second.data.params["layer"] == "3" and second.data.params["plan"] == "last 2 layers"
    assert first.data.metrics["value"] == 0.7 and second.data.metrics["value"] == 0.8
    assert first.data.tags["autotune.role"] == "baseline"
    assert second.data.tags["autotune.state"] == "pruned"
    assert third.data.tags["autotune.reason"].startswith("infeasible: 12 M")
    history = client.get_metric_history(second.info.run_id, "accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.4), (2, 0.8)]
    assert set(second.data.metrics) == {
        *("accuracy", "value", "training_loss", "learning_rate", "seconds")
    }


def test_a_requeued_trial_is_no_running_one(client: Any, tmp_path: Path) -> None:
    logger = MLflow(experiment="mine")
    for event in first_run(tmp_path):
        logger(event)
    mine = client.get_experiment_by_name("mine").experiment_id
    states = {run.info.run_name: run.info.status for run in client.search_runs([mine])}
    assert states == {"trial 0": "FINISHED", "trial 1": "KILLED"}
