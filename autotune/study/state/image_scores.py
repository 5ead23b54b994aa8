"""What a trial scored on single validation images, small enough to be stored with it.

Two networks are scored on the same images, so their difference is known far better than either
value: only the images on which they disagree count. A trial keeps a number for each of at most
:data:`MAX_IMAGES` images, spread evenly over the validation split and the same in every trial.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from autotune.study.state import attrs

#: Images of which the scores are kept: they say how often two networks disagree, to about a tenth.
MAX_IMAGES = 1000

Floats = npt.NDArray[np.float64]


def encode_scores(scores: Floats) -> dict[str, Any]:
    """Return scores ``(images,)``, whose mean is the metric, as JSON values of at most 1.4 kB."""
    kept = scores[_positions(len(scores))]
    low, high = float(kept.min()), float(kept.max())
    steps = np.rint((kept - low) / (high - low or 1.0) * 255).astype(np.uint8)
    text = base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()
    return {"low": low, "high": high, "steps": text, "images": len(scores)}


def decode_scores(stored: Mapping[str, Any]) -> Floats:
    """Return the scores of :func:`encode_scores`, to a 255th of their range."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(stored["steps"])), np.uint8)
    low, high = float(stored["low"]), float(stored["high"])
    return low + (high - low) / 255 * steps.astype(np.float64)


def scores_of(trial: FrozenTrial) -> Floats | None:
    """Return the scores of a complete trial; ``None`` for a trial of an earlier version."""
    stored = trial.user_attrs.get(attrs.IMAGE_SCORES)
    return decode_scores(stored) if stored else None


def paired_error(first: FrozenTrial, other: FrozenTrial, is_share: bool) -> float | None:
    """Return the standard error of the difference of two complete trials on the same images.

    Args:
        first: A complete trial.
        other: Another one.
        is_share: Whether scores are shares: two networks that agree on all images may still
            differ by one.

    Returns:
        The error, ``None`` where a trial has no scores of single images.
    """
    scores, others = scores_of(first), scores_of(other)
    if scores is None or others is None or len(scores) != len(others):
        return None
    differences = scores - others
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if is_share:
        largest = float(np.abs(scores).max(initial=1.0))
        deviation = max(deviation, largest / math.sqrt(len(differences)))
    # In older trials the number of images is not stored where only some are.
    images = first.user_attrs[attrs.IMAGE_SCORES].get("images", len(scores))
    return deviation / math.sqrt(images)


def _positions(images: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, images - 1, min(images, MAX_IMAGES)).round().astype(np.int64)
