"""The study that a good user writes today for a GPU, against autotune: one list of plans.

The parts are those of naive.py. The naive side has loader processes for all cores but two,
pinned memory, images fetched ahead, channels last, bf16 autocast and fused AdamW. It trains a few
plans of different depth, and is scaled to the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import naive
import naive_study
import optuna
from naive_study import Plan, Settings

from autotune.models.backbone import build_backbone
from autotune.models.layers import list_layers
from autotune.runtime import available_cpus
from gpu_steps.context import Context
from gpu_steps.device import gpu_for_processes

#: Views of an image on autotune's side, as in naive.py.
VIEWS = 4


def compare(context: Context) -> None:
    """Train the list naively, cold and warm."""
    sizes = context.sizes
    depth = min(
        naive.MOST_DEPTH, len(list_layers(build_backbone(sizes.backbone, sizes.image_px, "meta")))
    )
    loaders = (
        max(1, available_cpus() - 2) if sizes.loader_workers is None else sizes.loader_workers
    )
    settings = Settings(
        images=str(context.images),
        backbone=sizes.backbone,
        weights="none",
        image_size=sizes.image_px,
        max_depth=depth,
        epochs=sizes.naive_epochs,
        batch_size=sizes.batch,
        crop=naive.CROP,
        flip=naive.FLIP,
        warmup=naive.WARMUP,
        clip_norm=naive.CLIP_NORM,
        seed=0,
        threads=max(1, available_cpus() - loaders),
        loader_workers=loaders,
        storage="",
        device="cpu" if context.dry else "cuda",  # its process does not see the simulated device
    )
    plans = naive.draw_plans(sizes.naive_plans, depth)
    if context.dry:
        _train_here(context, replace(settings, device="cuda"), plans[-1])
    wanted = [
        round(depth * index / max(1, sizes.naive_seen - 1)) for index in range(sizes.naive_seen)
    ]
    seen = [next(plan for plan in plans if plan.depth == one) for one in dict.fromkeys(wanted)]
    timed = naive.run_naive(settings, seen, context.folder / "naive", workers=1)
    seconds = {seen[result.plan].depth: result.seconds for result in timed.results}
    scaled = scale(timed.seconds, seconds, plans)
    context.add("side", side="naive", plans=len(seen), **_words(timed, scaled, seconds, loaders))

    file = naive.study_file(settings, plans, VIEWS, context.folder)
    for side in ("cold", "warm"):
        with gpu_for_processes(context.folder, context.dry):
            timed = naive.run_ours(file, side, plans, workers=1, gpus="0")
        seconds = {plans[result.plan].depth: result.seconds for result in timed.results}
        words = _words(timed, timed.seconds, seconds, None)
        context.add("side", side=side, plans=len(plans), **words)
        context.add("ratio", side=side, times=round(scaled / timed.seconds, 2))


def scale(wall_s: float, seconds: dict[int, float], plans: Sequence[Plan]) -> float:
    """Return the wall time for a list, from that for a few of its plans.

    What is not a trial (starting processes, importing) counts once. A plan takes what one of the
    nearest depth took.

    Args:
        wall_s: Of all that was measured.
        seconds: Of a trial, by depth.
        plans: The list.
    """
    start_s = wall_s - sum(seconds.values())
    return start_s + sum(
        seconds[min(seconds, key=lambda depth: abs(depth - plan.depth))] for plan in plans
    )


def _words(
    timed: naive.Timed, list_s: float, seconds: dict[int, float], loaders: int | None
) -> dict[str, Any]:
    return {
        "measured_s": round(timed.seconds, 2),
        "list_s": round(list_s, 2),
        "cpu_s": round(timed.cpu_s, 1),
        "trial_s": {str(depth): round(one, 2) for depth, one in sorted(seconds.items())},
        "loader_workers": loaders,
        "images": list(timed.images),
    }


def _train_here(context: Context, settings: Settings, plan: Plan) -> None:
    """Train one plan of the naive side in this process, which sees the simulated device."""
    folder = context.folder / "here"
    folder.mkdir()
    settings = replace(settings, storage=f"sqlite:///{folder}/study.db")
    study = optuna.create_study(
        study_name=naive_study.STUDY, storage=settings.storage, direction="maximize"
    )
    study.enqueue_trial(asdict(plan), user_attrs={"plan": 0})
    naive_study.work(settings)
    (trial,) = study.get_trials(deepcopy=False)
    context.add("naive on the device", state=trial.state.name, device=settings.device)
