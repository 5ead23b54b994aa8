"""The smallest model of every timm family, one after the other, in processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import timm
import torch
from reports import append_line, read_lines

from autotune.text import error_line

Row = dict[str, Any]
#: Side of the images in pixels, for models that take any; others get their own.
SIZE = 128


def each_family(
    description: str | None, check: Callable[[str, str], Row], nothing: Mapping[str, Any]
) -> tuple[list[Row], list[str], bool]:
    """Check the families named on the command line, and print the progress.

    Args:
        description: Of the benchmark, for its help.
        check: Takes a family and the name of its model, in its own process; what it returns
            has at least ``family``, ``model`` and ``failures``.
        nothing: What else the row of a check has that raised an error.

    Returns:
        A row for each family, those of the row file included; the families without a
        classification model; and whether the report is to be shown alone, not written.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("family", nargs="*", help="timm model modules, or models; default: all")
    parser.add_argument("--show", action="store_true", help="print, do not write the report")
    parser.add_argument("--rows", type=Path, help="JSON lines: families in it are not run again")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()

    rows: list[Row] = [] if options.rows is None else read_lines(options.rows)
    known = families()
    done_before = {row["family"] for row in rows}
    chosen = {
        family: name
        for family, name in known.items()
        if (not options.family or family in options.family or name in options.family)
        and family not in done_before
    }
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=1) as pool:
        running = {pool.submit(check, *item): item for item in chosen.items()}
        for done in as_completed(running):
            family, name = running[done]
            try:
                row = done.result()
            except Exception as error:
                row = {"family": family, "model": name, **nothing, "failures": [error_line(error)]}
            rows.append(row)
            if options.rows is not None:
                append_line(options.rows, row)
            print(f"{len(rows):3d}/{len(known)} {family}: {row['failures'] or 'ok'}", flush=True)
    rows.sort(key=lambda row: row["family"])
    without = [family for family in timm.list_modules() if family not in known]
    return rows, without, options.show


def families() -> dict[str, str]:
    """Return the smallest classification model of every timm model module."""
    smallest: dict[str, str] = {}
    for family in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=family):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name)
            except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
                continue  # built for something else, or not on the meta device
            if getattr(model, "num_classes", 0):
                sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        if sizes:
            smallest[family] = min(sizes, key=lambda name: sizes[name])
    return smallest


def image_size(model: Any) -> int | None:
    """Return a small size of images that the model can take, ``None`` for its own."""
    own = int(model.pretrained_cfg["input_size"][-1])
    if model.pretrained_cfg.get("fixed_input_size") or own <= SIZE:
        return None
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, SIZE, SIZE))
    except (AssertionError, RuntimeError, ValueError):
        return None
    return SIZE


def stir(model: Any) -> None:
    """Give norms and scales values that hide nothing: many start as zeros and ones."""
    with torch.no_grad():
        for module in model.modules():
            for key, value in [*module.named_parameters(recurse=False)]:
                kind = type(module).__name__.lower()
                if value.ndim == 1 and (
                    ("norm" in kind and key == "weight") or "gamma" in key or "scale" in key
                ):
                    value.uniform_(0.5, 1.5)
        for key, value in model.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(std=0.1)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
