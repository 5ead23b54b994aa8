"""What crosses between host and device, and where the host waits, with the lines that asked."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType

import autotune

PACKAGE = str(Path(autotune.__file__).parent) + "/"


class Kind(Enum):
    WAIT = "the host waits for the device"
    PAGEABLE_TO_DEVICE = "a copy from pageable memory to the device"
    PINNED_TO_DEVICE = "a copy from pinned memory to the device"
    TO_HOST = "a copy from the device to pageable memory"
    TO_PINNED_HOST = "a copy from the device to pinned memory"


COPIES = tuple(kind for kind in Kind if kind is not Kind.WAIT)


@dataclass(frozen=True)
class Record:
    """One wait or copy.

    Args:
        kind: What it was.
        operation: What asked for it, in torch.
        callers: Lines of the product, the innermost first: ``training/loop.py:253
            Trainer._update``.
        nbytes: Bytes that were copied.
        in_main_thread: Whether the main thread asked.
    """

    kind: Kind
    operation: str
    callers: tuple[str, ...]
    nbytes: int = 0
    in_main_thread: bool = True

    def is_within(self, place: str) -> bool:
        return any(place in caller for caller in self.callers)

    @property
    def line(self) -> str:
        """The innermost line of the product, and the one that called it."""
        return f"{self.operation} @ {' < '.join(self.callers[:2]) or 'outside of the product'}"


@dataclass
class Traffic:
    """Counts waits and copies."""

    records: list[Record] = field(default_factory=list)
    operations: int = 0

    def add(self, kind: Kind, operation: str, nbytes: int = 0) -> None:
        main = threading.current_thread() is threading.main_thread()
        self.records.append(Record(kind, operation, tuple(product_callers()), nbytes, main))

    def reset(self) -> None:
        self.records.clear()
        self.operations = 0

    def of(self, *kinds: Kind, within: str = "") -> list[Record]:
        """Return records of some kinds, where a place is given those below it."""
        return [
            record
            for record in self.records
            if record.kind in kinds and (not within or record.is_within(within))
        ]

    def lines(self, *kinds: Kind, within: str = "") -> Counter[str]:
        return Counter(record.line for record in self.of(*kinds, within=within))


def product_callers() -> Iterator[str]:
    """Yield the lines of the product on the stack, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            path = code.co_filename.removeprefix(PACKAGE)
            yield f"{path}:{frame.f_lineno} {code.co_qualname}"
        frame = frame.f_back
