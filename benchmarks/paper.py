"""Does AutoTune's search beat a frozen network? Do inherited weights, does a joint search help?

On every split three questions are answered by differences of accuracy on the test images, which no
search reads:

1. the greedy search (layer by layer, ``studies/paper-*.yaml``) against the frozen baseline;
2. reshaped layers that inherit their weights against the same layers started at random: the two
   searches, and drawn plans that are trained both ways;
3. the joint search against the greedy one, with as many trials as that has taken.

The reduced form fits one thread: another small backbone, small images, few classes, fewer layers
and trials. The full form is for GPUs: the networks, images and stages of the paper.

    python benchmarks/paper.py --images PHOTOS --weights FILE
    python benchmarks/paper.py --images PHOTOS --weights FILE --report   # of what is done
    python benchmarks/paper.py --full

Each result is a line of a file beside the studies, in ``--folder``; the same command continues.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import optuna
import torch
from paper_report import KEY, Key, Row, render
from reports import append_line, read_lines, write_report

from autotune.config.loading import load_study_file
from autotune.config.schema import StudyConfig
from autotune.data.image_formats import ENDINGS
from autotune.errors import DivergedError
from autotune.plan import SOLVED, TrialPlan
from autotune.results.evaluation.plan_selection import select_plan
from autotune.results.study_results import StudyResults
from autotune.search.space import Space
from autotune.study.engine.launcher import run_study
from autotune.study.setup.opening import OpenStudy
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.refit import open_refit_tests, refit_views, train_refit
from autotune.study.trial.trainings import Training
from autotune.training.metrics import compute_metrics
from studies import open_study, run_trials

#: The searches of a split: how changed layers start, and the strategy. A joint search gets as many
#: trials as the greedy one before it has taken.
SEARCHES = (
    ("random", "greedy"),
    ("pretrained", "greedy"),
    ("pretrained", "joint"),
)
#: What is measured: its name, the init, and the work.
Job = tuple[str, str, Callable[[], Row]]
#: Init of the study file -> ``inherit`` of a plan.
STARTS = {"random": "none", "pretrained": "weights"}
#: Limits the images of a refit that are kept in memory.
MEMORY_BYTES = 1 << 30
NETWORKS = ("vgg16", "resnet50", "densenet121")
DATASETS = ("caltech101", "caltech256", "dogs")
#: What studies/folder.yaml recommends for training, instead of the paper's policy.
RECOMMENDED = (
    "baseline.head_start=solved",
    "space.training.head_start=solved",
    "space.training.optimizer=adamw",
    "space.training.lr={low: 1.0e-4, high: 1.0e-2, log: true}",
    "space.training.backbone_lr={low: 0.01, high: 1.0, log: true}",
)
#: The training of the study files of the paper, and another one in the same space of layers.
TRAININGS: dict[str, tuple[str, ...]] = {"paper": (), "recommended": RECOMMENDED}


@dataclass(frozen=True)
class Setting:
    """What is searched on a split, and where.

    Args:
        name: Names network, images and training in reports.
        study: The study file.
        overrides: What differs from it.
        seed: Of the split, and of the search.
        folder: Where studies and results are.
        here: Whether one process on one thread does everything, instead of all devices.
        pairs: Plans that are trained with both starts of their changed layers.
    """

    name: str
    study: str
    overrides: tuple[str, ...]
    seed: int
    folder: Path
    here: bool
    pairs: int

    @property
    def gpu(self) -> str | None:
        """Where this process trains: on the CPU, or on the first GPU if there is one."""
        return "" if self.here else None

    def config(self, init: str, strategy: str, trials: int | None) -> StudyConfig:
        """Return the configuration of a search."""
        overrides = [
            *self.overrides,
            *(f"{section}.seed={self.seed}" for section in ("data", "search")),
            f"init={init}",
            f"search.strategy={strategy}",
            f"storage=sqlite:///{self.folder}/studies.db",
            *([] if trials is None else [f"search.trials={trials}"]),
        ]
        return load_study_file(
            self.study,
            overrides,
            f"{self.name}-{self.seed}-{init}-{strategy}".replace(" ", "-"),
        )


def reduced(options: argparse.Namespace) -> Iterator[Setting]:
    """Yield the settings of the form for one thread, training by training, split by split."""
    folder = options.folder.absolute()
    for name in options.trainings:
        for seed in range(options.splits):
            images = draw_images(options.images, folder / f"images-{seed}", options.classes, seed)
            overrides = (
                f"dataset={images}",
                f"backbone={options.backbone}",
                f"weights={options.weights}",
                f"data.image_size={options.image_size}",
                "data.test=0.33",
                "data.validation=0.17",
                f"space.trainable_layers.high={options.layers}",
                f"space.layers.max_layers={options.layers}",
                f"search.greedy.trials_per_stage={options.stage_trials}",
                f"training.epochs={options.epochs}",
                f"training.batch_size={options.batch_size}",
                "training.precision=off",  # auto is decided by times, which other programs change
                *TRAININGS[name],
            )
            yield Setting(name, "paper-resnet50", overrides, seed, folder, True, options.pairs)


def full(options: argparse.Namespace) -> Iterator[Setting]:
    """Yield the settings of the form for GPUs: as the study files of the paper have them.

    A search of rates is a stage more, of 25 trials.
    """
    folder = options.folder.absolute()
    for seed in range(options.splits):
        for dataset in options.datasets:
            for network in options.networks:
                for training in options.trainings:
                    yield Setting(
                        f"{network} {dataset} {training}",
                        f"paper-{network}",
                        (f"dataset={dataset}", "search.trials=201", *TRAININGS[training]),
                        seed,
                        folder,
                        False,
                        options.pairs,
                    )


def draw_images(images: Path, folder: Path, classes: int, seed: int) -> Path:
    """Make a folder with some of the classes, of the images of all splits together."""
    if folder.exists():
        return folder
    parts = [path for path in (images / "train", images / "val") if path.is_dir()] or [images]
    names = sorted({path.name for part in parts for path in part.iterdir() if path.is_dir()})
    part_folder = folder.with_suffix(".part")
    for name in random.Random(seed).sample(names, min(classes, len(names))):
        (part_folder / name).mkdir(parents=True, exist_ok=True)
        for part in parts:
            for path in sorted((part / name).iterdir()):
                if path.suffix.lower() in ENDINGS:
                    (part_folder / name / f"{part.name}-{path.name}").symlink_to(path.absolute())
    part_folder.rename(folder)
    return folder


def search(setting: Setting, config: StudyConfig) -> OpenStudy:
    """Run a search, or what is missing of it."""
    if not setting.here:
        result = run_study(config)
        if result.interrupted:
            raise KeyboardInterrupt
        return result.handle
    handle = open_study(config)
    handle.trial_queue().reclaim_stale()
    run_trials(handle)
    return handle


def run_search(setting: Setting, init: str, strategy: str, trials: int | None) -> Row:
    """Search, and measure the best plan on the test images."""
    handle = search(setting, setting.config(init, strategy, trials))
    plan = select_plan(StudyResults.from_study(handle.study)).plan
    trials = handle.trial_queue().progress().finished
    return {"trials": trials, **measure(plan, build_context(handle, gpu=setting.gpu))}


@lru_cache(maxsize=1)
def open_context(setting: Setting) -> WorkerContext:
    """Return what trains plans of the space that a search has had."""
    handle = search(setting, setting.config("pretrained", "greedy", None))
    return build_context(handle, gpu=setting.gpu)


def run_frozen(setting: Setting, head_start: str | None) -> Row:
    """Measure the frozen backbone with the linear head of the study, or one that starts so."""
    ctx = open_context(setting)
    plan = ctx.space.baseline(ctx.config.baseline)
    if head_start:
        plan = replace(plan, policy=replace(plan.policy, head_start=head_start))
    return measure(plan, ctx)


def run_pair(setting: Setting, number: int, init: str) -> Row:
    """Train a drawn plan with one of the starts of its changed layers."""
    ctx = open_context(setting)
    plan = draw_plan(ctx.space, random.Random(f"{setting.name} {setting.seed} {number}"))
    return measure(replace(plan, inherit=STARTS[init]), ctx)


def describe(plan: TrialPlan) -> Row:
    """Return what a report says of a plan."""
    return {
        "depth": plan.depth,
        "reshaped": len(plan.reshaped),
        "plan": plan.describe(),
    }


def draw_plan(space: Space, generator: random.Random) -> TrialPlan:
    """Draw a plan with reshaped layers from a space; its head is linear."""
    names = [name for name in space.distributions if name.startswith(("layer.", "training."))]
    sampler = optuna.samplers.RandomSampler(generator.getrandbits(31))
    study = optuna.create_study(sampler=sampler)
    while True:
        drawn = study.ask({name: space.distributions[name] for name in (*names, "depth")}).params
        base = space.params(space.baseline())
        assert base is not None
        plan = space.plan({**base, **drawn})
        if plan.reshaped:
            return plan


def measure(plan: TrialPlan, ctx: WorkerContext) -> Row:
    """Train a plan as a refit does; return its test accuracy, ``None`` if it diverges."""
    data, fit = ctx.resources.get(plan.backbone).data, ctx.config.refit
    views = refit_views(data, ctx.config, fit, MEMORY_BYTES)
    try:
        refit = train_refit(Training("plan", plan, refit=fit), ctx, views)
    except DivergedError:
        return {"test": None, **describe(plan)}
    logits, labels = refit.predict(open_refit_tests(ctx.handle, ctx.config, data.spec))
    accuracy = compute_metrics(logits, labels).accuracy
    return {"test": accuracy, "images": len(labels), **describe(plan)}


def searches(setting: Setting, rows: Mapping[Key, Row]) -> Iterator[Job]:
    """Yield the searches of a split, and the frozen baseline."""
    for init, strategy in SEARCHES:
        greedy = rows.get((setting.name, setting.seed, "greedy", init))
        trials = greedy["trials"] if greedy and strategy == "joint" else None
        yield strategy, init, partial(run_search, setting, init, strategy, trials)
    yield "baseline", "", partial(run_frozen, setting, None)


def plans(setting: Setting, rows: Mapping[Key, Row]) -> Iterator[Job]:
    """Yield what needs no search: the solved baseline, and drawn plans."""
    yield "solved", "", partial(run_frozen, setting, SOLVED)
    for number in range(setting.pairs):
        for init in STARTS:
            yield f"pair {number}", init, partial(run_pair, setting, number, init)


def run(settings: Sequence[Setting], path: Path) -> dict[Key, Row]:
    """Measure what has no line in the file yet, searches first; return all lines."""
    rows = read(path)
    for setting, jobs in ((one, jobs) for jobs in (searches, plans) for one in settings):
        # A generator: the trials of the joint search follow from the row of the greedy one.
        for what, init, work in jobs(setting, rows):
            key = (setting.name, setting.seed, what, init)
            if key in rows:
                continue
            start = time.process_time()
            row = {**dict(zip(KEY, key, strict=True)), **work()}
            rows[key] = row = {**row, "cpu_s": round(time.process_time() - start, 1)}
            append_line(path, row)
            print(json.dumps(row), flush=True)
    return rows


def read(path: Path) -> dict[Key, Row]:
    """Read the lines of a file, if it is there."""
    return {tuple(row[name] for name in KEY): row for row in read_lines(path)}


def about(options: argparse.Namespace) -> str:
    """Say what was run."""
    text = (
        "Accuracy on the test images of a split, which no search reads. Both sides of a "
        "difference have the same images and the same seed. The interval is Student's t over the "
        "splits, each for itself, not for all of them together. Every plan was trained again on "
        "training and validation images. A joint search has as many trials as the greedy one with "
        "the same start. Drawn plans reshape the last layers at random, with a linear head; their "
        "values are means over the plans of a split. *paper*: Adagrad at 0.01, validation loss. "
        "*recommended*: AdamW, rates searched, heads that start solved. "
    )
    if options.full:
        return f"{text}The study files of the paper, whole."
    return (
        f"{text}Reduced: {options.backbone}, {options.image_size} px, {options.classes} of the "
        "classes, drawn with the seed of the split; half of their images train, a sixth "
        "validates, a third tests; the space of studies/paper-resnet50.yaml in the last "
        f"{options.layers} layers, {options.stage_trials} trials a stage, {options.epochs} "
        f"epochs, batches of {options.batch_size}."
    )


def command(options: argparse.Namespace) -> str:
    """Return the command of a report."""
    places = "--full" if options.full else "--images PHOTOS --weights FILE"
    return f"python benchmarks/paper.py {places} --splits {options.splits}"


def main() -> None:
    """Measure what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the paper's form, for GPUs")
    parser.add_argument(
        "--report", action="store_true", help="train nothing; report what is there"
    )
    parser.add_argument("--folder", type=Path, default=Path("storage/paper"), help="of all files")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2, help="drawn plans on each split")
    parser.add_argument("--trainings", nargs="*", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--output", type=Path, help="the report; default: in benchmarks/results")
    of_reduced = parser.add_argument_group("of the reduced form")
    of_reduced.add_argument(
        "--images", type=Path, help="class folders, or train/ and val/ of them"
    )
    of_reduced.add_argument("--weights", help="file of the backbone's weights")
    of_reduced.add_argument("--backbone", default="mobilenetv2_100")
    of_reduced.add_argument("--image-size", type=int, default=96)
    of_reduced.add_argument("--classes", type=int, default=60)
    of_reduced.add_argument("--layers", type=int, default=3, help="last layers that are searched")
    of_reduced.add_argument("--stage-trials", type=int, default=3)
    of_reduced.add_argument("--epochs", type=int, default=4)
    of_reduced.add_argument("--batch-size", type=int, default=16)
    of_full = parser.add_argument_group("of the full form")
    of_full.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    of_full.add_argument("--datasets", nargs="*", default=list(DATASETS))
    options = parser.parse_args()
    if not options.full and not (options.report or (options.images and options.weights)):
        parser.error("the reduced form needs --images and --weights; the full form is --full")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not options.full:
        torch.set_num_threads(1)
    path = options.folder / ("full.jsonl" if options.full else "reduced.jsonl")
    settings = [] if options.report else full(options) if options.full else reduced(options)
    rows = run(list(settings), path)
    text = render(list(rows.values()), about(options), command(options))
    print(text)
    write_report(text, "paper-full" if options.full else "paper", options.output)


if __name__ == "__main__":
    main()
