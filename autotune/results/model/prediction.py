"""The classes of image files, batch by batch; a file that cannot be read becomes a problem."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.data.cache.reading import retry_read, silence_pillow
from autotune.data.image_files import read_image
from autotune.data.image_formats import PassedOver, describe_passed_over
from autotune.data.sources.folders import image_paths
from autotune.errors import DatasetError, join_sentences
from autotune.results.model.model import Model
from autotune.runtime import available_cpus
from autotune.text import as_cell, one_line


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classes of a file.

    Args:
        probabilities: float32, ``(classes,)``; ``None`` where the file cannot be read.
        problem: Why it cannot be read; empty where it can.
    """

    path: str
    probabilities: Tensor | None
    problem: str = ""


def find_images(given: Sequence[str], passed_over: PassedOver | None = None) -> list[str]:
    """Return the images of files and folders, each once, those of a folder sorted.

    Args:
        given: Files of any name, and folders with files whose names end as those of images.
        passed_over: Counts the files in folders that are no images, if given.

    Raises:
        DatasetError: When a path does not exist, a folder cannot be read, or there is no image.
    """
    missing = [path for path in given if not os.path.lexists(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"images must be files or folders, but there is no {missing[0]!r}{more}; a path is "
            "relative to the working directory"
        )
    images: dict[str, None] = {}
    passed_over = PassedOver() if passed_over is None else passed_over
    for path in given:
        try:
            is_folder = os.path.isdir(path)
            found = sorted(image_paths(path, passed_over)) if is_folder else [path]
            images |= dict.fromkeys(found)
        except OSError as error:
            raise DatasetError(
                f"every folder of images must be readable, but {error.filename!r}: "
                f"{error.strerror}; change its permissions or leave it out"
            ) from error
    if not images:
        text = (
            f"there must be at least one image, but no file in {', '.join(map(repr, given))} has "
            "the name of one (.jpg, .png, .webp and so on); give files of other names one by one"
        )
        raise DatasetError(join_sentences(text, describe_passed_over(passed_over.by_kind())))
    return list(images)


def predict_files(
    model: Model, paths: Sequence[str], batch_size: int = 64
) -> Iterator[list[Prediction]]:
    """Predict the classes of image files; the next batch is read while the network computes.

    Yields:
        The predictions of each batch of files, in their order.
    """
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(max(2, available_cpus())) as pool, silence_pillow():
        pending = [pool.submit(_read, model, path) for batch in batches[:1] for path in batch]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            inputs = [future.result() for future in pending]
            pending = [pool.submit(_read, model, path) for path in following]
            images = [image for image in inputs if isinstance(image, Tensor)]
            rows = iter(model.probabilities(torch.stack(images)) if images else ())
            yield [
                Prediction(path, None, image)
                if isinstance(image, str)
                else Prediction(path, next(rows))
                for path, image in zip(batch, inputs, strict=True)
            ]


def sample_images(model: Model, given: Sequence[str], most: int = 32) -> Tensor:
    """Read an even sample of the images of files and folders, normalized ``(N, 3, size, size)``.

    Raises:
        DatasetError: When fewer than two of them can be read.
    """
    paths = find_images(given)
    sample = [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths
    with silence_pillow():
        images = [image for path in sample if isinstance(image := _read(model, path), Tensor)]
    if len(images) < 2:
        raise DatasetError(
            f"at least two images must be readable for the comparison, but of {', '.join(given)} "
            f"{len(images)} of {len(sample)} can be read"
        )
    return torch.stack(images)


def _read(model: Model, path: str) -> Tensor | str:
    return retry_read(lambda: model.transform(read_image(path, model.shrink)))


def csv_columns(classes: Sequence[str], top: int, every: bool) -> list[str]:
    """Return the column names of a table of predictions.

    Args:
        classes: Names of the classes.
        top: Number of most likely classes with columns of their own.
        every: Whether the probabilities of all classes follow.
    """
    names = ["path", "class", "probability"]
    for place in range(2, min(top, len(classes)) + 1):
        names += [f"class_{place}", f"probability_{place}"]
    return names + [one_line(f"p_{name}") for name in classes] if every else names


def csv_row(
    path: str, probabilities: Tensor, classes: Sequence[str], top: int, every: bool
) -> list[str]:
    """Return the row of a file, in the order of :func:`csv_columns`; no cell is a formula."""
    row = [str(as_cell(path))]
    best = probabilities.topk(min(top, len(classes)))
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row += [str(as_cell(classes[index])), f"{value:.6f}"]
    return row + [f"{value:.6f}" for value in probabilities.tolist()] if every else row
