"""One trial trained again as the study did: does it reach the same values?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.registry import fetch_source
from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.results.values.precision import describe_precision
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from autotune.study.trial.retrain import retrain
from autotune.study.trial.run import torch_device_name
from autotune.version import installed_version


@dataclass(frozen=True)
class Reproduction:
    """The values of a trial in the study and in a second training.

    Args:
        pruned: Whether it was pruned; then it was trained up to that epoch.
        recorded: The objective after each epoch, as the study has it; after the last one, the
            value of the trial.
        reproduced: The objective after each epoch of this training.
        changes: What has changed since then: device, precision, versions.
        compute: Device and precision of this training.
        predictions: What it predicted for single validation images, as CSV.
    """

    trial: int
    plan: TrialPlan
    pruned: bool
    recorded: Mapping[int, float]
    reproduced: Mapping[int, float]
    changes: tuple[str, ...]
    compute: str
    predictions: str

    @property
    def first_difference(self) -> int | None:
        """The first epoch whose values differ, ``None`` where all are equal bit by bit."""
        epochs = self.reproduced.items()
        return next((epoch for epoch, value in epochs if self.recorded.get(epoch) != value), None)

    @property
    def missing_epochs(self) -> tuple[int, ...]:
        """The epochs of which the study has no value, because its curve was thinned."""
        return tuple(epoch for epoch in self.reproduced if epoch not in self.recorded)

    @property
    def largest_difference(self) -> tuple[int, float]:
        """The epoch with the largest difference, and the difference: reproduced - recorded."""
        differences = {
            epoch: value - self.recorded[epoch]
            for epoch, value in self.reproduced.items()
            if epoch in self.recorded
        }
        return max(differences.items(), key=lambda item: abs(item[1]))

    @property
    def values(self) -> tuple[float, float]:
        """The value after the last epoch, recorded and reproduced."""
        last = max(self.reproduced)
        return self.recorded[last], self.reproduced[last]


def reproduce_trial(
    handle: OpenStudy,
    number: int,
    on_epoch: Callable[[int, int], None] = lambda epoch, epochs: None,
    on_progress: ProgressCallback = no_progress,
) -> Reproduction:
    """Train the plan of a trial as the study did.

    On the CPU it uses the number of threads of the trial, because that changes how sums are
    rounded.

    Args:
        handle: The study.
        number: Number of the trial.
        on_epoch: Called after every epoch with its number, and the number of epochs.
        on_progress: Called while a registered dataset is downloaded.

    Raises:
        StudyError: When there is no such trial, or nothing to compare with.
    """
    trial, plan, epochs = find_reproducible(handle, number)
    fetch_source(handle.config().dataset, on_progress)
    ctx = build_context(handle)
    threads = torch.get_num_threads()
    if ctx.device.type == "cpu":
        torch.set_num_threads(int(trial.user_attrs.get(attrs.THREADS, threads)))
    try:
        trained = retrain(
            plan,
            ctx,
            lambda epoch, value: on_epoch(epoch, epochs),
            micro_batch_size=trial.user_attrs.get(attrs.MICRO_BATCH),
            epochs=epochs,
        )
    finally:
        torch.set_num_threads(threads)
    device = torch_device_name(ctx.device)
    recorded = dict(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE and (value := attrs.metric_value(trial)) is not None:
        recorded[epochs] = value
    return Reproduction(
        trial=number,
        plan=plan,
        pruned=trial.state == TrialState.PRUNED,
        recorded=recorded,
        reproduced=trained.curve,
        changes=tuple(_changes(handle.study.user_attrs, trial, device, trained.compute)),
        compute=f"{device}: {describe_precision(trained.compute)}",
        predictions=trained.predicted.to_csv(),
    )


def find_reproducible(handle: OpenStudy, number: int) -> tuple[FrozenTrial, TrialPlan, int]:
    """Return a trial that can be trained again, its plan, and its number of epochs.

    Raises:
        StudyError: When there is no such trial, or it has no value; with the reason.
    """
    trials = handle.study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        numbers = f"the trials 0 to {len(trials) - 1}" if trials else "no trial yet"
        raise StudyError(f"TRIAL: the study {handle.name!r} has {numbers}, but got {number}")
    trial = trials[number]
    plan = attrs.trial_plan(trial)
    what = f"trial {number} of {handle.name!r}"
    if not trial.state.is_finished():
        is_queued = trial.state == TrialState.WAITING
        state = "queued" if is_queued else trial.state.name.lower()
        raise StudyError(f"{what} must have ended to be compared with, but is {state}")
    retry = next((one.number for one in trials if number in attrs.earlier_attempts(one)), None)
    if retry is not None:
        raise StudyError(f"{what} was requeued and tried again; reproduce trial {retry} instead")
    reason = trial.user_attrs.get(attrs.REASON, "the reason is unknown")
    if trial.state == TrialState.FAIL:
        raise StudyError(f"{what} has failed and has no value to compare with: {reason}")
    if attrs.ended_infeasible(trial):
        raise StudyError(f"{what} was not trained, and has no value to compare with: {reason}")
    # A complete trial has the value of its last epoch, even where its curve was thinned.
    epochs = max(trial.intermediate_values, default=0)
    if trial.state == TrialState.COMPLETE:
        epochs = handle.config().training.epochs
    if plan is None or not epochs:
        raise StudyError(f"{what} has no epoch to compare with")
    return trial, plan, epochs


def _changes(
    study_attrs: Mapping[str, Any], trial: FrozenTrial, device: str, compute: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what has changed since the study was made and the trial was trained."""
    recorded_device = trial.user_attrs.get(attrs.DEVICE, device)
    if recorded_device != device:
        yield f"device {recorded_device} then, {device} now"
    recorded = trial.user_attrs.get(attrs.COMPUTE)
    if recorded and recorded != compute:
        old, new = describe_precision(recorded), describe_precision(compute)
        yield f"computed in {old} then, in {new} now"
    for name, old in study_attrs.get(attrs.ENVIRONMENT, {}).items():
        new = installed_version(name)
        if old != new:
            yield f"{name} {old} then, {new or 'unknown'} now"
