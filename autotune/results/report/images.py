"""Single images in a report: which are wrong, which classes are confused, which got better.

Of a search the images are those of the validation split, and once there was a refit, those of the
test split.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.storage.commands import command_line, full_storage_option
from autotune.study.state import attrs
from autotune.study.state.predictions import (
    HEAT_MAPS,
    PREDICTIONS,
    WORST,
    WORST_IMAGES,
    ImagePrediction,
    cut_tiles,
    read_predictions,
    test_file,
    to_csv,
    with_baseline,
)
from autotune.text import as_cell, plural

#: Most classes of which the matrix is shown; of more, the pairs that are confused most.
MATRIX_CLASSES = 20
#: The files of a network: all images, and pictures of the first ones.
_FILES = (PREDICTIONS, WORST_IMAGES, HEAT_MAPS)
#: Largest table that a page has in it.
EMBEDDED_BYTES = 1_000_000
#: Images with the highest loss that are seen at once; the others follow on a click.
SHOWN_IMAGES = 8
#: Limits the classes whose recall is listed, and the pairs of classes.
MAX_CLASSES, MAX_PAIRS = 40, 15


def format_share(share: float) -> str:
    """Write a share as ``91.7 %``."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Recall:
    """How many images of a class were recognized.

    Args:
        name: The class.
        images: Its images.
        correct: Images that were recognized.
        gained: Images of these that the baseline got wrong; ``None`` without a comparison.
        lost: Images that only the baseline recognized, likewise.
    """

    name: str
    images: int
    correct: int
    gained: int | None = None
    lost: int | None = None

    @property
    def share(self) -> float:
        """The recall."""
        return self.correct / self.images

    def format_change(self) -> str:
        """Write the change against the baseline in points; empty without a comparison."""
        if self.gained is None or self.lost is None:
            return ""
        change = 100 * (self.gained - self.lost) / self.images
        return f"{change:+.1f} points".replace("-", "−") if change else "±0"

    @property
    def baseline_correct(self) -> int | None:
        """Images that the baseline recognized."""
        if self.gained is None or self.lost is None:
            return None
        return self.correct - self.gained + self.lost


@dataclass(frozen=True)
class Pair:
    """A class whose images are taken for another: how many, and of how many."""

    true_class: str
    predicted_class: str
    count: int
    images: int


@dataclass(frozen=True, eq=False)
class ImageResults:
    """What a network predicted for the images of a split.

    Args:
        split: ``validation`` or ``test``.
        network: What predicted it: ``trial 7``, or ``the refitted plan of trial 7``.
        classes: Names of the classes.
        predictions: The images, the highest loss first.
        tiles: The first of them as JPEG files; empty where they are not stored.
        heat_maps: Their heat maps, likewise.
    """

    split: str
    network: str
    classes: tuple[str, ...]
    predictions: tuple[ImagePrediction, ...]
    tiles: Sequence[bytes] = ()
    heat_maps: Sequence[bytes] = ()

    @cached_property
    def matrix(self) -> npt.NDArray[np.int64]:
        """The confusion matrix ``(classes, classes)``: rows are true, columns predicted."""
        number = {name: index for index, name in enumerate(self.classes)}
        matrix = np.zeros((len(number), len(number)), np.int64)
        for image in self.predictions:
            matrix[number[image.true_class], number[image.predicted_class]] += 1
        return matrix

    @property
    def correct(self) -> int:
        """Images that were classified correctly."""
        return int(self.matrix.trace())

    @property
    def is_compared(self) -> bool:
        """Whether the predictions of the baseline are known, and are those of another network."""
        return bool(self.predictions) and self.predictions[0].baseline is not None

    @cached_property
    def recalls(self) -> list[Recall]:
        """The recall of every class with images, the lowest first."""
        gained, lost = Counter[str](), Counter[str]()
        for image in self.predictions:
            if image.baseline is not None:
                was_correct = image.baseline[0] == image.true_class
                gained[image.true_class] += image.is_correct and not was_correct
                lost[image.true_class] += was_correct and not image.is_correct
        counts, correct = self.matrix.sum(axis=1).tolist(), self.matrix.diagonal().tolist()
        recalls = [
            Recall(name, count, right, *((gained[name], lost[name]) if self.is_compared else ()))
            for name, count, right in zip(self.classes, counts, correct, strict=True)
            if count
        ]
        return sorted(recalls, key=lambda recall: recall.share)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The classes that are confused, the most frequent pair first."""
        counts = self.matrix.sum(axis=1)
        wrong = self.matrix.copy()
        np.fill_diagonal(wrong, 0)
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")
        return [
            Pair(self.classes[i], self.classes[j], int(wrong[i, j]), int(counts[i]))
            for i, j in zip(rows[order], columns[order], strict=True)
        ]

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The images with the highest loss, as the page shows them."""
        return [
            {
                "image": image,
                "tile": _base64(self.tiles, number),
                "heat": _base64(self.heat_maps, number),
            }
            for number, image in enumerate(self.predictions[:WORST])
        ]

    def summary(self) -> str:
        """Say in two sentences how many images are correct, and what changed."""
        count = len(self.predictions)
        text = (
            f"{self.network[:1].upper()}{self.network[1:]} is right on {self.correct:,} of "
            f"{plural(count, f'{self.split} image')} ({format_share(self.correct / count)})."
        )
        if not self.is_compared:
            return text
        gained = sum(recall.gained or 0 for recall in self.recalls)
        lost = sum(recall.lost or 0 for recall in self.recalls)
        return f"{text} Against the baseline, {gained:,} became right and {lost:,} became wrong."


def find_image_results(results: StudyResults) -> ImageResults | None:
    """Return what the refitted plan predicted for the test split, else the best trial."""
    return next(iter(_all_image_results(results)), None)


def describe_missing(results: StudyResults, storage_url: str = "") -> tuple[str, str]:
    """Say why a study with a best trial has no predictions, and return the command for them.

    Both are empty where there is no trial to speak of, or nobody knows where the artifacts are.
    """
    best = results.best
    if best is None or results.artifacts is None or find_image_results(results) is not None:
        return "", ""
    text = (
        "This study has no predictions of single images: its trials were trained by an earlier "
        f"version of autotune, or its artifacts are gone. This trains trial {best.number} again "
        "and writes them:"
    )
    options = f" --predictions predictions.csv{full_storage_option(storage_url)}"
    return text, f"{command_line('autotune', 'reproduce', results.name, options)} {best.number}"


def predictions_csv(results: StudyResults) -> str:
    """Return ``predictions.csv``: every image of both splits, the highest loss first.

    It is empty where the study has no predictions.
    """
    images = [(one, image) for one in _all_image_results(results) for image in one.predictions]
    rows = [
        {"path": "", "split": one.split, "network": one.network, **image.to_row()}
        for one, image in sorted(images, key=lambda pair: -pair[1].loss)
    ]
    return to_csv(rows) if rows else ""


def images_json(results: StudyResults) -> dict[str, Any] | None:
    """Return what was predicted for single images as JSON values, without the images."""
    found = find_image_results(results)
    if found is None:
        return None
    return {
        "split": found.split,
        "network": found.network,
        "images": len(found.predictions),
        "correct": found.correct,
        "recalls": [
            {**asdict(recall), "baseline_correct": recall.baseline_correct}
            for recall in found.recalls
        ],
        "confused": [asdict(pair) for pair in found.pairs],
        "worst": [
            {**asdict(one), "top": [list(pair) for pair in one.top]}
            for one in found.predictions[:WORST]
        ],
    }


@lru_cache(maxsize=1)  # a page asks several times
def _all_image_results(results: StudyResults) -> tuple[ImageResults, ...]:
    return tuple(_read_all(results))


def _read_all(results: StudyResults) -> Iterator[ImageResults]:
    """Yield the predictions for the test split and for the validation split, where there are."""
    reads = results.attributes.get(attrs.TEST_READS, ())
    baseline = results.baseline
    if reads:
        combined = reads[-1].get("combination", {})
        network = combined.get("name") or f"the refitted plan of trial {reads[-1]['trial']}"
        files = [_file(results, None, test_file(len(reads), name)) for name in _FILES]
        found = _read(results, "test", network, *files)
        is_baseline = baseline is not None and reads[-1]["trial"] == baseline.number
        if found is not None and is_baseline and not combined:
            found = replace(found, predictions=with_baseline(found.predictions, ()))
        yield from (found,) if found else ()
    for trial in ranking.rank_trials(results.trials, results.direction):
        files = [_file(results, trial, name) for name in _FILES]
        network = f"trial {trial.number}" + ", the baseline," * attrs.is_baseline(trial)
        found = _read(results, "validation", network, *files)
        if found is None:
            continue
        if baseline is not None and baseline.number != trial.number:
            other = _predictions(_file(results, baseline, PREDICTIONS), found.classes)
            found = replace(found, predictions=with_baseline(found.predictions, other))
        yield found
        return


def _read(
    results: StudyResults, split: str, network: str, content: bytes, *pictures: bytes
) -> ImageResults | None:
    """Read the files of a network; ``None`` where there are none, or damaged ones."""
    classes = tuple(str(as_cell(name)) for name in results.dataset.get("classes", ()))
    predictions = _predictions(content, classes)
    if not predictions:
        return None
    tiles = (_tiles(sheet, min(WORST, len(predictions))) for sheet in pictures)
    return ImageResults(split, network, classes, predictions, *tiles)


def _predictions(content: bytes, classes: Sequence[str]) -> tuple[ImagePrediction, ...]:
    with suppress(ValueError):
        predictions = read_predictions(content)
        named = {name for one in predictions for name in (one.true_class, one.predicted_class)}
        return predictions if named <= {*classes} else ()
    return ()


def _tiles(sheet: bytes, count: int) -> list[bytes]:
    with suppress(OSError, ValueError):
        return cut_tiles(sheet, count)
    return []


def _file(results: StudyResults, trial: FrozenTrial | None, name: str) -> bytes:
    return results.read_artifact(trial, name) or b""


def _base64(files: Sequence[bytes], number: int) -> str:
    return base64.b64encode(files[number]).decode() if number < len(files) else ""
