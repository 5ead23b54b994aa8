"""``autotune predict``: the classes of images, by a fitted model."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from autotune.display.console import check_writable, error_console
from autotune.errors import AutotuneError, disk_full_as_user_error

ModelArgument = Annotated[
    Path, typer.Argument(help="Folder of a model, as 'autotune refit' has written it.")
]


def predict(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="Image files, and folders of them.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="CSV file to write; - prints it.")
    ] = "-",
    top: Annotated[int, typer.Option(min=1, help="Classes to name, the most likely first.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="The probability of every class too.")] = (
        False
    ),
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images that go through the network at a time.")
    ] = 64,
) -> None:
    """Write the classes of images and their probabilities as CSV."""
    if output != "-":
        check_writable(output)
    told = error_console(soft_wrap=True, highlight=False)
    # Beside a table on the terminal a moving line would be in the way.
    moving = error_console(quiet=output == "-" and sys.stdout.isatty())
    with moving.status("loading the model") as line:
        from autotune.data.sources.folders import printable
        from autotune.results.model.model import load_model
        from autotune.results.model.prediction import (
            csv_columns,
            csv_row,
            find_images,
            predict_files,
        )
        from autotune.runtime import limit_torch_threads
        from autotune.study.devices import find_device
        from autotune.training.compute.amp import set_float32_precision

        paths = find_images(images)
        loaded = load_model(model)
        limit_torch_threads()
        device = find_device()
        set_float32_precision(device)
        loaded.to(device)
        unreadable = []
        with _table(output, told) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(csv_columns(loaded.classes, top, every))
            done = 0
            for batch in predict_files(loaded, paths, batch_size):
                for one in batch:
                    if one.probabilities is None:
                        unreadable.append(f"{one.path!r}: {one.problem}")
                        continue
                    writer.writerow(
                        csv_row(printable(one.path), one.probabilities, loaded.classes, top, every)
                    )
                done += len(batch)
                line.update(f"{done} of {len(paths)} images")
            if len(unreadable) == len(paths):
                raise AutotuneError("\n  ".join(["none of the images can be read:", *unreadable]))
    if unreadable:
        told.print(f"{len(unreadable)} of {len(paths)} images cannot be read:", markup=False)
        for text in unreadable:
            told.print(f"  {text}", markup=False)
    if output != "-":
        told.print(f"{len(paths) - len(unreadable)} images: {output}", markup=False)


@contextmanager
def _table(output: str, told: Console) -> Iterator[TextIO]:
    """Open what the table is written to; a file appears when it is whole."""
    if output == "-":
        yield sys.stdout
        return
    target = Path(output)
    temporary = target.with_name(f".{target.name}.new")
    try:
        with disk_full_as_user_error(target.absolute().parent):
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield stream
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
