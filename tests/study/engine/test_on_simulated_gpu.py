"""The real worker on a simulated GPU: every kind of trial, and what is done with its outcome.

What the simulation shows and what it cannot see stands in :mod:`tests.support.simulated_gpu`.
"""

from __future__ import annotations

import gc
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.oom import MIB
from autotune.study.trial.context import build_context
from autotune.training import trainer
from autotune.training.compute.cuda_graphs import CapturedStep
from autotune.training.trainer import Trainer
from tests.study.engine.test_launcher import BARE
from tests.support.commands.inline import Event, run
from tests.support.commands.inside import call
from tests.support.commands.runs import autotune, trials_of
from tests.support.simulated_gpu import Kind, simulated_gpu
from tests.support.simulated_gpu.process import faults_of, simulated_environment
from tests.support.study.small import open_small

#: A study of the baseline and one plan that trains layers.
BASE: dict[str, Any] = {
    "training__batch_size": 20,
    "training__ema": 0.9,
    "search__trials": 2,
    "space__layers": {},
    "space__training__lr": {"low": 1e-3, "high": 2e-3},
}
#: A study that trains all layers, without a prefix whose features are kept.
WHOLE: dict[str, Any] = {
    "training__precision": "off",
    "space__trainable_layers": 5,
    "cache__features": "off",
}
#: Kinds of trials, by what of them is tensors on the device.
KINDS: dict[str, dict[str, Any]] = {
    "heads alone": {"space__trainable_layers": 0, "space__head__hidden_layers": [0, 1]},
    "trainable layers": {"training__precision": "off", "space__trainable_layers": 2},
    "whole": {**WHOLE, "training__precision": "auto"},
    "online views": {
        "training__precision": "bf16",
        "space__trainable_layers": 1,
        "training__num_views": "online",
    },
    "folds": {"training__precision": "off", "space__trainable_layers": 2, "data__folds": 3},
    "mixup and CutMix": {
        "training__precision": "bf16",
        "space__trainable_layers": 2,
        "space__training__mixup": 0.4,
        "space__training__cutmix": 1.0,
    },
    "surgery": {
        "training__precision": "bf16",
        "space__trainable_layers": 2,
        "space__layers": {"kernel": [1, 5], "activation": ["gelu"]},
        "init": "activations",
    },
    "constraints": {
        "training__precision": "bf16",
        "space__trainable_layers": 2,
        "constraints__max_memory_mb": 1000,
        "constraints__max_latency_ms": 1e6,
    },
    "L2-SP with SGD, the head first": {
        "training__precision": "off",
        "space__trainable_layers": 2,
        "space__training__optimizer": "sgd",
        "space__training__l2_sp": 0.01,
        "space__training__head_only_epochs": 1,
    },
    "Adagrad": {
        "training__precision": "bf16",
        "space__trainable_layers": 2,
        "space__training__optimizer": "adagrad",
    },
    "no average, no clipping": {
        "training__precision": "off",
        "training__ema": None,
        "training__clip_grad_norm": None,
        "space__trainable_layers": 2,
    },
    "balanced classes": {"space__trainable_layers": 1, "training__sampling": "balanced"},
}


def opened_study(folder: Path, **options: Any) -> OpenStudy:
    return open_small(folder, **{**BASE, **options})


def completed(handle: OpenStudy) -> list[FrozenTrial]:
    """Return the trials of a study, all of which have to be complete."""
    trials = handle.study.get_trials(deepcopy=False)
    ends = [(one.state, one.user_attrs.get(attrs.REASON)) for one in trials]
    assert ends == [(TrialState.COMPLETE, None)] * len(trials)
    assert all(one.value is not None and math.isfinite(one.value) for one in trials)
    return trials


def search(handle: OpenStudy, **options: Any) -> list[FrozenTrial]:
    """Run a study on a simulated GPU."""
    with simulated_gpu(**options):
        run(handle)
    trials = completed(handle)
    assert {one.user_attrs[attrs.DEVICE] for one in trials} == {"Simulated GPU"}
    return trials


def test_a_trial_trains_on_a_gpu(tmp_path: Path) -> None:
    """Fails where the device has no index: what names the GPU goes by that.

    torch's own refusal of such a device stands in ``tests/study/test_devices.py``.
    """
    handle = opened_study(
        tmp_path, training__precision="bf16", space__trainable_layers=1, training__epochs=1
    )
    with simulated_gpu() as gpu:
        run(handle)
        assert build_context(handle).device == torch.device("cuda", 0)
    for trial in completed(handle):
        assert trial.user_attrs[attrs.DEVICE] == "Simulated GPU"
        assert 0 < trial.user_attrs[attrs.PEAK_MEMORY_MB] < 64
        assert trial.user_attrs[attrs.DEVICE_MEMORY_MB] == 139 * 1024
    assert gpu.traffic.of(*Kind, within="Trainer._train_epoch")


def test_a_tensor_that_was_left_on_the_host_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def forgetful(self: Trainer, inputs: Any, targets: Tensor) -> Tensor:
        return step(self, inputs, targets.cpu())

    monkeypatch.setattr(Trainer, "_step", forgetful)
    handle = opened_study(
        tmp_path, training__precision="off", space__trainable_layers=1, training__epochs=1
    )
    with simulated_gpu() as gpu:
        run(handle)
        assert gpu.faults
        gpu.faults.clear()
    for trial in handle.study.trials:
        assert trial.state == TrialState.FAIL
        assert "Expected all tensors to be on the same device" in trial.user_attrs[attrs.REASON]


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_of_trial(tmp_path: Path, options: dict[str, Any]) -> None:
    epochs = 2 if "space__training__head_only_epochs" in options else 1
    assert len(search(opened_study(tmp_path, training__epochs=epochs, **options))) == 2


@pytest.mark.slow
def test_a_card_without_bf16_trains_in_fp16(tmp_path: Path) -> None:
    handle = opened_study(tmp_path, training__precision="fp16", space__trainable_layers=2)
    search(handle, capability=(7, 5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trainable layers", "whole", "folds"])
def test_values_are_those_of_the_cpu(tmp_path: Path, kind: str) -> None:
    options = {**KINDS[kind], "training__precision": "off"}
    there = search(opened_study(tmp_path / "gpu", **options))
    here = opened_study(tmp_path / "cpu", **options)
    run(here)
    for one, other in zip(there, completed(here), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-3)
        mine, theirs = one.user_attrs[attrs.METRICS], other.user_attrs[attrs.METRICS]
        assert mine["log_loss"] == pytest.approx(theirs["log_loss"], rel=1e-3)


def waits_of_an_epoch(handle: OpenStudy, **options: Any) -> dict[int, int]:
    """Count how often the host waits in the last epoch of each trial.

    By then all features are kept. Validation, reports and checkpoints are no part of it.
    """
    counts: dict[int, int] = {}
    with simulated_gpu(**options) as gpu:

        def listen(event: Event) -> None:
            if event["event"] == "epoch":
                within = gpu.traffic.of(Kind.WAIT, within="_train_epoch")
                counts[event["trial"]] = sum(one.in_main_thread for one in within)
                assert not gpu.traffic.of(Kind.WAIT, within="Trainer._step")
                gpu.traffic.reset()

        run(handle, until=listen)
    completed(handle)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "fp16"])  # bf16 is fp16 without its scaler
def test_no_step_waits_for_the_device(tmp_path: Path, amp: str) -> None:
    """An epoch of more steps has no more waits: those that it has come once."""
    counts = [
        waits_of_an_epoch(
            opened_study(tmp_path / str(size), training__precision=amp, training__batch_size=size),
            capability=(7, 5) if amp == "fp16" else (9, 0),
        )
        for size in (25, 10)
    ]
    assert counts[0] == counts[1]
    assert all(count <= 2 for count in counts[0].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["whole", "online views", "folds", "mixup and CutMix", "balanced classes"]
)
def test_no_step_copies_from_pageable_memory(tmp_path: Path, kind: str) -> None:
    """Such a copy makes the host wait; nothing counts that is made once, before the last epoch."""
    lines: list[str] = []
    with simulated_gpu() as gpu:

        def listen(event: Event) -> None:
            if event["event"] == "epoch":
                if event["epoch"] == event["epochs"]:
                    found = gpu.traffic.of(Kind.PAGEABLE_TO_DEVICE, within="_train_epoch")
                    lines.extend(one.line for one in found)
                    assert gpu.traffic.operations
                gpu.traffic.reset()

        handle = opened_study(tmp_path, **KINDS[kind])
        run(handle, until=listen)
    completed(handle)
    assert lines == []


#: Trials whose steps are captured.
CAPTURED: dict[str, dict[str, Any]] = {
    "a tail": {"space__trainable_layers": 1},
    "bf16": {"training__precision": "bf16", "space__trainable_layers": 1},
    "folds": {"space__trainable_layers": 1, "data__folds": 2},
    "the head first": {"space__trainable_layers": 1, "space__training__head_only_epochs": 1},
    "no average": {
        "space__trainable_layers": 1,
        "training__ema": None,
        "training__clip_grad_norm": None,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("options", CAPTURED.values(), ids=CAPTURED)
def test_a_worker_replays_its_steps_with_the_same_values(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both trials, and of each fold."""
    monkeypatch.setattr(trainer, "MIN_STEPS", 4)
    replays = 0
    replay = CapturedStep.__call__

    def counted(self: CapturedStep, *batch: Any) -> Tensor:
        nonlocal replays
        replays += 1
        return replay(self, *batch)

    monkeypatch.setattr(CapturedStep, "__call__", counted)
    values = []
    for graphs in (False, True):
        replays = 0
        folder = tmp_path / str(graphs)
        trials = search(
            opened_study(folder, **{"training__precision": "off", **options}), graphs=graphs
        )
        assert bool(replays) == graphs
        values.append([one.user_attrs[attrs.METRICS]["log_loss"] for one in trials])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["FeatureCache", "recalibrate", "Trainer.predict"])
def test_a_place_with_a_batch_of_its_own_halves_it(tmp_path: Path, inside: str) -> None:
    """Memory gives out there for more than six images; the training goes on with whole batches."""
    handle = opened_study(
        tmp_path,
        training__precision="off",
        space__trainable_layers=2,
        space__layers={"kernel": [1]},
        search__sampler="random",
    )
    with simulated_gpu() as gpu:
        rule = gpu.memory.provoke(6, inside)
        run(handle)
        assert rule.count
    for trial in completed(handle):
        assert attrs.MICRO_BATCH not in trial.user_attrs


@pytest.mark.slow
def test_memory_gives_out_once_where_a_network_is_split(tmp_path: Path) -> None:
    handle = opened_study(tmp_path, training__precision="off", space__trainable_layers=2)
    with simulated_gpu() as gpu:
        rule = gpu.memory.provoke(0, inside=" _split", times=1)
        run(handle)
        assert rule.count == 1
    for trial in completed(handle):
        assert attrs.UNSPLIT_REASON not in trial.user_attrs


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["Trainer._step", ""], ids=["step", "everywhere"])
def test_a_step_that_does_not_fit_is_taken_in_parts(tmp_path: Path, inside: str) -> None:
    handle = opened_study(tmp_path, **WHOLE)
    with simulated_gpu() as gpu:
        gpu.memory.provoke(6, inside)
        run(handle)
    trials = completed(handle)
    assert [one.user_attrs[attrs.MICRO_BATCH] for one in trials] == [5, 5]


@pytest.mark.slow
def test_a_plan_that_never_fits_is_infeasible_and_holds_nothing(tmp_path: Path) -> None:
    handle = opened_study(tmp_path, **WHOLE, search__trials=3)
    with simulated_gpu() as gpu:

        def listen(event: Event) -> None:
            if event["event"] == "end" and not gpu.memory.provoked:
                gpu.memory.provoke(0, inside="Trainer._step")  # after the baseline

        run(handle, until=listen)
        gc.collect()
        assert gpu.memory.allocated < MIB
    baseline, *others = handle.study.trials
    assert baseline.state == TrialState.COMPLETE
    for trial in others:
        assert trial.state == TrialState.PRUNED and attrs.ended_infeasible(trial)
        assert trial.user_attrs[attrs.REASON].startswith("infeasible: memory")


@pytest.mark.slow
def test_a_neighbor_that_leaves_costs_no_trial_its_batch(tmp_path: Path) -> None:
    """Nothing is halved, and no smaller part is stored, because others held memory for a while."""
    handle = opened_study(tmp_path, **WHOLE)
    with simulated_gpu(total_bytes=64 * MIB) as gpu:
        crowded = False

        def listen(event: Event) -> None:
            nonlocal crowded
            if event["event"] == "start" and event["trial"] == 1 and not crowded:
                gpu.memory.crowd(62 * MIB, calls=4)
                crowded = True

        run(handle, until=listen)
        assert crowded and not gpu.memory.neighbor_bytes
    for trial in completed(handle):
        assert attrs.MICRO_BATCH not in trial.user_attrs


@pytest.mark.slow
def test_a_worker_keeps_nothing_that_its_neighbor_needs(tmp_path: Path) -> None:
    """Two workers in turn: what one had for a trial is free for the other after it."""
    handle = opened_study(tmp_path, **WHOLE, search__trials=3)
    kept = []
    with simulated_gpu() as gpu:

        def listen(event: Event) -> None:
            if event["event"] == "end":
                free, total = torch.cuda.mem_get_info()
                kept.append(total - free)

        run(handle, until=listen)
        assert gpu.memory.peak > 4 * MIB
    completed(handle)
    assert len(kept) == 3 and max(kept) < 2 * MIB


@pytest.mark.slow
def test_two_workers_share_a_gpu(tmp_path: Path) -> None:
    ended = autotune(
        *("run", "digits", *BARE, "training.epochs=4", "search.trials=4", "--name", "tiny"),
        *("--gpus", "0", "--workers-per-gpu", "2"),
        cwd=tmp_path,
        **simulated_environment(tmp_path),
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    trials = trials_of(tmp_path, "tiny")
    assert [one.state for one in trials] == [TrialState.COMPLETE] * 4
    assert len({one.user_attrs[attrs.WORKER] for one in trials}) == 2
    assert {one.user_attrs[attrs.DEVICE] for one in trials} == {"Simulated GPU"}
    assert faults_of(tmp_path) == ""


@pytest.mark.slow
def test_two_gpus_confirm_and_refit(tmp_path: Path) -> None:
    """Each process has a GPU of its own, and what starts them has none."""
    environment = simulated_environment(tmp_path, cards=2)
    run_here = partial(autotune, cwd=tmp_path, **environment)
    ran = call("run", "digits", *BARE, "search.trials=2", "--name", "tiny", cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    ended = run_here("confirm", "tiny", "--top", "1", "--seeds", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    ready = [line for line in ended.stderr.splitlines() if " is ready on " in line]
    assert sorted(line[-16:-11] for line in ready) == ["GPU 0", "GPU 1"], ready
    assert json.loads(ended.stdout)["trained"] == 4
    ended = run_here("refit", "tiny", "--trial", "1", "--gpus", "all")
    assert ended.returncode == 0, ended.stderr
    assert "GPU 0" in ended.stderr and "GPU 1" in ended.stderr
    assert faults_of(tmp_path) == ""
