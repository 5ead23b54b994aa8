"""Decoding of images in threads."""

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
from autotune.text import join_some

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Name of the array of decoded images: uint8, ``(N, 3, T, T)``.
IMAGES = "images"
#: Pauses before an image is read again after a disk error: a file system that is unavailable for
#: a moment must not change which images a study has.
RETRY_PAUSES_S = (0.5, 2.0, 8.0)


def decode_all(
    writer: EntryWriter,
    source: Source,
    indices: Sequence[int],
    spec: ImageSpec,
    unreadable_limit: float,
    on_progress: Callable[[int, int], None] | None,
    workers: int | None,
    fast: bool,
    is_stored: bool,
) -> dict[str, Any]:
    """Decode images for a cache entry, and write them where ``is_stored``.

    Returns:
        ``indices``, ``labels`` and ``skipped`` of the images.

    Raises:
        DatasetError: When too many images, or all of a class, cannot be decoded.
    """
    decoded: list[int] = []
    skipped: list[tuple[str, str]] = []
    shape = (3, spec.store_size, spec.store_size)
    rows = writer.array(IMAGES, np.uint8, shape) if is_stored else None

    def work(index: int) -> np.ndarray | str:
        return decode_sample(source, source.samples[index], spec, fast)

    with silence_pillow():
        for done, (index, image) in enumerate(ordered_thread_map(work, indices, workers), 1):
            if isinstance(image, str):
                skipped.append((source.samples[index].key, image))
            else:
                decoded.append(index)
                if rows is not None:
                    rows.append(image[None])
            if on_progress is not None:
                on_progress(done, len(indices))
    check_skipped(source, indices, decoded, skipped, unreadable_limit)
    if skipped:
        logger.warning(
            "%d of %d images cannot be decoded and are skipped: %s",
            len(skipped),
            len(indices),
            "; ".join(f"{name} ({reason})" for name, reason in skipped),
        )
    labels = [source.samples[index].label for index in decoded]
    return {"indices": decoded, "labels": labels, "skipped": skipped}


def ordered_thread_map(
    work: Callable[[int], _T], indices: Sequence[int], workers: int | None = None
) -> Iterator[tuple[int, _T]]:
    """Yield indices with the results of a function, in order, a few computed ahead in threads.

    Pillow releases the interpreter lock while it decodes.
    """
    workers = workers or available_cpus()
    pending: deque[tuple[int, Future[_T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in map(int, indices):
                pending.append((index, pool.submit(work, index)))
                if len(pending) > 4 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def decode_sample(source: Source, sample: Sample, spec: ImageSpec, fast: bool) -> np.ndarray | str:
    """Decode an image, or return the reason why it cannot be decoded."""
    shrink = partial(draft_decode, spec=spec) if fast else None
    return retry_read(lambda: to_store_array(source.read(sample, shrink), spec))


def retry_read(read: Callable[[], _T]) -> _T | str:
    """Read an image, again after transient errors, or return the reason why it cannot be read."""
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
    """Silence Pillow's warnings on odd metadata: thousands of lines that nobody can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def check_skipped(
    source: Source,
    indices: Sequence[int],
    decoded: Sequence[int] | np.ndarray,
    skipped: Sequence[tuple[str, str]],
    unreadable_limit: float,
) -> None:
    """Refuse images of which too many, or all of a class, cannot be decoded.

    Raises:
        DatasetError: With the first few images and the reasons.
    """
    if not skipped:
        return
    listed = join_some([f"{name} ({reason})" for name, reason in skipped], 5, "; ")
    if len(skipped) > unreadable_limit * len(indices):
        raise DatasetError(
            f"at most {unreadable_limit:.4g} of the images may be unreadable "
            f"(data.unreadable_limit), but {len(skipped)} of {len(indices)} are: {listed}; repair "
            "or remove them, or raise the limit"
        )
    labels = {source.samples[index].label for index in indices}
    lost = sorted(labels - {source.samples[index].label for index in decoded})
    if lost:
        raise DatasetError(
            "every class needs images that can be decoded, but none can of "
            f"{', '.join(repr(source.classes[label]) for label in lost)}: {listed}; repair or "
            "remove them"
        )
