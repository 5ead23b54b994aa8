"""One trial once more, as the study trained it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState, create_trial

from autotune.errors import StudyError
from autotune.results.evaluation.reproduce import Reproduction, reproduce_trial
from autotune.study.engine.worker import run_worker
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from tests.support.commands.inline import job, run
from tests.support.study.small import open_small


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    made = open_small(
        tmp_path_factory.mktemp("reproduce"), search__pruner="none", training__num_views=2
    )
    run(made)
    return made


def reproduced(opened: OpenStudy, **trial: Any) -> Reproduction:
    """Reproduce another trial with the plan of trial 1."""
    plan = {attrs.PLAN: opened.study.trials[1].user_attrs[attrs.PLAN], attrs.THREADS: 1}
    known = {**plan, **trial.pop("user_attrs", {})}
    opened.study.add_trial(create_trial(user_attrs=known, **trial))
    return reproduce_trial(opened, len(opened.study.trials) - 1)


@pytest.mark.parametrize("number", [0, 2])
def test_a_trial_is_reproduced_bit_by_bit(opened: OpenStudy, number: int) -> None:
    epochs: list[tuple[int, int]] = []
    found = reproduce_trial(opened, number, lambda *told: epochs.append(told))
    assert epochs == [(1, 2), (2, 2)]
    assert found.reproduced == found.recorded and found.first_difference is None
    value = opened.study.trials[number].value
    assert found.values == (value, value)
    assert found.changes == () and not found.pruned


def test_a_reproduction_has_the_threads_of_its_trial(tmp_path: Path) -> None:
    made = open_small(tmp_path, search__trials=1, training__epochs=1)
    before = torch.get_num_threads()
    try:
        run_worker(job(made, threads=2), threading.Event(), lambda event: None)
        assert made.study.trials[0].user_attrs[attrs.THREADS] == 2
        torch.set_num_threads(1)
        seen: list[int] = []
        found = reproduce_trial(made, 0, lambda *told: seen.append(torch.get_num_threads()))
        assert seen == [2] and torch.get_num_threads() == 1
        assert found.first_difference is None
    finally:
        torch.set_num_threads(before)


def test_a_pruned_trial_is_trained_to_where_it_was_pruned(opened: OpenStudy) -> None:
    curve = {1: opened.study.trials[1].intermediate_values[1]}
    found = reproduced(opened, state=TrialState.PRUNED, intermediate_values=curve)
    assert found.pruned and found.first_difference is None and list(found.reproduced) == [1]


def test_what_differs_is_said(opened: OpenStudy) -> None:
    one = opened.study.trials[1]
    compute = {attrs.DEVICE: "NVIDIA H200", attrs.COMPUTE: {"half": "bf16", "float32": "tf32"}}
    curve = one.intermediate_values  # the value is not that of its last epoch
    found = reproduced(opened, value=0.123, intermediate_values=curve, user_attrs=compute)
    assert found.first_difference == 2
    assert found.values == (0.123, one.value)
    assert found.changes == (
        "device NVIDIA H200 then, cpu now",
        "computed in bf16, the rest in float32 with products in TF32 then, in float32 now",
    )
    assert found.compute == "cpu: float32"


@pytest.mark.parametrize("left", [[], [1], [2]])
def test_a_cut_curve_and_its_value_are_compared(opened: OpenStudy, left: list[int]) -> None:
    one = opened.study.trials[1]
    curve = {epoch: one.intermediate_values[epoch] for epoch in left}
    found = reproduced(opened, value=one.value, intermediate_values=curve)
    assert list(found.reproduced) == [1, 2]
    assert found.missing_epochs == (() if left == [1] else (1,))
    assert found.first_difference == (None if left == [1] else 1)
    assert found.values == (one.value, one.value) and found.largest_difference[1] == 0.0


def test_what_cannot_be_reproduced(tmp_path: Path) -> None:
    made = open_small(tmp_path)
    study = made.study
    plan = {attrs.PLAN: study.trials[0].user_attrs.get(attrs.PLAN)}

    def refused(number: int) -> str:
        with pytest.raises(StudyError) as error:
            reproduce_trial(made, number)
        return str(error.value)

    assert refused(0) == "trial 0 of 'small' must have ended to be compared with, but is queued"
    count = len(study.trials)
    assert refused(count) == (
        f"TRIAL: the study 'small' has the trials 0 to {count - 1}, but got {count}"
    )
    assert "but got -1" in refused(-1)
    study.add_trial(
        create_trial(state=TrialState.FAIL, user_attrs={**plan, attrs.REASON: "diverged: nan"})
    )
    said = f"trial {count} of 'small' has failed and has no value to compare with: diverged: nan"
    assert refused(count) == said
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            user_attrs={**plan, attrs.REASON: "infeasible: 3 ms latency, at most 1 ms"},
            constraints={"max_latency_ms": 2.0},
        )
    )
    assert refused(count + 1).endswith("compare with: infeasible: 3 ms latency, at most 1 ms")
    study.add_trial(create_trial(value=0.5, user_attrs={attrs.RETRIES: [count]}))
    assert refused(count) == (
        f"trial {count} of 'small' was requeued and tried again; reproduce trial {count + 2} "
        "instead"
    )
    assert refused(count + 2) == f"trial {count + 2} of 'small' has no epoch to compare with"
