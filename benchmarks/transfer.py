"""Fine-tune a ResNet-50 on five data sets: the protocol and the table of docs/results.md.

For each set: a search under each of three seeds, a refit of its best plan on training and
validation images, and one read of the test split. The same command continues, and measures nothing
twice. It is for a GPU.

    python benchmarks/transfer.py                        # everything, then the table
    python benchmarks/transfer.py --sets dtd pets        # some of the sets
    python benchmarks/transfer.py --table                # the table of what there is
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

import autotune
from autotune.config.loading import parse_overrides
from autotune.config.schema import StudyConfig
from autotune.errors import AutotuneError
from autotune.results.values.intervals import CONFIDENCE_LEVEL, t_interval
from autotune.storage.url import absolute_url
from autotune.study.setup.opening import find_existing
from autotune.study.state import attrs

SETS = ("aircraft", "dtd", "pets", "caltech101", "flowers102")
SEEDS = 3
#: The study file of a set.
STUDY = "transfer-{}"
NOT_MEASURED = "–"


@dataclass(frozen=True)
class Score:
    """What the first read of a test split has measured, in percent: the plan and the baseline."""

    metric: str
    plan: float
    baseline: float


def study_names(data: str) -> list[str]:
    """Return the names that ``run_seeds`` gives the studies of a set."""
    return [f"transfer-{data}-seed{seed}" for seed in range(SEEDS)]


def measure(data: str, overrides: Mapping[str, Any], storage: str | None, **devices: Any) -> None:
    """Search under every seed, and refit what has not been measured on the test split.

    Args:
        data: The set.
        overrides: Values instead of those of its study file.
        storage: URL of the studies.
        devices: ``workers`` and ``gpus``, as of ``autotune.Study.run``.
    """
    study_file, name = STUDY.format(data), f"transfer-{data}"
    autotune.run_seeds(SEEDS, study_file, overrides, name=name, storage=storage, **devices)
    for name in study_names(data):
        study = autotune.Study.open(name, storage)
        if read_score(study.optuna_study) is None:
            study.refit(**devices)


def read_score(study: optuna.Study) -> Score | None:
    """Return the score of a study; ``None`` before its refit."""
    attributes = study.user_attrs
    reads: Sequence[Mapping[str, Any]] = attributes.get(attrs.TEST_READS, ())
    if not reads:
        return None
    metric = attributes[attrs.DEFINITION]["training"]["objective"]
    return Score(metric, *(100 * reads[0][key][metric] for key in ("test", "baseline")))


def scores(data: str, storage: str | None) -> list[Score | None]:
    """Return the score of each seed of a set."""
    url = absolute_url(storage or StudyConfig.model_fields["storage"].default)
    opened = [find_existing(name, url, None) for name in study_names(data)]
    return [handle and read_score(handle.study) for handle in opened]


def table(sets: Mapping[str, Sequence[Score | None]]) -> str:
    """Write the table of docs/results.md; the mean is there when every set has every seed."""
    seeds = [f"seed {seed}" for seed in range(SEEDS)]
    lines = [
        _row("set", "metric", *seeds, "mean (95 % interval)", "frozen baseline"),
        _row(*["---"] * (SEEDS + 4)),
    ]
    for data, measured in sets.items():
        known = [score for score in measured if score is not None]
        plans, baselines = ([getattr(s, part) for s in known] for part in ("plan", "baseline"))
        lines.append(
            _row(
                data,
                known[0].metric if known else NOT_MEASURED,
                *(f"{score.plan:.2f}" if score else NOT_MEASURED for score in measured),
                _mean(plans),
                f"{statistics.fmean(baselines):.2f}" if baselines else NOT_MEASURED,
            )
        )
    by_seed = [
        statistics.fmean(score.plan for score in column if score)
        for column in zip(*sets.values(), strict=True)
        if all(column) and len(sets) == len(SETS)
    ]
    cells = [f"{mean:.2f}" for mean in by_seed] if len(by_seed) == SEEDS else []
    lines.append(
        _row("mean", "", *(cells or [NOT_MEASURED] * SEEDS), _mean(by_seed if cells else []), "")
    )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else NOT_MEASURED
    interval = t_interval(values, CONFIDENCE_LEVEL)
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--storage", default=os.environ.get("AUTOTUNE_STORAGE"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--gpus", help="all, none, or indices such as 0,2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="values")
    options = parser.parse_args()
    try:
        for data in () if options.table else options.sets:
            devices = {"workers": options.workers, "gpus": options.gpus}
            measure(data, parse_overrides(options.values), options.storage, **devices)
        print(table({data: scores(data, options.storage) for data in options.sets}))
    except AutotuneError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command continues") from None


if __name__ == "__main__":
    main()
