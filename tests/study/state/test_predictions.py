"""What a trial predicted for single images: what is written is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autotune.study.state import predictions
from autotune.study.state.predictions import (
    MAX_IMAGES,
    ValidationLogits,
    decode_scores,
    encode_scores,
)

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


@pytest.mark.parametrize("images", [1, 7, MAX_IMAGES, 3 * MAX_IMAGES])
@pytest.mark.parametrize("kind", ["correct", "losses", "equal"])
def test_scores_are_read_back(images: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    scores = {
        "correct": (rng.random(images) < 0.9).astype(float),
        "losses": rng.exponential(0.3, images),
        "equal": np.full(images, 0.25),
    }[kind]
    stored = encode_scores(scores)
    assert len(json.dumps(stored)) < 1500
    found = decode_scores(stored)
    assert len(found) == min(images, MAX_IMAGES)
    if images <= MAX_IMAGES:
        assert found == pytest.approx(scores, abs=(scores.max() - scores.min()) / 255)
