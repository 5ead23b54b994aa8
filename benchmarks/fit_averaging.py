"""What a moving average of the weights and fresh views bring to the final fit.

For each seed (of the split and of the training) one good plan and a baseline whose head is trained
are fitted to training + validation, once on the study's views and once on new ones in every epoch.
Averages of several lengths follow the same training, so that they differ by nothing else. All are
measured on the test part. Writes a dated report under ``benchmarks/results/``.

    python benchmarks/fit_averaging.py digits --seeds 5
    python benchmarks/fit_averaging.py folder --seeds 3 dataset=photos backbone=mobilenetv2_100 \
        weights=mobilenetv2_100.safetensors data.image_size=128 baseline.lr=0.01
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from reports import date_and_machine, spread, write_report

from autotune.config.loading import load_study_file
from autotune.config.schema import RefitConfig
from autotune.data.views.study_data import open_test_views
from autotune.data.views.views import Views
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.refit import refit_views
from autotune.training.metrics import Metrics, compute_metrics
from autotune.training.optim.ema import WeightAverage
from autotune.training.trainer import Trainer
from studies import open_study

#: How many steps an average is long, as a share of all.
SHARES = (0.025, 0.05, 0.1, 0.2)


def train(
    plan: TrialPlan, ctx: WorkerContext, views: Views, test: Views
) -> tuple[dict[str, Metrics], float]:
    """Train a plan with averages beside it; return what each scores, and the seconds."""
    training = build_trainer(plan, ctx, refit=views)
    averages = {
        share: WeightAverage(training.network, 1 - 1 / max(1.0, share * training.steps))
        for share in SHARES
    }
    inner = training._update

    def update() -> None:
        inner()
        for average in averages.values():
            average.update(training.schedule.last_epoch)

    training._update = update  # type: ignore[method-assign]
    start = time.perf_counter()
    for _ in training.run():
        pass
    seconds = time.perf_counter() - start
    scores = {"off": _score(training, test)}
    for share, one in averages.items():
        training.ema = one
        scores[f"{share:.1%}"] = _score(training, test)
    return scores, seconds


def _score(training: Trainer, test: Views) -> Metrics:
    return compute_metrics(*training.predict(test))


def run_seed(study: str, seed: int, overrides: list[str], folder: Path) -> dict[tuple, Metrics]:
    config = load_study_file(
        study,
        [
            "baseline.head_start=random",  # a solved head has no steps to average over
            *overrides,
            *(f"{key}.seed={seed}" for key in ("search", "data")),
            f"storage=sqlite:///{folder}/study-{seed}.db",
        ],
        f"{study}-{seed}",
    )
    handle = open_study(config)
    ctx = build_context(handle)
    baseline = ctx.space.baseline(ctx.config.baseline)
    depth = 5 if study == "digits" else 3
    plan = replace(
        baseline,
        depth=depth,
        layers=(LayerPlan(),) * depth,
        policy=TrainingPolicy(lr=5e-3 if study == "digits" else 1e-3, layer_decay=0.7),
    )
    task = ctx.resources.get(plan.backbone).data
    test = open_test_views(config.dataset, config.data, task.spec, handle.files.cache)
    found = {}
    for views in ("study", "online"):
        images = refit_views(task, config, RefitConfig(views=views), 1 << 30)
        for name, one in (("plan", plan), ("baseline", baseline)):
            scores, seconds = train(one, ctx, images, test)
            print(f"seed {seed}, {views} views, {name}: {seconds:.1f} s", flush=True)
            found |= {(name, views, average): score for average, score in scores.items()}
            found[name, views, "seconds"] = seconds
    return found


def render(study: str, rows: list[dict]) -> str:
    lines = [
        f"# The final fit of {study}: fresh views and averages of weights, {len(rows)} seeds",
        "",
        date_and_machine("torch", "timm"),
        "",
        "Test part; mean ± standard deviation over seeds. The length of an average is a share of "
        "all steps.",
        "",
        "| | views | average | accuracy in % | log loss | accuracy against study views, off |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key in rows[0]:
        if key[2] == "seconds":
            continue
        accuracy = [100 * row[key].accuracy for row in rows]
        plain = [100 * row[key[0], "study", "off"].accuracy for row in rows]
        gains = [one - other for one, other in zip(accuracy, plain, strict=True)]
        losses = [row[key].log_loss for row in rows]
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {spread(accuracy, 2)} | {spread(losses, 4)} | "
            f"{spread(gains, 2)} |"
        )
    seconds: dict[tuple, list[float]] = defaultdict(list)
    for row in rows:
        for key, value in row.items():
            if key[2] == "seconds":
                seconds[key[:2]].append(value)
    lines += ["", "| | views | seconds |", "| --- | --- | --- |"]
    lines += [f"| {a} | {b} | {statistics.median(some):.1f} |" for (a, b), some in seconds.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            run_seed(options.study, seed, options.overrides, Path(folder))
            for seed in range(options.seeds)
        ]
    text = render(options.study, rows)
    print(text)
    write_report(text, f"fit-averaging-{options.study}", options.output)


if __name__ == "__main__":
    main()
