"""What the best of many plans is worth: bias and coverage of the report's correction.

Simulates studies whose truth is known. A plan classifies an image if its ability exceeds what the
image and chance ask for, so plans agree on most images, as real ones do. Half of the plans of a
study are drawn from the best of a table of real trainings (`search_tables/digits.npz`), as a
search finds them, half from all; in a third of the studies all plans are equal. For each study the
best plan is chosen by its validation images, and its shown value, the corrected one and the
interval are compared with its true accuracy. Writes a dated report under ``benchmarks/results/``.

    python benchmarks/selection.py [--studies 2000]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reports import date_and_machine, write_report
from scipy.stats import norm
from search_curves import Table

from autotune.results.values.selection import Floats, judge_selection

#: Validation images and complete trials of the studies.
IMAGES = (150, 300, 600, 1000)
TRIALS = (10, 25, 50)
#: Share of an image's difficulty that all plans feel alike.
COMMON = 0.8


@dataclass(frozen=True)
class Outcome:
    """A study: how far its numbers lie from the true accuracy of the chosen plan.

    Args:
        kind: ``search``, ``wide`` or ``equal``.
        images: Its validation images.
        shown: Error of the best value.
        corrected: Error of the corrected value.
        is_covered: Whether the interval holds the truth.
        chance: The chance that the chosen plan is the best one.
        is_best: Whether it is.
    """

    kind: str
    images: int
    shown: float
    corrected: float
    is_covered: bool
    chance: float
    is_best: bool


def draw_truths(
    kind: str, accuracies: Floats, trials: int, generator: np.random.Generator
) -> Floats:
    """Draw the true accuracies of the plans of a study."""
    if kind == "equal":
        return np.full(trials, generator.choice(accuracies[-150:]))
    if kind == "wide":
        return generator.choice(accuracies[len(accuracies) // 4 :], trials)
    near = generator.choice(accuracies[-150:], trials // 2)
    return np.concatenate([near, generator.choice(accuracies, trials - len(near))])


def simulate(studies: int, accuracies: Floats) -> Iterator[Outcome]:
    """Simulate studies of every kind, in turn."""
    generator = np.random.default_rng(0)
    for number in range(studies):
        kind = ("search", "wide", "equal")[number % 3]
        images, trials = int(generator.choice(IMAGES)), int(generator.choice(TRIALS))
        truths = draw_truths(kind, accuracies, trials, generator)
        asked = generator.normal(0, COMMON**0.5, images)
        chance = generator.normal(0, (1 - COMMON) ** 0.5, (trials, images))
        scores = (norm.ppf(truths)[:, None] > asked + chance).astype(np.float64)
        values = scores.mean(axis=1)
        best = int(values.argmax())
        found = judge_selection(dict(enumerate(values)), dict(enumerate(scores)))
        yield Outcome(
            kind,
            images,
            float(values[best] - truths[best]),
            found.value.value - float(truths[best]),
            found.value.low <= truths[best] <= found.value.high,
            found.chances[best],
            bool(truths[best] == truths.max()),
        )


def render(outcomes: list[Outcome]) -> str:
    lines = [
        f"# The best of many plans: {len(outcomes):,} simulated studies",
        "",
        date_and_machine("numpy"),
        "",
        f"`python benchmarks/selection.py --studies {len(outcomes)}`. Studies of {TRIALS} "
        f"complete trials and {IMAGES} validation images, in equal shares. Errors are in points "
        "of accuracy: what is said of the chosen plan less its true accuracy; mean, and root of "
        "the mean square. The interval is to hold the truth in 95 % of the studies. The last two "
        "columns hold for the chosen plan: how sure the study is that it is the best, and how "
        "often it is (in studies of equal plans every plan is).",
        "",
        "| studies | count | error of the best value | corrected | rms, best value | corrected "
        "| interval holds | said to be the best | is the best |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        _row("all", outcomes),
    ]
    for kind in ("search", "wide", "equal"):
        lines.append(_row(kind, [each for each in outcomes if each.kind == kind]))
    for images in IMAGES:
        some = [each for each in outcomes if each.images == images]
        lines.append(_row(f"{images} images", some))
    return "\n".join(lines) + "\n"


def _row(name: str, outcomes: list[Outcome]) -> str:
    shown, corrected = (
        100 * np.array([getattr(each, key) for each in outcomes]) for key in ("shown", "corrected")
    )
    texts = [
        name,
        f"{len(outcomes):,}",
        *(f"{errors.mean():+.2f}" for errors in (shown, corrected)),
        *(f"{np.sqrt((errors**2).mean()):.2f}" for errors in (shown, corrected)),
        f"{100 * np.mean([each.is_covered for each in outcomes]):.1f} %",
        f"{100 * np.mean([each.chance for each in outcomes]):.0f} %",
        f"{100 * np.mean([each.is_best for each in outcomes]):.0f} %",
    ]
    return f"| {' | '.join(texts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    table = Table.load("digits")
    accuracies = np.sort(np.clip(table.full.final / table.images, 0.3, 0.998))
    text = render(list(simulate(options.studies, accuracies)))
    print(text)
    write_report(text, "selection", options.output)


if __name__ == "__main__":
    main()
