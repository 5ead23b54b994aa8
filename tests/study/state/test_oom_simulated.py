"""Out of memory and precision on a simulated GPU: a neighbor that leaves, trials, predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from autotune.search.study_view import DEVICE_MEMORY
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs, oom
from tests.support.commands.inline import run
from tests.support.simulated_gpu import simulated_gpu
from tests.support.study.small import open_small

pytestmark = pytest.mark.slow

GIB = 2**30


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No long waits, and the precision of float32 as it was."""
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (0.01, 0.01))
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def small(folder: Path, **overrides: Any) -> OpenStudy:
    few: dict[str, Any] = {"search__trials": 1, "training__epochs": 1, "cache__features": "off"}
    return open_small(folder, **{**few, "training__batch_size": 16, **overrides})


@pytest.mark.parametrize(("times", "part"), [(1, 16), (2, 16), (3, 8)])
def test_a_neighbor_that_leaves_costs_no_size(tmp_path: Path, times: int, part: int) -> None:
    handle = small(tmp_path)
    parts: list[int] = []
    original = oom.with_oom_backoff

    def noted(work: Any, *args: Any, **named: Any) -> Any:
        return original(lambda part: parts.append(part) or work(part), *args, **named)

    with pytest.MonkeyPatch.context() as patched, simulated_gpu() as gpu:
        gpu.memory.crowd(100 * GIB)
        gpu.memory.provoke(8, inside="_step", times=times)
        patched.setattr(oom, "with_oom_backoff", noted)
        run(handle)
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE
    assert parts == [16] * min(3, times + (part == 16)) + [8] * (part == 8)
    assert attrs.MICRO_BATCH not in trial.user_attrs and DEVICE_MEMORY not in trial.constraints


def test_a_plan_alone_on_its_device_is_halved_at_once(tmp_path: Path) -> None:
    handle = small(tmp_path)
    with simulated_gpu() as gpu:
        gpu.memory.provoke(4, inside="_step")
        run(handle)
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE and trial.user_attrs[attrs.MICRO_BATCH] == 4


def test_what_a_trial_kept_is_given_back(tmp_path: Path) -> None:
    handle = small(tmp_path)
    with simulated_gpu() as gpu:
        run(handle)
        # What is in a cycle of objects goes later.
        assert gpu.memory.reserved < 0.25 * gpu.memory.peak


@pytest.mark.parametrize(
    ("capability", "amp", "half"),
    [((9, 0), "auto", "bf16"), ((7, 5), "auto", "fp16"), ((9, 0), "off", "off")],
)
def test_how_a_gpu_computes_is_recorded(
    tmp_path: Path, capability: tuple[int, int], amp: str, half: str
) -> None:
    handle = small(tmp_path, training__precision=amp)
    with simulated_gpu(capability=capability):
        run(handle)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs[attrs.COMPUTE] == {"half": half, "float32": "tf32"}
    assert handle.study.user_attrs[attrs.FLOAT32] == {"Simulated GPU": "tf32"}
    remembered = handle.study.user_attrs.get(attrs.PRECISION)
    expected = {"test_resnet.letters": {"Simulated GPU": half}} if amp == "auto" else None
    assert remembered == expected
