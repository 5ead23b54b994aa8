"""One trial once more, as the study trained it: does it come out the same?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from autotune.data.progress import Progress, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.results.values.precision import describe_precision
from autotune.study.engine.worker import build_context
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.retrain import retrain
from autotune.study.trial.run import device_name


@dataclass(frozen=True)
class Reproduction:
    """What a trial reached then and now.

    Args:
        trial: Its number.
        plan: Its plan.
        pruned: Whether it was pruned; then it was trained up to that epoch.
        then: The objective after each epoch, as the study has it; after the last one, the value of
            the trial.
        now: The same of this training.
        changes: What is not as it was, in words: device, precision, versions.
        computing: On which device this training computed, and in which precision, in words.
    """

    trial: int
    plan: TrialPlan
    pruned: bool
    recorded: Mapping[int, float]
    reproduced: Mapping[int, float]
    changes: tuple[str, ...]
    compute: str

    @property
    def first_difference(self) -> int | None:
        """The first epoch whose values differ, ``None`` where all are equal bit by bit."""
        return next(
            (one for one in self.reproduced if self.recorded.get(one) != self.reproduced[one]),
            None,
        )

    @property
    def missing_epochs(self) -> tuple[int, ...]:
        """The epochs of which the study has no value: its curve was cut."""
        return tuple(one for one in self.reproduced if one not in self.recorded)

    @property
    def largest_difference(self) -> tuple[int, float]:
        """The epoch whose values are furthest apart, and by how much: now minus then."""
        apart = {
            one: self.reproduced[one] - self.recorded[one]
            for one in self.reproduced
            if one in self.recorded
        }
        epoch = max(apart, key=lambda one: abs(apart[one]))
        return epoch, apart[epoch]

    @property
    def values(self) -> tuple[float, float]:
        """The value after the last epoch, then and now."""
        return self.recorded[max(self.reproduced)], self.reproduced[max(self.reproduced)]


def reproduce_trial(
    opened: OpenStudy,
    number: int,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    fetching: Progress = no_progress,
) -> Reproduction:
    """Train the plan of a trial as the study did.

    On the CPU that is on as many threads as then: sums are rounded by how many share them.

    Args:
        opened: The study.
        number: Number of the trial.
        on_epoch: Called after every epoch, and how many there will be.
        fetching: Told how far the fetching of a known data set is that is not on this machine.

    Raises:
        StudyError: When there is no such trial, or nothing that could be compared.
    """
    trial, plan, epochs = find_reproducible(opened, number)
    fetch_source(opened.config().dataset, fetching)
    ctx = build_context(opened)
    before = torch.get_num_threads()
    threads = int(trial.user_attrs.get(attrs.THREADS, before))
    if ctx.device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        trained = retrain(
            plan,
            ctx,
            lambda epoch: on_epoch(epoch, epochs),
            part=trial.user_attrs.get(attrs.MICRO_BATCH),
            epochs=epochs,
        )
    finally:
        torch.set_num_threads(before)
    device = device_name(ctx.device)
    return Reproduction(
        number,
        plan,
        trial.state == TrialState.PRUNED,
        _then(trial, epochs),
        trained.curve,
        tuple(_changes(opened.study.user_attrs, trial, device, trained.compute)),
        f"{device}: {describe_precision(trained.compute)}",
    )


def find_reproducible(opened: OpenStudy, number: int) -> tuple[FrozenTrial, TrialPlan, int]:
    """Return a trial that can be trained again, its plan, and up to which epoch.

    Raises:
        StudyError: When there is no such trial, or it has no value; with the reason.
    """
    trials = opened.study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        there = f"the trials 0 to {len(trials) - 1}" if trials else "no trial yet"
        raise StudyError(f"TRIAL: the study {opened.name!r} has {there}, but got {number}")
    trial = trials[number]
    plan = attrs.trial_plan(trial)
    what = f"trial {number} of {opened.name!r}"
    if not trial.state.is_finished():
        raise StudyError(f"{what} must have ended to be compared with, but is {_state(trial)}")
    again = next((one.number for one in trials if number in attrs.earlier_attempts(one)), None)
    if again is not None:
        raise StudyError(f"{what} was given back and tried again; rerun trial {again} instead")
    reason = trial.user_attrs.get(attrs.REASON, "no reason is known")
    if trial.state == TrialState.FAIL:
        raise StudyError(f"{what} has failed and has no value to compare with: {reason}")
    if attrs.ended_infeasible(trial):
        raise StudyError(f"{what} was not trained, and has no value to compare with: {reason}")
    # A trial that is complete has its value of the last epoch, even where its curve was cut.
    epochs = max(trial.intermediate_values, default=0)
    if trial.state == TrialState.COMPLETE:
        epochs = opened.config().training.epochs
    if plan is None or not epochs:
        raise StudyError(f"{what} has no epoch to compare with")
    return trial, plan, epochs


def _then(trial: FrozenTrial, epochs: int) -> dict[int, float]:
    value = attrs.metric_value(trial) if trial.state == TrialState.COMPLETE else None
    return {**trial.intermediate_values, **({} if value is None else {epochs: value})}


def _state(trial: FrozenTrial) -> str:
    return "queued" if trial.state == TrialState.WAITING else trial.state.name.lower()


def _changes(
    study_attrs: Mapping[str, Any], trial: FrozenTrial, device: str, compute: Mapping[str, Any]
) -> list[str]:
    """Say what is not as it was when the study was made, and the trial was trained."""
    found = []
    then = trial.user_attrs.get(attrs.DEVICE, device)
    if then != device:
        found.append(f"device {then} then, {device} now")
    computed = trial.user_attrs.get(attrs.COMPUTE)
    if computed and computed != compute:
        old, new = describe_precision(computed), describe_precision(compute)
        found.append(f"computed in {old} then, in {new} now")
    for name, old in study_attrs.get(attrs.ENVIRONMENT, {}).items():
        new = platform.python_version() if name == "python" else version(name)
        if old != new:
            found.append(f"{name} {old} then, {new} now")
    return found
