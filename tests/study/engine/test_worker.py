"""A worker in this process: its trials and their records."""

from __future__ import annotations

import json
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from safetensors.torch import load_file

from autotune.errors import PlanError, StudyError, UserError
from autotune.models.network import build_network
from autotune.plan import TrialPlan
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.storage.paths import StudyPaths
from autotune.study.engine import claimed_trial
from autotune.study.engine import worker as worker_module
from autotune.study.engine.pool import worker_name
from autotune.study.engine.worker import run_worker
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.predictions import PREDICTIONS, decode_scores, read_predictions
from autotune.study.state.trial_queue import Claim
from autotune.study.trial import build
from autotune.study.trial import run as trial_module
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import build_context
from autotune.training.metrics import Metrics, compute_metrics
from tests.support.commands.inline import Event, failing, job, run
from tests.support.commands.runs import wait_for
from tests.support.study.broken import silence
from tests.support.study.small import open_small
from tests.support.study.studies import untimed_curves

pytestmark = pytest.mark.usefixtures("idle_machine")


def picture(handle: OpenStudy, name: str, number: int = 0) -> bytes:
    """Read the file of that name which goes with a trial."""
    trial = handle.study.get_trials()[number]
    (found,) = [
        one for one in get_all_artifact_meta(trial, storage=handle.storage) if one.filename == name
    ]
    return (handle.files.artifacts / found.artifact_id).read_bytes()


def test_no_two_workers_have_one_name() -> None:
    """Containers share a host's name and have the same process numbers."""
    names = {worker_name(7, 0) for _ in range(10)}
    assert len(names) == 10
    for name in names:
        host, process, place = name.rsplit("/", 2)
        assert (host, process, place.partition("-")[0]) == (socket.gethostname(), "7", "0")


def test_a_study_from_start_to_end(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    events = run(handle)
    assert [event["trial"] for event in events if event["event"] == "end"] == [0, 1, 2]
    epochs = [(event["trial"], event["epoch"]) for event in events if event["event"] == "epoch"]
    assert epochs[:2] == [(0, 1), (0, 2)]

    trials = handle.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    space = set(trials[1].params)
    for trial in trials:
        attributes = trial.user_attrs
        assert set(trial.params) == space
        assert trial.value == attributes[attrs.METRICS]["accuracy"]
        scores = decode_scores(attributes[attrs.IMAGE_SCORES])
        assert trial.value == pytest.approx(scores.mean())
        assert trial.value == trial.intermediate_values[2]
        assert attributes[attrs.EPOCHS] == 2
        assert attributes[attrs.SECONDS] > 0
        assert attributes[attrs.DEVICE] == "cpu"
        names = [one.filename for one in get_all_artifact_meta(trial, storage=handle.storage)]
        pictures = {"learning_curve.png", "confusion_matrix.png", "worst_images.jpg"}
        assert pictures <= set(names)
        # Short attributes: the dashboard reads them all.
        assert len(json.dumps(attributes)) < 2000
    results = StudyResults.from_study(handle.study, handle.files.artifacts)
    for trial in trials:
        kept = results.read_logits(trial)
        assert kept is not None
        scores = compute_metrics(torch.from_numpy(kept.logits), torch.from_numpy(kept.labels))
        assert scores.to_json() == pytest.approx(trial.user_attrs[attrs.METRICS])
    images = read_predictions(results.read_artifact(trials[0], PREDICTIONS) or b"")
    assert (
        len({one.path for one in images}) == handle.study.user_attrs[attrs.DATASET]["validation"]
    )
    assert all(one.path.startswith("digits/") for one in images)
    assert kept is not None and {*kept.ids.tolist()} == {one.path for one in images}
    assert sum(one.is_correct for one in images) / len(images) == trials[0].value
    losses = [one.loss for one in images]
    assert losses == sorted(losses, reverse=True)
    assert trials[0].user_attrs[attrs.TRAINABLE_PARAMETERS] == 970
    files = StudyPaths.from_url(handle.url)
    assert not list(files.root.glob("checkpoints/*/*.pt"))


def test_a_worker_notices_a_request_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker_module, "Heartbeat", partial(worker_module.Heartbeat, interval_s=0.01)
    )
    handle = open_small(tmp_path, training__epochs=500)

    def ask(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            handle.trial_queue().request_stop("stopped from elsewhere")

    events = run(handle, ask)
    assert events[-1]["state"] == "interrupted"
    stopped, retry = handle.study.get_trials()
    assert stopped.user_attrs[attrs.REASON] == "interrupted"
    assert retry.state == TrialState.WAITING and retry.last_step in range(2, 500)
    assert handle.files.checkpoint("small", 0).exists()
    assert run(handle)[-1]["event"] == "ready"  # until the next run nothing starts


def test_weights_of_the_best_can_be_loaded_into_its_network(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    run(handle)
    best = ranking.best_trial(handle.study.get_trials(), handle.study.direction)
    assert best is not None
    (weights,) = [
        one
        for one in get_all_artifact_meta(best, storage=handle.storage)
        if one.filename == "weights.safetensors"
    ]
    ctx = build_context(handle)
    plan = attrs.trial_plan(best)
    assert plan is not None
    backbone = ctx.resources.get(plan.backbone).backbone
    network = build_network(backbone, plan, 10, seed=99)
    network.load_trainable_state(load_file(handle.files.artifacts / weights.artifact_id))
    training = build_trainer(plan, ctx)
    training.network.load_state_dict(network.state_dict())
    assert training.validate().accuracy == best.value


def test_equal_plans_have_equal_values(tmp_path: Path) -> None:
    """Rerun (contract 9): on the CPU, bit by bit."""
    handle = open_small(tmp_path)
    run(handle)
    trial = handle.study.get_trials()[2]
    plan = attrs.trial_plan(trial)
    assert plan is not None
    training = build_trainer(plan, build_context(handle))
    values = {result.epoch: result.metrics.accuracy for result in training.run() if result.metrics}
    assert values == trial.intermediate_values
    assert training.metrics is not None
    assert training.metrics.to_json() == trial.user_attrs[attrs.METRICS]


def test_images_that_there_is_no_room_for_give_the_same_values(tmp_path: Path) -> None:
    plenty = open_small(tmp_path / "plenty", cache__features="off", search__trials=1)
    little = {"disk_gb": 5e-5, "memory_gb": 0, "features": "off"}
    values, pictures = [], []
    for handle in (plenty, open_small(tmp_path / "little", cache=little, search__trials=1)):
        run(handle)
        (trial,) = handle.study.trials
        values.append((trial.intermediate_values, trial.user_attrs[attrs.METRICS]))
        pictures.append(picture(handle, "worst_images.jpg"))
    assert values[0] == values[1]
    assert pictures[0] == pictures[1]
    ctx = build_context(handle)
    material = ctx.resources.get(ctx.space.backbone)
    assert not isinstance(material.data.store.images, np.ndarray)
    assert material.cache_bytes == 0


def test_the_test_part_is_not_decoded(tmp_path: Path) -> None:
    """Test once (contract 8): no image of the test part is in the store of a worker."""
    ctx = build_context(open_small(tmp_path))
    task = ctx.resources.get(ctx.space.backbone).data
    info = task.info
    assert info.test == 898
    assert len(task.store.indices) == info.train + info.validation


def test_a_diverged_trial_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path, space__training__lr=100.0, training__clip_grad_norm=None,
        space__trainable_layers=5, space__training__optimizer="sgd", space__layers={},
        baseline__lr=0.01,
    )  # fmt: skip
    run(handle)
    trials = handle.study.get_trials()
    assert len(trials) == 3
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(failed) == 2
    for trial in failed:
        assert trial.user_attrs[attrs.REASON].startswith("diverged: ")
        assert trial.user_attrs[attrs.FAILED_PLAN] is True
        assert attrs.PLAN in trial.user_attrs
        assert all(math.isfinite(one) for one in trial.intermediate_values.values())
    assert ranking.best_trial(trials, handle.study.direction) is trials[0]
    assert attrs.pruned_epochs(trials, 2) == 0
    assert handle.progress().finished == 3


def test_a_value_that_is_no_number_fails_the_trial_and_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, training__objective="log_loss")
    objective = Metrics.objective

    def broken(metrics: Metrics, name: str) -> float:
        return objective(metrics, name) if len(handle.study.get_trials()) < 2 else math.inf

    monkeypatch.setattr(Metrics, "objective", broken)
    run(handle)
    trials = handle.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] + [TrialState.FAIL] * 2
    for trial in trials[1:]:
        assert trial.user_attrs[attrs.REASON] == "diverged: the log_loss is inf in epoch 1"
        assert trial.intermediate_values == {}
    assert ranking.best_trial(trials, handle.study.direction) == trials[0]


def test_time_on_the_device_is_that_of_each_attempt(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    run(handle, until=lambda event: event["event"] == "epoch")
    run(handle)
    first, second = handle.study.get_trials()
    for trial in (first, second):
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
        assert attrs.device_seconds(trial, 0.0) == pytest.approx(seconds, abs=0.5)
    assert second.user_attrs[attrs.SECONDS] > first.user_attrs[attrs.SECONDS]
    assert StopReason.from_attributes(handle.study.user_attrs) == StopReason(
        "trials", "1 finished trial"
    )


@pytest.mark.slow
def test_a_worker_waits_for_what_others_bring(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=9, search__patience=1, training__epochs=1)
    claims = handle.trial_queue()
    baseline, other = claims.claim("other/1/0"), claims.claim("other/1/1")
    assert isinstance(baseline, Claim) and isinstance(other, Claim)
    claims.finish(baseline, TrialState.COMPLETE, 1.0)  # nothing is better, whatever is drawn
    third = claims.claim("other/1/0")
    assert isinstance(third, Claim)
    claims.finish(third, TrialState.PRUNED)
    events: list[dict[str, Any]] = []
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run_worker, job(handle), stop, events.append)
        try:
            wait_for(lambda: {"event": "waiting"} in events)
            # Its worker goes silent: the one that waits finds that out, and runs the retry.
            handle.storage.record_heartbeat(other.trial._trial_id)
            silence(handle.storage, handle.study.get_trials()[other.trial.number], 3600)
            ended = result.result(timeout=120)
        finally:
            stop.set()
    assert ended == StopReason.from_attributes(handle.study.user_attrs)
    assert ended is not None and ended.kind == "patience"
    assert [event["trial"] for event in events if event["event"] == "start"] == [3]
    trials = handle.study.get_trials()
    assert attrs.earlier_attempts(trials[3]) == [other.trial.number]
    assert trials[3].state == TrialState.COMPLETE
    assert events.count({"event": "waiting"}) == 1


def test_the_pruner_follows_the_workers_of_all_launchers(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        search__trials=8,
        search__pruner="median",
        training__epochs=5,
        space__training__head_only_epochs=[0, 2],
    )
    claims = handle.trial_queue()
    others = [claims.claim(f"other/1/{worker}") for worker in range(5)]
    asked: list[tuple[Any, ...]] = []
    run_original, make_original = claimed_trial.run_trial, worker_module.make_pruner

    def make(*given: Any) -> Any:
        asked.append(given)
        return make_original(*given)

    def end_others(trial: Any, ctx: Any, *rest: Any) -> Any:
        for other in others:
            assert isinstance(other, Claim)
            claims.finish(other, TrialState.FAIL)
        others.clear()
        return run_original(trial, ctx, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claimed_trial, "run_trial", end_others)
        patch.setattr(worker_module, "make_pruner", make)
        run(handle, workers=2)
    # Epochs, workers, the epochs of the head alone.
    assert asked == [("median", 5, 6, 2), ("median", 5, 2, 2)]


def test_a_stop_gives_the_trial_back_and_another_worker_resumes_it(tmp_path: Path) -> None:
    undisturbed = open_small(tmp_path / "a", search__trials=1, training__epochs=4)
    run(undisturbed)
    handle = open_small(tmp_path / "b", search__trials=1, training__epochs=4)
    events = run(handle, until=lambda event: event.get("epoch") == 2)
    assert events[-1]["state"] == "interrupted"
    assert handle.progress().waiting == 1
    resumed = run(handle)
    assert [one["epoch"] for one in resumed if one["event"] == "epoch"] == [3, 4]
    (expected,) = undisturbed.study.get_trials()
    trials = handle.study.get_trials()
    assert trials[1].state == TrialState.COMPLETE
    assert trials[1].value == expected.value
    assert trials[1].intermediate_values == expected.intermediate_values
    assert untimed_curves(trials[1]) == untimed_curves(expected)
    assert trials[1].user_attrs[attrs.METRICS] == expected.user_attrs[attrs.METRICS]
    assert trials[1].user_attrs[attrs.SECONDS] > trials[0].user_attrs[attrs.SECONDS]


def test_a_trial_that_an_earlier_version_began_has_curves_from_there_on(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=3)
    run(handle, until=lambda event: event.get("epoch") == 1)
    with handle.storage.engine.begin() as connection:
        statement = f"DELETE FROM trial_user_attributes WHERE key = '{attrs.CURVES}'"
        assert connection.execute(sqlalchemy.text(statement)).rowcount == 2
    run(open_existing(handle.name, handle.url))
    first, second = open_existing(handle.name, handle.url).study.trials
    assert attrs.CURVES not in first.user_attrs
    assert list(second.intermediate_values) == [1, 2, 3]
    losses = untimed_curves(second)["training_loss"]
    assert losses[0] is None and losses[1] > losses[2] > 0


def test_a_trial_lost_after_its_last_epoch_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # As abrupt as a kill: nothing is told.
        patch.setattr(trial_module, "store_artifacts", failing(KeyboardInterrupt()))
        run(handle)
    ctx = build_context(handle)
    assert handle.trial_queue().reclaim_stale(lambda worker: True) == 1
    events = run(handle)
    assert [event["event"] for event in events] == ["ready", "start", "end"]
    done = handle.study.get_trials()[1]
    assert done.state == TrialState.COMPLETE
    plan = attrs.trial_plan(done)
    assert plan == TrialPlan.from_json(done.user_attrs[attrs.PLAN])
    assert plan == ctx.space.baseline(ctx.config.baseline)
    assert done.value == done.intermediate_values[2]


@pytest.mark.parametrize("error", [RuntimeError, PlanError])
def test_a_trial_that_fails_after_it_was_given_away_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    handle = open_small(tmp_path, search__trials=2)
    claims = handle.trial_queue()
    original = build.build_network
    checkpoints = []

    def hang(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(build, "build_network", original)
        checkpoint = handle.files.checkpoint(handle.name, 0)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"")  # the successor's by now
        checkpoints.append(checkpoint)
        assert claims.reclaim_stale(lambda worker: True) == 1
        with checkpoint.open():
            raise error("too late")

    monkeypatch.setattr(build, "build_network", hang)
    kept: list[bool] = []

    def look(event: Event) -> None:
        if event.get("state") == "lost":
            kept.append(checkpoints[0].exists())
            checkpoints[0].unlink()

    events = run(handle, until=look)
    ends = [(event["trial"], event["state"]) for event in events if event["event"] == "end"]
    assert ends == [(0, "lost"), (1, "complete"), (2, "complete")]
    assert kept == [True]
    trials = handle.study.get_trials()
    assert attrs.earlier_attempts(trials[1]) == [0]
    assert attrs.FAILED_PLAN not in trials[0].user_attrs


def test_what_a_worker_wrote_after_its_trial_was_finished_elsewhere_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was frozen between its report and its checkpoint."""
    handle = open_small(tmp_path, search__trials=1)
    original = build.build_network

    def freeze(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(build, "build_network", original)
        assert handle.trial_queue().reclaim_stale(lambda worker: True) == 1
        run(handle)
        checkpoint = handle.files.checkpoint(handle.name, 0)
        assert not checkpoint.exists()
        checkpoint.write_bytes(b"")
        raise PlanError("too late")

    monkeypatch.setattr(build, "build_network", freeze)
    events = run(handle)
    assert [event["state"] for event in events if event["event"] == "end"] == ["lost"]
    assert handle.study.trials[1].state == TrialState.COMPLETE
    assert not handle.files.checkpoint(handle.name, 0).exists()


@pytest.mark.slow
def test_bad_trials_prune(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=12, training__epochs=6, search__sampler="random")
    run(handle)
    pruned = [trial for trial in handle.study.get_trials() if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert max(trial.intermediate_values) < 6
        assert trial.user_attrs[attrs.EPOCHS] == max(trial.intermediate_values)
        names = [one.filename for one in get_all_artifact_meta(trial, storage=handle.storage)]
        assert names == ["learning_curve.png"]


def test_a_space_with_nothing_to_search_still_runs(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        space={"trainable_layers": 1, "head": {}, "training": {"lr": 0.003}},
        search__trials=9,
    )
    run(handle)
    trials = handle.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    plans = [attrs.trial_plan(trial) for trial in trials]
    assert [plan.depth for plan in plans if plan] == [0, 1]
    assert StopReason.from_attributes(handle.study.user_attrs) == StopReason(
        "exhausted", "every plan of the space has been tried"
    )


def test_a_greedy_search_ends_with_its_last_stage(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        space={
            "trainable_layers": {"low": 0, "high": 1},
            "head": {},
            "training": {"lr": [0.01, 0.003]},
        },
        search__trials=9,
        search__strategy="greedy",
        search__default_plans=False,
        training__epochs=1,
    )
    run(handle)
    stages = [trial.user_attrs.get(attrs.STAGE) for trial in handle.study.trials]
    assert stages[:2] == [None, "layer 1"] and len(stages) < 5
    ended = StopReason.from_attributes(handle.study.user_attrs)
    assert ended is not None and ended.kind == "exhausted"
    assert "all of its stages" in ended.text


OWN = """
from optuna.samplers import RandomSampler
def Mine(space, seed): return RandomSampler(seed)
"""


def test_changed_files_of_ones_own_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    handle = open_small(tmp_path, search__sampler=f"{path}:Mine", search__trials=2)
    path.write_text(OWN + "# changed")
    with pytest.raises(StudyError, match=r"search.sampler: the file \S+/mine.py has changed"):
        run(handle)
    path.unlink()
    with pytest.raises(UserError, match=r"there is no file \S+/mine.py"):
        run(handle)
    path.write_text(OWN)
    run(handle)
    assert handle.progress().complete == 2
