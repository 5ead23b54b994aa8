"""What torch's profiler saw of some steps: how busy the GPU was, and where the host waited.

Read from its trace in Chrome's format, which names the kind of every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Name of the mark at the beginning of each step.
STEP = "gpu.py step"
#: What runs on the GPU.
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
#: Calls of CUDA by the host.
_CALLS = ("cuda_runtime", "cuda_driver")
#: Those after which the host waits until the GPU is done.
_WAITS = (
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaStreamSynchronize",
)


@dataclass(frozen=True)
class Traffic:
    """What happened between the first and the last of some steps.

    Args:
        steps: From the beginning of the first to the beginning of the last.
        busy_share: Share of the time in which the GPU worked; ``None`` on the simulated one.
        kernels: How many it ran.
        waits: How often the thread that trains waited for the GPU.
        waits_elsewhere: How often other threads did, such as those that read ahead.
        pageable: Copies from memory that is not pinned to the GPU.
        lines: What waited or copied so.
    """

    steps: int
    busy_share: float | None
    kernels: int | None
    waits: int
    waits_elsewhere: int
    pageable: int
    lines: tuple[str, ...]


def read_trace(trace: dict[str, Any]) -> Traffic:
    """Read a trace.

    Raises:
        ValueError: When it has fewer than two marks.
    """
    events = [one for one in trace["traceEvents"] if one.get("ph") == "X"]
    marks = [one for one in events if one["name"] == STEP and one["cat"] == "user_annotation"]
    if len(marks) < 2:
        raise ValueError(f"the trace must have two steps at least, but has {len(marks)}")
    start, end = (edge(float(mark["ts"]) for mark in marks) for edge in (min, max))
    inside = [event for event in events if start <= float(event["ts"]) < end]
    on_gpu = [one for one in inside if one["cat"] in _ON_GPU]
    calls = [one for one in inside if one["cat"] in _CALLS]
    trains = marks[0]["tid"]
    if not any(call["tid"] == trains for call in calls):
        # A trace that numbers threads differently here and there: every wait counts.
        calls = [{**call, "tid": trains} for call in calls]
    all_waits = [call for call in calls if call["name"] in _WAITS]
    waits = [wait for wait in all_waits if wait["tid"] == trains]
    pageable = [one for one in on_gpu if "HtoD" in one["name"] and "Pageable" in one["name"]]
    counts = Counter(one["name"] for one in [*waits, *pageable])
    return Traffic(
        steps=len(marks) - 1,
        busy_share=_covered(on_gpu, start, end) / (end - start),
        kernels=sum(one["cat"] == "kernel" for one in on_gpu),
        waits=len(waits),
        waits_elsewhere=len(all_waits) - len(waits),
        pageable=len(pageable),
        lines=tuple(f"{name} ({count} times)" for name, count in sorted(counts.items())),
    )


def _covered(events: Iterable[dict[str, Any]], start: float, end: float) -> float:
    """Return the time in which at least one of some events goes on."""
    total, reached = 0.0, start
    for one in sorted(events, key=lambda event: float(event["ts"])):
        begin = max(reached, float(one["ts"]))
        finish = min(end, float(one["ts"]) + float(one["dur"]))
        if finish > begin:
            total += finish - begin
            reached = finish
    return total
