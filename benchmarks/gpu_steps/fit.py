"""After a study: fit, load, predict, and how far apart two runs of one plan are."""

from __future__ import annotations

import time

import torch

from autotune.results.evaluation.refit import refit_study
from autotune.results.evaluation.reproduce import reproduce_trial
from autotune.results.model.model_folder import load_model
from autotune.study.devices import find_device
from autotune.study.state import attrs
from gpu_steps.context import Context
from gpu_steps.material import configure
from studies import open_study, run_trials

#: Images that are predicted.
_IMAGES = 64


def fit_and_rerun(context: Context) -> None:
    """Run a small study, fit its best plan, predict with it, train its last trial again."""
    device, sizes = find_device(), context.sizes
    config = configure(
        context,
        "final",
        search__trials=2,
        space__trainable_layers=max(sizes.depths),
        training__epochs=2,
    )
    opened = open_study(config)
    start = time.perf_counter()
    run_trials(opened, print, threads=0)
    trial = opened.study.get_trials(deepcopy=False)[-1]
    context.add(
        "trained",
        seconds=round(time.perf_counter() - start, 2),
        device=trial.user_attrs.get(attrs.DEVICE),
        value=trial.value,
    )
    again = reproduce_trial(opened, trial.number)
    apart = [abs(again.recorded[epoch] - again.reproduced[epoch]) for epoch in again.reproduced]
    context.add(
        "rerun",
        epochs=len(apart),
        differing=again.first_difference,
        furthest=max(apart),
        values=list(again.values),
        changes=list(again.changes),
    )
    start = time.perf_counter()
    fitted = refit_study(opened, trial.number, context.folder / "model")
    context.add(
        "fit",
        seconds=round(time.perf_counter() - start, 2),
        test_images=fitted.test_images,
        trained_on=fitted.images,
    )
    _predict(context, device)


def _predict(context: Context, device: torch.device) -> None:
    """Compare the probabilities on the GPU with those on the CPU."""
    images = sorted((context.images / "test").rglob("*.jpg"))[:_IMAGES]
    model = load_model(context.folder / "model")
    on_cpu = model.predict(images)
    model.to(device)
    model.predict(images[:2])  # chooses kernels
    start = time.perf_counter()
    on_gpu = model.predict(images)
    seconds = time.perf_counter() - start
    context.add(
        "predict",
        images=len(images),
        seconds=round(seconds, 3),
        furthest=float((on_gpu - on_cpu).abs().max()),
        same_class=float((on_gpu.argmax(1) == on_cpu.argmax(1)).float().mean()),
    )
