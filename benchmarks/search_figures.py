"""What simulated studies amount to: tables, goals, one plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reports import date_and_machine
from search_curves import Table
from search_simulator import Course

#: What autotune does unless it is told otherwise.
DEFAULT = ("gp", "median")
GOAL_TRIALS, GOAL_SAVED, GOAL_LOSS = 25, 0.5, 0.1
#: Finished trials after which the tables of samplers look.
AFTER = (10, 25, 40)


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds, with its 95 % interval (bootstrap over seeds)."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: np.ndarray) -> Difference:
        """Take the differences of single seeds."""
        drawn = np.random.default_rng(0).choice(values, size=(10_000, len(values)))
        low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
        return Difference(float(values.mean()), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class Group:
    """Studies on a table that differ by their seed alone."""

    table: Table
    courses: Sequence[Course]

    @property
    def spent(self) -> np.ndarray:
        """Epochs of each study."""
        return np.array([course.spent for course in self.courses])

    @property
    def validation(self) -> np.ndarray:
        """Validation accuracy of what each study chooses, in percent."""
        table = self.table
        best = [max(table.full.final[course.chosen], default=0) for course in self.courses]
        return 100 * np.array(best) / table.images

    @property
    def test(self) -> np.ndarray:
        """Its test accuracy in percent; where several are best, their mean."""
        table, found = self.table, []
        for course in self.courses:
            rows = np.array(course.chosen)
            right = table.full.final[rows]
            found.append(table.full.test[rows[right == right.max()], 0].mean())
        return 100 * np.array(found) / table.test_images

    def best(self, trials: int) -> np.ndarray:
        """Return the best number of right images of every seed after some finished trials."""
        return np.array([max(course.right[:trials], default=0) for course in self.courses])

    def trials_to(self, right: float, budget: int) -> np.ndarray:
        """Return the trials that every seed needs to have this many right images.

        One more than the budget stands for "not within the budget".
        """
        needed = [
            next((n for n, own in enumerate(course.right, start=1) if own >= right), budget + 1)
            for course in self.courses
        ]
        return np.array(needed)


#: Strategy, rule, number of workers.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Results:
    """All simulated studies of a task.

    Args:
        table: What they were simulated on.
        groups: By strategy, rule and number of workers.
        trials: Budget of the studies.
        random_trials: Budget of random search.
    """

    table: Table
    groups: Mapping[Key, Group]
    trials: int
    random_trials: int

    def saved(self, key: Key) -> float:
        """Return the share of the epochs that a rule saves."""
        none = self.groups[key[0], "none", key[2]]
        return 1 - float(self.groups[key].spent.mean() / none.spent.mean())

    def gained(self, key: Key, split: str) -> Difference:
        """Compare a rule with none, seed by seed, in points on the test or validation split."""
        own, none = self.groups[key], self.groups[key[0], "none", key[2]]
        return Difference.of(getattr(own, split) - getattr(none, split))


def render(results: Mapping[str, Results], seeds: int, gp_seeds: int) -> str:
    """Write the report, without its picture."""
    lines = [
        f"# Search quality: {seeds} seeds, {gp_seeds} of the GP",
        "",
        date_and_machine("optuna", "torch", "numpy"),
    ]
    for task, own in results.items():
        lines += ["", f"## {task}", "", *describe(own.table), "", *sampler_table(own)]
        lines += ["", *rule_table(own), "", *goals(own)]
    return "\n".join(lines) + "\n"


def describe(table: Table) -> Iterator[str]:
    """Say what a table has."""
    final, about = table.full.final, table.about
    best = int(final.max())
    near = int((final >= best - 0.01 * table.images).sum())
    yield (
        f"{len(table.index)} plans of one space ({len(table.axes)} parameters), each trained for "
        f"{table.epochs} and for {table.epochs // 2} epochs: `python benchmarks/search_table.py` "
        f"({about['cpu_s'] / 60:.0f} CPU minutes, {about['machine']}, "
        f"torch {about['versions']['torch']}). The best plan has {100 * best / table.images:.1f} "
        f"% of {table.images} validation images right, the median plan "
        f"{100 * np.median(final) / table.images:.1f} %; {near} plans are within one point of the "
        f"best. There are {table.test_images} test images."
    )
    yield ""
    yield (
        "How the state in the middle ranks the plans: Spearman's correlation with the test "
        "accuracy at the end, among the better half of the plans."
    )
    yield ""
    marks = range(1, table.full.right.shape[1] - 1, 2)
    every = table.epochs // table.full.right.shape[1]
    yield "| judged by | " + " | ".join(f"epoch {every * (mark + 1)}" for mark in marks) + " |"
    yield "| --- " * (len(marks) + 1) + "|"
    half = final >= np.median(final)
    for name, values in (("weights", table.full.right), ("their average", table.full.average)):
        cells = [rank_correlation(values[half, mark], table.full.test[half, 0]) for mark in marks]
        yield f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    short = rank_correlation(table.short.final[half], table.full.test[half, 0])
    yield f"\nA whole training of {table.epochs // 2} epochs: {short:.2f}."


def rank_correlation(first: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, other).statistic)


def sampler_table(results: Results) -> Iterator[str]:
    """Write how far below the best plan each sampler is after some trials, without a pruner."""
    yield (
        "Without a pruner: validation points below the best plan of the table after some trials, "
        "and trials until a study is as good as the median random one after "
        f"{results.random_trials}. Median and quartiles."
    )
    yield ""
    heads = [f"after {trials}" for trials in AFTER]
    yield f"| sampler | workers | {' | '.join(heads)} | trials |"
    yield "| --- " * (len(heads) + 3) + "|"
    best = results.table.full.final.max()
    for (strategy, rule, workers), group in results.groups.items():
        if rule != "none":
            continue
        regrets = [
            spread(100 * (best - group.best(trials)) / results.table.images) for trials in AFTER
        ]
        budget = results.random_trials if strategy == "random" else results.trials
        target = random_target(results, workers)
        needed = "" if target is None else spread(group.trials_to(target, budget), budget)
        yield f"| {strategy} | {workers} | {' | '.join(regrets)} | {needed} |"


def random_target(results: Results, workers: int) -> float | None:
    """Return the right images of random search in the end, median over seeds."""
    group = results.groups.get(("random", "none", workers))
    return None if group is None else float(np.median(group.best(results.random_trials)))


def rule_table(results: Results) -> Iterator[str]:
    """Write what each rule saves and costs against none, seed by seed."""
    yield (
        f"Rules against none, {results.trials} trials: points of what the study chooses, with "
        "95 % intervals over seeds."
    )
    yield ""
    yield "| sampler | workers | rule | epochs saved | validation | test |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for key in results.groups:
        strategy, rule, workers = key
        if rule == "none" or (strategy, "none", workers) not in results.groups:
            continue
        yield (
            f"| {strategy} | {workers} | {rule} | {100 * results.saved(key):.0f} % | "
            f"{results.gained(key, 'validation')} | {results.gained(key, 'test')} |"
        )


def spread(values: np.ndarray, limit: float = np.inf) -> str:
    """Write median and quartiles; above a limit stands that they are."""
    low, middle, high = (
        f"> {limit}" if value > limit else f"{value:.2f}".rstrip("0").removesuffix(".")
        for value in np.quantile(values, [0.25, 0.5, 0.75])
    )
    return f"{middle} [{low}, {high}]"


def goals(results: Results) -> Iterator[str]:
    """Write the goals for the default, with their figures."""
    sampler, rule = DEFAULT
    for workers in sorted({workers for _, _, workers in results.groups}):
        key, target = (sampler, rule, workers), random_target(results, workers)
        if key not in results.groups:
            continue
        named = f"{workers} worker{'s' if workers > 1 else ''}"
        if target is not None:
            found = results.groups[key].trials_to(target, results.trials)
            yield verdict(
                f"{named}: as good as random at {results.random_trials} within {GOAL_TRIALS} "
                "trials",
                float(np.median(found)) <= GOAL_TRIALS,
                f"{spread(found, results.trials)} trials",
            )
        if (sampler, "none", workers) in results.groups:
            saved, gained = results.saved(key), results.gained(key, "test")
            yield verdict(
                f"{named}: {100 * GOAL_SAVED:.0f} % of the epochs saved, and the test difference "
                f"within {GOAL_LOSS} points",
                saved >= GOAL_SAVED and gained.low >= -GOAL_LOSS and gained.high <= GOAL_LOSS,
                f"{100 * saved:.0f} %, {gained}",
            )


def verdict(goal: str, met: bool, figures: str) -> str:
    """Write one goal."""
    return f"- {goal}: **{'met' if met else 'missed'}**, {figures}."


def draw(results: Mapping[str, Results], path: Path) -> None:
    """Draw what each rule saves and what the choice is worth on test images, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(results), figsize=(5 * len(results), 4), squeeze=False, layout="constrained"
    )
    for panel, (task, own) in zip(panels[0], results.items(), strict=True):
        rules = {rule for _, rule, _ in own.groups} - {"none"}
        for number, rule in enumerate(sorted(rules)):
            keys = [key for key in own.groups if key[1] == rule]
            points = [(100 * own.saved(key), own.gained(key, "test")) for key in keys]
            panel.errorbar(
                [saved for saved, _ in points],
                [gained.mean for _, gained in points],
                [
                    [gained.mean - gained.low for _, gained in points],
                    [gained.high - gained.mean for _, gained in points],
                ],
                fmt="osD^vP*X"[number % 8],
                color=f"C{number}",
                label=rule,
                capsize=2,
            )
        panel.axhline(0, color="#777777", linewidth=0.8)
        panel.set(
            title=task, xlabel="epochs saved, %", ylabel="test accuracy against none, points"
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
