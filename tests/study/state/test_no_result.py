"""Studies that have ended without a result."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.study.state import attrs
from autotune.study.state.no_result import find_no_result

ENDED = {attrs.ENDED: {"kind": "trials", "words": "2 finished trials"}}
FAIL, PRUNED, COMPLETE = TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE


def trials(*described: tuple[TrialState, str, bool]) -> list[FrozenTrial]:
    made = []
    for number, (state, reason, is_infeasible) in enumerate(described):
        trial = create_trial(
            state=state,
            value=0.5 if state == COMPLETE else None,
            user_attrs={attrs.REASON: reason} if reason else {},
            constraints={"max_parameters": 1.0 if is_infeasible else -1.0},
        )
        trial.number = number
        made.append(trial)
    return made


@pytest.mark.parametrize(
    ("state", "reason", "is_infeasible", "ended", "advice"),
    [
        (FAIL, "diverged: the loss is nan in epoch 1", False, "diverged", "Lower the learning"),
        (FAIL, "DivergedError: the loss is nan", False, "diverged", "Lower the learning"),
        (FAIL, "ValueError: x", False, "failed", "Mend what the reasons"),
        (FAIL, "", False, "failed", "Mend what the reasons"),
        (FAIL, "its worker was lost, too often", False, "lost their workers", "Use fewer workers"),
        (PRUNED, "", False, "were pruned", "Use search.pruner: none"),
        (PRUNED, "infeasible: 9 M parameters", True, "exceeded the limits", "Raise the limits"),
        (COMPLETE, "infeasible: 9 M parameters", True, "exceeded the limits", "Raise the limits"),
        (
            PRUNED,
            "infeasible: memory: 3 GB",
            True,
            "did not fit into memory",
            "Use a smaller data",
        ),
    ],
)
def test_why_and_what_to_do(
    state: TrialState, reason: str, is_infeasible: bool, ended: str, advice: str
) -> None:
    found = find_no_result(trials(*[(state, reason, is_infeasible)] * 2), ENDED)
    assert found is not None
    assert found.reason == f"no trial has a result: of 2 trials 2 {ended}"
    assert found.advice.startswith(advice)
    both = [(state, reason, is_infeasible), (COMPLETE, "", False)]
    assert find_no_result(trials(*both), ENDED) is None


@pytest.mark.parametrize(
    ("attributes", "described", "reason"),
    [
        ({}, [(FAIL, "diverged", False)], None),
        ({attrs.ENDED: {"kind": "stopped", "words": "x"}}, [(FAIL, "diverged", False)], None),
        (ENDED, [(FAIL, "diverged", False), (TrialState.RUNNING, "", False)], None),
        (ENDED, [(TrialState.WAITING, "", False)], None),
        (
            {attrs.ENDED: {"kind": "timeout", "words": "the 5 s of the run are over"}},
            [(PRUNED, "", False), (TrialState.WAITING, "", False)],
            "no trial was complete (1 were pruned) when the study ended: the 5 s of the run are "
            "over",
        ),
    ],
)
def test_when_there_is_none(attributes: Any, described: Any, reason: str | None) -> None:
    found = find_no_result(trials(*described), attributes)
    assert (found and found.reason) == reason


def test_a_retried_attempt_does_not_count() -> None:
    made = trials((FAIL, "interrupted", False), (FAIL, "diverged", False))
    made[1].set_user_attr(attrs.RETRIES, [0])
    found = find_no_result(made, ENDED)
    assert found is not None and found.reason.endswith("of 1 trial 1 diverged")
