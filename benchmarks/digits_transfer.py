"""Is the baseline of the embedded default trained fairly, and what do the letters give to it?

Two tables of validation accuracy on the digits, over three seeds of split and training:

1. the baseline (backbone frozen, linear head) at five learning rates, and solved;
2. everything trained, from the shipped weights and from a random start, at 20 and at 5 training
   images a class, each at its better learning rate of two.

The test part is not read. Writes a dated report under ``benchmarks/results/``.

    python benchmarks/digits_transfer.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from reports import date_and_machine, spread, write_report

from autotune.config.loading import load_study_file
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.models.backbone import load_backbone
from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.plan import SOLVED, LayerPlan, TrainingPolicy, TrialPlan
from autotune.runtime import available_cpus
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.trainer import Trainer

SEEDS = (0, 1, 2)
HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES = (3e-3, 1e-2)


def accuracy(
    folder: Path, seed: int, weights: str, per_class: int, depth: int, lr: float | None
) -> float:
    """Return the accuracy in percent of a linear head; without a learning rate it is solved."""
    config = load_study_file("digits", [f"data.seed={seed}", f"data.train_per_class={per_class}"])
    backbone = load_backbone(config.backbone, weights, config.data.image_size)
    spec = ImageSpec.from_data_config(backbone.data_config, config.data.image_size)
    task = StudyData.open(config.dataset, config.data, spec, folder)
    trainable = min(depth, len(list_layers(backbone.pretrained)))
    policy = TrainingPolicy(head_start=SOLVED) if lr is None else TrainingPolicy(lr=lr)
    plan = TrialPlan(config.backbone, trainable, (LayerPlan(),) * trainable, policy=policy)
    training = Trainer(
        build_network(backbone, plan, len(task.classes), seed),
        plan.policy,
        config.training,
        task.train_views(config.training.augment, config.training.view_count, seed),
        task.validation_views(),
        Normalizer.from_config(backbone.data_config, torch.device("cpu")),
        seed,
    )
    *_, last = training.run()
    assert last.metrics is not None
    return 100 * last.metrics.accuracy


def over_seeds(
    folder: Path, weights: str, per_class: int, depth: int, lr: float | None
) -> list[float]:
    return [accuracy(folder, seed, weights, per_class, depth, lr) for seed in SEEDS]


def best_rate(folder: Path, weights: str, per_class: int) -> str:
    runs = {lr: over_seeds(folder, weights, per_class, 99, lr) for lr in RATES}
    lr = max(runs, key=lambda rate: statistics.mean(runs[rate]))
    return f"{spread(runs[lr])} (lr {lr:g})"


def main() -> None:
    torch.set_num_threads(available_cpus())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = {lr: over_seeds(folder, "hub", 20, 0, lr) for lr in HEAD_RATES}
        solved, few = (over_seeds(folder, "hub", count, 0, None) for count in (20, 5))
        trained = {
            (weights, count): best_rate(folder, weights, count)
            for weights in ("hub", "none")
            for count in (20, 5)
        }
    lines = [
        "# Digits: is the baseline fair, and what do the letters give?",
        "",
        f"{date_and_machine('torch', 'timm')} Validation accuracy in percent, "
        f"mean ± sd over {len(SEEDS)} seeds of split and training; all else as in "
        "`studies/digits.yaml`.",
        "",
        "| baseline: frozen backbone, linear head, 20 images a class | accuracy |",
        "| --- | --- |",
        *(f"| lr {lr:g} | {spread(values)} |" for lr, values in heads.items()),
        f"| solved | {spread(solved)} |",
        "",
        "| images a class | solved head, letters | all layers, letters | all layers, random |",
        "| --- | --- | --- | --- |",
        f"| 20 | {spread(solved)} | {trained['hub', 20]} | {trained['none', 20]} |",
        f"| 5 | {spread(few)} | {trained['hub', 5]} | {trained['none', 5]} |",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    write_report(text, "digits-transfer")


if __name__ == "__main__":
    main()
