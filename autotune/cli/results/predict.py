"""``autotune predict``: predict the classes of images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from autotune.atomic import atomic_file
from autotune.display import console
from autotune.errors import AutotuneError, place_as_user_error


def predict(
    model: console.ModelArgument,
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
    heatmaps: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures of what speaks for each prediction."),
    ] = None,
    overrides: console.ModelOverrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Write the classes of images and their probabilities as CSV."""
    if output != "-":
        console.check_writable(output)
    if heatmaps is not None:
        console.check_folder(heatmaps)
    stderr = console.stderr(soft_wrap=True)
    # A spinner would break a table on the same terminal.
    progress = console.stderr(quiet=output == "-" and sys.stdout.isatty())
    with progress.status("loading the model") as status:
        from autotune.data.image_formats import PassedOver, describe_passed_over
        from autotune.data.sources.names import printable
        from autotune.results.model.image_heat_maps import HeatMapFolder
        from autotune.results.model.model_folder import load_model
        from autotune.results.model.prediction import (
            csv_columns,
            csv_row,
            find_images,
            predict_files,
        )
        from autotune.runtime import limit_torch_threads
        from autotune.study.devices import find_device
        from autotune.training.compute.amp import set_float32_precision

        passed_over = PassedOver()
        paths = find_images(images, passed_over)
        loaded = load_model(console.find_model(model, overrides, name, storage))
        limit_torch_threads()
        device = find_device()
        set_float32_precision(device)
        loaded.to(device)
        pictures = None if heatmaps is None else HeatMapFolder(heatmaps, loaded)
        unreadable = []
        with _open_output(output) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(csv_columns(loaded.classes, top, every))
            done = 0
            status.begin()
            for batch in predict_files(loaded, paths, batch_size):
                for result in batch:
                    if result.probabilities is None:
                        unreadable.append(f"{result.path!r}: {result.problem}")
                        continue
                    writer.writerow(
                        csv_row(
                            printable(result.path),
                            result.probabilities,
                            loaded.classes,
                            top,
                            every,
                        )
                    )
                    if pictures is not None:
                        pictures.draw(result)
                done += len(batch)
                status.progress(f"{done} of {len(paths)} images", done, len(paths) - done)
            if len(unreadable) == len(paths):
                raise AutotuneError("\n  ".join(["none of the images can be read:", *unreadable]))
    if unreadable:
        stderr.print(f"{len(unreadable)} of {len(paths)} images cannot be read:")
        for text in unreadable:
            stderr.print(f"  {text}")
    if text := describe_passed_over(passed_over.by_kind()):
        stderr.print(text)
    for line in [] if pictures is None else pictures.describe():
        stderr.print(line)
    if output != "-":
        stderr.print(f"{len(paths) - len(unreadable)} images: {output}")


@contextmanager
def _open_output(output: str) -> Iterator[TextIO]:
    """Open the output; a file appears when it is complete."""
    if output == "-":
        yield sys.stdout
        return
    with (
        place_as_user_error(output),
        atomic_file(Path(output).absolute()) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        yield stream
