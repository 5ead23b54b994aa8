r"""Do changed layers that inherit their weights beat changed layers that start at random?

A linear head is trained on the untouched backbone. Then the last layers are changed, once with
inherited weights and once drawn anew (He initialisation), the head is kept, and the changed layers
and all behind them are trained. Validation accuracy after 0, 1, 3 and 10 epochs. Both sides get
the same images, order, learning rates and newly measured norm statistics.

    python benchmarks/inheritance.py                                     # the embedded digits
    python benchmarks/inheritance.py --images PHOTOS --backbone mobilenetv2_100 \
        --weights FILE --image-size 128                                  # and a folder of photos

Writes a dated report under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from heading import date_and_machine

from autotune.config.schema import StudyConfig
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.models.backbone import Backbone, load_backbone
from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.setup.definition import define
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

AFTER = (0, 1, 3, 10)
CHANGES: tuple[tuple[str, Any], ...] = (
    ("kernel", 1),
    ("kernel", 5),
    ("width", 0.5),
    ("width", 0.75),
    ("width", 1.5),
)
STARTS = ("weights", "data", "none")


@dataclass(frozen=True)
class Setting:
    """One task: images, backbone, and how it is trained."""

    title: str
    config: StudyConfig
    backbone: Backbone
    task: StudyData
    lr: float
    layer_decay: float

    def views(self, seed: int) -> tuple[Views, Views]:
        """Return training and validation images."""
        training = self.config.training
        return (
            self.task.train_views(training.augment, training.view_count, seed),
            self.task.validation_views(),
        )

    def training(
        self, plan: TrialPlan, seed: int, epochs: int, head: dict[str, torch.Tensor] | None = None
    ) -> Trainer:
        """Make the training of a plan, with a head that is already trained."""
        train, validation = self.views(seed)
        normalize = Normalizer.from_config(self.backbone.data_config, torch.device("cpu"))
        network = build_network(
            self.backbone,
            plan,
            len(self.task.classes),
            seed,
            lambda: next(sample_batches(train, 64, normalize, seed)),
        )
        if head is not None:
            network.head.load_state_dict(head)
        config = self.config.training.model_copy(update={"epochs": epochs})
        return Trainer(network, plan.policy, config, train, validation, normalize, seed)


def settings(options: argparse.Namespace, folder: Path) -> Iterator[Setting]:
    digits: dict[str, Any] = {
        "dataset": "digits",
        "backbone": "test_resnet.letters",
        "data": {"test": 0.5, "validation": 0.3, "train_per_class": 20, "image_size": 32},
        "training": {
            "batch_size": 64,
            "num_views": 8,
            "augment": {"crop": 0.8, "flip": 0.0, "rotate": 15.0},
        },
    }
    yield _setting("digits, test_resnet.letters", digits, folder, 0.003, 1.0)
    if options.images:
        photos: dict[str, Any] = {
            "dataset": options.images,
            "backbone": options.backbone,
            "weights": options.weights,
            "data": {"image_size": options.image_size},
            "training": {"batch_size": 32, "num_views": 4},
        }
        title = f"photographs, {options.backbone} at {options.image_size} px"
        yield _setting(title, photos, folder, 0.0005, 0.7)


def _setting(
    title: str, values: dict[str, Any], folder: Path, lr: float, layer_decay: float
) -> Setting:
    values = {**values, "name": "inheritance", "storage": f"sqlite:///{folder}/none.db"}
    config = StudyConfig.model_validate(values)
    (found,) = define(config).backbones
    task = StudyData.open(config.dataset, config.data, found.spec, folder)
    backbone = load_backbone(found.name, config.weights_of(found.name), config.data.image_size)
    return Setting(title, config, backbone, task, lr, layer_decay)


def plan_of(setting: Setting, depth: int, field: str, value: Any, inherit: str) -> TrialPlan:
    """Change a field of the last layers where they can take the value and keep their output."""
    layers = list_layers(setting.backbone.pretrained)
    offers = cached_capabilities(setting.backbone, layers, depth)[:depth]
    plans = tuple(
        LayerPlan(**{field: value})
        if not offer.reason_unsupported(field, value)
        and not offer.is_noop(field, value)
        and (field != "width" or all(group.inner for group in offer.groups))
        else LayerPlan()
        for offer in offers
    )
    policy = TrainingPolicy(lr=setting.lr, layer_decay=setting.layer_decay)
    return TrialPlan(setting.backbone.name, depth, plans, policy=policy, inherit=inherit)


def run(setting: Setting, depth: int, seed: int) -> Iterator[tuple[str, str, dict[int, float]]]:
    probe = setting.training(
        TrialPlan(setting.backbone.name, policy=TrainingPolicy(lr=0.03)), seed, max(AFTER)
    )
    for _ in probe.run():
        pass
    assert probe.metrics is not None
    yield "head alone", "", {max(AFTER): probe.metrics.accuracy}
    head = probe.network.head.state_dict()
    keep = plan_of(setting, depth, "kernel", "keep", "weights")
    yield "keep", "", course(setting.training(keep, seed, max(AFTER), head))
    for field, value in CHANGES:
        for inherit in STARTS:
            if field == "kernel" and inherit == "data":
                continue  # chooses channels, of which a kernel has none to choose
            plan = plan_of(setting, depth, field, value, inherit)
            if plan.reshaped:
                training = setting.training(plan, seed, max(AFTER), head)
                yield f"{field} {value}", inherit, course(training)


def course(training: Trainer) -> dict[int, float]:
    """Train to the end; return the validation accuracy after the epochs of interest."""
    training.measure_norms()
    found = {0: training.validate().accuracy}
    for result in training.run():
        assert result.metrics is not None
        if result.epoch in AFTER:
            found[result.epoch] = result.metrics.accuracy
    return found


def render(title: str, depth: int, runs: list[dict[tuple[str, str], dict[int, float]]]) -> str:
    def cell(key: tuple[str, str], epoch: int) -> str:
        values = [100 * run[key][epoch] for run in runs if epoch in run.get(key, {})]
        if not values:
            return ""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.1f} ± {deviation:.1f}"

    lines = [
        f"## {title}, last {depth} layers",
        "",
        "| change | start | " + " | ".join(f"{epoch} epochs" for epoch in AFTER) + " |",
        "| --- | --- | " + " | ".join("---" for _ in AFTER) + " |",
    ]
    for key in dict.fromkeys(key for run in runs for key in run):
        change, start = key
        lines.append(
            f"| {change} | {start} | " + " | ".join(cell(key, epoch) for epoch in AFTER) + " |"
        )
    ahead, total = 0, 0
    for change in dict.fromkeys(key[0] for run in runs for key in run if key[1]):
        for epoch in AFTER:
            pairs = [
                (run[change, "weights"][epoch], run[change, "none"][epoch])
                for run in runs
                if (change, "none") in run
            ]
            if pairs:
                total += 1
                ahead += statistics.mean(a - b for a, b in pairs) > 0
    lines += ["", f"Inherited is ahead of He's start in {ahead} of {total} means.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of class folders, or one that is split")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3, help="how many of the last layers change")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="print, write no report")
    options = parser.parse_args()
    start = time.perf_counter()
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings(options, Path(folder)):
            runs = []
            for seed in range(options.seeds):
                found = {}
                for change, inherit, values in run(setting, options.depth, seed):
                    found[change, inherit] = values
                    shown = {epoch: round(100 * value, 1) for epoch, value in values.items()}
                    print(f"{setting.title} seed {seed}: {change} {inherit} {shown}", flush=True)
                runs.append(found)
            parts.append(render(setting.title, options.depth, runs))
    text = "\n".join(
        [
            "# Changed layers: inherited weights against He's initialisation",
            "",
            date_and_machine("torch", "timm")
            + f" {options.seeds} seeds, {time.perf_counter() - start:.0f} s in all.",
            "",
            "Validation accuracy in percent, mean ± standard deviation over seeds (of training, "
            "order and surgery; the split is one). The head was trained on the untouched backbone "
            "(*head alone*) and kept; *keep* tunes the same layers unchanged. *weights* inherits, "
            "*data* chooses the channels by their activity on 64 training images instead of by "
            "magnitude, *none* draws what changes anew. All of them measure norm statistics anew "
            "where the change has made them stale.",
            "",
            *parts,
        ]
    )
    print(text)
    if not options.show:
        path = Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-inheritance.md"
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
