"""How fast features are made: images a second, from the images and from the root's features."""

from __future__ import annotations

import time

import torch

from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext, build_context
from gpu_steps.context import Context
from gpu_steps.material import configure, plan_of_depth
from studies import open_study

#: Strengths of color jitter, which takes most of the time of a view.
JITTERS = (0.0, 0.4)


def measure(context: Context) -> None:
    """Make the features of two epochs at the deepest cut, then at that of the head alone."""
    sizes = context.sizes
    for jitter in JITTERS:
        name = f"jitter-{jitter:g}"
        config = configure(
            context,
            name,
            training__augment__jitter=jitter,
            training__num_views=2,
            files=str(context.folder / name),
        )
        ctx = build_context(open_study(config))
        for depth in (max(sizes.depths), 0):
            for epoch in range(2):
                _make(context, ctx, depth, epoch, jitter)


def _make(context: Context, ctx: WorkerContext, depth: int, epoch: int, jitter: float) -> None:
    """Time until the features of an epoch are there: nobody has asked for them before."""
    backbone = context.sizes.backbone
    train = build_trainer(plan_of_depth(backbone, depth), ctx).train
    order = torch.arange(len(train))
    torch.cuda.synchronize()
    start = time.perf_counter()
    next(
        iter(
            train.batches(
                order, train.views_for_epoch(epoch), context.sizes.batch, ctx.loader_workers
            )
        )
    )
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    context.add(
        "making",
        depth=depth,
        made_from="images" if depth else "features of the root",
        epoch=epoch + 1,
        jitter=jitter,
        loader_workers=ctx.loader_workers,
        images=len(train),
        seconds=round(seconds, 3),
        images_per_s=round(len(train) / seconds, 1),
    )
