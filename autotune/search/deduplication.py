"""Which plans of a space have been drawn, and which are left.

Parameters with the same canonical form are the same plan. All trials of a study share one
training seed, so to train a plan a second time would tell nothing new.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.search.parameters.dimensions import inactive_value, integer_values
from autotune.search.space import Params, Space

Key = tuple[Any, ...]


def canonical_key(space: Space, params: Mapping[str, Any]) -> Key:
    """Return the key of a plan: its canonical parameters, in order.

    Floats are rounded to twelve digits: the third step of 0.1 is 0.3 in one place and 0.1 * 3 in
    another.
    """
    return tuple(
        float(f"{value:.12g}") if isinstance(value, float) else value
        for value in space.canonical(params).values()
    )


def seen_keys(
    space: Space, trials: Iterable[FrozenTrial], cache: dict[int, Key] | None = None
) -> set[Key]:
    """Return the keys of the plans of all trials.

    Args:
        space: The static space.
        trials: Trials of the study in any state. A failed trial counts: its plan would fail
            again, and a trial whose worker was lost has a successor with the same parameters.
        cache: Keys of finished trials by number, filled here and reused by the next call.
    """
    cache = {} if cache is None else cache
    keys = set()
    for trial in trials:
        key = cache.get(trial.number)
        if key is None:
            params = trial.params
            if trial.state == TrialState.WAITING:  # queued parameters are fixed ones
                params = {**trial.system_attrs.get("fixed_params", {}), **params}
            if not params.keys() >= space.distributions.keys():
                continue
            key = canonical_key(space, params)
            if trial.state.is_finished():
                cache[trial.number] = key
        keys.add(key)
    return keys


def nearest_unseen(
    space: Space,
    start: Mapping[str, Any],
    seen: Collection[Key],
    rng: random.Random,
    free: Collection[str] | None = None,
) -> Params | None:
    """Find a plan that has not been drawn, as similar to a given one as possible.

    Parameters are varied from the last to the first, so the first ones (depth, layers) stay as
    they are while there is anything else to vary.

    Args:
        space: The static space.
        start: A value for every parameter.
        seen: Keys of the plans that have been drawn.
        rng: Orders the values of a parameter, and draws those of continuous ones.
        free: The parameters that may vary; by default all.

    Returns:
        Its canonical parameters, or ``None`` if every plan has been drawn.
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

    Whether a parameter is active depends only on those before it, so the plans are the leaves of
    a tree that branches only at active parameters.
    """
    names = list(space.distributions)
    inactive = {name: inactive_value(values) for name, values in space.distributions.items()}

    def canonical_value(prefix: Params, name: str, value: Any) -> Any:
        return space.canonical({**inactive, **prefix, name: value})[name]

    def leaves(prefix: Params) -> Iterator[Params]:
        if len(prefix) == len(names):
            yield prefix
            return
        name = names[len(prefix)]
        first = canonical_value(prefix, name, start[name])
        yield from leaves({**prefix, name: first})
        if name in free:
            tried = [first]
            for value in _values(space.distributions[name], rng):
                if value not in tried and canonical_value(prefix, name, value) == value:
                    tried.append(value)
                    yield from leaves({**prefix, name: value})

    yield from leaves({})


def _values(distribution: BaseDistribution, rng: random.Random) -> list[Any]:
    """Return all values of a distribution in random order, or one random continuous value."""
    values: list[Any]
    if not isinstance(distribution, FloatDistribution):
        choices = getattr(distribution, "choices", None)
        values = list(integer_values(distribution) if choices is None else choices)
    elif distribution.step is not None:
        low, high, step = distribution.low, distribution.high, distribution.step
        values = [min(low + step * i, high) for i in range(round((high - low) / step) + 1)]
    else:
        low, high = distribution.low, distribution.high
        value = low * (high / low) ** rng.random() if distribution.log else rng.uniform(low, high)
        return [min(max(value, low), high)]
    rng.shuffle(values)
    return values
