"""Studies as a run leaves them behind, made in a moment: material for tests that read studies.

Everything goes through Optuna's public API; attributes carry the names of
``autotune.study.state.attrs``, and parameters and plans come from ``autotune.search.space``.
"""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import func, select

from autotune.config.old_names import stored_init
from autotune.config.schema import StudyConfig
from autotune.optuna_private import models
from autotune.plan import TrialPlan
from autotune.results.study_results import StudyResults
from autotune.search.backbone_limits import Candidate
from autotune.search.space import Params, Space
from autotune.storage.artifacts import add_artifact
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from autotune.study.state import constraints as limits
from autotune.study.state.predictions import encode_scores
from autotune.training import curves
from tests.support.models.spaces import fake_capabilities

START = datetime(2026, 1, 5, 9, 0, 0)
EPOCHS = 10
VALIDATION = 360
HOSTILE = "</script><script>alert('x')</script><b>&amp;"
SPACE: Mapping[str, Any] = {
    "trainable_layers": {"low": 0, "high": 5},
    "head": {
        "hidden_layers": {"low": 0, "high": 2},
        "units": [64, 128, 256, 512],
        "dropout": {"low": 0.0, "high": 0.8, "step": 0.1},
        "pool": ["avg", "max", "avgmax"],
    },
    "training": {
        "lr": {"low": 1e-4, "high": 0.3, "log": True},
        "layer_decay": {"low": 0.5, "high": 1.0},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    },
}
ONE_PARAMETER: Mapping[str, Any] = {"trainable_layers": {"low": 0, "high": 5}}


def make_study(
    name: str = "digits",
    *,
    trials: int = 24,
    running: int = 1,
    waiting: int = 0,
    failed: int = 1,
    retried: int = 1,
    objective: str = "accuracy",
    objectives: Sequence[str] | None = None,
    constraints: Mapping[str, float] | None = None,
    gain: float = 0.11,
    space: Mapping[str, Any] | None = None,
    layers: int = 5,
    others: Mapping[str, int] | None = None,
    workers: int = 2,
    has_losses: bool = True,
    hostile: bool = False,
    budget: int = 40,
    storage: str | BaseStorage | None = None,
    seed: int = 0,
) -> Study:
    """Make a study.

    Args:
        name: Name of the study.
        trials: Complete and pruned trials, the baseline included; 0 makes an empty study unless
            other trials are asked for, 1 the baseline alone. About a third is pruned.
        running: Trials that are at epoch 3.
        waiting: Trials in the queue.
        failed: Trials that diverged.
        retried: Attempts that were requeued; the first retry of each is among ``trials``, so
            that there are at most ``trials - 1``.
        objective: One of ``autotune.config.schema.OBJECTIVES``; it decides the direction.
        objectives: A metric and a cost for a Pareto study; nothing is pruned then.
        constraints: The ``constraints`` section of the study file; plans beyond it are not
            trained. See :func:`_costs` for what plans cost.
        gain: How much accuracy the best plan has over the baseline; below zero, none beats it.
        space: The ``space`` section of the study file; by default a rich one.
        layers: Layers of the backbone.
        others: Further backbones, by name, with the number of their layers.
        workers: Workers that share the trials.
        has_losses: Whether trials have their losses, learning rates and seconds by epoch.
        hostile: Whether every text that a user or an error can bring in is HTML.
        budget: Finished trials that the study is to have.
        storage: An Optuna storage or its URL; by default memory.
        seed: Seed of everything random.
    """
    metric = objectives[0] if objectives else objective
    config = StudyConfig.model_validate(
        {
            "name": "digits",
            "dataset": "digits",
            "backbone": ["test_resnet.r160_in1k", *(others or {})],
            "space": dict(SPACE if space is None else space),
            "search": {"trials": budget, "seed": seed},
            "training": {
                "epochs": EPOCHS,
                "objective": metric,
            },
            "objectives": objectives and list(objectives),
            "constraints": dict(constraints or {}),
        }
    )
    counts = dict(zip(config.backbones, (layers, *(others or {}).values()), strict=True))
    candidates = [Candidate(one, count, fake_capabilities(count)) for one, count in counts.items()]  # type: ignore[arg-type]
    made = Space.from_candidates(candidates, config.space, stored_init(config.init))
    study = optuna.create_study(
        study_name=name, storage=storage, directions=list(config.directions.values())
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(config.directions))
    for key, value in _study_attributes(
        config, counts, budget, HOSTILE if hostile else ""
    ).items():
        study.set_user_attr(key, value)
    study.set_user_attr(attrs.SPACE, made.to_json())
    maker = _Maker(
        study, config, made, gain, workers, HOSTILE if hostile else "", seed, has_losses
    )
    maker.add_all(trials, failed, min(retried, max(0, trials - 1)), running, waiting)
    return study


def make_results(**options: Any) -> StudyResults:
    """Make a study with :func:`make_study` and read it."""
    return StudyResults.from_study(make_study(**options))


def make_tied_results(log_loss: float = 0.01) -> StudyResults:
    """Read a study whose trial 1 has the accuracy of the baseline, and no trial has a higher one.

    Args:
        log_loss: The log loss of trial 1; that of the baseline is higher than 0.01.
    """
    results = make_results(gain=-0.05, running=0, retried=0)
    baseline, trial, *others = results.trials
    tied = copy.copy(trial)
    tied.state, tied.values = TrialState.COMPLETE, list(baseline.values)
    tied._user_attrs = {
        **trial.user_attrs,
        attrs.METRICS: {**baseline.user_attrs[attrs.METRICS], "log_loss": log_loss},
    }
    return replace(results, trials=(baseline, tied, *others))


def _study_attributes(
    config: StudyConfig, counts: Mapping[str, int], budget: int, hostile: str
) -> dict[str, Any]:
    return {
        attrs.DEFINITION: config.identity(),
        attrs.BUDGET: {"trials": budget, "timeout": None},
        attrs.DATASET: {
            "name": "digits" + hostile,
            "fingerprint": "0f" * 16,
            "classes": [f"digit {i}{hostile}" for i in range(10)],
            "train": 200,
            "validation": VALIDATION,
            "test": 360,
            "skipped": [["3/7.png", "truncated file" + hostile]],
        },
        attrs.BACKBONES: {name: _described(layers, hostile) for name, layers in counts.items()},
        attrs.FILES: "/data/digits-files",
        attrs.ENVIRONMENT: {"python": "3.11.7", "torch": "2.9.0", "timm": "1.0.31" + hostile},
    }


def _described(count: int, hostile: str) -> dict[str, Any]:
    layers = [
        {"index": i, "label": f"layer{count - i}{hostile}", "parameters": 1200 * (count - i + 1)}
        for i in range(1, count + 1)
    ]
    return {
        "weights_hash": "ab" * 8,
        "parameters": 600 * count * (count + 1),
        "layers": layers,
    }


@dataclass
class _Maker:
    """Adds trials, one after the other on each worker."""

    study: Study
    config: StudyConfig
    space: Space
    gain: float
    workers: int
    hostile: str
    seed: int
    has_losses: bool
    rng: np.random.Generator = field(init=False)
    free_at: list[datetime] = field(init=False)
    attempts: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.free_at = [START] * self.workers

    def add_all(self, trials: int, failed: int, retried: int, running: int, waiting: int) -> None:
        failures = {int(at) for at in np.linspace(2, max(3, trials), failed + 2)[1:-1]}
        given_back = {2 + 4 * i for i in range(retried)} if trials > 2 + 4 * retried else set()
        if retried and not given_back:
            given_back = {1}
        for number in range(trials):
            params = self._baseline() if number == 0 else self._draw()
            earlier = [self._give_back(params)] if number in given_back else []
            self._finish(params, number == 0, earlier)
            if number in failures:
                self._fail()
        for _ in range(failed - len(failures & set(range(trials)))):
            self._fail()
        for _ in range(running):
            self._run()
        for _ in range(waiting):
            self.study.enqueue_trial(self._draw())

    def _baseline(self) -> Params | None:
        return self.space.params(self.space.baseline())

    def _draw(self) -> Params:
        drawn = {
            name: _one_of(found, self.rng) for name, found in self.space.distributions.items()
        }
        return self.space.canonical(drawn)

    def _finish(self, params: Params | None, baseline: bool, earlier: list[int]) -> None:
        plan = self.space.baseline() if params is None else self.space.plan(params)
        curve = self._curve(plan)
        costs = _costs(plan)
        beyond = limits.violations(costs, self.config.constraints.limits)
        reason = {attrs.REASON: f"{attrs.INFEASIBLE}: {beyond}"} if beyond else {}
        if beyond and not baseline:
            self._add(TrialState.PRUNED, params or {}, plan, {}, attributes=reason)
            return
        pruned = not baseline and self.attempts % 3 == 2 and self.config.objectives is None
        if pruned:
            curve = {step: value for step, value in curve.items() if step <= 2 + self.attempts % 4}
        self._add(
            TrialState.PRUNED if pruned else TrialState.COMPLETE,
            params or {},
            plan,
            curve,
            baseline=baseline,
            attributes={attrs.RETRIES: earlier} if earlier else reason,
        )

    def _give_back(self, params: Params | None) -> int:
        assert params is not None
        plan = self.space.plan(params)
        curve = {step: value for step, value in self._curve(plan).items() if step <= 2}
        reason = {attrs.REASON: "the worker was lost: no heartbeat for 120 s" + self.hostile}
        return self._add(TrialState.FAIL, params, plan, curve, attributes=reason)

    def _fail(self) -> None:
        params = self._draw()
        reason = {attrs.REASON: "DivergedError: the loss is nan in epoch 2" + self.hostile}
        plan = self.space.plan(params)
        first = {1: self._curve(plan)[1]}
        self._add(TrialState.FAIL, params, plan, first, attributes=reason)

    def _run(self) -> None:
        params = self._draw()
        plan = self.space.plan(params)
        curve = {step: value for step, value in self._curve(plan).items() if step <= 3}
        self._add(TrialState.RUNNING, params, plan, curve)

    def _accuracies(self, plan: TrialPlan) -> dict[int, float]:
        """Accuracy after each epoch: best at three trainable layers and a rate of 0.01."""
        bonus = 0.0
        if plan.depth:
            shape = math.exp(-(((plan.depth - 3) / 2.5) ** 2))
            rate = math.exp(-((math.log10(plan.policy.lr) + 2) ** 2) / 1.5)
            bonus = self.gain * (shape * rate if self.gain > 0 else 2 - shape * rate)
            bonus -= 0.05 * (1 - rate)
        noise = self.rng.normal(0, 0.003, EPOCHS)
        final = min(0.995, 0.842 + bonus)
        values = final * (1 - 0.75 * np.exp(-np.arange(1, EPOCHS + 1) / 1.8)) + noise
        values[-1] = final
        # Accuracies of this many images come in steps of one image.
        return {
            step: round(float(value) * VALIDATION) / VALIDATION
            for step, value in enumerate(values, start=1)
        }

    def _curve(self, plan: TrialPlan) -> dict[int, float]:
        accuracies = self._accuracies(plan)
        name = self.config.training.objective
        return {step: _metrics(value)[name] for step, value in accuracies.items()}

    def _add(
        self,
        state: TrialState,
        params: Params,
        plan: TrialPlan,
        curve: dict[int, float],
        *,
        baseline: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> int:
        worker = int(np.argmin([at.timestamp() for at in self.free_at]))
        start = self.free_at[worker]
        seconds = 20.0 + (6.0 + 2.0 * plan.depth) * len(curve)
        ended = state.is_finished()
        last = curve[max(curve)] if curve else None
        costs = _costs(plan)
        second = [costs[name] for name in self.config.directions if name in costs]
        known = {
            attrs.PLAN: plan.to_json(),
            attrs.WORKER: f"gpu-box/{4100 + worker}/{worker}{self.hostile}",
            attrs.DEVICE: "NVIDIA H200" + self.hostile,
            attrs.TRAINABLE_PARAMETERS: 5130 + 7200 * plan.depth,
            attrs.COSTS: {
                name: costs[name] for name in costs if name in ("parameters", *self.config.costs)
            },
            **({attrs.ROLE: attrs.BASELINE} if baseline else {}),
        }
        if curve and self.has_losses:
            accuracies = [_accuracy(self.config.training.objective, v) for v in curve.values()]
            losses = [_metrics(accuracy)["log_loss"] for accuracy in accuracies]
            known[attrs.CURVES] = curves_of([0.7 * loss for loss in losses], losses)
        if ended:
            known |= {
                attrs.EPOCHS: len(curve),
                attrs.SECONDS: seconds - 5.0,
                attrs.PEAK_MEMORY_MB: 512.5 + 40 * plan.depth,
            }
        if state == TrialState.COMPLETE and last is not None:
            known[attrs.IMAGE_SCORES] = image_scores_of(last, VALIDATION, self.attempts)
        if ended and state != TrialState.FAIL and last is not None:
            known[attrs.METRICS] = _metrics(_accuracy(self.config.training.objective, last))
        told = last is not None and state in (TrialState.COMPLETE, TrialState.PRUNED)
        frozen = create_trial(
            state=state,
            values=[last, *second] if told and last is not None else None,
            params=params,
            distributions={name: self.space.distributions[name] for name in params},
            user_attrs={**known, **(attributes or {})},
            intermediate_values=curve,
            constraints={
                f"max_{name}": costs[name] / limit - 1
                for name, limit in self.config.constraints.limits.items()
            },
        )
        frozen.datetime_start = start
        frozen.datetime_complete = start + timedelta(seconds=seconds) if ended else None
        self.free_at[worker] = start + timedelta(seconds=seconds + 1)
        number = len(self.study.get_trials(deepcopy=False))
        self.study.add_trial(frozen)
        self.attempts += 1
        return number


def curves_of(
    training: Sequence[float], validation: Sequence[float], error: float = 0.004
) -> dict[str, Any]:
    """Return stored curves with these losses by epoch, and errors of their differences."""
    epochs = len(training)
    return {
        curves.TRAINING_LOSS: list(training),
        curves.VALIDATION_LOSS: list(validation),
        curves.LOSS_ERROR: [None, *[error] * (epochs - 1)],
        curves.LEARNING_RATE: [0.01 * (1 - epoch / epochs) for epoch in range(epochs)],
        curves.SECONDS: [6.5] * epochs,
    }


def untimed_curves(trial: FrozenTrial) -> dict[str, Any]:
    """Return the stored curves of a trial without its seconds, which are never twice the same."""
    stored: dict[str, Any] = trial.user_attrs[attrs.CURVES]
    return {name: values for name, values in stored.items() if name != curves.SECONDS}


def image_scores_of(value: float, images: int, seed: int, jitter: float = 0.02) -> dict[str, Any]:
    """Return stored scores of single images with a mean: hard images are hard for every plan.

    Args:
        value: The mean: a share of correct images, or above 1 of losses.
        images: Validation images.
        seed: Seed of what differs from plan to plan.
        jitter: How much that is: about the share of images on which two equal plans disagree.
    """
    order = np.random.default_rng(7).permutation(images) / images
    hardness = order + np.random.default_rng(seed).normal(0, jitter, images)
    scores = (hardness.argsort().argsort() < round(value * images)).astype(float)
    return encode_scores(scores if 0 <= value <= 1 else value * 2 * hardness)


def _costs(plan: TrialPlan) -> dict[str, float]:
    """What a plan costs: more with every trainable layer and hidden unit; the baseline least."""
    units = sum(hidden.units for hidden in plan.head.hidden)
    return {
        "parameters": 24_000 + 64 * units,
        "latency_ms": round(0.8 + 0.0011 * units + 0.06 * plan.depth, 4),
        "memory_mb": round(12.0 + 0.01 * units + 9.5 * plan.depth, 2),
    }


def _metrics(accuracy: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.004,
        "macro_f1": accuracy - 0.006,
        "log_loss": 2.4 * (1 - accuracy) + 0.02,
    }


def _accuracy(objective: str, value: float) -> float:
    """Return the accuracy that goes with a value of the objective."""
    if objective == "log_loss":
        return 1 - (value - 0.02) / 2.4
    return value + {"balanced_accuracy": 0.004, "macro_f1": 0.006}.get(objective, 0.0)


def _one_of(found: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(found, CategoricalDistribution):
        return found.choices[int(rng.integers(len(found.choices)))]
    assert isinstance(
        found, optuna.distributions.IntDistribution | optuna.distributions.FloatDistribution
    )
    if found.log:
        value = math.exp(rng.uniform(math.log(found.low), math.log(found.high)))
        return min(max(value, found.low), found.high)
    if found.step is None:
        return float(rng.uniform(found.low, found.high))
    steps = round((found.high - found.low) / found.step)
    # Rounded as people write it: 0.3, not 0.30000000000000004.
    return type(found.low)(round(found.low + found.step * int(rng.integers(steps + 1)), 10))


def kept_study(url: str, name: str, **options: object) -> StudyPaths:
    """Make a study with a file of every kind; return its paths."""
    options = {"trials": 3, "running": 0, "failed": 0, "retried": 0, "budget": 3, **options}
    study = make_study(name, storage=open_storage(url, create=True), **options)  # type: ignore[arg-type]
    files = StudyPaths.from_url(url)
    study.set_user_attr(attrs.FILES, str(files.root) if "postgres" in url else None)
    add_files(study, files)
    return files


def add_files(study: Study, files: StudyPaths) -> None:
    name = study.study_name
    for path in (
        files.checkpoint(name, 0),
        files.confirmed(name) / "key.json",
        files.log(name, "worker-0"),
        files.model(name) / "model.safetensors",
        files.report(name),
        files.predictions(name),
    ):
        write(path)
    files.artifacts.mkdir(exist_ok=True)
    add_artifact(study, write(files.root / "split.json"), files.artifacts)
    (files.root / "split.json").unlink()


def write(path: Path, size: int = 1000, age_s: float = 7200.0) -> Path:
    """Write a file that is some hours old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def count_rows(url: str) -> int:
    """Count the rows of all tables of a storage."""
    tables = models.BaseModel.metadata.sorted_tables
    with open_storage(url).engine.connect() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        )
