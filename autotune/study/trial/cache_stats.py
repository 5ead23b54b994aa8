"""What a worker computes for the shelf, counted: how much of a study was not computed again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import Entry, EntryWriter
from autotune.errors import DiskFullError


@dataclass
class CacheStats:
    """Counts since a worker started.

    Args:
        computed: Images whose features it computed. What is computed on the way counts once: a
            cut's features come from those of the root.
        seconds: What that took, reading and changing the images included.
        refused: How often there was no room to keep features.
    """

    computed: int = 0
    seconds: float = 0.0
    refused: int = 0

    def copy(self) -> CacheStats:
        """Return the counts as they are now."""
        return CacheStats(self.computed, self.seconds, self.refused)

    def since(self, before: CacheStats) -> CacheStats:
        """Return what has been counted after an earlier copy."""
        return CacheStats(
            self.computed - before.computed,
            self.seconds - before.seconds,
            self.refused - before.refused,
        )


@dataclass(frozen=True)
class CountingArrayCache(ArrayCache):
    """A shelf that counts the features made for it.

    Args:
        tally: Where they are counted.
    """

    stats: CacheStats = field(default_factory=CacheStats)
    _making: list[str] = field(default_factory=list)  # an entry may need another one

    def get_or_create(
        self,
        key: str,
        make: Callable[[EntryWriter], dict[str, Any]],
        needed_bytes: int,
        noun: str = "arrays",
    ) -> Entry:
        """Open an entry, see :meth:`ArrayCache.get_or_create`."""
        made: list[float] = []

        def timed(writer: EntryWriter) -> dict[str, Any]:
            self._making.append(key)
            start = time.perf_counter()
            try:
                return make(writer)
            finally:
                made.append(time.perf_counter() - start)
                self._making.pop()

        try:
            entry = super().get_or_create(key, timed, needed_bytes, noun)
        except DiskFullError:
            self.stats.refused += 1
            raise
        if made and not self._making:
            self.stats.computed += len(entry.array("0"))
            self.stats.seconds += made[0]
        return entry
