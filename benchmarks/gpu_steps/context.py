"""What a step is given: how large everything is, where it works, where its lines go."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import append_line

if TYPE_CHECKING:
    from tests.support.simulated_gpu import SimulatedGpu

#: Kinds of the lines that gpu.py itself writes: a step has begun, or ended.
STARTED, ENDED = "started", "ended"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        images: Made-up JPEGs in all; three quarters train.
        jpeg_px: Their sides.
        image_px: Sides of what the networks see.
        classes: Into how many classes they are dealt.
        batch: Images in a batch.
        backbone: What the studies train.
        split_backbones: What is split; each with its own image size where ``None`` is given.
        timed_backbones: What is timed in each precision.
        timed_batches: Number of images.
        timed_steps: Number of steps.
        depths: Depths of which the throughput is measured.
        epochs: Epochs of a throughput, the first left out.
        study_trials: Plans of the study that one and two workers train.
        study_epochs: Epochs of each.
        naive_plans: Plans of the list that naive and autotune train.
        naive_seen: Number of them that the naive side trains.
        naive_epochs: Epochs of each.
        loader_workers: Processes that prepare images of the naive side; ``None`` for two less
            than there are cores.
        views: Views of an image.
        memory_batch: Images in a batch where memory is to give out.
        memory_px: Their sides.
        neighbor_s: For how long a neighbor holds the memory of the GPU.
    """

    images: int = 2000
    jpeg_px: int = 256
    image_px: int = 224
    classes: int = 10
    batch: int = 64
    backbone: str = "resnet50"
    split_backbones: tuple[str, ...] = (
        "resnet50",
        "mobilenetv2_100",
        "efficientnet_b0",
        "convnext_tiny",
        "vit_small_patch16_224",
        "swin_tiny_patch4_window7_224",
        "densenet121",
        "vgg16_bn",
        "regnety_004",
        "mobilenetv3_large_100",
    )
    timed_backbones: tuple[str, ...] = (
        "resnet18",
        "resnet50",
        "vit_small_patch16_224",
        "convnext_tiny",
    )
    timed_batches: tuple[int, ...] = (8, 64)
    timed_steps: int = 20
    depths: tuple[int, ...] = (0, 2, 4)
    epochs: int = 5
    study_trials: int = 12
    study_epochs: int = 4
    naive_plans: int = 12
    naive_seen: int = 3
    naive_epochs: int = 6
    loader_workers: int | None = None
    views: int = 2
    memory_batch: int = 64
    memory_px: int = 224
    neighbor_s: float = 15.0


REAL = Sizes()
DRY = Sizes(
    images=64,
    jpeg_px=40,
    image_px=32,
    classes=2,
    batch=8,
    backbone="test_resnet",
    split_backbones=("test_resnet", "test_efficientnet"),
    timed_backbones=("test_resnet",),
    timed_batches=(2, 8),
    timed_steps=2,
    depths=(0, 2),
    epochs=3,
    study_trials=2,
    study_epochs=1,
    naive_plans=2,
    naive_seen=1,
    naive_epochs=1,
    loader_workers=0,
    views=2,
    memory_batch=32,
    memory_px=64,
    neighbor_s=1.0,
)


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Args:
        step: Its name.
        dry: Whether it runs on the simulated device, with small sizes.
        lines: The file that gets its lines.
        images: Folder with ``train/``, ``val/`` and ``test/``.
        folder: Where it may write; empty.
        limit_s: Seconds after which it is ended.
        gpu: The simulated device of a dry run.
        began_s: When it began, by the monotonic clock.
    """

    step: str
    dry: bool
    lines: Path
    images: Path
    folder: Path
    limit_s: float
    gpu: SimulatedGpu | None = None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return DRY if self.dry else REAL

    def seconds_left(self) -> float:
        """Return for how long this step may still go on."""
        return self.limit_s - (time.monotonic() - self.began_s)

    def add(self, kind: str, **values: Any) -> None:
        """Write a result down."""
        line = {"step": self.step, "kind": kind, "time": now(), "dry": self.dry, **values}
        append_line(self.lines, line)
        print(json.dumps({"step": self.step, "kind": kind, **values}), flush=True)

    def on(self, gpu: SimulatedGpu | None) -> Context:
        """Return the same on a device."""
        return replace(self, gpu=gpu)

    def to_json(self) -> str:
        """Return what the process of the step needs to know."""
        values = {key: value for key, value in asdict(self).items() if key not in _OF_PROCESS}
        return json.dumps(values, default=str)

    @staticmethod
    def from_json(text: str) -> Context:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        paths = {key: Path(values[key]) for key in ("lines", "images", "folder")}
        return Context(**{**values, **paths})


_OF_PROCESS = ("gpu", "began_s")
