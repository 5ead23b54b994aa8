from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import DiskFullError
from autotune.training.checkpoint import Checkpoint
from autotune.training.curves import CHECKPOINT_KEY
from autotune.training.metrics import LOWEST_LOSS
from tests.support.models.backbones import plan, training

SAVING = """
import sys, torch
from pathlib import Path
from autotune.training.checkpoint import Checkpoint
number = 0
while True:
    number += 1
    state = {"a": torch.full((300_000,), number), "number": number}
    Checkpoint(Path(sys.argv[1])).save(state, number)
    print(number, flush=True)
"""
STATE: dict[str, Any] = {"a": torch.arange(3), "b": {"c": 1.5, "d": [torch.zeros(2), None]}}


def checkpoint(path: Path, **options: Any) -> Checkpoint:
    return Checkpoint(path / "3.pt", **options)


def test_a_checkpoint_goes_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = checkpoint(tmp_path / "new")
    assert one.load(STATE) is None and caplog.records == []
    one.save(STATE, 1)
    one.save({**STATE, "a": torch.arange(3) + 1}, 2)
    found = one.load(STATE)
    assert found is not None
    assert found["a"].tolist() == [1, 2, 3]
    assert found["b"]["c"] == 1.5 and found["b"]["d"][0].tolist() == [0, 0]
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["3.pt"]


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    checkpoint(path.parent).save(STATE, 1)
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "of a version without checksums": lambda path: torch.save(STATE, path),
    "cut in the checksum": lambda path: rewritten(path, lambda data: data[:25]),
    "cut in the middle": lambda path: rewritten(path, lambda data: data[: len(data) // 2]),
    "longer": lambda path: rewritten(path, lambda data: data + b"\0"),
    "a folder with something in it": lambda path: (path / "a" / "b").mkdir(parents=True),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to(path.parent.parent),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_starts_afresh(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = checkpoint(tmp_path)
    DAMAGE[how](one.path)
    with caplog.at_level(logging.WARNING):
        assert one.load(STATE) is None
    (line,) = caplog.records
    assert "starting afresh" in line.getMessage()
    run = training(plan("test_resnet"), epochs=1, count=20)
    assert [result.epoch for result in run.run(one)] == [1]
    assert one.load(run.state()) is not None


@pytest.mark.parametrize("what", ["an empty folder", "a full folder", "a dangling link"])
def test_what_appears_in_its_place_while_it_trains_is_replaced(what: str, tmp_path: Path) -> None:
    one = checkpoint(tmp_path)
    one.save(STATE, 1)
    one.path.unlink()
    if what == "a dangling link":
        one.path.symlink_to(tmp_path / "nowhere")
    else:
        (one.path / "a" if what == "a full folder" else one.path).mkdir(parents=True)
    one.save(STATE, 2)
    assert one.path.is_file() and not one.path.is_symlink()
    assert one.load(STATE) is not None
    assert [one.name for one in tmp_path.iterdir()] == ["3.pt"]


def test_a_flipped_bit_starts_afresh(tmp_path: Path) -> None:
    one = checkpoint(tmp_path, identity={"study": "a", "plan": 3})
    one.save(STATE, 12)
    whole = one.path.read_bytes()
    for bit in [*range(8 * 120), *range(8 * 120, 8 * len(whole), 97)]:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        one.path.write_bytes(changed)
        assert one.load(STATE) is None, bit
    one.path.write_bytes(whole)
    assert one.load(STATE) is not None


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"study": "b", "plan": 4}, "study, plan"),
        ({"study": "a"}, "plan"),
        ({"study": "a", "plan": 3, "seed": 1}, "seed"),
    ],
)
def test_that_of_another_training_is_not_used(
    theirs: dict[str, Any], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(tmp_path, identity=theirs).save(STATE, 1)
    ours = checkpoint(tmp_path, identity={"study": "a", "plan": 3})
    with caplog.at_level(logging.WARNING):
        assert ours.load(STATE) is None
    assert f"it is that of another training ({named}); starting afresh" in caplog.text
    assert not ours.path.exists()


@pytest.mark.parametrize(
    ("reported", "missing"),
    [([], 1), ([1, 2], 3), ([1, 3, 4], 2), (None, 0), ([1, 2, 3, 4], 0)],
)
def test_a_curve_has_no_gaps(
    reported: Any, missing: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint may lag behind its curve, but not lead it."""
    checkpoint(tmp_path).save(STATE, 3)
    with caplog.at_level(logging.WARNING):
        state = checkpoint(tmp_path, reported=reported).load(STATE)
    assert (state is None) == bool(missing) == bool(caplog.text)
    text = f"it is that of epoch 3, but no value is known of epoch {missing};"
    assert not missing or text in caplog.text


@pytest.mark.parametrize(
    ("saved", "where"),
    [
        ({"a": torch.arange(4), "b": STATE["b"]}, "state.a"),
        ({"a": torch.arange(3.0), "b": STATE["b"]}, "state.a"),
        ({"a": 3, "b": STATE["b"]}, "state.a"),
        ({"a": STATE["a"]}, "state"),
        ({**STATE, "c": 1}, "state"),
        ({"a": STATE["a"], "b": [1, 2]}, "state.b"),
        ({"a": STATE["a"], "b": {"c": 1, "d": [torch.zeros(2)]}}, "state.b.d"),
        ({"a": STATE["a"], "b": {"c": "1.5", "d": [torch.zeros(2), 1]}}, "state.b.c"),
        ({"a": STATE["a"], "b": {"c": None, "d": [torch.zeros(2), 1]}}, "state.b.c"),
    ],
)
def test_another_structure_starts_afresh(
    saved: dict[str, Any], where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(tmp_path).save(saved, 1)
    with caplog.at_level(logging.WARNING):
        assert checkpoint(tmp_path).load(STATE) is None
    assert f"it has another structure at {where};" in caplog.text


def test_what_is_not_finite_starts_afresh(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"a": torch.zeros(2), "b": [torch.arange(3), torch.zeros(3)]}
    one = checkpoint(tmp_path)
    one.save({**state, "b": [torch.arange(3), torch.tensor([0.0, float("nan"), 0.0])]}, 1)
    with caplog.at_level(logging.WARNING):
        assert one.load(state) is None
    assert "some of its numbers are not finite; starting afresh" in caplog.text


def test_a_checkpoint_of_before_there_were_validation_losses_is_used(tmp_path: Path) -> None:
    judged = {**STATE, LOWEST_LOSS: torch.zeros(3), CHECKPOINT_KEY: "{}"}
    for saved, current in ((STATE, judged), (judged, STATE), (judged, judged)):
        checkpoint(tmp_path).save(saved, 1)
        found = checkpoint(tmp_path).load(current)
        assert found is not None and found.keys() == saved.keys()


def test_a_scaler_that_another_device_has_starts_afresh(tmp_path: Path) -> None:
    """Half precision on one device and single on another: torch refuses such a state."""
    one = checkpoint(tmp_path)
    first = training(plan("test_resnet", 1), epochs=2, count=20)
    next(iter(first.run()))
    state = first.state()
    one.save({**state, "scaler": {"scale": 65536.0, "growth_factor": 2.0}}, 1)
    second = training(plan("test_resnet", 1), epochs=2, count=20)
    assert [result.epoch for result in second.run(one)] == [1, 2]


def test_two_machines_may_count_their_processes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was taken for lost saves while its successor does."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    ours, theirs = checkpoint(tmp_path), checkpoint(tmp_path)
    original = torch.save

    def both(state: Any, file: Any) -> None:
        monkeypatch.setattr(torch, "save", original)
        theirs.save({**STATE, "a": torch.arange(3) + 7}, 1)
        original(state, file)

    monkeypatch.setattr(torch, "save", both)
    ours.save(STATE, 2)
    found = ours.load(STATE)
    assert found is not None and found["a"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "3.pt"
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert saver.stdout is not None
    with saver, saver.stdout:
        assert int(saver.stdout.readline()) == 1
        for _ in range(200):
            time.sleep(0.01)
            if list(tmp_path.glob(".3.pt.*")):
                break
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        done = [int(line) for line in saver.stdout.read().split()]
    found = Checkpoint(path).load({"a": torch.full((300_000,), 0), "number": 0})
    assert found is not None
    assert found["number"] >= max(done, default=1)
    assert bool((found["a"] == found["number"]).all())
    # Whoever resumes removes what the killed one left.
    assert [one.name for one in tmp_path.iterdir()] == ["3.pt"]


@pytest.mark.parametrize("numbers", [100_000, 300_000])
def test_a_full_disk(small_disk: Path, numbers: int) -> None:
    one = checkpoint(small_disk)
    state = {"epoch": 1, "a": torch.zeros(170_000)}
    one.save(state, 1)
    with pytest.raises(DiskFullError, match=f"no space left on the disk of {small_disk}"):
        one.save({"epoch": 2, "a": torch.zeros(numbers)}, 2)
    found = one.load(state)
    assert found is not None
    assert found["epoch"] == 1
    assert [one.name for one in small_disk.iterdir()] == ["3.pt"]
