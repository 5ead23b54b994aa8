"""What a network predicted for single images, as it is stored.

``predictions.csv`` is an artifact of the baseline, and of every trial that was the best when it
ended. A refit leaves it in the folder of its model, and as an artifact of the study. The highest
loss comes first: images with a wrong label are among the first rows.

Every complete trial keeps the logits of all its validation images, :class:`ValidationLogits`, and
scores of at most :data:`MAX_IMAGES` of them, spread evenly and the same in every trial. Two
networks are scored on the same images, so their difference is known far better than either value:
only the images on which they disagree count.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial
from PIL import Image

from autotune.study.state import attrs
from autotune.text import as_cell

#: Names of the artifacts of a trial, and of the files beside a model.
PREDICTIONS, WORST_IMAGES, HEAT_MAPS = "predictions.csv", "worst_images.jpg", "heat_maps.jpg"
#: Name of the artifact of every complete trial, see :class:`ValidationLogits`.
VALIDATION_LOGITS = "validation_logits.npz"
#: Most logits that are stored in full; more are stored in half precision, a megabyte or more.
MAX_FULL_LOGITS = 2**20
#: How captum is installed, which heat maps need.
INSTALL_HEAT_MAPS = "pip install 'autotune[heatmaps]'"
#: Most likely classes that are named.
TOP = 3
#: Images on the sheet of the worst ones, and images in a row; below sizes in pixels.
WORST, COLUMNS = 16, 4
TILE, GAP, LINE, LINES, EDGE, TITLE = 144, 16, 17, 3, 16, 44

#: Images of which the scores are kept: they say how often two networks disagree, to about a tenth.
MAX_IMAGES = 1000

Floats = npt.NDArray[np.float64]
_BASELINE = ("baseline_class", "baseline_true_probability")


@dataclass(frozen=True)
class ImagePrediction:
    """What a network predicted for an image.

    Args:
        path: The image as the data set names it: a path relative to its folder or archive, or the
            split and the row of a set of the hub.
        true_class: Its label.
        loss: Cross-entropy in nats.
        true_probability: Probability of its label.
        top: The most likely classes with their probabilities, the predicted one first.
        baseline: The class that the baseline predicted, and its probability of the label.
    """

    path: str
    true_class: str
    loss: float
    true_probability: float
    top: tuple[tuple[str, float], ...]
    baseline: tuple[str, float] | None = None

    @property
    def predicted_class(self) -> str:
        """The most likely class."""
        return self.top[0][0]

    @property
    def is_correct(self) -> bool:
        """Whether the most likely class is the label."""
        return self.predicted_class == self.true_class

    def to_row(self) -> dict[str, Any]:
        """Return the cells of the image by the names of the columns; none is a formula."""
        row: dict[str, Any] = {
            "path": self.path,
            "true_class": self.true_class,
            "predicted_class": self.predicted_class,
            "correct": self.is_correct,
            "loss": f"{self.loss:.4f}",
            "true_probability": f"{self.true_probability:.6f}",
            "probability": f"{self.top[0][1]:.6f}",
        }
        for place, (name, probability) in enumerate(self.top[1:], start=2):
            row |= {f"class_{place}": name, f"probability_{place}": f"{probability:.6f}"}
        if self.baseline is not None:
            row |= dict(zip(_BASELINE, (self.baseline[0], f"{self.baseline[1]:.6f}"), strict=True))
        return {key: as_cell(value) for key, value in row.items()}

    @staticmethod
    def from_row(row: Mapping[str, str]) -> ImagePrediction:
        """Read the result of :meth:`to_row`.

        Raises:
            KeyError, ValueError: When it is something else.
        """
        top = [(row["predicted_class"], float(row["probability"]))]
        for place in range(2, TOP + 1):
            if row.get(f"class_{place}"):
                top.append((row[f"class_{place}"], float(row[f"probability_{place}"])))
        baseline = None
        if row.get(_BASELINE[0]):
            baseline = (row[_BASELINE[0]], float(row[_BASELINE[1]]))
        return ImagePrediction(
            row["path"],
            row["true_class"],
            float(row["loss"]),
            float(row["true_probability"]),
            tuple(top),
            baseline,
        )


@dataclass(frozen=True, eq=False)
class ValidationLogits:
    """What a complete trial predicted for every validation image.

    With folds these are all images outside the test split, each predicted by the network that has
    not trained on it.

    Args:
        ids: The images as the data set names them, ``(N,)``; the same in every trial of a study,
            unless other images can be read.
        labels: Class indices, int64 ``(N,)``.
        logits: float32 ``(N, classes)``.
    """

    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    @property
    def probabilities(self) -> Floats:
        """Probabilities of the classes, ``(N, classes)``."""
        logits = self.logits.astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def write(self, path: Path) -> Path:
        """Write it as a compressed file of NumPy; return its path."""
        logits = self.logits
        if logits.size > MAX_FULL_LOGITS:  # small numbers are the precise ones in float16
            logits = (logits - logits.max(axis=1, keepdims=True)).clip(-6e4).astype(np.float16)
        np.savez_compressed(path, ids=self.ids, labels=self.labels, logits=logits)
        return path

    @staticmethod
    def read(content: bytes) -> ValidationLogits:
        """Read the content of a file that :meth:`write` has written.

        Raises:
            ValueError: When it is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                ids, labels, logits = (file[name] for name in ("ids", "labels", "logits"))
        except (KeyError, OSError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if logits.ndim != 2 or not len(ids) == len(labels) == len(logits):
            raise ValueError(f"{len(ids)} images have logits of the shape {logits.shape}")
        return ValidationLogits(ids, labels.astype(np.int64), logits.astype(np.float32))


def test_file(reading: int, name: str) -> str:
    """Return the name of an artifact of the study: a file of a reading of its test split."""
    return f"test_{reading}_{name}"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, under the columns that any of them has."""
    columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def read_predictions(content: bytes) -> tuple[ImagePrediction, ...]:
    """Read a file of predictions.

    Raises:
        ValueError: When it is something else, or damaged.
    """
    try:
        table = csv.DictReader(io.StringIO(content.decode(), newline=""))
        return tuple(ImagePrediction.from_row(row) for row in table)
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def tile_corner(number: int) -> tuple[int, int]:
    """Return the upper left corner of an image on the sheet of the worst ones, in pixels."""
    row, column = divmod(number, COLUMNS)
    return EDGE + column * (TILE + GAP), TITLE + row * (TILE + LINES * LINE + GAP)


def sheet_size(count: int) -> tuple[int, int]:
    """Return width and height of the sheet of the worst images, in pixels."""
    _, top = tile_corner(COLUMNS * -(-count // COLUMNS))
    return tile_corner(COLUMNS - 1)[0] + TILE + EDGE, top


def cut_tiles(sheet: bytes, count: int) -> list[bytes]:
    """Cut the images out of the sheet of the worst ones; JPEG, ``TILE`` pixels square.

    Raises:
        OSError, ValueError: When it is no such sheet.
    """
    with Image.open(io.BytesIO(sheet)) as image:
        image.load()
    if image.size != sheet_size(count):
        raise ValueError(f"a sheet of {count} images is {sheet_size(count)}, got {image.size}")
    tiles = []
    for left, top in map(tile_corner, range(count)):
        content = io.BytesIO()
        image.crop((left, top, left + TILE, top + TILE)).save(content, "jpeg", quality=80)
        tiles.append(content.getvalue())
    return tiles


def with_baseline(
    predictions: Iterable[ImagePrediction], baseline: Iterable[ImagePrediction]
) -> tuple[ImagePrediction, ...]:
    """Add to each image what the baseline predicted for it, where that is known."""
    known = {one.path: (one.predicted_class, one.true_probability) for one in baseline}
    return tuple(replace(one, baseline=known.get(one.path)) for one in predictions)


def encode_scores(scores: Floats) -> dict[str, Any]:
    """Return scores ``(images,)``, whose mean is the metric, as JSON values of at most 1.4 kB."""
    count = len(scores)
    kept = scores[np.linspace(0, count - 1, min(count, MAX_IMAGES)).round().astype(np.int64)]
    low, high = float(kept.min()), float(kept.max())
    steps = np.rint((kept - low) / (high - low or 1.0) * 255).astype(np.uint8)
    text = base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()
    return {"low": low, "high": high, "steps": text, "images": count}


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
