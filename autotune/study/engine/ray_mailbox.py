"""A Ray actor that passes events from workers to the launcher.

It imports nothing of a study, so that its process is small and starts at once.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """Events of the workers of one launcher, and whether they are to stop."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._registered = 0
        self._stop = asyncio.Event()

    async def register(self) -> int:
        """Count a worker that starts; return how many did before it."""
        self._registered += 1
        return self._registered - 1

    async def put(self, event: dict[str, Any]) -> None:
        """Add an event for the launcher."""
        self._events.append(event)

    async def drain(self) -> list[dict[str, Any]]:
        """Return the events since the last call, in their order."""
        events, self._events = self._events, []
        return events

    async def stop(self) -> None:
        """Ask all workers to stop, also those that start later."""
        self._stop.set()

    async def wait_for_stop(self) -> None:
        """Return when the workers are to stop."""
        await self._stop.wait()
