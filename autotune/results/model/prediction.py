"""Image files -> their classes, batch by batch, those that cannot be read among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autotune.data.cache.decoding import retry_read, silence_pillow
from autotune.data.sources.folders import image_paths
from autotune.errors import DatasetError
from autotune.results.model.model import Model
from autotune.runtime import available_cpus
from autotune.text import as_cell, one_line


@dataclass(frozen=True, eq=False)
class Prediction:
    """What came of one file.

    Args:
        path: The file.
        probabilities: float32, ``(classes,)``; ``None`` where it cannot be read.
        problem: Why it cannot be read; empty where it can.
    """

    path: str
    probabilities: Tensor | None
    problem: str = ""


def find_images(given: Sequence[str]) -> list[str]:
    """Find the images of files and folders, each once, those of a folder sorted.

    Args:
        given: Files, of any name, and folders, in which files called like images are looked for.

    Raises:
        DatasetError: When something is not there, a folder cannot be read, or there is no image.
    """
    missing = [one for one in given if not os.path.lexists(one)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"images must be files or folders, but there is no {missing[0]!r}{more}; a path is "
            "taken from the working directory"
        )
    found: dict[str, None] = {}
    for one in given:
        try:
            paths = sorted(image_paths(one)) if os.path.isdir(one) else [one]
        except OSError as error:
            raise DatasetError(
                f"every folder of images must be readable, but {error.filename!r}: "
                f"{error.strerror}; change its permissions or leave it out"
            ) from error
        found |= dict.fromkeys(paths)
    if not found:
        raise DatasetError(
            f"there must be an image at least, but no file in {', '.join(map(repr, given))} is "
            "called like one (.jpg, .png, .webp and so on); give files of other names one by one"
        )
    return list(found)


def predict_files(
    model: Model, paths: Sequence[str], batch_size: int = 64
) -> Iterator[list[Prediction]]:
    """Predict the classes of image files; the next batch is read while the network computes.

    Args:
        model: The model, on its device.
        paths: The files.
        batch_size: Images that go through the network at a time.

    Yields:
        What came of each batch of files, in their order.
    """
    parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(max(2, available_cpus())) as pool, silence_pillow():
        coming = [pool.submit(_read, model, path) for path in parts[0]] if parts else []
        for number, part in enumerate(parts):
            tensors = [one.result() for one in coming]
            following = parts[number + 1] if number + 1 < len(parts) else []
            coming = [pool.submit(_read, model, path) for path in following]
            yield _predicted(model, part, tensors)


def sample_images(model: Model, given: Sequence[str], most: int = 32) -> Tensor:
    """Read some images of files and folders, evenly chosen, normalised ``(N, 3, size, size)``.

    Args:
        model: Whose images they are to be.
        given: Files and folders.
        most: How many are read at most.

    Raises:
        DatasetError: When fewer than two of them can be read.
    """
    paths = find_images(given)
    chosen = [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths
    with silence_pillow():
        read = [_read(model, path) for path in chosen]
    images = [one for one in read if isinstance(one, Tensor)]
    if len(images) < 2:
        raise DatasetError(
            f"two images at least must be readable to compare on, but of {', '.join(given)} "
            f"{len(images)} of {len(chosen)} can be read"
        )
    return torch.stack(images)


def _read(model: Model, path: str) -> Tensor | str:
    return retry_read(partial(model.read, path))


def _predicted(
    model: Model, paths: Sequence[str], tensors: Sequence[Tensor | str]
) -> list[Prediction]:
    images = [one for one in tensors if isinstance(one, Tensor)]
    rows = iter(model.probabilities(torch.stack(images)) if images else ())
    return [
        Prediction(path, None, one) if isinstance(one, str) else Prediction(path, next(rows))
        for path, one in zip(paths, tensors, strict=True)
    ]


def csv_columns(classes: Sequence[str], top: int, every: bool) -> list[str]:
    """Name the columns of a table of predictions.

    Args:
        classes: Names of the classes.
        top: How many of the most likely classes have columns of their own.
        every: Whether the probability of every class follows.
    """
    names = ["path", "class", "probability"]
    for place in range(2, min(top, len(classes)) + 1):
        names += [f"class_{place}", f"probability_{place}"]
    return names + [one_line(f"p_{name}") for name in classes] if every else names


def csv_row(
    path: str, probabilities: Tensor, classes: Sequence[str], top: int, every: bool
) -> list[str]:
    """Return the row of a file, in the order of :func:`columns`; no cell is a formula."""
    values = [str(as_cell(path))]
    best = probabilities.topk(min(top, len(classes)))
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        values += [str(as_cell(classes[index])), f"{value:.6f}"]
    return values + [f"{value:.6f}" for value in probabilities.tolist()] if every else values
