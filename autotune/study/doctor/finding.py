"""One thing that is wrong with a study: what it means, and what would put it right."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.storage.artifacts import StoredFile

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


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        kind: Of what kind, one of the constants above.
        message: What is wrong and what it means.
        fix: What ``--fix`` would do; empty where only the user can do something.
        trial: Number of the trial that is to be given back, if that is the fix.
        files: The files that are to be removed, if that is the fix.
    """

    kind: str
    message: str
    fix: str = ""
    trial: int | None = None
    files: tuple[StoredFile, ...] = ()

    @property
    def is_fixable(self) -> bool:
        """Whether ``--fix`` puts it right."""
        return bool(self.fix)
