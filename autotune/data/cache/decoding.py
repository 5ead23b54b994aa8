"""Decoding the images of a store, in threads."""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from autotune.data.cache.entry import EntryWriter
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.data.source import Sample, Source
from autotune.errors import DatasetError, is_transient_os_error
from autotune.runtime import available_cpus

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Name of the array of a store: uint8, ``(N, 3, T, T)``.
IMAGES = "images"
#: Pauses after which an image is read again that the disk would not give: a file system that is
#: away for a moment must not change which images a study has.
RETRY_PAUSES_S = (0.5, 2.0, 8.0)
_SHOWN = 5


def decode_all(
    writer: EntryWriter,
    source: Source,
    indices: Sequence[int],
    spec: ImageSpec,
    unreadable_limit: float,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
    fast: bool,
    keep: bool,
) -> dict[str, Any]:
    """Decode the images of a store.

    Args:
        writer: Where they go.
        source: The images.
        indices: Which of its samples.
        spec: What the backbone wants.
        unreadable_limit: Largest share of ``indices`` that may fail to decode.
        progress: Called with the number of images done and their total.
        workers: Decoding threads; None takes one for each core.
        fast: Whether large JPEGs are decoded at a part of their size.
        keep: Whether they are written, or only found to be readable.

    Returns:
        ``indices``, ``labels`` and ``skipped`` of the store.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
    """
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    shape = (3, spec.store_size, spec.store_size)
    rows = writer.array(IMAGES, np.uint8, shape) if keep else None
    with silence_pillow():
        for done, (index, image) in enumerate(decoded(source, indices, spec, workers, fast), 1):
            if isinstance(image, str):
                skipped.append((source.samples[index].key, image))
            else:
                kept.append(index)
                if rows is not None:
                    rows.append(image[None])
            if progress is not None:
                progress(done, len(indices))
    check_skipped(source, indices, kept, skipped, unreadable_limit)
    if skipped:
        logger.warning(
            "%d of %d images cannot be decoded and are left out: %s",
            len(skipped),
            len(indices),
            "; ".join(f"{name} ({reason})" for name, reason in skipped),
        )
    labels = [source.samples[index].label for index in kept]
    return {"indices": kept, "labels": labels, "skipped": skipped}


def decoded(
    source: Source, indices: Sequence[int], spec: ImageSpec, workers: int | None, fast: bool
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Decode in threads (Pillow releases the interpreter lock), a few images ahead, in order.

    Returns:
        Indices, each with its image, or the reason why it cannot be decoded.
    """

    def work(index: int) -> np.ndarray | str:
        return decode_sample(source, source.samples[index], spec, fast)

    return ordered_thread_map(work, indices, workers)


def ordered_thread_map(
    work: Callable[[int], _T], indices: Sequence[int], workers: int | None = None
) -> Iterator[tuple[int, _T]]:
    """Do something for every image in threads, a few images ahead, in order.

    Yields:
        An index, and what came of it.
    """
    workers = workers or available_cpus()
    waiting: deque[tuple[int, Future[_T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in indices:
                waiting.append((int(index), pool.submit(work, int(index))))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def decode_sample(source: Source, sample: Sample, spec: ImageSpec, fast: bool) -> np.ndarray | str:
    """Decode an image, or say why it cannot be; what may pass is tried again."""
    smaller = partial(draft_decode, spec=spec) if fast else None
    return retry_read(lambda: to_store_array(source.read(sample, smaller), spec))


def retry_read(read: Callable[[], _T]) -> _T | str:
    """Read something of an image, or say why it cannot be read; what may pass is tried again."""
    pauses = iter(RETRY_PAUSES_S)
    while True:
        try:
            return read()
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            pause_s = next(pauses, None)
            if pause_s is None or not is_transient_os_error(cause):
                return str(error)
        time.sleep(pause_s)


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Silence Pillow's remarks on odd metadata: thousands of lines that nobody can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def check_skipped(
    source: Source,
    indices: Sequence[int],
    kept: Sequence[int] | np.ndarray,
    skipped: Sequence[tuple[str, str]],
    unreadable_limit: float,
) -> None:
    """Refuse a store that lost too many images, or all of a class.

    Args:
        source: The images.
        indices: Which of its samples were to be decoded.
        kept: Which of them were.
        skipped: Key and reason of the others.
        unreadable_limit: Largest share of ``indices`` that may be skipped.

    Raises:
        DatasetError: With the first few images and the reasons.
    """
    if not skipped:
        return
    shown = "; ".join(f"{name} ({reason})" for name, reason in skipped[:_SHOWN])
    if len(skipped) > _SHOWN:
        shown += f" and {len(skipped) - _SHOWN} more"
    if len(skipped) > unreadable_limit * len(indices):
        raise DatasetError(
            f"at most {unreadable_limit:.4g} of the images may be unreadable "
            f"(data.max_unreadable_share), but {len(skipped)} of {len(indices)} are: {shown}; "
            "repair or remove them, or raise the limit"
        )
    before = {source.samples[index].label for index in indices}
    lost = sorted(before - {source.samples[index].label for index in kept})
    if lost:
        raise DatasetError(
            "every class needs images that can be decoded, but none can of "
            f"{', '.join(repr(source.classes[label]) for label in lost)}: {shown}; repair or "
            "remove them"
        )
