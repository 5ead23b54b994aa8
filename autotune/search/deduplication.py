"""Which plans of a space have been drawn, and which are left.

Two sets of parameters with the same canonical form are the same plan, and training it a second
time tells nothing: all trials of a study share one training seed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from autotune.search.dimensions import inactive_value
from autotune.search.space import Params, Space

Key = tuple[Any, ...]


def canonical_key(space: Space, params: Mapping[str, Any]) -> Key:
    """Return what tells a plan from all others: its canonical parameters, in order.

    Numbers to twelve digits: the third step of 0.1 is 0.3 in one place and 0.1 * 3 in another.
    """
    return tuple(
        float(f"{value:.12g}") if isinstance(value, float) else value
        for value in space.canonical(params).values()
    )


def seen_keys(
    space: Space, trials: Iterable[FrozenTrial], known: dict[int, Key] | None = None
) -> set[Key]:
    """Return the keys of all plans that trials have, had, or wait for.

    Args:
        space: The static space.
        trials: Trials of the study in any state. One that failed counts: it would again, and one
            whose worker was lost has a successor with the same parameters.
        known: Keys by the number of the trial, to be handed in again: those of trials that have
            ended are worked out once.
    """
    known = {} if known is None else known
    found = set()
    for trial in trials:
        key = known.get(trial.number)
        if key is None:
            params = _params_of(trial)
            if not params.keys() >= space.distributions.keys():
                continue
            key = canonical_key(space, params)
            if trial.state.is_finished():
                known[trial.number] = key
        found.add(key)
    return found


def _params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial; one that waits in the queue has them as fixed ones."""
    if trial.state == TrialState.WAITING:
        return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return trial.params


def nearest_unseen(
    space: Space,
    start: Mapping[str, Any],
    seen: Collection[Key],
    rng: random.Random,
    free: Collection[str] | None = None,
) -> Params | None:
    """Find a plan that has not been drawn, as like a given one as possible.

    Parameters are varied from the last to the first; those that come first (the depth, the
    layers) therefore stay as they are for as long as there is anything else to vary.

    Args:
        space: The static space.
        start: A value for every parameter.
        seen: Keys of the plans that have been drawn.
        rng: Orders the values of a parameter, and draws those of continuous ones.
        free: The parameters that may vary; by default all.

    Returns:
        Its canonical parameters, or ``None`` when every plan has been drawn.
    """
    varied = set(space.distributions if free is None else free)
    for params in _walk(space, space.canonical(start), rng, varied):
        if canonical_key(space, params) not in seen:
            return params
    return None


def _walk(
    space: Space, start: Params, rng: random.Random, free: Collection[str]
) -> Iterator[Params]:
    """Yield canonical plans, each once, the given one first.

    Whether a parameter has a meaning depends on those before it alone, so the plans are the
    leaves of a tree that branches only where it has one.
    """
    names = list(space.distributions)
    inert = {name: inactive_value(found) for name, found in space.distributions.items()}

    def settled(known: Params, name: str, value: Any) -> Any:
        return space.canonical({**inert, **known, name: value})[name]

    def below(known: Params) -> Iterator[Params]:
        if len(known) == len(names):
            yield known
            return
        name = names[len(known)]
        first = settled(known, name, start[name])
        yield from below({**known, name: first})
        if name in free:
            tried = [first]
            for value in _values(space.distributions[name], rng):
                if value not in tried and settled(known, name, value) == value:
                    tried.append(value)
                    yield from below({**known, name: value})

    yield from below({})


def _values(found: BaseDistribution, rng: random.Random) -> list[Any]:
    """Return the values of a distribution in random order; of a continuous one, a random value."""
    values: list[Any]
    if isinstance(found, CategoricalDistribution):
        values = list(found.choices)
    elif isinstance(found, IntDistribution) and not found.log:
        values = list(range(found.low, found.high + 1, found.step))
    elif isinstance(found, IntDistribution):
        values = list(range(found.low, found.high + 1))
    else:
        assert isinstance(found, FloatDistribution)
        values = _floats(found, rng)
    rng.shuffle(values)
    return values


def _floats(found: FloatDistribution, rng: random.Random) -> list[float]:
    if found.step is not None:
        steps = round((found.high - found.low) / found.step)
        return [min(found.low + found.step * i, found.high) for i in range(steps + 1)]
    if found.log:
        value = found.low * (found.high / found.low) ** rng.random()
        return [min(max(value, found.low), found.high)]
    return [rng.uniform(found.low, found.high)]
