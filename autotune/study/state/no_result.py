"""A study that has ended without a result: why, and what to do, in the words of every output.

A result is a complete trial within the limits. Without one there is nothing to report, confirm or
refit, however many trials have finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.budget import DEVICE_HOURS, TIMEOUT, StopReason, startable_queue
from autotune.study.state.retries import WORKER_LOST
from autotune.text import plural

#: How trials ended -> what to do where most of them did.
_ADVICE = {
    "diverged": "Lower the learning rates (space.training.lr) or clip gradients "
    "(training.clip_grad_norm); if the baseline diverged too, check the images, the weights and "
    "training.precision",
    "exceeded the limits": "Raise the limits (constraints), or use a space of smaller plans or a "
    "smaller backbone",
    "did not fit into memory": "Use a smaller data.image_size, a smaller backbone, fewer workers "
    "on a device, or a larger one",
    "failed": "Mend what the reasons below and the logs of the workers name",
    "lost their workers": "Use fewer workers or less memory: the system ends a process that takes "
    "too much; the logs of the workers may say more",
    "were pruned": "Use search.pruner: none, or a pruner that lets the first trials end",
}
_ANOTHER = "; a changed definition needs another study (--name; make: NAME=)"


@dataclass(frozen=True)
class NoResult:
    """Why a study that has ended has no result (``no trial ...``), and what to do (a sentence)."""

    reason: str
    advice: str

    def describe(self) -> str:
        """Return both in two sentences."""
        return f"{self.reason[:1].upper()}{self.reason[1:]}. {self.advice}."


def find_no_result(
    trials: Sequence[FrozenTrial], attributes: Mapping[str, Any]
) -> NoResult | None:
    """Tell why a study has no result; ``None`` if it has one, or has not ended."""
    ended = StopReason.from_attributes(attributes)
    if ended is None or ended.is_request:
        return None
    running = any(trial.state == TrialState.RUNNING for trial in trials)
    if running or startable_queue(trials, ended):
        return None
    if ranking.best_trial(trials, StudyDirection.MAXIMIZE) is not None:
        return None
    retried = attrs.retried_numbers(trials)
    counts = Counter(
        _describe_end(trial)
        for trial in trials
        if trial.state.is_finished() and trial.number not in retried
    )
    if ended.kind in (TIMEOUT, DEVICE_HOURS):
        finished = f" ({_join(counts)})" if counts else ""
        return NoResult(
            f"no trial was complete{finished} when the study ended: {ended.text}",
            "Give more time with search.timeout or search.device_hours, or train less "
            "(training.epochs), and run the study again",
        )
    if not counts:
        return None
    kind = counts.most_common(1)[0][0]
    return NoResult(
        f"no trial has a result: of {plural(counts.total(), 'trial')} {_join(counts)}",
        _ADVICE[kind] + _ANOTHER,
    )


def _join(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def _describe_end(trial: FrozenTrial) -> str:
    """Return how a trial ended without a result, as :data:`_ADVICE` names it."""
    reason = str(trial.user_attrs.get(attrs.REASON, ""))
    if ranking.is_infeasible(trial):
        is_memory = reason.startswith(f"{attrs.INFEASIBLE}: memory")
        return "did not fit into memory" if is_memory else "exceeded the limits"
    if trial.state == TrialState.PRUNED:
        return "were pruned"
    if attrs.has_diverged(trial):
        return "diverged"
    return "lost their workers" if reason.startswith(WORKER_LOST) else "failed"
