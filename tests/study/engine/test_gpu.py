"""What only a GPU shows: memory that gives out, a context that is lost, a shared device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from autotune.search.study_view import DEVICE_MEMORY
from autotune.study.engine.launcher import run_study
from autotune.study.state import attrs
from autotune.study.state.failures import FailureKind, classify, device_responds
from autotune.study.state.oom import MIB, measure_shortage
from tests.study.engine.test_launcher import BARE
from tests.support.commands.inline import run
from tests.support.commands.runs import autotune, in_workers, trials_of, with_site
from tests.support.study.small import open_small, small_config

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def whole_device() -> Iterator[None]:
    """Give back what a test has limited or held."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def limit_to(mib: float) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(mib * MIB / total)


def test_what_the_device_was_asked_for() -> None:
    held = torch.zeros(64 * MIB, dtype=torch.uint8, device=CUDA)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        torch.empty(1 << 45, dtype=torch.uint8, device=CUDA)
    assert classify(caught.value, CUDA) == FailureKind.MEMORY
    need = measure_shortage(caught.value, CUDA)
    assert need.wanted_bytes >= (1 << 45) + held.numel()
    assert need.left_bytes <= need.device_bytes
    assert need.device_bytes == torch.cuda.get_device_properties(CUDA).total_memory
    assert not need.is_shared_device
    assert device_responds(CUDA)


def test_a_device_whose_memory_others_hold_is_crowded() -> None:
    free, total = torch.cuda.mem_get_info(CUDA)
    hold = (
        "import sys, torch; held = torch.zeros(int(sys.argv[1]), dtype=torch.uint8, device='cuda')"
        "; print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", hold, str(int(free - 0.2 * total))]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
            torch.empty(int(0.3 * total), dtype=torch.uint8, device=CUDA)
        need = measure_shortage(caught.value, CUDA)
        other.kill()
    assert need.is_shared_device


def test_a_plan_that_does_not_fit_is_infeasible_and_the_worker_lives_on(tmp_path: Path) -> None:
    """Two hidden layers of 16,384 units are a gigabyte, before anything trains."""
    handle = open_small(
        tmp_path,
        space__head__hidden_layers=[0, 2],
        space__head__units=16384,
        space__layers={},
        search__sampler="random",
        search__trials=6,
    )
    limit_to(1024)
    run(handle)
    trials = handle.study.trials
    big = [trial for trial in trials if trial.params.get("head.hidden_layers") == 2]
    small = [trial for trial in trials if trial not in big]
    assert big and len(small) > 1
    for trial in big:
        assert trial.state == TrialState.PRUNED and attrs.ended_infeasible(trial)
        assert trial.constraints[DEVICE_MEMORY] > 0
        assert float(trial.user_attrs[attrs.PEAK_MEMORY_MB]) >= 1024
        assert float(trial.user_attrs[attrs.DEVICE_MEMORY_MB]) == pytest.approx(1024, abs=1)
        assert ", the device has 1,024 MiB" in trial.user_attrs[attrs.REASON]
    for trial in small:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert trial.constraints == {}
        assert 0 < float(trial.user_attrs[attrs.PEAK_MEMORY_MB]) < 1024
    assert handle.progress().finished == 6
    # Nothing of what did not fit is held on to.
    assert torch.cuda.memory_allocated(CUDA) < 256 * MIB


def test_a_batch_that_does_not_fit_goes_through_in_parts(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "space__trainable_layers": 5,
        "space__layers": {},
        "space__head__hidden_layers": 0,
        "data__image_size": 448,  # beside a gigabyte, what cuBLAS takes for itself is little
        "training__batch_size": 50,
        "training__precision": "off",
        "search__trials": 2,
    }
    whole = open_small(tmp_path / "a", **options)
    run(whole)
    peak = max(float(trial.user_attrs[attrs.PEAK_MEMORY_MB]) for trial in whole.study.trials)
    assert peak > 1024
    handle = open_small(tmp_path / "b", **options)
    limit_to(0.7 * peak)
    run(handle)
    trials = handle.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    parts = [trial.user_attrs.get(attrs.MICRO_BATCH, 50) for trial in trials]
    assert 2 <= min(parts) < 50
    assert all(float(trial.user_attrs[attrs.PEAK_MEMORY_MB]) < 0.7 * peak for trial in trials)


def test_two_workers_share_a_device(tmp_path: Path) -> None:
    config = small_config(tmp_path, search__trials=6, training__epochs=10)
    result = run_study(config, gpus="0", workers_per_gpu=2)
    assert (result.progress.finished, result.progress.failed) == (6, 0)
    trials = result.handle.study.trials
    assert len({trial.user_attrs[attrs.WORKER] for trial in trials}) == 2
    name = torch.cuda.get_device_name(CUDA)
    assert {trial.user_attrs[attrs.DEVICE] for trial in trials} == {name}
    (gpu,) = {trial.user_attrs[attrs.GPU] for trial in trials}
    assert gpu.startswith(("GPU 0 (", "GPU-", "MIG-"))


@pytest.mark.parametrize("visible", ["0", "uuid", ""])
def test_workers_see_the_devices_that_are_visible(tmp_path: Path, visible: str) -> None:
    if visible == "uuid":
        visible = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    ended = autotune(
        *("run", "digits", *BARE, "--name", "tiny", "--workers", "1", "search.trials=1"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert ended.returncode == 0, ended.stderr
    (trial,) = trials_of(tmp_path, "tiny")
    expected = torch.cuda.get_device_name(CUDA) if visible else "cpu"
    assert trial.user_attrs[attrs.DEVICE] == expected


#: The labels of one batch are beyond all classes: the kernel asserts.
ASSERTING = """
import pathlib, torch
calls, forward = 0, torch.nn.CrossEntropyLoss.forward
def beyond(self, logits, labels):
    global calls
    calls += 1
    once = pathlib.Path(__file__).with_name('done')
    if calls > 20 and not once.exists():
        once.touch()
        labels = labels + 1000
    return forward(self, logits, labels)
torch.nn.CrossEntropyLoss.forward = beyond
"""


def test_a_real_assert_costs_a_process_and_not_the_trial(tmp_path: Path) -> None:
    ended = autotune(
        *("run", "digits", *BARE, "training.epochs=15"),
        *("training.batch_size=16", "search.trials=2", "--name", "tiny"),
        *("--gpus", "0", "--workers", "1"),
        cwd=tmp_path,
        **with_site(tmp_path, in_workers(ASSERTING)),
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert (tmp_path / "site/done").exists()
    assert "and is replaced" in ended.stdout
    progress = attrs.count_progress(trials_of(tmp_path, "tiny"), 2)
    assert (progress.finished, progress.failed, progress.retried) == (2, 0, 1)
    lost = next(trial for trial in trials_of(tmp_path, "tiny") if trial.state == TrialState.FAIL)
    assert lost.user_attrs[attrs.REASON].startswith("its worker was lost")
