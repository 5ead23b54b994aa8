"""Trial counts in words."""

from __future__ import annotations

from collections.abc import Collection

from autotune.study.state.attrs import Progress

_STATES = ("complete", "pruned", "infeasible", "failed", "retried", "running", "waiting")


def format_counts(
    progress: Progress, always: Collection[str] = ("complete", "pruned", "failed")
) -> str:
    """Write how many trials are in which state: ``3 complete, 0 pruned, 1 failed, 1 running``.

    Args:
        progress: The counts.
        always: States that are written although no trial is in them.
    """
    counts = {state: getattr(progress, state) for state in _STATES}
    return ", ".join(
        f"{count:,} {state}" for state, count in counts.items() if count or state in always
    )


def format_finished(progress: Progress) -> str:
    """Write how many trials have finished: ``25 of 40``, or ``25`` without a budget."""
    budget = f" of {progress.budget:,}" if progress.budget else ""
    return f"{progress.finished:,}{budget}"


def describe_progress(progress: Progress) -> str:
    """Write all counts: ``4 of 40 finished: 3 complete, 0 pruned, 1 failed, 1 running``."""
    return f"{format_finished(progress)} finished: {format_counts(progress)}"
