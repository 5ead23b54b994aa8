"""Where workers on many machines and their launcher leave word for each other: a Ray actor.

It imports nothing of a study, so that its process is small and there at once.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """What the workers of one launcher have said, and whether they are to stop."""

    def __init__(self) -> None:
        self._said: list[dict[str, Any]] = []
        self._entered = 0
        self._stop = asyncio.Event()

    async def enter(self) -> int:
        """Count a worker that starts, and return how many did before it."""
        self._entered += 1
        return self._entered - 1

    async def tell(self, event: dict[str, Any]) -> None:
        """Leave an event for the launcher."""
        self._said.append(event)

    async def drain(self) -> list[dict[str, Any]]:
        """Take the events that have been left, in their order."""
        said, self._said = self._said, []
        return said

    async def stop(self) -> None:
        """Ask all workers to stop, those that are still to come too."""
        self._stop.set()

    async def stopped(self) -> None:
        """Return when the workers are to stop."""
        await self._stop.wait()
