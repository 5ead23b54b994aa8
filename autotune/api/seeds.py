"""Run a study under several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.api.study import Study
from autotune.errors import UserError

if TYPE_CHECKING:
    from autotune.results.seeds import SeedComparison


def run_seeds(
    seeds: int,
    study: str = "digits",
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    storage: str | None = None,
    **options: Any,
) -> SeedComparison:
    """Run or continue a study under several seeds, one after the other; return what they gain.

    The studies have the name of the study with ``-seed0`` and so on, see :meth:`Study.open`.
    Images and split are the same for all. More seeds add to the studies that are there.

    Args:
        seeds: Number of studies, at least two; the first seed is ``search.seed``.
        study: The name of a preset or the path of a YAML file, as in :meth:`Study.from_file`.
        overrides: Values that replace those of the file, by dotted key.
        name: Name of the studies, without the seed; default: that of the file.
        storage: Storage URL; default: ``AUTOTUNE_STORAGE``, else that of the file.
        options: The arguments of :meth:`Study.run`.

    Raises:
        UserError: When an argument or the study file is wrong.
        WorkerError: When the workers cannot continue.
        NoResultError: When a study has ended and no trial has a result.
        KeyboardInterrupt: After an interrupt; the next call continues.

    Example:
        >>> small = {"search.trials": 2, "training.epochs": 1, "training.num_views": 1}
        >>> found = autotune.run_seeds(2, "digits", small, name="small", workers=1, progress=False)
        >>> [each.study for each in found.studies]
        ['small-seed0', 'small-seed1']
        >>> found.gain.low < found.gain.mean < found.gain.high
        True
    """
    if seeds < 2:
        raise UserError(f"seeds: must be at least 2, but got {seeds}")
    base = Study.from_file(study, overrides, name=name, storage=storage)
    assert base._config is not None
    first = base._config.search.seed
    others = {key: value for key, value in (overrides or {}).items() if key != "search.seed"}
    studies = [
        Study.from_file(
            study,
            {**others, "search.seed": seed},
            name=f"{base.name}-seed{seed}",
            storage=storage,
        )
        for seed in range(first, first + seeds)
    ]
    for each in studies:
        if each.run(**options).interrupted:
            raise KeyboardInterrupt
    from autotune.results.seeds import SeedComparison

    comparison = SeedComparison.of([each._results() for each in studies])
    assert comparison is not None, "they differ in their seed alone"
    return comparison
