from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from autotune.errors import DiskFullError
from autotune.training.checkpoint import load_checkpoint, save_checkpoint
from tests.support.backbones import plan, training

SAVING = """
import sys, torch
from pathlib import Path
from autotune.training.checkpoint import save_checkpoint
number = 0
while True:
    number += 1
    save_checkpoint(Path(sys.argv[1]), {"a": torch.full((300_000,), number), "number": number})
    print(number, flush=True)
"""


def test_a_checkpoint_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "new" / "3.pt"
    save_checkpoint(path, {"a": torch.arange(3), "b": {"c": 1.5}})
    save_checkpoint(path, {"a": torch.arange(4), "b": {"c": 2.5}})
    found = load_checkpoint(path)
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert found["b"] == {"c": 2.5}
    assert [one.name for one in path.parent.iterdir()] == ["3.pt"]


def test_there_is_no_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(tmp_path / "3.pt") is None
    assert caplog.records == []


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "list", "number"])
def test_a_damaged_checkpoint_starts_afresh(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "3.pt"
    torch.save({"list": [1, 2], "number": 3}.get(how, {"epoch": 1}), path)
    if how in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how[0] == "t" else 0])
    elif how == "garbage":
        path.write_bytes(os.urandom(5000))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path) is None
        run = training(plan("test_resnet"), epochs=1, count=20)
        assert [result.epoch for result in run.run(path)] == [1]
    assert "cannot be read" in caplog.text
    found = load_checkpoint(path)
    assert found is not None
    assert found["epoch"] == 1


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
    found = load_checkpoint(path)
    assert found is not None
    assert found["number"] >= max(done, default=1)
    assert bool((found["a"] == found["number"]).all())
    # Whoever resumes removes what the killed one left.
    assert [one.name for one in tmp_path.iterdir()] == ["3.pt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("numbers", [100_000, 300_000])
def test_a_full_disk(small_disk: Path, numbers: int) -> None:
    path = small_disk / "3.pt"
    save_checkpoint(path, {"epoch": 1, "a": torch.zeros(170_000)})
    with pytest.raises(DiskFullError, match=f"no space left on the disk of {small_disk}"):
        save_checkpoint(path, {"epoch": 2, "a": torch.zeros(numbers)})
    found = load_checkpoint(path)
    assert found is not None
    assert found["epoch"] == 1
    assert [one.name for one in small_disk.iterdir()] == ["3.pt"]
