r"""Where do changed layers start best: inherited, fitted, or drawn?

The last layers are changed, from each of the starts, and they and all behind them are trained,
with a head that is solved for the features of the start or with a fresh one. Validation accuracy
after 0, 1, 3 and 10 epochs. All starts get the same images, order and learning rates.

    python benchmarks/inheritance.py digits results.jsonl
    python benchmarks/inheritance.py photos results.jsonl --images PHOTOS --weights FILE
    python benchmarks/inheritance.py letters results.jsonl --weights FILE   # a small ViT
    python benchmarks/inheritance.py report results.jsonl

Every course is a line of the file of results. What it has is not trained again, so a run that was
ended continues. ``letters`` needs weights of timm's ``test_vit2`` at 64 px, which has none of its
own; ``letters_weights.py`` trains it. ``report`` writes a dated report under
``benchmarks/results/``; files of results are merged by ``cat``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reports import append_line, date_and_machine, read_lines, spread, write_report

from autotune.config.old_names import VALUES
from autotune.config.schema import StudyConfig
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.views.study_data import StudyData
from autotune.data.views.views import Views
from autotune.models.backbone import Backbone, load_backbone
from autotune.models.layers import list_layers
from autotune.models.network import build_network
from autotune.models.prefix.split import split_network
from autotune.models.surgery.probing import cached_capabilities
from autotune.plan import FITTED, SOLVED, LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.setup.definition import define
from autotune.training.features import FeatureCache, Features
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

AFTER = (0, 1, 3, 10)
CHANGES: tuple[tuple[str, Any], ...] = (
    ("kernel", 1),
    ("width", 0.5),
    ("width", 0.75),
    ("bridge", 0.25),
)
STARTS = (FITTED, "weights", "data", "none")
HEADS = (SOLVED, "fresh")
#: The most that a mean of fitted starts may lie below one of today's, in standard errors of the
#: difference, to count as equal.
EQUAL = 1.0

#: Change, start, solved or fresh head.
Key = tuple[str, str, str]
Course = dict[int, float]


@dataclass(frozen=True)
class Setting:
    """One task: images, backbone, and how it is trained."""

    title: str
    config: StudyConfig
    backbone: Backbone
    task: StudyData
    lr: float
    layer_decay: float
    depth: int
    cache: ArrayCache

    def views(self, seed: int) -> tuple[Views, Views]:
        """Return training and validation images."""
        training = self.config.training
        return (
            self.task.train_views(training.augment, training.view_count, seed),
            self.task.validation_views(),
        )

    def training(self, plan: TrialPlan, seed: int, epochs: int) -> Trainer:
        """Make the training of a plan on cached features."""
        train, validation = self.views(seed)
        normalize = Normalizer.from_config(self.backbone.data_config, torch.device("cpu"))
        network = build_network(
            self.backbone,
            plan,
            len(self.task.classes),
            seed,
            lambda: next(sample_batches(train, 64, normalize, seed)),
        )
        config = self.config.training.model_copy(update={"epochs": epochs})
        trainer = Trainer(network, plan.policy, config, train, validation, normalize, seed)
        split = split_network(network, next(sample_batches(train, 2, normalize, 0)))
        if not split.is_trivial:
            cache = FeatureCache(
                self.cache, self.backbone.weights_hash, normalize, trainer.amp, None
            )
            trainer.use_features(
                split, Features(cache, split, train), Features(cache, split, validation)
            )
        return trainer


def setting(options: argparse.Namespace, folder: Path) -> Setting:
    if options.task == "photos":
        photos: dict[str, Any] = {
            "dataset": options.images,
            "backbone": options.backbone,
            "weights": options.weights,
            "data": {"image_size": options.image_size},
            "training": {"batch_size": 32, "num_views": 4},
        }
        title = f"photographs, {options.backbone} at {options.image_size} px"
        return _setting(title, photos, folder, 0.0005, 0.7, options.depth)
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
    if options.task == "digits":
        return _setting("digits, test_resnet.letters", digits, folder, 0.003, 1.0, options.depth)
    digits |= {"backbone": "test_vit2", "weights": options.weights}
    digits["data"] |= {"image_size": 64}
    title = "digits, test_vit2 that was trained on printed letters"
    return _setting(title, digits, folder, 0.001, 1.0, options.depth)


def _setting(
    title: str, values: dict[str, Any], folder: Path, lr: float, layer_decay: float, depth: int
) -> Setting:
    values = {**values, "name": "inheritance", "storage": f"sqlite:///{folder}/none.db"}
    config = StudyConfig.model_validate(values)
    (found,) = define(config).backbones
    task = StudyData.open(config.dataset, config.data, found.spec, folder)
    backbone = load_backbone(found.name, config.weights_of(found.name), config.data.image_size)
    cache = ArrayCache(folder / "features", 1 << 33)
    return Setting(title, config, backbone, task, lr, layer_decay, depth, cache)


def plan_of(
    at: Setting, depth: int, field: str, value: Any, inherit: str, head_start: str = "random"
) -> TrialPlan:
    """Change a field of the last layers where they can take the value and keep their output."""
    layers = list_layers(at.backbone.pretrained)
    offers = cached_capabilities(at.backbone, layers, depth)[:depth]
    plans = tuple(
        LayerPlan(**{field: value})
        if not offer.reason_unsupported(field, value)
        and not offer.is_noop(field, value)
        and (field != "width" or all(group.inner for group in offer.groups))
        else LayerPlan()
        for offer in offers
    )
    policy = TrainingPolicy(lr=at.lr, layer_decay=at.layer_decay, head_start=head_start)
    return TrialPlan(at.backbone.name, depth, plans, policy=policy, inherit=inherit)


def run(
    at: Setting, seed: int, known: Mapping[Key, Course], kinds: Iterable[str]
) -> Iterator[tuple[Key, Course]]:
    """Train everything that is not known of a seed."""
    alone = ("head alone", "", SOLVED)
    if alone not in known:
        plan = TrialPlan(at.backbone.name, policy=TrainingPolicy(lr=at.lr, head_start=SOLVED))
        yield alone, course(at.training(plan, seed, max(AFTER)))
    for head in kinds:
        head_start = SOLVED if head == SOLVED else "random"
        kept = ("keep", "", head)
        if kept not in known:
            plan = plan_of(at, at.depth, "kernel", "keep", "weights", head_start)
            yield kept, course(at.training(plan, seed, max(AFTER)))
        for field, value in CHANGES:
            for inherit in STARTS:
                if inherit == "data" and field != "width":
                    continue  # chooses channels
                plan = plan_of(at, at.depth, field, value, inherit, head_start)
                key = (f"{field} {value}", inherit, head)
                if plan.reshaped and key not in known:
                    yield key, course(at.training(plan, seed, max(AFTER)))


def course(training: Trainer) -> Course:
    """Train to the end; return the validation accuracy after the epochs of interest."""
    training.start_layers()
    training.network.start, training.network.stale_norms = None, ()  # not once more
    training.solve_head()
    found = {0: training.validate().accuracy}
    for result in training.run():
        assert result.metrics is not None
        if result.epoch in AFTER:
            found[result.epoch] = result.metrics.accuracy
    return found


def read(path: Path) -> dict[str, dict[int, dict[Key, Course]]]:
    """Read the courses by title, seed and key."""
    found: dict[str, dict[int, dict[Key, Course]]] = {}
    for entry in read_lines(path):
        seeds = found.setdefault(entry["title"], {}).setdefault(entry["seed"], {})
        change, start, head = entry["key"]
        seeds[change, start, head] = {int(epoch): v for epoch, v in entry["course"].items()}
    return found


def pairs(
    runs: Iterable[Mapping[Key, Course]], first: Key, second: Key, epoch: int
) -> list[float]:
    """Return the differences of two courses in percent, one a seed that has both."""
    return [
        100 * (run[first][epoch] - run[second][epoch])
        for run in runs
        if first in run and second in run
    ]


def render(title: str, runs: list[dict[Key, Course]]) -> str:
    def cell(key: Key, epoch: int) -> str:
        values = [100 * run[key][epoch] for run in runs if epoch in run.get(key, {})]
        return spread(values) if values else ""

    lines = [
        f"## {title}",
        "",
        f"{len(runs)} seeds.",
        "",
        "| change | start | head | " + " | ".join(f"{epoch} epochs" for epoch in AFTER) + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in AFTER) + " |",
    ]
    keys = dict.fromkeys(key for run in runs for key in run)
    for key in keys:
        change, start, head = key
        named = VALUES["init"].get(start, start)
        lines.append(
            f"| {change.replace('bridge', 'low rank')} | {named} | {head} | "
            + " | ".join(cell(key, epoch) for epoch in AFTER)
            + " |"
        )
    lines += ["", *verdicts(runs, keys), ""]
    return "\n".join(lines)


def verdicts(runs: list[dict[Key, Course]], keys: Iterable[Key]) -> Iterator[str]:
    """Say how often the fitted start is ahead of each other one."""
    cases = dict.fromkeys((change, head) for change, start, head in keys if start)
    for other in STARTS[1:]:
        ahead, behind, total = 0, [], 0
        for change, head in cases:
            for epoch in AFTER:
                found = pairs(runs, (change, FITTED, head), (change, other, head), epoch)
                if len(found) < 2:
                    continue
                total += 1
                mean = statistics.mean(found)
                error = statistics.stdev(found) / len(found) ** 0.5
                ahead += mean >= 0
                if mean < -EQUAL * error:
                    named = change.replace("bridge", "low rank")
                    behind.append(f"{named} {head} after {epoch} ({mean:.1f} ± {error:.1f})")
        if total:
            named = VALUES["init"].get(other, other)
            yield (
                f"*fitted* is ahead of *{named}*, or equal, in {ahead} of {total} means; behind "
                f"by more than a standard error: {', '.join(behind) or 'nowhere'}."
            )
            yield ""


def report(path: Path, show: bool) -> None:
    """Write the report of a file of results."""
    text = "\n".join(
        [
            "# Changed layers: fitted, inherited and drawn starts",
            "",
            date_and_machine("torch", "timm") + " One thread.",
            "",
            "Validation accuracy in percent, mean ± standard deviation over seeds (of training, "
            "order and surgery; the split is one). The head is solved for the features of the "
            "start, or fresh; *head alone* is the solved head of the untouched backbone, and "
            "*keep* tunes the same layers unchanged. *pretrained* inherits, *activations* "
            "chooses the channels by their activity on 64 training images instead of by "
            "magnitude, *random* draws what changes anew; these measure norm statistics anew "
            "where the change has made them stale. *fitted* is *pretrained*, fitted to the "
            "outputs of the pretrained layers on at most 512 training images, with the norm "
            "statistics of these images.",
            "",
            *(render(title, [*seeds.values()]) for title, seeds in read(path).items()),
        ]
    )
    print(text)
    if not show:
        print(write_report(text, "inheritance"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("digits", "photos", "letters", "report"))
    parser.add_argument("results", type=Path, help="file of results, a JSON object a line")
    parser.add_argument("--images", help="photos: folder of class folders, or one that is split")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="photos: its backbone")
    parser.add_argument("--weights", default="hub", help="photos, letters: file of weights")
    parser.add_argument("--image-size", type=int, default=96, help="photos: side in pixels")
    parser.add_argument("--depth", type=int, default=4, help="how many of the last layers change")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--show", action="store_true", help="report: print, write no file")
    options = parser.parse_args()
    if options.task == "report":
        report(options.results, options.show)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        at = setting(options, Path(folder))
        for seed in range(options.seeds):
            known = read(options.results).get(at.title, {}).get(seed, {})
            start = time.perf_counter()
            for key, values in run(at, seed, known, options.heads):
                entry = {"title": at.title, "seed": seed, "key": key, "course": values}
                append_line(options.results, entry)
                shown = {epoch: round(100 * value, 1) for epoch, value in values.items()}
                print(f"{at.title} seed {seed}: {' '.join(key)} {shown}", flush=True)
            print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
