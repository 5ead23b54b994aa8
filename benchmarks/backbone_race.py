r"""The race among backbones against tuning every backbone: points behind the best, and cost.

For each split a race chooses backbones of a list, and each backbone of the list has a study of its
own. A row is one split. "Behind" is the best validation value of all studies minus the best of
those whose backbones the race has kept. "Cost" are the seconds of trainings, as a share of those
of all studies: of the race alone, and of the race with the studies of what it has kept.

    python benchmarks/backbone_race.py --images FOLDER --work FOLDER --write --backbones \
        mobilenetv2_100=FILE tf_efficientnet_lite0

FOLDER has a folder for each class, which may be in ``train/`` and ``val/``: the images are split
anew. A backbone is a name, or ``NAME=FILE`` with its weights. On the CPU, one worker with one
thread. Everything is kept in ``--work``: the same command continues. ``--write`` writes a dated
report under ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reports import date_and_machine, write_report

from autotune.config.loading import load_study_file
from autotune.config.schema import StudyConfig
from autotune.results.study_results import StudyResults
from autotune.study.race.running import remove_rounds, run_race, run_study_with_race
from autotune.study.state import attrs
from autotune.study.state.race_record import RaceRecord


@dataclass(frozen=True)
class Row:
    """A split: values and seconds of each study by backbone, and what the race has kept."""

    split: int
    values: dict[str, float]
    seconds: dict[str, float]
    kept: tuple[str, ...]
    race_seconds: float

    @property
    def behind(self) -> float:
        """Points by which the best of the kept backbones is behind the best of all."""
        return 100 * (max(self.values.values()) - max(self.values[name] for name in self.kept))

    @property
    def race_cost(self) -> float:
        """Seconds of the race, as a share of those of all studies."""
        return self.race_seconds / sum(self.seconds.values())

    @property
    def cost(self) -> float:
        """The same with the studies of the kept backbones."""
        own = sum(self.seconds[name] for name in self.kept)
        return (self.race_seconds + own) / sum(self.seconds.values())


def pooled(images: Path, work: Path) -> Path:
    """Link the images of all splits of a folder into a folder per class."""
    folder = work / "images"
    for path in sorted(images.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            link = folder / path.parent.name / f"{path.parent.parent.name}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return folder


def config_of(options: argparse.Namespace, split: int, backbone: Any, name: str) -> StudyConfig:
    named = dict(each.partition("=")[::2] for each in options.backbones)
    names = backbone["race"] if isinstance(backbone, dict) else [backbone]
    weights = {each: named[each] for each in names if named[each]}
    values = {
        "dataset": str(options.work / "images"),
        "backbone": backbone,
        "weights": weights or "hub",
        "data.seed": split,
        "data.image_size": options.size,
        "search.trials": options.trials,
        "search.seed": split,
        "training.epochs": options.epochs,
        "training.num_views": options.views,
        "storage": f"sqlite:///{options.work}/autotune.db",
    }
    return load_study_file("folder", values, name)


def run_split(options: argparse.Namespace, split: int) -> Row:
    """Run the race and the studies of a split, or take what is there."""
    file = options.work / f"split{split}.json"
    if file.exists():
        stored = json.loads(file.read_text())
        return Row(**{**stored, "kept": tuple(stored["kept"])})
    names = [each.partition("=")[0] for each in options.backbones]
    config = config_of(options, split, {"race": names}, f"race{split}")
    race = run_race(config, workers=1, gpus="none", on_event=show)
    if not isinstance(race, RaceRecord):
        raise KeyboardInterrupt
    values, seconds = {}, {}
    for name in names:
        config = config_of(options, split, name, f"split{split}-{name}")
        result = run_study_with_race(config, workers=1, gpus="none", on_event=show)
        results = StudyResults.from_study(result.handle.study)
        assert results.best is not None and not result.interrupted
        values[name] = results.best.values[0]
        seconds[name] = sum(trial.user_attrs.get(attrs.SECONDS, 0.0) for trial in results.trials)
    row = Row(split, values, seconds, race.kept, race.seconds)
    file.write_text(json.dumps(asdict(row), indent=2))
    remove_rounds(config_of(options, split, {"race": names}, f"race{split}"))
    return row


def show(event: dict[str, Any]) -> None:
    if event["event"] == "race":
        print(*event["lines"], sep="\n", flush=True)
    elif event["event"] == "end":
        print({key: event.get(key) for key in ("trial", "state", "value")}, flush=True)


def report(options: argparse.Namespace, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the report."""
    names = list(rows[0].values)
    yield "# The race among backbones, against tuning all of them\n"
    yield date_and_machine("torch", "timm", "optuna")
    yield (
        f"Script: `benchmarks/backbone_race.py`, {options.size} px, {options.trials} trials of "
        f"{options.epochs} epochs and {options.views} views for each backbone.\n"
    )
    yield "Validation accuracy in % of the best trial of each backbone's own study.\n"
    yield f"| split | {' | '.join(names)} | kept | behind | race | race and studies |"
    yield f"| --- |{' ---: |' * len(names)} --- | ---: | ---: | ---: |"
    for row in rows:
        values = " | ".join(f"{100 * row.values[name]:.1f}" for name in names)
        yield (
            f"| {row.split} | {values} | {', '.join(row.kept)} | {row.behind:.1f} | "
            f"{100 * row.race_cost:.0f} % | {100 * row.cost:.0f} % |"
        )
    behind = statistics.fmean(row.behind for row in rows)
    race_cost = 100 * statistics.fmean(row.race_cost for row in rows)
    cost = 100 * statistics.fmean(row.cost for row in rows)
    yield (
        f"\nMean: {behind:.2f} points behind the best of the list; the race costs "
        f"{race_cost:.0f} % of tuning all, with the studies of what it keeps {cost:.0f} %."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.work = options.work.absolute()
    pooled(options.images, options.work)
    rows = [run_split(options, split) for split in range(options.splits)]
    text = "\n".join(report(options, rows)) + "\n"
    print(text)
    if options.write:
        write_report(text, "backbone-race")


if __name__ == "__main__":
    main()
