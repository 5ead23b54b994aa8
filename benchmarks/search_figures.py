"""What simulated studies amount to: tables, goals, one plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from heading import date_and_machine
from search_curves import Table
from search_simulator import Course

#: Finished trials after which the tables look.
AFTER = (10, 25, 40, 60)
#: What autotune does unless it is told otherwise.
DEFAULT = ("gp", "percentile")
RIVALS = ("random", "tpe-conditional", "gp-conditional")
COLOURS: Mapping[str, str] = {  # Okabe and Ito: told apart by colour-blind readers too
    "random": "#777777",
    "tpe-conditional": "#e69f00",
    "gp-conditional": "#d55e00",
    "tpe": "#0072b2",
    "gp": "#009e73",
    "greedy-tpe": "#56b4e9",
    "greedy-gp": "#cc79a7",
}
GOAL_TRIALS, GOAL_SHARE, GOAL_SAVED = 25, 0.5, 0.5


@dataclass(frozen=True)
class Group:
    """Studies that differ by their seed alone."""

    courses: Sequence[Course]

    def best(self, trials: int) -> np.ndarray:
        """Return the best number of right images of every seed after some finished trials."""
        return np.array([one.best[min(trials, len(one.best)) - 1] for one in self.courses])

    def epochs(self, trials: int) -> np.ndarray:
        """Return the epochs that every seed had spent by then."""
        return np.array([one.epochs[min(trials, len(one.epochs)) - 1] for one in self.courses])

    def best_by_epochs(self, epochs: np.ndarray) -> np.ndarray:
        """Return the best so far ``(seeds, len(epochs))`` when this many epochs were spent."""
        rows = []
        for course in self.courses:
            finished = np.searchsorted(course.epochs, epochs, side="right")
            rows.append(np.array([0, *course.best])[finished])
        return np.stack(rows)

    def epochs_to(self, right: float) -> np.ndarray:
        """Return the epochs that every seed had spent when it got there; infinite: it did not."""
        spent = [
            next(
                (n for n, best in zip(one.epochs, one.best, strict=True) if best >= right), np.inf
            )
            for one in self.courses
        ]
        return np.array(spent)

    def trials_to(self, right: float, budget: int) -> np.ndarray:
        """Return the trials that every seed needs to have this many right images.

        One more than the budget stands for "not within the budget".
        """
        needed = [
            next((n for n, best in enumerate(course.best, start=1) if best >= right), budget + 1)
            for course in self.courses
        ]
        return np.array(needed)


@dataclass(frozen=True)
class Results:
    """All simulated studies.

    Args:
        table: What they were simulated on.
        courses: By strategy, pruner and number of workers.
        trials: Budget of the studies.
        random_trials: Budget of random search.
    """

    table: Table
    courses: Mapping[tuple[str, str, int], Sequence[Course]]
    trials: int
    random_trials: int

    @property
    def workers(self) -> list[int]:
        """The numbers of workers, in order."""
        return sorted({workers for _, _, workers in self.courses})

    def of(self, workers: int) -> dict[tuple[str, str], Group]:
        """Return the groups with some number of workers."""
        return {
            (strategy, pruner): Group(courses)
            for (strategy, pruner, count), courses in self.courses.items()
            if count == workers
        }

    def regret(self, right: np.ndarray | float) -> np.ndarray:
        """Return how far below the best of the table, in points of accuracy."""
        points: np.ndarray = 100.0 * (self.table.final.max() - np.asarray(right))
        return points / self.table.images


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Write median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def count(values: np.ndarray, budget: int) -> str:
    """Write median and quartiles of numbers of trials, of which some are not within the budget."""
    low, middle, high = (
        f"{one:.1f}".removesuffix(".0") if one <= budget else f"> {budget}"
        for one in np.quantile(values, [0.25, 0.5, 0.75])
    )
    return f"{middle} [{low}, {high}]"


def render(results: Results) -> str:
    """Write the report, without its picture."""
    table = results.table
    best = int(table.final.max())
    near = int((table.final >= best - 0.01 * table.images).sum())
    seeds = max((len(courses) for courses in results.courses.values()), default=0)
    lines = [
        f"# Search quality: {seeds} seeds, {results.trials} trials",
        "",
        date_and_machine("optuna", "torch", "numpy"),
        "",
        f"Studies simulated on the learning curves of {len(table.index)} plans of one space "
        f"({len(table.axes)} parameters), each trained for {table.epochs} epochs on the digits: "
        f"`python benchmarks/search_table.py` ({table.about['cpu_s'] / 60:.0f} CPU minutes, "
        f"{table.about['machine']}, torch {table.about['versions']['torch']}), then "
        "`python benchmarks/search_quality.py`. The best plan has "
        f"{100 * best / table.images:.2f} % of {table.images} validation images right, the median "
        f"plan {100 * np.median(table.final) / table.images:.2f} %; {near} plans are within one "
        f"point of the best. One image is {100 / table.images:.2f} points.",
        "",
        "Regret is the best of the table less the best complete trial so far, in points of "
        "accuracy; median and quartiles over seeds. `*-conditional` is Optuna's sampler with its "
        "defaults on the define-by-run form of the same space; the others are autotune's, which "
        "start with the baseline and, but for the greedy ones, with plans that often work. Epochs "
        "are those of all workers together.",
    ]
    for workers in results.workers:
        title = "One trial after the other" if workers == 1 else f"{workers} workers"
        lines += ["", f"## {title}", "", *regret_table(results, workers)]
        lines += ["", *target_table(results, workers), "", *pruning_table(results, workers)]
        lines += ["", *goals(results, workers)]
    return "\n".join(lines) + "\n"


def regret_table(results: Results, workers: int) -> Iterator[str]:
    """Write the regret after some numbers of trials."""
    after = [one for one in AFTER if one <= results.trials]
    if results.trials not in after:
        after.append(results.trials)
    heads = [f"regret at {one}" for one in after]
    yield f"| strategy | pruner | {' | '.join(heads)} | epochs at {results.trials} |"
    yield "| --- " * (len(heads) + 3) + "|"
    for (strategy, pruner), group in results.of(workers).items():
        regrets = [spread(results.regret(group.best(one))) for one in after]
        epochs = spread(group.epochs(results.trials), 0)
        yield f"| {strategy} | {pruner} | {' | '.join(regrets)} | {epochs} |"


@dataclass(frozen=True)
class Targets:
    """Right images that random search and Optuna's TPE have in the end, median over seeds."""

    random: float | None
    tpe: float | None

    @staticmethod
    def of(results: Results, workers: int) -> Targets:
        """Read them off the studies without a pruner, where there are such."""
        groups = results.of(workers)
        random, tpe = groups.get(("random", "none")), groups.get(("tpe-conditional", "none"))
        return Targets(
            None if random is None else float(np.median(random.best(results.random_trials))),
            None if tpe is None else float(np.median(tpe.best(results.trials))),
        )


def target_table(results: Results, workers: int) -> Iterator[str]:
    """Write the trials that each strategy needs to be as good as the rivals in the end."""
    targets = Targets.of(results, workers)
    named = {
        f"random at {results.random_trials}": targets.random,
        f"tpe-conditional at {results.trials}": targets.tpe,
    }
    given = {name: one for name, one in named.items() if one is not None}
    if not given:
        return
    heads = [
        f"as good as {name} (regret {results.regret(one):.2f}): trials | epochs"
        for name, one in given.items()
    ]
    yield f"| strategy | {'pruner | ' + ' | '.join(heads)} |"
    yield "| --- " * (2 * len(heads) + 2) + "|"
    for (strategy, pruner), group in results.of(workers).items():
        budget = results.random_trials if strategy == "random" else results.trials
        cells = []
        for one in given.values():
            epochs = float(np.median(group.epochs_to(one)))
            cells.append(count(group.trials_to(one, budget), budget))
            cells.append(f"{epochs:.0f}" if np.isfinite(epochs) else "never")
        yield f"| {strategy} | {pruner} | {' | '.join(cells)} |"


def pruning_table(results: Results, workers: int) -> Iterator[str]:
    """Write what the median pruner saves, and what it costs."""
    groups = results.of(workers)
    pairs = [pair for pair in groups if pair[1] != "none" and (pair[0], "none") in groups]
    if not pairs:
        return
    yield "| strategy | pruner | epochs saved | final accuracy gained (95 % interval) |"
    yield "| --- | --- | --- | --- |"
    for name, pruner in pairs:
        saved, (mean, low, high) = pruning(results, workers, name, pruner)
        gained = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        yield f"| {name} | {pruner} | {100 * saved:.0f} % | {gained} |"


def pruning(
    results: Results, workers: int, strategy: str, pruner: str
) -> tuple[float, tuple[float, float, float]]:
    """Compare the studies of a strategy with and without a pruner.

    Returns:
        Share of the epochs saved, by the medians; and the mean difference of the final values of
        equal seeds in points with its 95 % interval (bootstrap over seeds).
    """
    groups = results.of(workers)
    without, pruned = groups[strategy, "none"], groups[strategy, pruner]
    trials = results.random_trials if strategy == "random" else results.trials
    saved = 1.0 - np.median(pruned.epochs(trials)) / np.median(without.epochs(trials))
    gained = results.regret(without.best(trials)) - results.regret(pruned.best(trials))
    drawn = np.random.default_rng(0).choice(gained, size=(10_000, len(gained)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(saved), (float(gained.mean()), float(low), float(high))


def goals(results: Results, workers: int) -> Iterator[str]:
    """Write the three goals for the default, with their figures."""
    groups, targets = results.of(workers), Targets.of(results, workers)
    group, trials = groups.get(DEFAULT), results.trials
    if group is None:
        return
    if targets.random is not None:
        found = group.trials_to(targets.random, trials)
        yield verdict(
            f"the default reaches the median of random at {results.random_trials} within "
            f"{GOAL_TRIALS} trials",
            float(np.median(found)) <= GOAL_TRIALS,
            f"{count(found, trials)} trials",
        )
    if targets.tpe is not None:
        found = group.trials_to(targets.tpe, trials)
        needed = float(np.median(found))
        theirs = float(np.median(groups["tpe-conditional", "none"].trials_to(targets.tpe, trials)))
        yield verdict(
            f"it needs at most half the trials of default TPE on the conditional form to be as "
            f"good as that at {trials}",
            needed <= GOAL_SHARE * trials,
            f"{count(found, trials)} trials"
            + (f", {100 * needed / trials:.0f} % of {trials}" if needed <= trials else "")
            + f"; TPE is there itself after {theirs:g}",
        )
    name, pruner = DEFAULT
    if (name, "none") in groups:
        saved, (mean, low, high) = pruning(results, workers, name, pruner)
        yield verdict(
            f"pruning saves at least {100 * GOAL_SAVED:.0f} % of the epochs at no loss beyond "
            "noise",
            saved >= GOAL_SAVED and high >= 0.0,
            f"{100 * saved:.0f} % saved, final accuracy {mean:+.2f} points "
            f"({low:+.2f} to {high:+.2f})",
        )


def verdict(goal: str, met: bool, figures: str) -> str:
    """Write one goal."""
    return f"- Goal: {goal}. **{'Met' if met else 'Missed'}**: {figures}."


def draw(results: Results, path: Path) -> None:
    """Draw the regret against trials and against epochs, a row for each number of workers.

    Rivals are shown without a pruner, which is Optuna's default for `ask` and what most write;
    autotune's with its default pruner.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(results.workers)
    figure, panels = pyplot.subplots(
        rows, 2, figsize=(10, 1 + 3.5 * rows), squeeze=False, sharey=True, layout="constrained"
    )
    trials = np.arange(1, results.trials + 1)
    epochs = np.arange(results.table.epochs, results.trials * results.table.epochs + 1, 5)
    for row, workers in enumerate(results.workers):
        groups = results.of(workers)
        for name, colour in COLOURS.items():
            group = groups.get((name, "none" if name in RIVALS else DEFAULT[1]))
            if group is None:
                continue
            label = f"{name}, no pruner" if name in RIVALS else f"{name}, {DEFAULT[1]} pruner"
            style = {"color": colour, "linestyle": "--" if name in RIVALS else "-"}
            by_trials = np.stack([group.best(int(trial)) for trial in trials], axis=1)
            spent = epochs[epochs <= np.median(group.epochs(results.trials))]
            for panel, x, best in (
                (panels[row, 0], trials, by_trials),
                (panels[row, 1], spent, group.best_by_epochs(spent)),
            ):
                low, middle, high = np.quantile(results.regret(best), [0.25, 0.5, 0.75], axis=0)
                panel.step(x, middle, where="post", label=label, linewidth=1.6, **style)
                panel.fill_between(
                    x, low, high, step="post", color=colour, alpha=0.09, linewidth=0
                )
        title = "one trial after the other" if workers == 1 else f"{workers} workers"
        panels[row, 0].set(title=title, xlabel="finished trials", ylabel="regret, points")
        panels[row, 1].set(title=title, xlabel="epochs spent")
    for panel in panels.flat:
        panel.set_ylim(0, 2.5)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
