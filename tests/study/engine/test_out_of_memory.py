"""A plan that does not fit into the memory of its device is infeasible, and no other one."""

from __future__ import annotations

import re
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from autotune.errors import DivergedError, UserError
from autotune.models.network import Network
from autotune.plan import TrialPlan
from autotune.search.study_view import DEVICE_MEMORY
from autotune.study.engine.worker import run_worker
from autotune.study.state import attrs, oom
from autotune.study.trial import build
from autotune.study.trial import run as trial_module
from autotune.training.inputs.batches import Inputs
from autotune.training.trainer import Trainer
from tests.study.engine.test_claimed_trial import open_small
from tests.support.commands.inline import failing, job, run

pytestmark = pytest.mark.usefixtures("idle_machine", "no_artifacts")

#: More than any machine has.
HUGE = "CUDA out of memory. Tried to allocate 90000.00 GiB."


def on_the_device(plan: TrialPlan | None) -> bool:
    return plan is not None and plan.depth > 0


@pytest.mark.parametrize("where", ["building", "measuring", "training", "validating"])
def test_a_plan_that_does_not_fit_is_infeasible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Wherever the memory gives out, in a study with limits too."""
    handle = open_small(
        tmp_path,
        constraints={"max_parameters": 10**9},
        space__trainable_layers=1,
        search__trials=2 if where != "training" else 3,
        training__batch_size=4,
    )
    name, owner = {
        "building": ("build_network", build),
        "measuring": ("measure_costs", trial_module),
        "training": ("_step", Trainer),
        "validating": ("predict", Trainer),
    }[where]
    original = getattr(owner, name)

    def hungry(*arguments: Any, **named: Any) -> Any:
        trial = handle.study.trials[-1]
        late = where != "validating" or bool(trial.intermediate_values)
        if on_the_device(attrs.trial_plan(trial)) and late:
            raise torch.cuda.OutOfMemoryError(HUGE)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, hungry)
    events = run(handle)
    trials = handle.study.trials
    plans = [attrs.trial_plan(trial) for trial in trials]
    hungry_ones = [trial for trial, plan in zip(trials, plans, strict=True) if on_the_device(plan)]
    for trial in hungry_ones:
        assert trial.state == TrialState.PRUNED and attrs.ended_infeasible(trial)
        assert trial.constraints[DEVICE_MEMORY] > 100
        wanted = float(trial.user_attrs[attrs.PEAK_MEMORY_MB])
        there = float(trial.user_attrs[attrs.DEVICE_MEMORY_MB])
        assert wanted > 90_000 * 1024 > there
        said = re.fullmatch(
            r"infeasible: memory: it wanted at least ([\d,]+) MiB, the device has ([\d,]+) MiB",
            trial.user_attrs[attrs.REASON],
        )
        assert said is not None
        numbers = [float(group.replace(",", "")) for group in said.groups()]
        assert numbers == pytest.approx([wanted, there], abs=0.6)  # of two roundings
        assert trial.user_attrs[attrs.MICRO_BATCH] == oom.MIN_MICRO_BATCH
        assert trial.user_attrs[attrs.EPOCHS] == len(trial.intermediate_values)
        assert trial.user_attrs[attrs.SECONDS] > 0
        assert attrs.FAILED_PLAN not in trial.user_attrs
    ends = {event["trial"]: event["state"] for event in events if event["event"] == "end"}
    assert {ends[one.number] for one in hungry_ones} == {"infeasible"}
    progress = handle.progress()
    assert (progress.infeasible, progress.complete) == (len(trials) - 1, 1)
    assert progress.finished == progress.budget
    assert len(set(plans)) == len(plans)  # none is tried again
    assert not list(handle.files.root.glob("checkpoints/*/*.pt"))
    fitting = [trial for trial in trials if trial not in hungry_ones]
    assert all(DEVICE_MEMORY not in one.constraints for one in fitting)


def test_a_baseline_that_does_not_fit_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__batch_size=4)
    hungry = failing(torch.cuda.OutOfMemoryError(HUGE))
    monkeypatch.setattr(build, "build_network", hungry)
    with pytest.raises(UserError, match="the baseline does not fit into memory: even with 2"):
        run(handle)
    progress = handle.progress()
    assert (progress.finished, progress.running, progress.waiting) == (0, 0, 1)
    monkeypatch.undo()  # a larger device
    run(handle)
    baseline = next(trial for trial in handle.study.trials if trial.state == TrialState.COMPLETE)
    assert attrs.is_baseline(baseline)
    # In whole batches again.
    assert baseline.user_attrs[attrs.MICRO_BATCH] == 4


SHARED = oom.MemoryShortage(4 * oom.MIB, 2 * oom.MIB, 10 * oom.MIB)


ALONE = oom.MemoryShortage(12 * oom.MIB, 10 * oom.MIB, 10 * oom.MIB)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (0.0, 0.0))


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, needs: list[oom.MemoryShortage]
) -> list[tuple[int, int]]:
    """Let a training fail for want of memory in its third epoch, once for each need.

    Returns:
        The epochs that it begins, as it does, and in which parts.
    """
    begun: list[tuple[int, int]] = []
    coming = iter(needs)
    met: list[oom.MemoryShortage] = []
    original = Trainer._train_epoch

    def fail(self: Trainer) -> float:
        begun.append((self.epoch, self.micro_batch_size))
        need = next(coming, None) if self.epoch == 2 else None
        if need is not None:
            met.append(need)
            raise torch.cuda.OutOfMemoryError(HUGE)
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: met[-1])
    return begun


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    ("needs", "sizes", "stored"),
    [
        ([SHARED, SHARED], [16, 16, 16], None),  # tried twice more before it is halved
        ([SHARED] * 3, [16, 16, 16, 8], None),  # another process forced it
        ([ALONE, *[SHARED] * 3, ALONE], [16, 8, 8, 8, 4, 2], 2),
    ],
)
def test_a_trial_goes_on_in_micro_batches_and_stores_their_size_if_its_plan_needs_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    needs: list[oom.MemoryShortage],
    sizes: list[int],
    stored: int | None,
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    begun = short_of_memory(monkeypatch, needs)
    run(handle)
    assert begun == [(0, 16), (1, 16), *((2, size) for size in sizes), (3, sizes[-1])]
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs.get(attrs.MICRO_BATCH) == stored


@pytest.mark.usefixtures("no_waits", "no_pauses")
def test_nothing_is_infeasible_because_of_a_neighbor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where two images do not fit, and the baseline does not end the study."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=4)
    short_of_memory(monkeypatch, [SHARED] * 6)
    run(handle)
    first, second = handle.study.trials
    assert first.state == TrialState.FAIL and second.state == TrialState.COMPLETE
    assert first.user_attrs[attrs.REASON].startswith(
        "DeviceBusyError: other processes are using the memory"
    )
    assert DEVICE_MEMORY not in first.constraints
    assert attrs.MICRO_BATCH not in second.user_attrs and attrs.is_baseline(second)


def test_a_stop_is_heard_while_a_trial_waits_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (600.0,))
    begun = short_of_memory(monkeypatch, [SHARED])
    monkeypatch.setattr(oom, "_room", lambda device: stop.set() or 0)
    stop = threading.Event()
    run_worker(job(handle), stop, lambda event: None)
    assert begun[-1][0] == 2
    assert handle.progress().waiting == 1


def test_what_a_trial_held_is_free_when_it_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the error is handled, which keeps the frames that held it."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=1)
    networks: list[weakref.ref[Network]] = []
    left: list[bool] = []

    def fail(self: Trainer) -> float:
        networks.append(weakref.ref(self.network))
        raise DivergedError("the loss is nan")

    def look(device: torch.device, collect: bool = False) -> None:
        left.extend(network() is not None for network in networks)

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    monkeypatch.setattr(oom, "release_memory", look)
    run(handle)
    assert left == [False]


def test_a_batch_that_does_not_fit_goes_through_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch: the trial goes on from its checkpoint, and so does its successor."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    forward = Network.forward
    seen: list[int] = []

    def limited(self: Network, inputs: Inputs) -> torch.Tensor:
        epochs = handle.study.get_trials()[-1].intermediate_values
        if self.training and epochs:
            count = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
            seen.append(count)
            if count > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(self, inputs)

    monkeypatch.setattr(Network, "forward", limited)
    events = run(handle, until=lambda event: event.get("epoch") == 3)
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert epochs == [1, 2, 3]
    assert max(seen[2:]) <= 4 and seen[:2] == [16, 8]
    run(handle)
    first, second = handle.study.get_trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.user_attrs[attrs.MICRO_BATCH] == second.user_attrs[attrs.MICRO_BATCH] == 4
    assert sorted(second.intermediate_values) == [1, 2, 3, 4]
