from __future__ import annotations

import pytest
import torch

from autotune.study.memory import LEAST_EXCESS, MIB, Need, need_of
from tests.support.backbones import CPU


def test_what_the_cpu_was_asked_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    need = need_of(caught.value, CPU)
    assert (1 << 50) + 10 * MIB < need.wanted_bytes < (1 << 50) + (1 << 36)
    assert 0 < need.left_bytes <= need.device_bytes < 1 << 46
    assert not need.is_crowded
    assert need.excess == need.wanted_bytes / need.device_bytes - 1


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Unable to allocate 9.00 GiB for an array with shape (3,)", 9 << 30),
        ("CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; ...)", 36 << 20),
        ("you tried to allocate 4096 bytes. Error code 12", 4096),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", 0),
    ],
)
def test_the_size_of_a_request_is_read(text: str, asked: int) -> None:
    held = need_of(RuntimeError(""), CPU).wanted_bytes
    assert need_of(RuntimeError(text), CPU).wanted_bytes == pytest.approx(held + asked, abs=2**26)


def test_a_device_is_crowded_where_a_plan_would_fit_without_the_others() -> None:
    assert Need(5 * MIB, 1 * MIB, 10 * MIB).is_crowded
    assert not Need(9 * MIB, 1 * MIB, 10 * MIB).is_crowded  # nearly all of it: hardly alone
    assert not Need(5 * MIB, 10 * MIB, 10 * MIB).is_crowded  # nobody else is there
    assert not Need(11 * MIB, 1 * MIB, 10 * MIB).is_crowded


def test_the_excess_is_always_above_zero() -> None:
    assert Need(15 * MIB, 9 * MIB, 10 * MIB).excess == 0.5
    assert Need(5 * MIB, 10 * MIB, 10 * MIB).excess == LEAST_EXCESS


def test_sizes_in_words() -> None:
    found = Need(2000 * MIB, 1500 * MIB, 1500 * MIB).in_words()
    assert found == "it wanted at least 2,000 MiB, the device has 1,500 MiB"
    found = Need(900 * MIB, 1500 * MIB, 1500 * MIB).in_words()
    assert found == "it wanted at least 900 MiB and did not get it, the device has 1,500 MiB"
