"""How much of a tail's speed is left when it reads kept features: goal at least 0.95.

Images a second of a training epoch as a trial has it, over those of the same training on one
batch of synthetic features that stays in memory. Both go through the one training loop, epoch by
epoch in turn; the first epoch of each, which may compute the features, is left out.

    python benchmarks/tail_efficiency.py --images FOLDER --weights FILE --backbone mobilenetv2_100

On the GPU where there is one. Without kept features (``cache.features: off``, or a network that
cannot be split) the whole network trains on images, and the report says so. ``--write`` writes a
dated report under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reports import date_and_machine, write_report
from torch import Tensor

from autotune.config.loading import load_study_file
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.engine.launcher import run_study
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext, build_context
from autotune.training.trainer import Trainer

GOAL = 0.95
#: A share above this is no speed but noise: reading features costs something.
MOST = 1.05
EPOCHS = 7
LR = 3e-4
IMAGES = "images"


@dataclass(frozen=True)
class Resident:
    """Batches that are all the same one, in memory, as many as a real epoch has.

    Args:
        batch: What the network takes.
        labels: int64, ``(N,)``, of all images.
        of_batch: int64, ``(B,)``, of those in the batch.
    """

    batch: Any
    labels: Tensor
    of_batch: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Return view 0 for every image."""
        return torch.zeros_like(self.labels)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Any, Tensor]]:
        """Yield the batch again and again; the last one may be shorter."""
        for chunk in torch.split(order, batch_size):
            if isinstance(self.batch, tuple):
                yield tuple(one[: len(chunk)] for one in self.batch), self.of_batch[: len(chunk)]
            else:
                yield self.batch[: len(chunk)], self.of_batch[: len(chunk)]


def resident(training: Trainer) -> Resident:
    """Take the shapes of a batch of a training, and fill them anew."""
    train = training.train
    order, views = torch.arange(len(train)), train.views_for_epoch(0)
    batch, labels = next(iter(train.batches(order, views, training.config.batch_size)))

    def anew(tensor: Tensor) -> Tensor:
        return torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()

    made = tuple(anew(one) for one in batch) if isinstance(batch, tuple) else anew(batch)
    return Resident(made, train.labels, labels)


@dataclass(frozen=True)
class Row:
    """Images a second at one depth, the best of the epochs, and what the network was given."""

    depth: int
    kept: float
    synthetic: float
    given: str


def measure(ctx: WorkerContext, backbone: str, depth: int) -> Row:
    plan = TrialPlan(backbone, depth, (LayerPlan(),) * depth, policy=TrainingPolicy(lr=LR))
    real, synthetic = build_trainer(plan, ctx), build_trainer(plan, ctx)
    synthetic.train = resident(synthetic)  # type: ignore[assignment, unused-ignore]
    for one in (real, synthetic):
        one.validation = None
    _, *epochs = zip(real.run(), synthetic.run(), strict=True)
    fastest = [min(one.seconds for one in side) for side in zip(*epochs, strict=True)]
    images = len(real.train.labels)
    given = IMAGES
    if isinstance(synthetic.train.batch, tuple):
        shapes = [tuple(one.shape[1:]) for one in synthetic.train.batch]
        given = "features " + ", ".join("x".join(map(str, shape)) for shape in shapes)
    return Row(depth, images / fastest[0], images / fastest[1], given)


def render(rows: list[Row], options: argparse.Namespace, ctx: WorkerContext) -> str:
    device = "CPU"
    if ctx.device.type == "cuda":
        device = torch.cuda.get_device_name(ctx.device)
    shares = [row.kept / row.synthetic for row in rows if row.given != IMAGES]
    verdict = "NO FEATURES WERE KEPT: the whole network trained on images."
    if shares and max(shares) > MOST:
        verdict = (
            f"NO VERDICT: a share of {max(shares):.2f} is beyond what there is to win, so other "
            "programs have disturbed the measurement, or its epochs are too short."
        )
    elif shares:
        least = min(shares)
        verdict = (
            f"Goal wherever features are kept: at least {GOAL:g}; least {least:.2f}, median "
            f"{statistics.median(shares):.2f}: {'reached' if least >= GOAL else 'missed'}."
        )
    heading = date_and_machine("torch", "timm").replace("no GPU used", f"trains on: {device}")
    return "\n".join(
        [
            "# How much of the tail's speed is left with kept features",
            "",
            heading,
            "",
            f"Images: `{options.images.name}`, {options.image_size} px, backbone "
            f"{options.backbone}, batches of {options.batch_size}, {torch.get_num_threads()} CPU "
            f"threads, the best of {EPOCHS - 1} epochs without validation.",
            "",
            "| depth | given to the network | kept, images/s | synthetic, images/s | share |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {row.depth} | {row.given} | {row.kept:.0f} | {row.synthetic:.0f} "
                f"| {row.kept / row.synthetic:.2f} |"
                for row in rows
            ),
            "",
            verdict,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default="hub", help="hub, none or a file")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 1, 3, 6])
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tail-") as folder:
        overrides = [
            f"dataset={options.images.resolve()}",
            f"backbone={options.backbone}",
            f"weights={options.weights}",
            f"data.image_size={options.image_size}",
            f"training.batch_size={options.batch_size}",
            f"training.epochs={EPOCHS}",
            f"space.trainable_layers={{low: 0, high: {max(1, *options.depths)}}}",
            "training.num_views=1",
            "search.trials=1",
            f"storage=sqlite:///{folder}/study.db",
        ]
        config = load_study_file("folder", overrides, "tail")
        ctx = build_context(run_study(config, workers=1).handle)
        rows = []
        for depth in options.depths:
            rows.append(measure(ctx, options.backbone, depth))
            print(rows[-1], flush=True)
        text = render(rows, options, ctx)
    print(text)
    if options.write:
        print(write_report(text + "\n", "tail-efficiency"))


if __name__ == "__main__":
    main()
