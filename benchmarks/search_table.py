"""What every plan of a small space scores in every epoch, from real training.

Trains each plan of a finite space on the digits and keeps, for every epoch, how many validation
images it had right and its log loss. A study can then be simulated in seconds on the results that
a real one would have had: `benchmarks/search_quality.py` does. The layers that a plan locks give
the same features in all plans, so they are computed once a depth and only the rest is trained;
some plans are then trained as autotune does, on images, and compared.

    python benchmarks/search_table.py [--jobs 2] [--check 24]

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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, IntDistribution
from search_curves import DIVERGED, OVERRIDES, TABLE, Params, Table, load_config
from torch import Tensor, nn

from autotune.data.views.study_data import StudyData
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
    "training.lr": (0.001, 0.004, 0.017, 0.07, 0.3),
    "training.layer_decay": (0.6, 1.0),
}
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
    """Views that hold features in the place of images.

    Args:
        images: The views that the features were computed from.
        features: ``(N, views, ...)``, of every view of every image.
    """

    def __init__(self, images: Views, features: Tensor) -> None:
        # Order, labels and batches are those of the images; what is handed out is another tensor.
        self.__dict__.update(vars(images))
        self._kept = features
        self._filled = torch.ones(features.shape[:2], dtype=torch.bool)


def as_it_is(features: Tensor) -> Tensor:
    """Stand in for the normalisation, which the features have behind them."""
    return features


@dataclass(frozen=True)
class Bench:
    """What all trainings share."""

    found: Definition
    backbone: Backbone
    train: Views
    validation: Views
    normalize: Normalizer

    def network(self, plan: TrialPlan) -> Network:
        """Build the network of a plan."""
        classes = len(self.found.dataset.source.classes)
        return build_network(self.backbone, plan, classes, self.found.config.search.seed)

    def training(self, plan: TrialPlan) -> Trainer:
        """Prepare the training of a plan as a study would."""
        return self._training(
            self.network(plan), plan, self.train, self.validation, self.normalize
        )

    def training_on_features(self, plan: TrialPlan) -> Trainer:
        """Prepare the same training on what the frozen layers give."""
        network = self.network(plan)
        for name in frozen_children(plan.depth):
            network.backbone.set_submodule(name, nn.Identity())
        return self._training(network, plan, *features(plan.depth), as_it_is)

    def _training(
        self, network: Network, plan: TrialPlan, train: Views, validation: Views, normalize: Any
    ) -> Trainer:
        config = self.found.config
        seed = config.search.seed
        return Trainer(network, plan.policy, config.training, train, validation, normalize, seed)


@cache
def bench() -> Bench:
    """Open the images and the backbone, once a process."""
    found = define(load_config())
    config = found.config
    with tempfile.TemporaryDirectory(prefix="search-table-") as folder:
        task = StudyData.open(config.dataset, config.data, found.backbones[0].spec, Path(folder))
        settings = config.training
        train = task.train_views(settings.augment, settings.view_count, config.search.seed)
        size = config.data.image_size
        backbone = load_backbone(config.backbones[0], config.weights_of(config.backbones[0]), size)
        normalize = Normalizer.from_config(backbone.data_config, torch.device("cpu"))
        return Bench(found, backbone, train, task.validation_views(), normalize)


def frozen_children(depth: int) -> tuple[str, ...]:
    """Name the children of the backbone that lie before the trainable layers, from the input."""
    return (*STEM, *BLOCKS[: len(BLOCKS) - depth]) if depth <= len(BLOCKS) else ()


@cache
def features(depth: int) -> tuple[FeatureViews, FeatureViews]:
    """Compute what the frozen layers make of the training and of the validation images."""
    shared = bench()
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

    return compute(shared.train, batch), compute(shared.validation, 4 * batch)


def curve(training: Trainer) -> tuple[list[int], list[float]]:
    """Train to the end.

    Returns:
        Right validation images after each epoch, and the log loss; both are shorter than the
        training where it diverged.
    """
    right: list[int] = []
    loss: list[float] = []
    assert training.validation is not None
    images = len(training.validation)
    try:
        for result in training.run():
            assert result.metrics is not None
            right.append(round(result.metrics.accuracy * images))
            loss.append(round(result.metrics.log_loss, 4))
    except DivergedError:
        pass
    return right, loss


def train_row(job: tuple[int, Params]) -> dict[str, Any]:
    """Train one row of the table."""
    row, params = job
    plan = bench().found.space.plan(params)
    start = time.process_time()
    with single_threaded():
        right, loss = curve(bench().training_on_features(plan))
    seconds = round(time.process_time() - start, 3)
    return {"row": row, "right": right, "loss": loss, "cpu_s": seconds}


def train_all(params: list[Params], path: Path, jobs: int) -> list[dict[str, Any]]:
    """Train the rows that are not in the file yet, in an order of no meaning."""
    rows: dict[int, dict[str, Any]] = {}
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = {row["row"]: row for row in map(json.loads, lines)}
    missing = [(row, params[row]) for row in range(len(params)) if row not in rows]
    random.Random(0).shuffle(missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with path.open("a", encoding="utf-8") as file, context.Pool(jobs) as pool:
        for done, row in enumerate(pool.imap_unordered(train_row, missing, chunksize=4), start=1):
            rows[row["row"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if done % 100 == 0 or done == len(missing):
                left_s = (time.perf_counter() - start) / done * (len(missing) - done)
                print(f"{len(rows)} of {len(params)} plans, {left_s / 60:.1f} minutes to go")
    return [rows[row] for row in range(len(params))]


def make_table(params: list[Params], rows: list[dict[str, Any]]) -> Table:
    """Put the rows into arrays."""
    space, config = bench().found.space, bench().found.config
    axes = axes_of(space)
    index = [[axes[name].index(value) for name, value in param.items()] for param in params]
    right = np.full((len(rows), config.training.epochs), DIVERGED, dtype=np.uint16)
    log_loss = np.full(right.shape, np.nan, dtype=np.float16)
    for row, found in enumerate(rows):
        right[row, : len(found["right"])] = found["right"]
        log_loss[row, : len(found["loss"])] = found["loss"]
    about = {
        "cpu_s": round(sum(row["cpu_s"] for row in rows)),
        "machine": f"{available_cpus()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "timm", "optuna")},
        "python": platform.python_version(),
    }
    images = len(bench().validation)
    return Table(space, axes, np.array(index, dtype=np.uint8), right, log_loss, images, about)


def check(table: Table, params: list[Params], count: int) -> None:
    """Train some plans of every depth on images, as a study would, and compare."""
    drawn = random.Random(1).sample(range(len(params)), len(params))
    depths = sorted({param["depth"] for param in params})
    of_depth = {depth: [row for row in drawn if params[row]["depth"] == depth] for depth in depths}
    chosen = [row for rows in zip(*of_depth.values(), strict=False) for row in rows][:count]
    differences = []
    for row in chosen:
        with single_threaded():
            right, _ = curve(bench().training(table.space.plan(params[row])))
        stored = [one for one in table.right[row].tolist() if one != DIVERGED]
        if len(right) != len(stored):
            raise SystemExit(f"row {row} diverges after {len(stored)} epochs, {len(right)} here")
        differences.append(max(abs(a - b) for a, b in zip(right, stored, strict=True)))
    print(
        f"{len(chosen)} plans trained on images: "
        f"{sum(difference == 0 for difference in differences)} curves identical, "
        f"largest difference {max(differences)} of {table.images} images"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes that train")
    parser.add_argument("--check", type=int, default=24, help="plans trained on images as well")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    params = all_params(bench().found.space)
    key = hashlib.blake2b(json.dumps([OVERRIDES, params]).encode(), digest_size=4).hexdigest()
    path = HERE.parent / "storage" / "search_table.files" / f"{key}.jsonl"
    table = make_table(params, train_all(params, path, options.jobs))
    table.save(options.output)
    size = options.output.stat().st_size / 1024
    print(f"{options.output}: {len(params)} plans, {size:.0f} KiB, {table.about['cpu_s']} CPU s")
    if options.check:
        check(table, params, options.check)


if __name__ == "__main__":
    main()
