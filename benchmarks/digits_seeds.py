"""Does the embedded default find something that holds on images the search has never seen?

Runs the digits study once per seed (of the split and of the study), fits the best plan and the
baseline anew on training + validation, and measures both on the test part, which nothing before
has read. Writes a dated report under ``benchmarks/results/``.

    python benchmarks/digits_seeds.py [--seeds 3] [--trials 40]
    python benchmarks/digits_seeds.py baseline.head_start=random --output build/random.md
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports import date_and_machine, spread, write_report

from autotune.config.loading import load_study_file
from autotune.results.evaluation.refit import RefitResult, refit_study
from autotune.search import ranking
from autotune.study.engine.launcher import run_study
from autotune.study.state import attrs


@dataclass(frozen=True)
class Row:
    """One seed: the study's two validation scores in percent, and what the final fit measured."""

    seed: int
    seconds: float
    cpu_seconds: float
    progress: attrs.Progress
    validation_baseline: float
    validation_best: float
    fitted: RefitResult

    @property
    def test_baseline(self) -> float:
        """Test accuracy of the baseline in percent."""
        return 100 * self.fitted.baseline.accuracy

    @property
    def test_best(self) -> float:
        """That of the best plan."""
        return 100 * self.fitted.test.accuracy

    @property
    def gain(self) -> float:
        """Points by which the best plan is better."""
        return self.test_best - self.test_baseline


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_seed(seed: int, trials: int, changes: Sequence[str], folder: Path) -> Row:
    overrides = [
        *changes,
        f"search.seed={seed}",
        f"data.seed={seed}",
        f"search.trials={trials}",
        f"storage=sqlite:///{folder}/study.db",
    ]
    config = load_study_file("digits", overrides, f"digits-{seed}")
    start, cpu_start = time.perf_counter(), cpu_seconds()
    result = run_study(config)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    study = result.handle.study
    found = study.get_trials(deepcopy=False)
    baseline, best = attrs.find_baseline(found), ranking.best_trial(found, study.direction)
    assert baseline is not None and best is not None
    assert baseline.value is not None and best.value is not None
    fitted = refit_study(result.handle)
    return Row(seed, seconds, cpu, result.progress, 100 * baseline.value, 100 * best.value, fitted)


def render(rows: list[Row], trials: int, changes: Sequence[str]) -> str:
    lines = [
        f"# Digits, {len(rows)} seeds, {trials} trials each",
        *(["", f"With {', '.join(f'`{change}`' for change in changes)}."] if changes else []),
        "",
        date_and_machine("torch", "timm", "optuna"),
        "",
        "The seed is that of the split and of the study. Validation: 539 images, the value that "
        "the search optimises. "
        f"Test: {rows[0].fitted.test_images} images that the search never reads; the best plan "
        "and the baseline were both trained anew on training + validation. Accuracy in percent.",
        "",
        "| seed | validation: baseline | best trial | test: baseline | best plan | gain | plan |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.seed} | {row.validation_baseline:.1f} | {row.validation_best:.1f} | "
        f"{row.test_baseline:.1f} | {row.test_best:.1f} | {row.gain:+.1f} | "
        f"{row.fitted.plan.describe()} |"
        for row in rows
    ]
    columns = ("validation_baseline", "validation_best", "test_baseline", "test_best", "gain")
    means = [spread([getattr(row, name) for row in rows]) for name in columns]
    lines += [
        f"| mean ± sd | {' | '.join(means)} | |",
        "",
        "| seed | seconds | CPU seconds | complete | pruned | failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.seed} | {row.seconds:.0f} | {row.cpu_seconds:.0f} | {row.progress.complete} | "
        f"{row.progress.pruned} | {row.progress.failed} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", help="keys of the study file: key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            run_seed(seed, options.trials, options.changes, Path(folder))
            for seed in range(options.seeds)
        ]
    text = render(rows, options.trials, options.changes)
    print(text)
    output = write_report(text, "digits-seeds", options.output)
    print(f"least gain on the test part: {min(row.gain for row in rows):+.1f} points ({output})")


if __name__ == "__main__":
    main()
