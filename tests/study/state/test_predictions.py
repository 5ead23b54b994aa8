"""The validation logits of a trial: what is written is read, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autotune.study.state import predictions
from autotune.study.state.predictions import ValidationLogits

IDS = ("a b/1.png", "b/\udcff.png", "c/日本.png")


def logits(scale: float = 1.0) -> ValidationLogits:
    values = scale * np.random.default_rng(0).normal(size=(len(IDS), 4)).astype(np.float32)
    return ValidationLogits(np.array(IDS), np.array([0, 3, 1]), values)


@pytest.mark.parametrize("most", [100, 0], ids=["in full", "in half precision"])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_what_is_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, scale: float
) -> None:
    monkeypatch.setattr(predictions, "MAX_FULL_LOGITS", most)
    kept = logits(scale)
    content = kept.write(tmp_path / "kept.npz").read_bytes()
    again = ValidationLogits.read(content)
    assert again.ids.tolist() == list(IDS) and again.labels.tolist() == [0, 3, 1]
    assert again.logits.dtype == np.float32
    np.testing.assert_allclose(again.probabilities, kept.probabilities, atol=0 if most else 1e-3)


def test_a_file_that_is_damaged_or_another_one_is_named(tmp_path: Path) -> None:
    content = logits().write(tmp_path / "kept.npz").read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, ids=np.arange(3), labels=np.arange(2), logits=np.zeros((3, 4)))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, ids=np.array([{}]), labels=np.arange(1), logits=np.zeros((1, 2)))
    damaged = content[:200] + bytes(40) + content[240:]
    entry = content.index(b"PK\x01\x02")
    newer = content[: entry + 6] + b"\x78" + content[entry + 7 :]
    encrypted = content[: entry + 8] + b"\x01" + content[entry + 9 :]
    others = (other.read_bytes(), pickled.read_bytes())
    for bad in (b"", b"text", content[:100], damaged, newer, encrypted, *others):
        with pytest.raises(ValueError, match=r"."):
            ValidationLogits.read(bad)
