"""How much of a tail's speed is left in a real training: goal 0.95 of a resident batch.

The real training goes through what a trial reads; the other one takes one batch that lies on the
device again and again (tail_efficiency.py). Both go epoch by epoch in turn, and the last epoch of
the real one is watched: how busy the GPU is, and where the host waits. Where features lie on the
GPU, steps are also captured in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from unittest.mock import patch

from tail_efficiency import IMAGES, resident

from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext, build_context
from autotune.training.compute.cuda_graphs import is_usable
from autotune.training.trainer import Trainer
from gpu_steps.context import Context
from gpu_steps.device import Watch, mode_of
from gpu_steps.material import configure, plan_of_depth
from studies import open_study

#: Ways to feed a training: what it takes lies on the GPU, or does not fit there.
RESIDENT, NOT_RESIDENT = "resident", "not resident"
#: How its steps are taken.
CAPTURED, PLAIN = "captured", "plain"


def measure(context: Context) -> None:
    """Measure every depth on features, and the deepest on images: its whole network."""
    sizes = context.sizes
    ctx = build_context(open_study(configure(context, "tails", training__num_views=1)))
    plain, whole = (
        _with_cache(ctx, **values)
        for values in ({"cuda_graphs": "off"}, {"features": "off", "cuda_graphs": "off"})
    )
    for depth in sizes.depths:
        _measure(context, plain, depth, RESIDENT)
        _measure(context, ctx, depth, RESIDENT)
    for depth in sizes.depths:
        _measure(context, plain, depth, NOT_RESIDENT)
    for way in (NOT_RESIDENT, RESIDENT):  # in this order: views that lie on the GPU stay there
        _measure(context, whole, max(sizes.depths), way)


def _with_cache(ctx: WorkerContext, **values: str) -> WorkerContext:
    """Return what a worker has at hand, with another configuration of what is kept."""
    cache = ctx.config.cache.model_copy(update=values)
    config = ctx.config.model_copy(update={"cache": cache})
    return replace(ctx, config=config, root_splits={})


def _measure(context: Context, ctx: WorkerContext, depth: int, way: str) -> None:
    """Measure one depth in one way of feeding it."""
    sizes = context.sizes
    plan = plan_of_depth(sizes.backbone, depth)
    watch = Watch(context.gpu)
    with ExitStack() as stack:
        # These trainings are short; those of a study are long enough to capture their steps.
        stack.enter_context(patch("autotune.training.trainer.MIN_STEPS", 1))
        if way == NOT_RESIDENT:  # as where they take more than their share of the device
            stack.enter_context(patch("autotune.training.inputs.transfer.DEVICE_SHARE", 0.0))
        real = build_trainer(plan, ctx, watch.mark)
        synthetic = build_trainer(plan, ctx)
        synthetic.train = resident(synthetic)  # type: ignore[assignment, unused-ignore]
        for one in (real, synthetic):
            one.validation = None
        seconds = list(_epochs(real, synthetic, watch))
    captured = real.capture is not None and is_usable(real.device)
    best = [min(side) for side in zip(*seconds, strict=True)]
    images = len(real.train.labels)
    traffic = watch.traffic
    assert traffic is not None
    context.add(
        "tail",
        depth=depth,
        way=way,
        given=IMAGES if not isinstance(synthetic.train.batch, tuple) else "features",
        form=CAPTURED if captured else PLAIN,
        autocast=mode_of(real.amp),
        real=round(images / best[0], 1),
        resident=round(images / best[1], 1),
        share=round(best[1] / best[0], 4),
        step_ms=round(1e3 * best[0] * sizes.batch / images, 3),
        **asdict(traffic),
    )


def _epochs(real: Trainer, synthetic: Trainer, watch: Watch) -> Iterator[tuple[float, float]]:
    """Train epoch by epoch in turn; yield the seconds of those that count, watch the last one."""
    runs = real.run(), synthetic.run()
    count = real.config.epochs
    for epoch in range(count):
        if epoch == count - 1:
            with watch.watching():
                next(runs[0])
            return
        took = [next(run).seconds for run in runs]
        if epoch > 0:  # the first one may compute the features, and chooses kernels
            yield took[0], took[1]
