"""Where the time of a call goes, by looking at its stack every few milliseconds.

Works on code that knows nothing of it, and on both sides of a comparison alike. A call into torch
or Pillow lets go of the interpreter's lock, so it is seen as often as it lasts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

EVERY_S = 0.005
#: Stage -> what stands in its stacks, as ``path:function``; the first stage that fits is taken.
STAGES: dict[str, tuple[str, ...]] = {
    "validation": (":validate",),
    "features": ("autotune/training/features",),
    "decode": ("torchvision/datasets/folder.py:pil_loader", "autotune/data/cache/reading.py"),
    "augment": ("torchvision/transforms/", "views/views.py:render", "views/views.py:_render"),
    "backward": ("torch/_tensor.py:backward",),
    "optimizer": ("torch/optim/", ":clip_grad_norm_", "training/trainer.py:_update"),
    "forward": ("torch/nn/modules/module.py:_call_impl",),
}
REST = "rest"


@dataclass(frozen=True)
class Shares:
    """What a call took.

    Args:
        seconds: Wall time.
        stages: Share of the samples by stage; what is left is the rest.
    """

    seconds: float
    stages: dict[str, float]


def shares_of(call: Callable[[], object]) -> Shares:
    """Run a call in this thread and tell where its time went."""
    counts: Counter[str] = Counter()
    ended = threading.Event()
    watched = threading.get_ident()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            counts[_stage(sys._current_frames()[watched])] += 1

    watcher = threading.Thread(target=watch, daemon=True)
    start = time.perf_counter()
    watcher.start()
    try:
        call()
    finally:
        ended.set()
        watcher.join()
    total = counts.total() or 1
    return Shares(
        time.perf_counter() - start,
        {stage: counts[stage] / total for stage in (*STAGES, REST)},
    )


def _stage(frame: FrameType | None) -> str:
    names = []
    while frame is not None:
        names.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
        frame = frame.f_back
    for stage, marks in STAGES.items():
        if any(mark in name for name in names for mark in marks):
            return stage
    return REST
