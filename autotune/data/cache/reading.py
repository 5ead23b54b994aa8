"""Reading of images in threads, with retries."""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from autotune.errors import is_transient_os_error
from autotune.runtime import available_cpus

_T = TypeVar("_T")

#: Pauses before an image is read again after a disk error: a file system that is unavailable for
#: a moment must not change which images a study has.
RETRY_PAUSES_S = (0.5, 2.0, 8.0)


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
    """Silence Pillow's remarks on odd metadata: thousands of lines that name no file."""
    pillow = logging.getLogger("PIL")
    level = pillow.level
    pillow.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        pillow.setLevel(level)
