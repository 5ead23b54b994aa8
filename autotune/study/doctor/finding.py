"""What the doctor has found: a fault of a study, and what would repair it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from autotune.storage.artifacts import StoredFile

#: Most numbers that a message lists.
LISTED = 8


class FindingKind(StrEnum):
    """What a finding is about."""

    ZOMBIE = "zombie"
    ENDED = "ended study"
    NUMBERS = "trial numbers"
    TWICE = "trained twice"
    CHAIN = "retries"
    LOST = "lost trial"
    CURVE = "learning curve"
    MISSING = "missing artifacts"
    ORPHANS = "orphaned artifacts"
    CHECKPOINTS = "orphaned checkpoints"
    SCHEMA = "schema"
    DEFINITION = "definition"
    LOCK = "lock"
    CLOCK = "clock"
    DISK = "disk space"
    BUDGET = "budget"
    NO_RESULT = "no result"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        kind: What it is about.
        message: What is wrong and what it means.
        fix: What ``--fix`` would do; empty where only the user can do something.
        trial: Number of the trial to requeue, if that is the fix.
        files: The files to remove, if that is the fix.
    """

    kind: FindingKind
    message: str
    fix: str = ""
    trial: int | None = None
    files: tuple[StoredFile, ...] = ()

    @property
    def is_fixable(self) -> bool:
        """Whether ``--fix`` repairs it."""
        return bool(self.fix)
