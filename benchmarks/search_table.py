"""What every plan of a small space scores in every epoch, from real training.

Trains each plan of a finite space on two tasks, for all epochs and for half of them, and keeps how
many validation images it had right, by its weights and by their moving average: of the full
training after every second epoch, of the short one at its end; and then how many test images.
A study can then be simulated in seconds on the results that a real one would have had:
`benchmarks/search_quality.py` does. The layers that a plan freezes give the same features in all
plans, so they are computed once a depth and only the rest is trained; some plans are then trained
as autotune does, on images, and compared.

    python benchmarks/search_table.py [--jobs 2] [--check 24] [--tasks digits,glyphs]

An interrupted run goes on where it was: rows go to a file in `storage/` as they come.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import platform
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import glyphs
import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, IntDistribution
from reports import append_line, read_lines
from search_curves import (
    DIVERGED,
    EVERY,
    SPACE,
    TABLES,
    TASKS,
    Curves,
    Params,
    Table,
    load_config,
)
from torch import Tensor, nn

from autotune.data.views.study_data import StudyData, open_test_views
from autotune.data.views.views import Views
from autotune.errors import DivergedError
from autotune.models.backbone import Backbone, load_backbone
from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.runtime import available_cpus, single_threaded
from autotune.search.space import Space
from autotune.study.setup.definition import Definition, define
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.trainer import Trainer

HERE = Path(__file__).parent
#: The values of the searched ranges that are trained; a simulated trial takes the nearest.
GRID: Mapping[str, tuple[float, ...]] = {
    "training.lr": (0.001, 0.005, 0.025, 0.12),
    "training.layer_decay": (0.6, 1.0),
}
#: Decay of the moving average of the weights, which is evaluated beside them.
DECAY = 0.9
#: Children of the backbone that are frozen unless all layers are trainable, and those that are
#: unless as many of the last layers are.
STEM = ("conv1", "bn1", "act1", "maxpool")
BLOCKS = ("layer1", "layer2", "layer3", "layer4")


def axes_of(space: Space) -> dict[str, list[Any]]:
    """Return the values of every searched parameter that are in the table."""
    axes: dict[str, list[Any]] = {}
    for name, distribution in space.distributions.items():
        if name in GRID:
            axes[name] = list(GRID[name])
        elif isinstance(distribution, CategoricalDistribution):
            axes[name] = list(distribution.choices)
        else:
            assert isinstance(distribution, IntDistribution)
            axes[name] = list(range(distribution.low, distribution.high + 1))
    return axes


def all_params(space: Space) -> list[Params]:
    """List every plan of the grid once, as canonical parameters."""
    axes = axes_of(space)
    plans: dict[tuple[Any, ...], Params] = {}
    for values in itertools.product(*axes.values()):
        params = space.canonical(dict(zip(axes, values, strict=True)))
        plans.setdefault(tuple(params.values()), params)
    return list(plans.values())


class FeatureViews(Views):
    """Views that hold features instead of images.

    Args:
        images: The views that the features were computed from.
        features: ``(N, views, ...)``, of every view of every image.
    """

    def __init__(self, images: Views, features: Tensor) -> None:
        # Order, labels and batches are those of the images; what is handed out is another tensor.
        self.__dict__.update(vars(images))
        self.cached = features
        self._is_cached = torch.ones(features.shape[:2], dtype=torch.bool)


def as_it_is(features: Tensor) -> Tensor:
    """Stand in for the normalisation, which the features have behind them."""
    return features


@dataclass(frozen=True)
class Bench:
    """What all trainings of a task share."""

    found: Definition
    backbone: Backbone
    train: Views
    validation: Views
    test: Views
    normalize: Normalizer

    def training(self, plan: TrialPlan, epochs: int) -> Trainer:
        """Prepare the training of a plan as a study would."""
        return self._training(plan, self._network(plan), self.train, self.validation, epochs)

    def training_on_features(
        self, plan: TrialPlan, epochs: int, views: Sequence[Views]
    ) -> Trainer:
        """Prepare the same training on what the frozen layers give."""
        network = self._network(plan)
        for name in frozen_children(plan.depth):
            network.backbone.set_submodule(name, nn.Identity())
        trainer = self._training(plan, network, views[0], views[1], epochs)
        trainer.normalize = as_it_is  # type: ignore[assignment]
        return trainer

    def _network(self, plan: TrialPlan) -> Network:
        classes = len(self.found.dataset.source.classes)
        return build_network(self.backbone, plan, classes, self.found.config.search.seed)

    def _training(
        self, plan: TrialPlan, network: Network, train: Views, validation: Views, epochs: int
    ) -> Trainer:
        config = self.found.config.training.model_copy(update={"epochs": epochs, "ema": DECAY})
        seed = self.found.config.search.seed
        return Trainer(network, plan.policy, config, train, validation, self.normalize, seed)


@cache
def bench(task: str) -> Bench:
    """Open the images and the backbone, once a process."""
    with tempfile.TemporaryDirectory(prefix="search-table-") as place:
        images = Path(place) / "images"
        if task == "glyphs":
            glyphs.write(images)
        found = define(load_config(task, *([f"dataset={images}"] if images.exists() else [])))
        config, spec = found.config, found.backbones[0].spec
        data = StudyData.open(config.dataset, config.data, spec, Path(place))
        test = open_test_views(config.dataset, config.data, spec, Path(place))
        settings = config.training
        train = data.train_views(settings.augment, settings.view_count, config.search.seed)
        size = config.data.image_size
        backbone = load_backbone(config.backbones[0], config.weights_of(config.backbones[0]), size)
        normalize = Normalizer.from_config(backbone.data_config, torch.device("cpu"))
        return Bench(found, backbone, train, data.validation_views(), test, normalize)


def frozen_children(depth: int) -> tuple[str, ...]:
    """Name the children of the backbone that lie before the trainable layers, from the input."""
    return (*STEM, *BLOCKS[: len(BLOCKS) - depth]) if depth <= len(BLOCKS) else ()


@cache
def features(task: str, depth: int) -> tuple[FeatureViews, ...]:
    """Compute what the frozen layers make of training, validation and test images."""
    shared = bench(task)
    backbone = shared.backbone.fresh().eval()
    frozen = nn.Sequential(*(backbone.get_submodule(name) for name in frozen_children(depth)))
    batch = shared.found.config.training.batch_size

    @torch.no_grad()
    def compute(images: Views, batch: int) -> FeatureViews:
        order = torch.arange(len(images))
        views = []
        for number in range(images.views):
            batches = images.batches(order, torch.full_like(order, number), batch)
            views.append(torch.cat([frozen(shared.normalize(chunk)) for chunk, _ in batches]))
        return FeatureViews(images, torch.stack(views, dim=1))

    return tuple(
        compute(images, size)
        for images, size in (
            (shared.train, batch),
            (shared.validation, 4 * batch),
            (shared.test, 4 * batch),
        )
    )


def count_right(training: Trainer, images: Views) -> tuple[int, int]:
    """Count the images that the weights have right, and those that their average has."""
    counts = []
    average, size = training.ema, training.micro_batch_size
    training.micro_batch_size = len(images)  # many small batches would take twice as long
    for training.ema in (None, average):
        logits, labels = training.predict(images)
        counts.append(int((logits.argmax(1) == labels).sum()))
    training.micro_batch_size = size
    return counts[0], counts[1]


def curve(training: Trainer, test: Views, every: int) -> dict[str, Any]:
    """Train to the end, and evaluate after every few epochs.

    Returns:
        Right validation images after each evaluation, by the weights and by their average, shorter
        than the training where it diverged; and right test images by both.
    """
    validation = training.validation
    assert isinstance(validation, Views)
    training.validation = None  # it is evaluated here
    right: list[tuple[int, int]] = []
    test_right = (0, 0)
    try:
        for result in training.run():
            if result.epoch % every == 0:
                right.append(count_right(training, validation))
        test_right = count_right(training, test)
    except DivergedError:
        pass
    return {"right": [a for a, _ in right], "average": [b for _, b in right], "test": test_right}


def train_row(task: str, row: int, params: Params) -> dict[str, Any]:
    """Train one row of a table, for all epochs and for half of them."""
    shared = bench(task)
    plan = shared.found.space.plan(params)
    start = time.process_time()
    found: dict[str, Any] = {"row": row}
    epochs = shared.found.config.training.epochs
    with single_threaded():
        views = features(task, plan.depth)
        for name, count, every in (("full", epochs, EVERY), ("short", epochs // 2, epochs // 2)):
            training = shared.training_on_features(plan, count, views)
            found[name] = curve(training, views[2], every)
    return found | {"cpu_s": round(time.process_time() - start, 3)}


def train_all(task: str, params: list[Params], path: Path, jobs: int) -> list[dict[str, Any]]:
    """Train the rows that are not in the file yet, in an order of no meaning."""
    rows: dict[int, dict[str, Any]] = {row["row"]: row for row in read_lines(path)}
    missing = [row for row in range(len(params)) if row not in rows]
    random.Random(0).shuffle(missing)
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        started = [pool.submit(train_row, task, row, params[row]) for row in missing]
        for done, future in enumerate(as_completed(started), start=1):
            row = future.result()
            rows[row["row"]] = row
            append_line(path, row)
            if done % 100 == 0 or done == len(missing):
                left_s = (time.perf_counter() - start) / done * (len(missing) - done)
                print(
                    f"{task}: {len(rows)} of {len(params)} plans, {left_s / 60:.1f} minutes to go",
                    flush=True,
                )
    return [rows[row] for row in range(len(params))]


def make_table(task: str, params: list[Params], rows: list[dict[str, Any]]) -> Table:
    """Put the rows into arrays."""
    shared = bench(task)
    axes = axes_of(shared.found.space)
    index = [[axes[name].index(value) for name, value in param.items()] for param in params]
    epochs = shared.found.config.training.epochs
    about = {
        "cpu_s": round(sum(row["cpu_s"] for row in rows)),
        "machine": f"{available_cpus()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "timm", "optuna")},
        "python": platform.python_version(),
    }
    return Table(
        shared.found.space,
        axes,
        np.array(index, dtype=np.uint8),
        make_curves([row["full"] for row in rows], epochs // EVERY),
        make_curves([row["short"] for row in rows], 1),
        len(shared.validation),
        len(shared.test),
        about,
    )


def make_curves(rows: Sequence[Mapping[str, Any]], count: int) -> Curves:
    """Put the curves of all plans, of a number of evaluations each, into arrays."""
    right, average = (
        np.array([row[name] + [DIVERGED] * (count - len(row[name])) for row in rows], np.uint16)
        for name in ("right", "average")
    )
    return Curves(right, average, np.array([row["test"] for row in rows], np.uint16))


def check(task: str, table: Table, params: list[Params], count: int) -> None:
    """Train some plans of every depth on images, as a study would, and compare."""
    shared = bench(task)
    drawn = random.Random(1).sample(range(len(params)), len(params))
    depths = sorted({param["depth"] for param in params})
    of_depth = {depth: [row for row in drawn if params[row]["depth"] == depth] for depth in depths}
    chosen = [row for rows in zip(*of_depth.values(), strict=False) for row in rows][:count]
    differences = []
    for row in chosen:
        with single_threaded():
            training = shared.training(table.space.plan(params[row]), table.epochs)
            found = curve(training, shared.test, EVERY)
        stored = [right for right in table.full.right[row].tolist() if right != DIVERGED]
        if len(found["right"]) != len(stored):
            raise SystemExit(
                f"row {row} diverges after {len(stored)} epochs, {len(found['right'])} on images"
            )
        pairs = zip(found["right"], stored, strict=True)
        differences.append(max((abs(a - b) for a, b in pairs), default=0))
    print(
        f"{task}: {len(chosen)} plans trained on images: "
        f"{sum(difference == 0 for difference in differences)} curves identical, "
        f"largest difference {max(differences)} of {table.images} images"
    )


def make(task: str, jobs: int, checked: int) -> None:
    """Make the table of a task."""
    params = all_params(bench(task).found.space)
    recipe = json.dumps([SPACE, TASKS[task], DECAY, params])
    key = hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()
    path = HERE.parent / "storage" / "search_table.files" / f"{task}-{key}.jsonl"
    table = make_table(task, params, train_all(task, params, path, jobs))
    output = TABLES / f"{task}.npz"
    TABLES.mkdir(exist_ok=True)
    table.save(output)
    size = output.stat().st_size / 1024
    print(f"{output}: {len(params)} plans, {size:.0f} KiB, {table.about['cpu_s']} CPU s")
    if checked:
        check(task, table, params, checked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes that train")
    parser.add_argument("--check", type=int, default=24, help="plans trained on images as well")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas between")
    options = parser.parse_args()
    for task in options.tasks.split(","):
        make(task, options.jobs, options.check)


if __name__ == "__main__":
    main()
