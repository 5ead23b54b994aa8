"""Which steps there are, in which half, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds that a half takes at most.
HALF_S = 360
#: A dry run is on the CPU, often beside other programs: its steps are small, its limits wide.
DRY_LIMIT_S = 240


@dataclass(frozen=True)
class Step:
    """A step of the check.

    Args:
        name: What it is called on the command line, and in its lines.
        half: The half that it belongs to.
        limit_s: Seconds after which its process is ended.
        place: ``module.function`` in this folder.
        title: Its heading in the report.
    """

    name: str
    half: int
    limit_s: int
    place: str
    title: str


STEPS = (
    Step("environment", 1, 20, "environment.describe", "Environment"),
    Step("tests", 1, 95, "environment.run_tests", "Tests with the marker `gpu`"),
    Step("split", 1, 75, "split.compare", "Split against whole"),
    Step("precision", 1, 60, "precision.time_modes", "Precision"),
    Step("throughput", 1, 95, "throughput.measure", "Training against a resident batch"),
    Step("features", 2, 35, "features.measure", "Making features"),
    Step("workers", 2, 75, "workers.compare", "Two workers against one"),
    Step("memory", 2, 50, "memory.provoke", "When memory does not suffice"),
    Step("missing", 2, 20, "memory.name_missing", "A GPU that is not there"),
    Step("naive", 2, 120, "naive_list.compare", "Naive study against autotune"),
    Step("fit", 2, 45, "fit.fit_and_rerun", "Fit, load, predict, rerun"),
)


def steps_of(half: int | None) -> tuple[Step, ...]:
    """Return the steps of a half, or all."""
    return tuple(step for step in STEPS if half in (None, step.half))


def step_named(name: str) -> Step:
    """Return a step by its name.

    Raises:
        KeyError: When there is no such step.
    """
    return {step.name: step for step in STEPS}[name]
