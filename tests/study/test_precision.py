"""The precision of a study: compared once, remembered for all workers and reruns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.study import load_study

from autotune.study import record
from autotune.study.opening import OpenStudy
from autotune.study.preparing import prepare_training
from autotune.study.worker import prepare
from tests.study.test_worker import run
from tests.support.small import open_small


def small(folder: Path, amp: str = "auto") -> OpenStudy:
    return open_small(folder, space__depth=[0, 1], search__trials=2, training__amp=amp)


def remembered(opened: OpenStudy) -> Any:
    study = load_study(study_name=opened.name, storage=opened.storage)
    return study.user_attrs.get(record.PRECISION)


@pytest.mark.parametrize(("amp", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_given_is_not_compared(
    tmp_path: Path, amp: str, dtype: torch.dtype | None
) -> None:
    opened = small(tmp_path, amp)
    bench = prepare(opened)
    assert prepare_training(bench.space.baseline(), bench).autocast.dtype is dtype
    assert remembered(opened) is None


def test_it_is_compared_once_for_a_study(tmp_path: Path) -> None:
    opened = small(tmp_path)
    state = torch.get_rng_state()
    bench = prepare(opened)
    first = prepare_training(bench.space.baseline(), bench).autocast
    assert torch.equal(torch.get_rng_state(), state)
    found = remembered(opened)
    assert found == {"test_resnet.letters": {"cpu": "off" if first.dtype is None else "bf16"}}


@pytest.mark.parametrize(("word", "dtype"), [("off", None), ("bf16", torch.bfloat16)])
def test_what_a_study_remembers_holds_for_all(
    tmp_path: Path, word: str, dtype: torch.dtype | None
) -> None:
    """Whatever this machine would find: another one was first."""
    opened = small(tmp_path)
    known = {"test_resnet.letters": {"cpu": word, "NVIDIA H200": "fp16"}, "other": {"cpu": "off"}}
    opened.study.set_user_attr(record.PRECISION, known)
    bench = prepare(opened)
    assert prepare_training(bench.space.baseline(), bench).autocast.dtype is dtype
    assert remembered(opened) == known
    run(opened)
    assert [one.state.name for one in opened.study.trials] == ["COMPLETE", "COMPLETE"]


def test_devices_and_backbones_are_remembered_beside_each_other(tmp_path: Path) -> None:
    opened = small(tmp_path)
    known = {"test_resnet.letters": {"NVIDIA H200": "fp16"}, "other": {"cpu": "off"}}
    opened.study.set_user_attr(record.PRECISION, known)
    bench = prepare(opened)
    prepare_training(bench.space.baseline(), bench)
    found = remembered(opened)
    assert found["other"] == known["other"]
    assert found["test_resnet.letters"].pop("cpu") in ("off", "bf16")
    assert found["test_resnet.letters"] == {"NVIDIA H200": "fp16"}
