"""What naive.py says of its measurements: times, accuracies plan by plan, and where time goes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from naive_study import Plan
from reports import date_and_machine
from scipy import stats
from stack_shares import REST, STAGES, Shares

SIDES = ("naive", "cold", "warm")
#: How many times faster than naive: the whole list cold and warm, and trials of depth 0 warm.
GOALS = {"cold": 8.0, "warm": 20.0, "depth 0": 100.0}
#: Accuracies are alike when their mean difference is within this many points.
MARGIN = 0.5
#: Share of its cores that naive gets on a machine that does nothing else.
LEAST_BUSY = 0.8


@dataclass(frozen=True)
class Result:
    """What came of one plan: seconds of its trial, last accuracy, number of trainable values."""

    plan: int
    seconds: float
    accuracy: float
    parameters: int


@dataclass(frozen=True)
class Run:
    """What one side did with one seed.

    Args:
        side: ``naive``, ``cold`` or ``warm``.
        seed: Of all of its trainings.
        started: When the run of the benchmark started, in UTC.
        host: Stands for the machine.
        versions: Of the packages that matter.
        settings: All that sides to compare have in common.
        loader_workers: Loader processes of each naive worker.
        images: How many train and validate.
        seconds: Wall time, from the start of the processes to their end.
        cpu_s: Time on all cores meanwhile, that of other programs left out.
        results: Of the plans.
    """

    side: str
    seed: int
    started: str
    host: str
    versions: dict[str, str]
    settings: dict[str, Any]
    loader_workers: int | None
    images: tuple[int, int]
    seconds: float
    cpu_s: float
    results: list[Result]


@dataclass(frozen=True)
class Profile:
    """Where the time of one plan goes."""

    side: str
    depth: int
    epochs: int
    shares: Shares


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences in accuracy, in points, ours less naive.

    Args:
        mean: The mean over plans.
        error: Its standard error.
        low: Lower end of the 95 % interval (t).
        high: Its upper end.
        p: Of Wilcoxon's signed-rank test, that there is no difference.
        within: Whether the 90 % interval lies within :data:`MARGIN`: two one-sided t tests at
            5 % (Schuirmann 1987).
        plans: How many pairs.
        deviation: Standard deviation of the differences.
    """

    mean: float
    error: float
    low: float
    high: float
    p: float
    within: bool
    plans: int
    deviation: float

    @staticmethod
    def of(values: Sequence[float]) -> Difference:
        """Compare at least two pairs."""
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        error = deviation / math.sqrt(len(values))
        wide, narrow = (float(stats.t.ppf(one, len(values) - 1)) * error for one in (0.975, 0.95))
        # Without any difference there is nothing to rank.
        p = float(stats.wilcoxon(values, zero_method="zsplit").pvalue) if any(values) else 1.0
        within = abs(mean) + narrow <= MARGIN
        return Difference(mean, error, mean - wide, mean + wide, p, within, len(values), deviation)

    @property
    def verdict(self) -> str:
        """Say whether the accuracies are alike, or what it would take to know."""
        if self.within:
            return "reached: the 90 % interval lies within the margin (two one-sided t tests)"
        if self.low > MARGIN:
            return "outside: autotune is better by more than the margin"
        if self.high < -MARGIN:
            return "missed: autotune is worse by more than the margin"
        left = MARGIN - abs(self.mean)
        if left <= 0:
            return "not decided: the mean lies outside, the interval reaches inside"
        needed = (float(stats.norm.ppf(0.95)) * self.deviation / left) ** 2
        times = math.ceil(needed / self.plans)
        return (
            f"not decided: the mean lies inside, the interval reaches outside; {times} times as "
            "many seeds would decide it, if the mean stays and the rest is luck"
        )


def render(
    runs: Sequence[Run],
    plans: Sequence[Plan],
    settings: dict[str, Any],
    profiles: Sequence[Profile],
    started: str,
) -> str:
    """Write the report of the last run of each side and seed."""
    by_side = {side: [run for run in runs if run.side == side] for side in SIDES}
    images = runs[0].images
    parts = [
        "# What a good user would write today, against autotune",
        "",
        date_and_machine("torch", "torchvision", "timm", "optuna"),
        "",
        _origin(runs, started),
        "",
        _setting(settings, images, by_side),
        "",
        "## Time",
        "",
        *_goals(by_side, plans, settings["workers"] * settings["threads"]),
        "",
        *_depths(by_side, plans),
        "",
        "## Where the time goes",
        "",
        *_profiles(profiles),
        "",
        "## Accuracy",
        "",
        *_accuracy(by_side, plans, images[1]),
    ]
    return "\n".join(parts) + "\n"


def _origin(runs: Sequence[Run], started: str) -> str:
    if all(run.started == started for run in runs):
        return "All sides in one run, one after the other."
    words = [
        f"{run.side} (seed {run.seed}): {run.started} UTC, "
        + ", ".join(f"{name} {number}" for name, number in run.versions.items())
        for run in runs
    ]
    machines = "one machine" if len({run.host for run in runs}) == 1 else "SEVERAL MACHINES"
    return f"NOT of one run, on {machines}. " + "; ".join(words) + "."


def _setting(
    settings: dict[str, Any], images: Sequence[int], by_side: dict[str, list[Run]]
) -> str:
    loaders = {run.loader_workers for run in by_side["naive"]}
    seeds = {side: len(found) for side, found in by_side.items() if found}
    return (
        f"Images: `{settings['images']}`, {images[0]} train, {images[1]} validate, "
        f"{settings['image_size']} px. Backbone: {settings['backbone']} "
        f"(`{settings['weights']}`). {len(settings['plans'])} plans of {settings['epochs']} "
        f"epochs, batches of {settings['batch_size']}; the list is drawn once, with a fixed seed: "
        "no layer changes its shape, the head is linear or has one hidden layer. Both sides: "
        "RandomResizedCrop with a scale from "
        f"{settings['crop']:g} and flips, AdamW with layer-wise decay of the rate, "
        "label smoothing, warm-up and cosine, gradients clipped, validation after every epoch, no "
        f"pruning, {settings['workers']} worker processes with {settings['threads']} "
        f"thread{'s' if settings['threads'] > 1 else ''} each, one SQLite "
        f"study. autotune draws from {settings['views']} fixed views of an image, naive "
        f"augments anew in every epoch, in {' or '.join(map(str, sorted(loaders, key=str)))} "
        "persistent loader processes a worker (the fastest of 0, 1 and 2, unless given). Cold: "
        "the folder of files is empty. Warm: a fresh study with the files of the cold one. "
        f"Seeds: {', '.join(f'{side} {count}' for side, count in seeds.items())}. Every plan "
        "trained the same number of values on all sides (checked)."
    )


# Time


def _scaled(run: Run, plans: Sequence[Plan]) -> float:
    """Return the wall time for the whole list, from that for a part of it."""
    done = {result.plan: result.seconds for result in run.results}
    if len(done) == len(plans):
        return run.seconds
    typical = statistics.mean(done.values())
    total = 0.0
    for index, plan in enumerate(plans):
        alike = [seconds for at, seconds in done.items() if plans[at].depth == plan.depth]
        total += done.get(index, statistics.mean(alike) if alike else typical)
    return run.seconds * total / sum(done.values())


def _wall(runs: Sequence[Run], plans: Sequence[Plan]) -> float | None:
    return statistics.mean(_scaled(run, plans) for run in runs) if runs else None


def _of_depth(runs: Sequence[Run], plans: Sequence[Plan], depth: int) -> float | None:
    found = [one.seconds for run in runs for one in run.results if plans[one.plan].depth == depth]
    return statistics.mean(found) if found else None


def _ratio(naive: float | None, ours: float | None) -> float | None:
    return naive / ours if naive and ours else None


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _goals(by_side: dict[str, list[Run]], plans: Sequence[Plan], cores: int) -> list[str]:
    wall = {side: _wall(runs, plans) for side, runs in by_side.items()}
    at_zero = {side: _of_depth(runs, plans, 0) for side, runs in by_side.items()}
    rows = [
        ("the list, cold", wall["naive"], wall["cold"], GOALS["cold"]),
        ("the list, warm", wall["naive"], wall["warm"], GOALS["warm"]),
        ("a trial of depth 0, warm", at_zero["naive"], at_zero["warm"], GOALS["depth 0"]),
    ]
    lines = [
        "| | naive, s | autotune, s | times faster | goal | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for title, naive, ours, goal in rows:
        ratio = _ratio(naive, ours)
        reached = "" if ratio is None else "reached" if ratio >= goal else "missed"
        if reached and _cores_of(by_side["naive"]) < LEAST_BUSY * cores:
            reached = "NO VERDICT: disturbed"
        lines.append(
            f"| {title} | {_number(naive)} | {_number(ours)} | {_number(ratio)} | {goal:g} "
            f"| {reached} |"
        )
    lines += [
        "",
        "The list is wall time, from the start of the processes to the end of the last one, with "
        "imports, decoding and reports; a trial is from its claim to its end.",
    ]
    lines.append(_load(by_side))
    part = {len(run.results) for run in by_side["naive"]} - {len(plans)}
    if part:
        lines.append(
            f"Naive trained the first {max(part)} of {len(plans)} plans; its wall time is SCALED "
            "by the mean time of a trial of each depth."
        )
    return lines


def _load(by_side: dict[str, list[Run]]) -> str:
    """Say how much of the machine each side got, which tells whether it was idle otherwise."""
    words = [
        f"{side} {sum(run.cpu_s for run in runs):.0f} s ({_cores_of(runs):.1f} cores)"
        for side, runs in by_side.items()
        if runs
    ]
    return (
        f"Time on all cores, as measured: {', '.join(words)}. Naive is busy all the time; where "
        f"it gets less than {LEAST_BUSY:.0%} of its cores, other programs had the rest, and "
        "there is no verdict."
    )


def _cores_of(runs: Sequence[Run]) -> float:
    """Return how many cores runs have had on average."""
    return sum(run.cpu_s for run in runs) / sum(run.seconds for run in runs)


def _depths(by_side: dict[str, list[Run]], plans: Sequence[Plan]) -> list[str]:
    lines = [
        "Seconds a trial, by depth:",
        "",
        "| depth | plans | naive | cold | warm | naive / cold | naive / warm |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for depth in sorted({plan.depth for plan in plans}):
        seconds = {side: _of_depth(runs, plans, depth) for side, runs in by_side.items()}
        lines.append(
            f"| {depth} | {sum(plan.depth == depth for plan in plans)} | "
            + " | ".join(_number(seconds[side], 2) for side in SIDES)
            + f" | {_number(_ratio(seconds['naive'], seconds['cold']))} "
            f"| {_number(_ratio(seconds['naive'], seconds['warm']))} |"
        )
    return lines


def _profiles(profiles: Sequence[Profile]) -> list[str]:
    if not profiles:
        return ["Not looked at in this run."]
    stages = [*STAGES, REST]
    lines = [
        "One plan of each depth alone, in one process without loader processes, its stack looked "
        "at every 5 ms; percent of the time. *features* is computing and reading what frozen "
        "layers give, *rest* making the network and moving tensors. autotune's plans are trained "
        "one after the other with the files of the warm study, as a worker does.",
        "",
        "| | depth | epochs | seconds | " + " | ".join(stages) + " |",
        "| --- " * (4 + len(stages)) + "|",
    ]
    for one in profiles:
        shares = [100 * one.shares.stages[stage] for stage in stages]
        lines.append(
            f"| {one.side} | {one.depth} | {one.epochs} | {one.shares.seconds:.1f} | "
            + " | ".join(f"{share:.0f}" for share in shares)
            + " |"
        )
    return lines


# Accuracy


def _accuracies(runs: Sequence[Run]) -> dict[int, dict[int, float]]:
    """Return accuracies in percent by plan and seed."""
    found: dict[int, dict[int, float]] = {}
    for run in runs:
        for result in run.results:
            found.setdefault(result.plan, {})[run.seed] = 100 * result.accuracy
    return found


def _accuracy(by_side: dict[str, list[Run]], plans: Sequence[Plan], validation: int) -> list[str]:
    check_parameters([run for runs in by_side.values() for run in runs])
    naive, cold, warm = (_accuracies(by_side[side]) for side in SIDES)
    differences: dict[int, float] = {}
    for index in naive:
        seeds = naive[index].keys() & cold.get(index, {}).keys()
        if seeds:
            differences[index] = statistics.mean(
                cold[index][seed] - naive[index][seed] for seed in seeds
            )
    lines = _summary(list(differences.values()), naive, cold, validation)
    pairs = [(index, seed) for index in cold for seed in cold[index] if index in warm]
    same = sum(cold[index][seed] == warm[index].get(seed) for index, seed in pairs)
    lines += [
        f"Warm and cold end with the same accuracy in {same} of {len(pairs)} trials.",
        "",
        "| plan | depth | hidden | lr | layer decay | weight decay | smoothing | trainable values "
        "| naive | autotune | difference |",
        "| --- " * 11 + "|",
    ]
    trainable = {
        one.plan: one.parameters for runs in by_side.values() for r in runs for one in r.results
    }
    for index, plan in enumerate(plans):
        lines.append(
            f"| {index} | {plan.depth} | {plan.hidden or 'none'} | {plan.lr:g} "
            f"| {plan.layer_decay if plan.depth else ''} | {plan.weight_decay:g} "
            f"| {plan.label_smoothing:g} | {trainable.get(index, '')} | {_mean(naive.get(index))} "
            f"| {_mean(cold.get(index))} "
            f"| {f'{differences[index]:+.2f}' if index in differences else ''} |"
        )
    return lines


def _summary(
    differences: Sequence[float],
    naive: dict[int, dict[int, float]],
    cold: dict[int, dict[int, float]],
    validation: int,
) -> list[str]:
    if len(differences) < 2:
        return ["Fewer than two plans were trained by both sides.", ""]
    found = Difference.of(differences)
    lines = [
        f"Goal: a mean difference within {MARGIN:g} points. {found.verdict[0].upper()}"
        f"{found.verdict[1:]}.",
        "",
        "| plans | mean difference | standard error | 95 % interval (t, paired) | Wilcoxon p |",
        "| --- | --- | --- | --- | --- |",
        f"| {found.plans} | {found.mean:+.2f} | {found.error:.2f} | {found.low:+.2f} to "
        f"{found.high:+.2f} | {found.p:.2f} |",
        "",
        f"Points of accuracy after the last epoch, autotune (cold) less naive; one of "
        f"{validation} validation images is {100 / validation:.2f} points. The unit is the plan: "
        "its difference is the mean over seeds, and the error is over plans. Both sides judge "
        "the same validation images, so the interval is about plans and luck in training, not "
        "about other images.",
    ]
    luck = [_spread(side) for side in (naive, cold)]
    if all(one is not None for one in luck):
        lines.append(
            f"Another seed moves the accuracy of a plan by a standard deviation of "
            f"{luck[0]:.2f} points (naive) and {luck[1]:.2f} (autotune)."
        )
    else:
        lines.append(
            "With one seed, luck in training and what differs by plan are not told apart."
        )
    return [*lines, ""]


def _spread(accuracies: dict[int, dict[int, float]]) -> float | None:
    """Return the standard deviation between seeds of a plan, all plans together."""
    variances = [
        statistics.variance(seeds.values()) for seeds in accuracies.values() if len(seeds) > 1
    ]
    return float(np.sqrt(np.mean(variances))) if variances else None


def _mean(accuracies: dict[int, float] | None) -> str:
    return f"{statistics.mean(accuracies.values()):.2f}" if accuracies else ""


def check_parameters(runs: Sequence[Run]) -> None:
    """Refuse sides that did not tune the same number of values in every plan."""
    counts: dict[int, set[int]] = {}
    for run in runs:
        for result in run.results:
            counts.setdefault(result.plan, set()).add(result.parameters)
    differing = {plan: count for plan, count in counts.items() if len(count) > 1}
    if differing:
        raise SystemExit(f"the sides have trained different layers, by plan: {differing}")
