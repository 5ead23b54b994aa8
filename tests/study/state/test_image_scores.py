"""Scores of single images that are stored with a trial."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autotune.study.state.predictions import MAX_IMAGES, decode_scores, encode_scores


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
