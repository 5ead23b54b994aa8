"""What a good user would write today, against autotune: time and accuracy over one list of plans.

The naive side (naive_study.py) and an autotune study train the same plans on the same images: the
same layers frozen, the same heads, optimizer, learning rates, schedule, batches and epochs, no
pruning; two worker processes each, which share the cores. autotune runs twice: cold, with an empty
folder of files, and warm, as a fresh study that finds the files of the first.

    python benchmarks/naive.py --images FOLDER --weights FILE --backbone mobilenetv2_100 --write
    python benchmarks/naive.py ... --naive-plans 7     # naive for some plans, scaled to all
    python benchmarks/naive.py ... --sides ours        # naive from the row file, where it is there

FOLDER holds ``train/`` and ``val/``. Each side's rows are kept in a file (``--rows``) with date,
host and versions; a report of sides that are not of one run says so. All on the CPU. ``--write``
writes a dated report under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from naive_report import Profile, Result, Run, render
from naive_study import (
    DROPOUT,
    HIDDEN,
    LABEL_SMOOTHING,
    LAYER_DECAY,
    LR,
    STUDY,
    WEIGHT_DECAY,
    Model,
    Plan,
    Settings,
    count_classes,
    make_loaders,
    train,
)
from optuna.trial import FrozenTrial, TrialState
from reports import append_line, read_lines, write_report
from stack_shares import shares_of

from autotune.errors import UserError
from autotune.models.backbone import build_backbone
from autotune.models.layers import list_layers
from autotune.models.pretrained.names import check_name
from autotune.plan import TrialPlan
from autotune.runtime import available_cpus
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import build_context

HERE = Path(__file__).parent
ROWS = HERE.parent / "storage" / "naive-rows.jsonl"
PACKAGES = ("torch", "torchvision", "timm", "optuna")
MOST_DEPTH = 6
#: Learning rates that are drawn: a head alone takes more than layers that are trainable with it.
HEAD_LR = (1e-3, 1e-2)
FINE_TUNING_LR = (1e-4, 3e-3)
#: The first plan of the list, which is autotune's baseline.
BASELINE = Plan(0, 0, lr=1e-2, layer_decay=1.0, weight_decay=1e-4, label_smoothing=0.0)
LIST_SEED = 0
CROP, FLIP, WARMUP, CLIP_NORM = 0.5, 0.5, 0.1, 1.0
#: Epochs of the naive side that are looked at: all of them are alike.
NAIVE_EPOCHS_SEEN = 2


def draw_plans(count: int, max_depth: int) -> list[Plan]:
    """Draw the list: the baseline, then all depths in turn; a shorter list begins the same."""
    rng = random.Random(LIST_SEED)

    def log_uniform(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")

    plans = [BASELINE]
    for number in range(1, count):
        depth = number % (max_depth + 1)
        plans.append(
            Plan(
                depth=depth,
                hidden=rng.choice(HIDDEN),
                lr=log_uniform(*(FINE_TUNING_LR if depth else HEAD_LR)),
                layer_decay=round(rng.uniform(*LAYER_DECAY), 2),
                weight_decay=log_uniform(*WEIGHT_DECAY),
                label_smoothing=rng.choice(LABEL_SMOOTHING),
            )
        )
    return plans


# The naive side


def run_naive(settings: Settings, plans: Sequence[Plan], folder: Path, workers: int) -> Timed:
    """Queue plans in a study and have worker processes train them."""
    folder.mkdir(parents=True)
    settings = replace(settings, storage=f"sqlite:///{folder}/study.db")
    file = folder / "settings.json"
    file.write_text(json.dumps(asdict(settings)), encoding="utf-8")
    start, cpu = time.perf_counter(), cpu_of_children()
    study = optuna.create_study(
        study_name=STUDY, storage=settings.storage, direction="maximize", sampler=RANDOM
    )
    for index, plan in enumerate(plans):
        study.enqueue_trial(asdict(plan), user_attrs={"plan": index})
    command = [sys.executable, str(HERE / "naive_study.py"), str(file)]
    call_all([command] * workers, folder, settings.on_gpu)
    took, cpu = time.perf_counter() - start, cpu_of_children() - cpu
    results: dict[int, Result] = {}
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        index = trial.user_attrs["plan"]
        # Two processes may take one queued trial, and both train it (optuna issue 4621).
        results.setdefault(index, result_of(index, trial, trial.user_attrs["parameters"]))
    counts = (study.user_attrs["train"], study.user_attrs["validation"])
    return Timed(took, cpu, list(results.values()), counts)


def choose_loader_workers(settings: Settings, plan: Plan, folder: Path, workers: int) -> int:
    """Try how many processes should prepare the images of one worker; take the fastest."""
    took = {}
    for count in (0, 1, 2):
        tried = replace(settings, loader_workers=count, epochs=2)
        timed = run_naive(tried, [plan] * workers, folder / f"loaders-{count}", workers)
        took[count] = max(result.seconds for result in timed.results)
        print(f"naive, {count} loader processes a worker: {took[count]:.1f} s", flush=True)
    return min(took, key=lambda count: took[count])


# autotune's side


def study_file(settings: Settings, plans: Sequence[Plan], views: int, folder: Path) -> Path:
    """Write the study file that has the list as its space, with a sampler that draws the list."""
    shutil.copy(HERE / "naive_sampler.py", folder)
    listed = [
        {
            "depth": plan.depth,
            "head.hidden_layers": int(plan.hidden > 0),
            "head.units.1": plan.hidden or HIDDEN[1],
            "training.lr": plan.lr,
            "training.layer_decay": plan.layer_decay,
            "training.weight_decay": plan.weight_decay,
            "training.label_smoothing": plan.label_smoothing,
        }
        for plan in plans
    ]
    (folder / "plans.json").write_text(json.dumps(listed), encoding="utf-8")
    values = {
        "dataset": settings.images,
        "backbone": settings.backbone,
        "weights": settings.weights,
        "data": {"image_size": settings.image_size},
        "space": {
            "trainable_layers": {"low": 0, "high": settings.max_depth},
            "head": {
                "hidden_layers": {"low": 0, "high": 1},
                "units": list(HIDDEN[1:]),
                "dropout": DROPOUT,
            },
            "training": {
                "lr": {"low": LR[0], "high": LR[1], "log": True},
                "layer_decay": {"low": LAYER_DECAY[0], "high": LAYER_DECAY[1]},
                "weight_decay": {"low": WEIGHT_DECAY[0], "high": WEIGHT_DECAY[1], "log": True},
                "label_smoothing": list(LABEL_SMOOTHING),
            },
        },
        "baseline": {
            "lr": BASELINE.lr,
            "weight_decay": BASELINE.weight_decay,
            "label_smoothing": BASELINE.label_smoothing,
        },
        "search": {
            "sampler": "naive_sampler.py:Listed",
            "pruner": "none",
            "default_plans": False,
            "trials": len(plans),
            "seed": settings.seed,
        },
        "training": {
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "num_views": views,
            "warmup": settings.warmup,
            "clip_grad_norm": settings.clip_norm,
            "augment": {"crop": settings.crop, "flip": settings.flip},
        },
        "storage": f"sqlite:///{folder}/study.db",
        "files": str(folder / "files"),
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def run_ours(
    file: Path, name: str, plans: Sequence[Plan], workers: int, gpus: str = "none"
) -> Timed:
    """Run the study under a name, with the files that are there."""
    command = [sys.executable, "-m", "autotune", "run", str(file), "--name", name]
    command += ["--workers", str(workers), "--gpus", gpus]
    start, cpu = time.perf_counter(), cpu_of_children()
    call_all([command], file.parent, gpus != "none")
    took, cpu = time.perf_counter() - start, cpu_of_children() - cpu
    study = open_existing(name, f"sqlite:///{file.parent}/study.db").study
    trials = study.get_trials(deepcopy=False)
    if [trial.state for trial in trials] != [TrialState.COMPLETE] * len(plans):
        raise SystemExit(f"{name}: the study was disturbed: {[trial.state for trial in trials]}")
    results = []
    for trial, plan in zip(trials, plans, strict=True):
        found = attrs.trial_plan(trial)
        assert found is not None
        hidden = sum(layer.units for layer in found.head.hidden)
        trained = (found.depth, hidden, found.policy.lr, found.policy.weight_decay)
        assert trained == (plan.depth, plan.hidden, plan.lr, plan.weight_decay), (found, plan)
        trainable = trial.user_attrs[attrs.TRAINABLE_PARAMETERS]
        results.append(result_of(trial.number, trial, trainable))
    info = study.user_attrs[attrs.DATASET]
    return Timed(took, cpu, results, (info["train"], info["validation"]))


# Both


@dataclass(frozen=True)
class Timed:
    """What a side did.

    Args:
        seconds: Wall time.
        cpu_s: Time on all cores, that of other programs left out.
        results: Of the trials.
        images: How many train and validate.
    """

    seconds: float
    cpu_s: float
    results: list[Result]
    images: tuple[int, int]


RANDOM = optuna.samplers.RandomSampler(seed=0)


def result_of(index: int, trial: FrozenTrial, parameters: int) -> Result:
    assert trial.duration is not None and trial.value is not None
    return Result(index, trial.duration.total_seconds(), trial.value, parameters)


def cpu_of_children() -> float:
    """Return the seconds on a core of all processes that this one has waited for, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call_all(commands: Sequence[list[str]], folder: Path, on_gpu: bool = False) -> None:
    """Run processes side by side until all have ended, and end if one of them failed."""
    # As in a plain shell: who has set such a variable has tuned the naive side too.
    tuned = ("MALLOC_", "OMP_", "MKL_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(tuned)}
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    paths = [folder / f"output-{number}.txt" for number in range(len(commands))]
    processes = []
    try:
        for command, path in zip(commands, paths, strict=True):
            with path.open("w", encoding="utf-8") as output:
                processes.append(
                    subprocess.Popen(command, stdout=output, stderr=output, env=environment)
                )
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait() for process in processes]
    for command, path, code in zip(commands, paths, codes, strict=True):
        if code > 0:
            said = path.read_text(encoding="utf-8")[-3000:]
            raise SystemExit(f"{said}\n{' '.join(command)} ended with code {code}")
    if any(codes):
        raise SystemExit(f"a process was killed: {codes}")


def linked(images: Path, folder: Path) -> Path:
    """Make a folder with the parts of another; a test part keeps autotune from carving one.

    No search reads the test part, so that of a folder without one is its validation part.
    """
    folder.mkdir()
    test = images / "test"
    parts = {"train": images / "train", "val": images / "val"}
    parts["test"] = test if test.is_dir() else images / "val"
    for name, path in parts.items():
        (folder / name).symlink_to(path.resolve(), target_is_directory=True)
    return folder


def profile(settings: Settings, plans: Sequence[Plan], file: Path | None) -> Iterator[Profile]:
    """Look where one plan of depth 0, of half and of the full depth spends its time, each side.

    One process, without loader processes. autotune's plans are trained one after the other, as a
    worker does, with the files of the measured study.
    """
    torch.set_num_threads(settings.threads)
    depths = dict.fromkeys((0, settings.max_depth // 2, settings.max_depth))
    known = {plan.depth: index for index, plan in reversed(list(enumerate(plans)))}
    indices = [known[depth] for depth in depths if depth in known]
    if file is None:
        seen = replace(settings, epochs=NAIVE_EPOCHS_SEEN, loader_workers=0)
        loaders = make_loaders(seen)
        classes = count_classes(loaders[0])

        def train_naive(plan: Plan) -> None:
            list(train(Model(seen, plan, classes), plan, seen, *loaders))

        for plan in (plans[index] for index in indices):
            shares = shares_of(partial(train_naive, plan))
            yield Profile("naive", plan.depth, seen.epochs, shares)
        return
    opened = open_existing("warm", f"sqlite:///{file.parent}/study.db", str(file.parent / "files"))
    ctx = build_context(opened)

    def train_ours(plan: TrialPlan) -> None:
        list(build_trainer(plan, ctx).run())

    for index in indices:
        found = attrs.trial_plan(opened.study.get_trials(deepcopy=False)[index])
        assert found is not None
        shares = shares_of(partial(train_ours, found))
        yield Profile("autotune", found.depth, settings.epochs, shares)


# Rows


def host() -> str:
    """Name this machine without telling its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def kept(rows: Path, like: dict[str, Any]) -> list[Run]:
    """Read the last run of each side and seed with certain settings."""
    found: dict[tuple[str, int], Run] = {}
    for values in read_lines(rows):
        if values["settings"] == like:
            run = Run(**{**values, "results": [Result(**one) for one in values["results"]]})
            found[run.side, run.seed] = run
    return list(found.values())


# The run


def measure(options: argparse.Namespace, settings: Settings, plans: list[Plan]) -> str:
    """Run the sides and return the report."""
    started = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    fixed = ("images", "weights", "seed", "storage", "loader_workers", "device")
    like = {
        **{name: value for name, value in asdict(settings).items() if name not in fixed},
        "images": options.images.name,
        "weights": Path(settings.weights).name,
        "views": options.views,
        "workers": options.workers,
        "plans": [asdict(plan) for plan in plans],
    }
    like = json.loads(json.dumps(like))
    images: set[tuple[int, int]] = set()
    profiles: list[Profile] = []

    def note(side: str, seed: int, timed: Timed, loaders: int | None = None) -> None:
        images.add(timed.images)
        if len(images) > 1:
            raise SystemExit(f"the sides have read different numbers of images: {images}")
        versions = {name: version(name) for name in PACKAGES}
        took = (timed.images, timed.seconds, timed.cpu_s, timed.results)
        run = Run(side, seed, started, host(), versions, like, loaders, *took)
        append_line(options.rows, asdict(run))
        print(f"{side}, seed {seed}: {timed.seconds:.0f} s for {len(timed.results)} plans")

    with tempfile.TemporaryDirectory(prefix="naive-") as name:
        folder = Path(name)
        settings = replace(settings, images=str(linked(options.images, folder / "images")))
        if "naive" in options.sides:
            loaders = options.loader_workers
            if loaders is None:
                middle = plans[min(settings.max_depth // 2, len(plans) - 1)]
                loaders = choose_loader_workers(settings, middle, folder, options.workers)
            settings = replace(settings, loader_workers=loaders)
        file = None
        for seed in range(options.seeds):
            seeded = replace(settings, seed=seed)
            if "ours" in options.sides:
                home = folder / f"ours-{seed}"
                home.mkdir()
                made = study_file(seeded, plans, options.views, home)
                file = file or made
                for side in ("cold", "warm"):
                    note(side, seed, run_ours(made, side, plans, options.workers))
            if "naive" in options.sides:
                some = plans[: options.naive_plans]
                timed = run_naive(seeded, some, folder / f"naive-{seed}", options.workers)
                note("naive", seed, timed, settings.loader_workers)
        if options.profile and "naive" in options.sides:
            profiles += profile(settings, plans, None)
        if options.profile and file is not None:
            profiles += profile(settings, plans, file)
    now = {"naive": ["naive"], "ours": ["cold", "warm"]}
    measured = [side for given in options.sides for side in now[given]]
    runs = [
        run
        for run in kept(options.rows, like)
        if run.started == started or (run.side not in measured and run.seed < options.seeds)
    ]
    return render(runs, plans, like, profiles, started)


def checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, int]:
    """Check what was given; return the weights and the largest depth."""
    for part in ("train", "val"):
        if not (options.images / part).is_dir():
            parser.error(
                f"--images: must hold train/ and val/, but {options.images} has no {part}/"
            )
    for name in ("plans", "epochs", "seeds", "workers", "views", "naive_plans"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            given = f"--{name.replace('_', '-')}"
            parser.error(f"{given}: must be at least 1, but got {getattr(options, name)}")
    weights = options.weights
    if weights not in ("hub", "none"):
        if not Path(weights).is_file():
            parser.error(f"--weights: must be hub, none or a file, but there is no {weights}")
        weights = str(Path(weights).resolve())
    try:
        check_name(options.backbone)
        layers = len(list_layers(build_backbone(options.backbone, options.image_size, "meta")))
    except UserError as error:
        parser.error(f"--backbone: {error}")
    return weights, min(MOST_DEPTH, layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default="hub", help="hub, none or a file")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--views", type=int, default=4, help="of autotune; naive draws anew")
    parser.add_argument("--plans", type=int, default=24, help="length of the list")
    parser.add_argument("--naive-plans", type=int, help="naive trains the first ones, scaled")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions of the whole list")
    parser.add_argument("--workers", type=int, default=2, help="processes of each side")
    parser.add_argument("--loader-workers", type=int, help="of naive; default: by trying 0, 1, 2")
    parser.add_argument("--sides", nargs="+", choices=["ours", "naive"], default=["ours", "naive"])
    parser.add_argument("--rows", type=Path, default=ROWS, help="file that keeps what is measured")
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    options = parser.parse_args()
    weights, max_depth = checked(parser, options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = Settings(
        images="",
        backbone=options.backbone,
        weights=weights,
        image_size=options.image_size,
        max_depth=max_depth,
        epochs=options.epochs,
        batch_size=options.batch_size,
        crop=CROP,
        flip=FLIP,
        warmup=WARMUP,
        clip_norm=CLIP_NORM,
        seed=0,
        threads=max(1, available_cpus() // options.workers),
        loader_workers=options.loader_workers or 0,
        storage="",
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes as well
    text = measure(options, settings, draw_plans(options.plans, max_depth))
    print(text)
    if options.write:
        print(write_report(text, "naive"))


if __name__ == "__main__":
    main()
