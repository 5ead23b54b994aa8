"""What an ensemble, a soup and distillation bring to a refit, on the test split.

For each seed (of the split, the search and the trainings) a small study is searched, and its best
plan is refitted alone and combined in every way. What the validation split refuses counts as the
single plan: that is what a user gets. Writes a dated report under ``benchmarks/results/``; a run
that was interrupted continues where ``--folder`` is given.

    python benchmarks/combining.py digits --seeds 5 search.trials=12
    python benchmarks/combining.py folder --seeds 5 search.trials=12 dataset=photos \
        backbone=mobilenetv2_100 weights=mobilenetv2_100.safetensors data.image_size=128
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from reports import date_and_machine, spread, write_report

from autotune.config.loading import load_study_file
from autotune.results.evaluation.combination import DISTILL, ENSEMBLE, SOUP
from autotune.results.evaluation.refit import refit_study
from autotune.results.values.intervals import CONFIDENCE_LEVEL, t_interval
from autotune.study.setup.opening import OpenStudy
from studies import open_study, run_trials

KINDS = (ENSEMBLE, SOUP, DISTILL)


def search(study: str, seed: int, overrides: list[str], folder: Path) -> OpenStudy:
    """Run the study of a seed in this process, or continue it."""
    seeds = [f"{key}.seed={seed}" for key in ("search", "data")]
    storage = f"storage=sqlite:///{folder}/study-{seed}.db"
    handle = open_study(load_study_file(study, [*overrides, *seeds, storage], f"{study}-{seed}"))
    run_trials(handle)
    return handle


def run_seed(study: str, seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    handle, row = search(study, seed, overrides, folder), {}
    for kind in KINDS:
        start = time.perf_counter()
        result = refit_study(handle, folder=folder / f"model-{seed}-{kind}", combine=kind)
        row[kind] = result.to_json()["combination"] | {
            "objective": handle.config().training.objective,
            "seconds": time.perf_counter() - start,
        }
        print(f"seed {seed}, {kind}: {row[kind]['decision']}", flush=True)
    return row


def render(study: str, overrides: list[str], rows: list[dict[str, Any]]) -> str:
    """Write the report."""
    metric = rows[0][ENSEMBLE]["objective"]
    lines = [
        f"# Combined refits of {study}: {len(rows)} seeds",
        "",
        date_and_machine("torch", "timm"),
        "",
        f"`python benchmarks/combining.py {study} --seeds {len(rows)} {' '.join(overrides)}`",
        "",
        f"Test split; {metric.replace('_', ' ')} in %, mean ± standard deviation over seeds. The "
        "gain over the single plan is a mean over seeds with its 95 % t-interval; where the "
        "validation split refused a combination the gain of that seed is 0.",
        "",
        f"| | {metric.replace('_', ' ')} | gain in points | log loss | gain in log loss | used | "
        "better, equal, worse | networks | parameters | latency |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    # The last model of a combination is itself, or the single plan where it was refused.
    singles = [row[ENSEMBLE]["models"][-2 if row[ENSEMBLE]["is_used"] else -1] for row in rows]
    baselines = [row[ENSEMBLE]["models"][0] for row in rows]
    lines.append(line("baseline", metric, baselines, singles, "", [1] * len(rows)))
    lines.append(line("single plan", metric, singles, singles, "", [1] * len(rows)))
    for kind in KINDS:
        models = [row[kind]["models"][-1] for row in rows]
        used = sum(row[kind]["is_used"] for row in rows)
        is_ensemble = kind == ENSEMBLE
        networks = [len(row[kind]["members"]) if is_ensemble else 1 for row in rows]
        lines.append(line(kind, metric, models, singles, f"{used} of {len(rows)}", networks))
    lines += ["", "What the validation split said:", ""]
    lines += [
        f"- seed {seed}, {kind}: {row[kind]['decision']}"
        for seed, row in enumerate(rows)
        for kind in KINDS
    ]
    return "\n".join(lines) + "\n"


def line(
    name: str,
    metric: str,
    models: list[dict[str, Any]],
    singles: list[dict[str, Any]],
    used: str,
    networks: list[int],
) -> str:
    pairs = list(zip(models, singles, strict=True))
    values = [100 * model["test"][metric] for model in models]
    gains = [100 * (one["test"][metric] - other["test"][metric]) for one, other in pairs]
    losses = [model["test"]["log_loss"] for model in models]
    lower = [other["test"]["log_loss"] - one["test"]["log_loss"] for one, other in pairs]
    signs = [sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains)]
    counts = f"{signs[0]}, {signs[1]}, {len(gains) - sum(signs)}"
    is_single = models is singles
    cells = [
        name,
        spread(values, 2),
        "" if is_single else interval(gains, 2),
        f"{statistics.fmean(losses):.4f}",
        "" if is_single else interval(lower, 4),
        used,
        "" if is_single else counts,
        f"{statistics.fmean(networks):.1f}",
        f"{statistics.fmean([model['parameters'] for model in models]) / 1e6:.2f} M",
        f"{statistics.fmean([model['latency_ms'] for model in models]):.2f} ms",
    ]
    return f"| {' | '.join(cells)} |"


def interval(values: list[float], decimals: int) -> str:
    """Write a mean with its 95 % t-interval."""
    found = t_interval(values, CONFIDENCE_LEVEL)
    ends = (f"{end:+.{decimals}f}" for end in (found.low, found.high))
    return f"{found.mean:+.{decimals}f} ({' to '.join(ends)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for seed in range(options.seeds):
            stored = folder / f"row-{seed}.json"
            if not stored.exists():
                row = run_seed(options.study, seed, options.overrides, folder)
                stored.write_text(json.dumps(row), encoding="utf-8")
            rows.append(json.loads(stored.read_text(encoding="utf-8")))
    text = render(options.study, options.overrides, rows)
    print(text)
    write_report(text, f"combining-{options.study}")


if __name__ == "__main__":
    main()
