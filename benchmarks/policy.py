"""What the fine-tuning policy of the folder preset brings over the one that it had before.

*Before*: at most six trainable layers, one learning rate for head and backbone with layer decay,
and a trained baseline. *After*: today's `studies/folder.yaml`, which can train all layers at a
rate of their own and solve the head. Everything else is the same: images, backbone, views, epochs,
sampler, pruner, seeds. Both also have their default plans, which follow from the space.

For each split both searches run, one after the other in this process and on one thread. The best
plan of each and its baseline are refitted and measured on the test split. Two comparisons are
made: after as many trials, and after as much device time, where the search that took longer is cut
at the time of the other. Device time is CPU time of the trials, so other programs do not change
it. Each search computes the features of its frozen layers for itself.

    python benchmarks/policy.py digits
    python benchmarks/policy.py photos --images PHOTOS --backbone mobilenetv2_100 --weights FILE
    python benchmarks/policy.py few --images CALTECH --backbone mobilenetv2_100 --weights FILE

``photos`` draws every split from all images of the folders ``train/`` and ``val/``. ``few`` trains
on one of these two and tests on the other, in turn; every pair of splits has other classes.
``--rows`` keeps what was measured, and a call measures only what it lacks. Writes a dated report
of all rows under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial
from reports import append_line, date_and_machine, read_lines, write_report

from autotune.config.loading import load_study_file
from autotune.results.evaluation.refit import refit_study
from autotune.results.values.intervals import CONFIDENCE_LEVEL, Interval, t_interval
from autotune.search import ranking
from autotune.study.setup.opening import OpenStudy
from studies import open_study, run_trials

Row = dict[str, Any]

#: The policy that `studies/folder.yaml` had before it could train all layers; the network of the
#: digits has no more than five.
MAX_LAYERS = {"digits": 5, "photos": 6, "few": 6}
BEFORE = (
    "space.training.backbone_lr=1.0",
    "space.training.head_start=random",
    "baseline.head_start=random",
    "baseline.lr=0.01",
)
SIDES = ("before", "after")
#: The images, network and views of `studies/digits.yaml`, with fewer images for validation: a
#: refit trains on these too.
DIGITS = (
    "dataset=digits",
    "backbone=test_resnet.letters",
    "data.image_size=32",
    "data.test=0.5",
    "data.validation=0.1",
    "data.train_per_class=20",
    "training.batch_size=64",
    "training.num_views=8",
    "training.augment={crop: 0.8, flip: 0.0, rotate: 15.0}",
)
#: What is compared: the column of the report, and the plans that the best is chosen from.
BUDGETS = {"trials": "equal trials", "time": "equal device time"}


def link_images(task: str, images: Path, split: int, classes: int, folder: Path) -> Path:
    """Make a folder of links to the images of a split."""
    made = folder / f"images-{split}"
    names = sorted(each.name for each in (images / "train").iterdir() if each.is_dir())
    if task == "photos":
        targets = {"train": "", "val": ""}
    else:
        first = split // 2 * classes
        names = names[first : first + classes]
        if len(names) < classes:
            raise SystemExit(f"{images} has too few classes for split {split} of {classes} each")
        targets = (
            {"train": "train", "val": "test"} if split % 2 else {"val": "train", "train": "test"}
        )
    for part, target in targets.items():
        for name in names:
            place = made / target / name
            place.mkdir(parents=True, exist_ok=True)
            for image in (images / part / name).iterdir():
                (place / f"{part}-{image.name}").symlink_to(image.resolve())
    return made


def overrides_of(options: argparse.Namespace, split: int, folder: Path) -> list[str]:
    """Return what both sides of a split have in common."""
    common = [
        f"data.seed={split}",
        f"search.seed={split}",
        f"search.trials={options.trials}",
        f"training.epochs={options.epochs}",
        "training.precision=off",
        "data.duplicates=off",
    ]
    if options.task == "digits":
        return [*DIGITS, *common]
    images = link_images(options.task, options.images, split, options.classes, folder)
    few = options.task == "few"
    return [
        f"dataset={images}",
        f"backbone={options.backbone}",
        f"weights={options.weights}",
        f"data.image_size={options.image_size}",
        f"training.batch_size={options.batch_size}",
        f"data.validation={1 / 6 if few else 0.2}",  # of few: one of three images of each class
        *([] if few else ["data.test=0.5"]),
        *common,
    ]


def open_side(overrides: Sequence[str], name: str, folder: Path) -> OpenStudy:
    """Decode the images of a study and make it."""
    storage = [f"storage=sqlite:///{folder}/{name}.db", f"files={folder}/{name}"]
    return open_study(load_study_file("folder", [*overrides, *storage], name))


def time_trials(study: OpenStudy) -> dict[int, float]:
    """Run the trials of a study here; return the CPU seconds of each."""
    started: dict[int, float] = {}
    seconds: dict[int, float] = {}

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            started[event["trial"]] = time.process_time()
        elif event["event"] == "end":
            seconds[event["trial"]] = time.process_time() - started[event["trial"]]

    run_trials(study, on_event)
    return seconds


def _ended(study: OpenStudy, seconds: dict[int, float]) -> list[FrozenTrial]:
    """Return the trials that ran; others may still be queued."""
    return [each for each in study.study.get_trials(deepcopy=False) if each.number in seconds]


def best_within(study: OpenStudy, seconds: dict[int, float], limit: float) -> int:
    """Return the number of the best trial of those that fit into some CPU seconds."""
    used, trials = 0.0, []
    for trial in _ended(study, seconds):
        used += seconds[trial.number]
        if used <= limit:
            trials.append(trial)
    best = ranking.best_trial(trials, study.study.direction)
    assert best is not None, "the baseline of one side takes longer than all trials of the other"
    return best.number


def measure_split(options: argparse.Namespace, split: int, folder: Path) -> Row:
    """Search with both policies and measure their plans on the test split."""
    common = overrides_of(options, split, folder)
    layers = [f"space.trainable_layers.high={MAX_LAYERS[options.task]}"]
    sides = {"before": [*BEFORE, *layers], "after": []}
    studies = {
        side: open_side([*common, *policy], f"{side}-{split}", folder)
        for side, policy in sides.items()
    }
    seconds = {side: time_trials(each) for side, each in studies.items()}
    shared = min(sum(each.values()) for each in seconds.values())
    row: Row = {"task": title_of(options), "split": split}
    for side, study in studies.items():
        limits = {"trials": math.inf, "time": shared}
        numbers = {
            budget: best_within(study, seconds[side], limit) for budget, limit in limits.items()
        }
        refits = {number: refit_study(study, number) for number in {*numbers.values()}}
        any_refit = next(iter(refits.values()))
        row[side] = {
            "trials": [
                [
                    trial.number,
                    trial.state.name,
                    trial.value,
                    round(seconds[side][trial.number], 2),
                ]
                for trial in _ended(study, seconds[side])
            ],
            "chosen": numbers,
            "plans": {budget: refits[number].plan.to_json() for budget, number in numbers.items()},
            "test": {
                "baseline": any_refit.baseline.accuracy,
                **{budget: refits[number].test.accuracy for budget, number in numbers.items()},
            },
        }
        row["test_images"] = any_refit.test_images
        row["images"] = any_refit.images
    return row


def title_of(options: argparse.Namespace) -> str:
    """Name what is measured, with all that results depend on."""
    budget = f"{options.trials} trials of {options.epochs} epochs"
    if options.task == "digits":
        return f"digits, test_resnet.letters at 32 px, {budget}"
    few = f", {options.classes} classes" if options.task == "few" else ""
    place = f"{options.images.name}{few}, {options.backbone} at {options.image_size} px"
    budget += f", batches of {options.batch_size}"
    return f"{place}, {budget}"


def gain(values: Sequence[float], images: int) -> Interval:
    """Return the mean of paired differences with its interval, in points."""
    least = 100 / images / math.sqrt(6)  # accuracies come in steps of an image
    return t_interval([100 * value for value in values], CONFIDENCE_LEVEL, least)


def render(rows: Sequence[Row]) -> str:
    """Write the report."""
    lines = [
        "# The fine-tuning policy of today against the one before",
        "",
        date_and_machine("torch", "timm", "optuna"),
        "",
        "Accuracy on the test split in percent, mean over splits. Differences are in points and "
        f"paired by split, with Student's {100 * CONFIDENCE_LEVEL:.0f} % interval. One thread; "
        "time is CPU time of the trials. `benchmarks/policy.py` says what is compared.",
        "",
        "| images, backbone, budget | splits | train + validation, test images | compared after | "
        "before | after | difference | on how many splits better, worse |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += _render_task(task, [row for row in rows if row["task"] == task])
    lines += ["", "## CPU time and chosen plans", ""]
    lines += [
        "| images, backbone, budget | side | seconds of a search | trials within the shared time "
        "| layers of the best plans, by split | solved heads |",
        "| --- | --- | ---: | ---: | --- | ---: |",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        lines += [_render_side(task, side, of_task) for side in SIDES]
    return "\n".join(lines) + "\n"


def _render_task(task: str, rows: Sequence[Row]) -> Iterator[str]:
    images = rows[0]["test_images"]
    for budget, words in {"baseline": "baseline alone", **BUDGETS}.items():
        values = {side: [row[side]["test"][budget] for row in rows] for side in SIDES}
        pairs = list(zip(values["after"], values["before"], strict=True))
        differences = [after - before for after, before in pairs]
        means = [100 * sum(values[side]) / len(rows) for side in SIDES]
        text = f"{100 * differences[0]:+.1f}"
        if len(rows) > 1:
            interval = gain(differences, images)
            text = f"{interval.mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
        signs = [sum(each > 0 for each in differences), sum(each < 0 for each in differences)]
        yield (
            f"| {task} | {len(rows)} | {rows[0]['images']}, {images} | {words} | {means[0]:.1f} | "
            f"{means[1]:.1f} | {text} | {signs[0]}, {signs[1]} |"
        )


def _render_side(task: str, side: str, rows: Sequence[Row]) -> str:
    totals = [sum(trial[3] for trial in row[side]["trials"]) for row in rows]
    within = []
    for row in rows:
        limit, used = min(sum(t[3] for t in row[s]["trials"]) for s in SIDES), 0.0
        within.append(0)
        for trial in row[side]["trials"]:
            used += trial[3]
            within[-1] += used <= limit
    plans = [row[side]["plans"]["trials"] for row in rows]
    solved = sum(plan["policy"]["head_start"] == "solved" for plan in plans)
    depths = ", ".join(str(plan["depth"]) for plan in plans)
    return (
        f"| {task} | {side} | {sum(totals) / len(rows):.0f} | {sum(within) / len(rows):.1f} | "
        f"{depths} | {solved} of {len(rows)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["digits", "photos", "few", "report"])
    parser.add_argument("--images", type=Path, help="a folder with train/ and val/")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default="hub", help="a file, or hub")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16, help="of photographs")
    parser.add_argument("--classes", type=int, default=64, help="of few, on each split")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=Path, default=Path("build/policy.jsonl"))
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    options = parser.parse_args()
    if options.task in ("photos", "few") and options.images is None:
        parser.error(f"{options.task} needs --images")
    torch.set_num_threads(1)
    rows = read_lines(options.rows)
    measured = {(row["task"], row["split"]) for row in rows}
    for split in range(options.splits if options.task != "report" else 0):
        if (title_of(options), split) in measured:
            continue
        with tempfile.TemporaryDirectory() as name:
            start = time.process_time()
            row = measure_split(options, split, Path(name))
            row["cpu_s"] = round(time.process_time() - start, 1)
        rows.append(row)
        append_line(options.rows, row)
        print(row, flush=True)
    text = render(rows)
    print(text)
    if options.write:
        write_report(text, "policy")


if __name__ == "__main__":
    main()
