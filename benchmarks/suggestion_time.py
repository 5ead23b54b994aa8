"""How long does a sampler take to propose a plan in a large study?

Studies of 1,000 trials with 40 parameters, half of them pruned; autotune's samplers beside
Optuna's own on the same trials. The goals are 50 ms for TPE and 1 s for the GP. A worker draws
before it takes the study's lock; what it still does under the lock is what all workers wait for.

    python benchmarks/suggestion_time.py [--trials 1000] [--repeats 5]
    python benchmarks/suggestion_time.py --trials 5000
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.runtime import single_threaded
from autotune.search.samplers import CanonicalSampler, make_sampler
from autotune.search.space import Space

EPOCHS = 20


def space_of_40() -> Space:
    """Return a space of a depth, 30 layer fields and 9 parameters of head and training."""
    config = make_config("tpe")
    base = Space.from_config("resnet18", config.space, "weights", ())
    fields = {
        f"layer.{index}.{name}": optuna.distributions.CategoricalDistribution(choices)
        for index in range(1, 11)
        for name, choices in (
            ("kernel", ("keep", 1, 5)),
            ("width", ("keep", 0.5, 1.5)),
            ("activation", ("keep", "gelu")),
        )
    }
    found = {**base.distributions, **fields}
    # In the order that every space has: the depth, the layers, the rest.
    order = sorted(found, key=lambda name: (name != "depth", not name.startswith("layer.")))
    return Space(base.backbone, base.fixed, {name: found[name] for name in order})


def make_config(sampler: str) -> StudyConfig:
    """Return a study without layer fields."""
    return validate(
        {
            "dataset": "digits",
            "backbone": "resnet18",
            "space": {
                "trainable_layers": {"low": 0, "high": 10},
                "head": {"hidden_layers": [0, 1], "units": [64, 128], "pool": ["keep", "max"]},
                "training": {
                    "lr": {"low": 1e-4, "high": 1e-1, "log": True},
                    "layer_decay": {"low": 0.5, "high": 1.0},
                    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
                    "label_smoothing": [0.0, 0.1],
                    "mixup": [0.0, 0.2],
                    "l2_sp": [0.0, 0.01],
                },
            },
            "search": {"sampler": sampler},
        },
        "benchmark",
    )


def study_of(space: Space, trials: int) -> optuna.Study:
    """Make a study; every other trial was pruned at a quarter of its epochs."""
    noise = np.random.default_rng(0)
    drawn = optuna.create_study(sampler=RandomSampler(seed=0))
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        params = space.canonical(drawn.ask(dict(space.distributions)).params)
        value = 0.9 - abs(np.log10(params["training.lr"]) + 2) / 20 + params["depth"] / 200
        value += float(noise.normal(0, 0.005))
        pruned = number % 2 == 1
        epochs = EPOCHS // 4 if pruned else EPOCHS
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=value,
                params=params,
                distributions=dict(space.distributions),
                intermediate_values={
                    step: value * (1 - 0.5 / step) for step in range(1, epochs + 1)
                },
            )
        )
    return study


def time_of(study: optuna.Study, sampler: BaseSampler, space: Space, repeats: int) -> list[float]:
    """Return the seconds of some suggestions; the first, which fills caches, is left out."""
    study.sampler = sampler
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with single_threaded():
            trial = study.ask(dict(space.distributions))
        times.append(time.perf_counter() - start)
        study.tell(trial, 0.8)
    return times[1:]


def time_under_lock(
    study: optuna.Study, sampler: CanonicalSampler, repeats: int
) -> tuple[float, float]:
    """Return the median seconds of what happens before the lock is taken, and under it."""
    ahead, under = [], []
    for _ in range(repeats + 1):
        trials = study.get_trials(deepcopy=False)
        start = time.perf_counter()
        with single_threaded():
            proposal = sampler.propose(study, trials)
        between = time.perf_counter()
        upcoming = create_trial(state=TrialState.RUNNING)
        upcoming.number = len(trials)
        sampler.accept(study, upcoming, trials, proposal, last=False)
        ahead.append(between - start)
        under.append(time.perf_counter() - between)
    return statistics.median(ahead[1:]), statistics.median(under[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    space = space_of_40()
    print(f"{options.trials} trials, {len(space.distributions)} parameters, medians in ms")
    print("| sampler | Optuna's | autotune's | ratio | goal | before the lock | under it |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, goal, plain in (
        ("tpe", 50, TPESampler(seed=0)),
        ("gp", 1000, GPSampler(seed=0, warn_independent_sampling=False)),
    ):
        ours = make_sampler(make_config(name), space, 0)
        theirs_ms, ours_ms = (
            1000 * statistics.median(time_of(study_of(space, options.trials), one, space, n))
            for one, n in ((plain, min(options.repeats, 3)), (ours, options.repeats))
        )
        ratio = theirs_ms / ours_ms
        ahead, under = time_under_lock(study_of(space, options.trials), ours, options.repeats)
        print(
            f"| {name} | {theirs_ms:.0f} | {ours_ms:.0f} | {ratio:.1f} | {goal} "
            f"| {1000 * ahead:.0f} | {1000 * under:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
