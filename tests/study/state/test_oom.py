from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotune.errors import TrialInterruptedError
from autotune.study.state import oom
from autotune.study.state.oom import (
    MIB,
    MIN_EXCESS,
    DoesNotFitError,
    MemoryShortage,
    device_bytes,
    measure_shortage,
    with_oom_backoff,
)
from tests.support.models.backbones import CPU


def test_what_the_cpu_was_asked_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    need = measure_shortage(caught.value, CPU)
    assert (1 << 50) + 10 * MIB < need.wanted_bytes < (1 << 50) + (1 << 36)
    assert 0 < need.left_bytes <= need.device_bytes < 1 << 46
    assert not need.is_shared_device
    assert need.excess == need.wanted_bytes / need.device_bytes - 1


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Unable to allocate 9.00 GiB for an array with shape (3,)", 9 << 30),
        ("CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; ...)", 36 << 20),
        ("you tried to allocate 4096 bytes. Error code 12", 4096),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", 0),
        (
            "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
            "per_process_memory_fraction limit. Requested size: 3.00 GiB",
            3 << 30,
        ),
    ],
)
def test_the_size_of_a_request_is_read(text: str, asked: int) -> None:
    held = measure_shortage(RuntimeError(""), CPU).wanted_bytes
    assert measure_shortage(RuntimeError(text), CPU).wanted_bytes == pytest.approx(
        held + asked, abs=2**26
    )


def test_a_device_is_crowded_where_a_plan_would_fit_without_the_others() -> None:
    for wanted, left, total, shared in (
        (5, 1, 10, True),
        (9, 1, 10, True),
        (97, 1, 100, False),  # nearly all of it: hardly alone
        (5, 10, 10, False),  # nobody else is there
        (11, 1, 10, False),
    ):
        assert MemoryShortage(wanted, left, total).is_shared_device is shared


@pytest.mark.parametrize(
    ("sizes_mib", "excess", "text"),
    [
        ((1500, 900, 1000), 0.5, "it wanted at least 1,500 MiB, the device has 1,000 MiB"),
        (
            (900, 1500, 1500),
            MIN_EXCESS,
            "it wanted at least 900 MiB and did not get it, the device has 1,500 MiB",
        ),
        ((900, 0, 0), MIN_EXCESS, "it wanted at least 900 MiB and did not get it"),
    ],
)
def test_the_excess_and_both_sizes(
    sizes_mib: tuple[int, int, int], excess: float, text: str
) -> None:
    shortage = MemoryShortage(*(size * MIB for size in sizes_mib))
    assert (shortage.excess, shortage.describe()) == (excess, text)


#: As torch 2.15 writes it.
TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 16.00 GiB of "
    "which 1.00 GiB is free. Process 7 has 10.00 GiB memory in use. Including non-PyTorch memory, "
    "this process has 5.00 GiB memory in use. Of the allocated memory 4.00 GiB is allocated by "
    "PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated."
)
CUDA = torch.device("cuda", 0)
GIB = 1 << 30


@dataclass
class Card:
    """What torch says of a GPU that is not there."""

    free: int = GIB
    total: int = 16 * GIB
    visible: int = 16 * GIB
    share: float = 1.0

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        properties = SimpleNamespace(total_memory=self.total)
        for name, value in {
            "get_device_properties": lambda device: properties,
            "mem_get_info": lambda device: (self.free, self.visible),
            "get_per_process_memory_fraction": lambda device: self.share,
            "current_device": lambda: 0,
            "memory_allocated": lambda device: 4 * GIB,
            "memory_reserved": lambda device: 9 * GIB // 2,
            "max_memory_allocated": lambda device: 5 * GIB,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_the_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without an index; of a limit, and of a part of a card."""
    Card().put_in(monkeypatch)
    assert device_bytes(CUDA) == device_bytes(torch.device("cuda")) == 16 * GIB
    Card(share=0.25).put_in(monkeypatch)
    assert device_bytes(CUDA) == 4 * GIB
    Card(visible=2 * GIB).put_in(monkeypatch)
    assert device_bytes(CUDA) == 2 * GIB
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")  # torch 2.7
    assert device_bytes(CUDA) == 2 * GIB


def test_others_are_seen_who_have_left_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is what the error says, not what is free when it is asked."""
    Card(free=11 * GIB).put_in(monkeypatch)
    need = measure_shortage(torch.OutOfMemoryError(TEXT), CUDA)
    assert need == MemoryShortage(6 * GIB, 11 * GIB // 2, 16 * GIB)
    assert need.is_shared_device
    need = measure_shortage(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), CUDA)
    assert need == MemoryShortage(5 * GIB, 31 * GIB // 2, 16 * GIB)  # the peak
    assert not need.is_shared_device


def raising(*_: object) -> Any:
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    "name", ["mem_get_info", "get_device_properties", "get_per_process_memory_fraction"]
)
def test_what_cannot_be_measured_does_not_hide_the_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Card().put_in(monkeypatch)
    monkeypatch.setattr(torch.cuda, name, raising)
    need = measure_shortage(torch.OutOfMemoryError(TEXT), CUDA)
    assert need.wanted_bytes == 6 * GIB
    assert need.device_bytes in (0, 16 * GIB)
    assert need.excess == MIN_EXCESS
    assert need.describe().startswith("it wanted at least 6,144 MiB and did not get it")


def test_a_machine_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "_process_memory", lambda: Path("/nowhere").read_text())
    need = measure_shortage(RuntimeError("you tried to allocate 4096 bytes. Error code 12"), CPU)
    assert need == MemoryShortage(4096, 0, 0)


def failing(
    sizes: int, needs: Sequence[MemoryShortage], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Run something that fits in parts of this size; return the parts that were tried."""
    tried: list[int] = []
    coming = iter(needs)
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: next(coming))

    def work(part: int) -> str:
        tried.append(part)
        if part > sizes:
            raise torch.OutOfMemoryError(TEXT)
        return "done"

    monkeypatch.setattr(oom.gc, "collect", lambda: 0)
    assert with_oom_backoff(work, 32, CPU) == "done"
    return tried


CROWDED, ALONE = MemoryShortage(5, 1, 10), MemoryShortage(11, 10, 10)


def test_parts_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (0.0, 0.0))
    assert failing(8, [ALONE] * 2, monkeypatch) == [32, 16, 8]
    assert failing(32, [], monkeypatch) == [32]
    # Beside others, each size is tried three times.
    assert failing(16, [CROWDED] * 3, monkeypatch) == [32, 32, 32, 16]
    assert failing(8, [CROWDED] * 6, monkeypatch) == [32, 32, 32, 16, 16, 16, 8]
    assert failing(8, [CROWDED, ALONE, ALONE], monkeypatch) == [32, 32, 16, 8]


@pytest.mark.parametrize("least", [1, 2])
def test_what_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    tried: list[int] = []
    told: list[int] = []

    def work(part: int) -> None:
        tried.append(part)
        raise torch.OutOfMemoryError(TEXT)

    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: ALONE)
    with pytest.raises(DoesNotFitError) as caught:
        with_oom_backoff(work, 5, CPU, least=least, on_halved=lambda part, need: told.append(part))
    assert caught.value.shortage is ALONE
    assert tried == [5, *told] and told == [2, 1][: 3 - least]


def test_other_errors_are_not_tried_again() -> None:
    tried: list[int] = []

    def work(part: int) -> None:
        tried.append(part)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        with_oom_backoff(work, 32, CPU)
    assert tried == [32]


def test_a_wait_ends_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = iter([5, 5, 7])
    asked: list[int] = []
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (600.0,))
    monkeypatch.setattr(oom, "_POLL_S", 0.0)
    monkeypatch.setattr(oom, "_room", lambda device: asked.append(1) or next(rooms))
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: CROWDED)
    tried: list[int] = []

    def work(part: int) -> None:
        tried.append(part)
        if len(tried) == 1:
            raise torch.OutOfMemoryError(TEXT)

    with_oom_backoff(work, 32, CPU)
    assert (tried, len(asked)) == ([32, 32], 3)


def test_a_stop_ends_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (600.0,))
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: CROWDED)

    def work(part: int) -> None:
        raise torch.OutOfMemoryError(TEXT)

    with pytest.raises(TrialInterruptedError):
        with_oom_backoff(work, 32, CPU, stopped=lambda: True)
