"""``autotune reproduce``: train a trial again, as the study did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.atomic import write_bytes
from autotune.display import console
from autotune.errors import place_as_user_error
from autotune.text import join_some, relative_path

if TYPE_CHECKING:
    from autotune.results.evaluation.reproduce import Reproduction


def reproduce(
    study: console.ExistingArgument,
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="CSV file for its predictions of single validation images."),
    ] = None,
) -> None:
    """Train a trial again, as the study did, and compare every epoch with it.

    Exit code 0: all values are equal, bit by bit. 1: some differ, or the study lacks some.
    """
    stdout = console.stdout()
    if predictions is not None:
        console.check_writable(str(predictions))
    with console.stderr().status("opening the study") as status:
        opened = console.open_study(study, overrides, name, storage)
        from autotune.results.evaluation.reproduce import reproduce_trial
        from autotune.results.study_results import StudyResults

        result = reproduce_trial(
            opened,
            trial,
            lambda epoch, epochs: status.progress(
                f"trial {trial}: epoch {epoch} of {epochs}", epoch, epochs - epoch
            ),
            status.on_progress,
        )
    if predictions is not None:
        with place_as_user_error(predictions):
            write_bytes(predictions, result.predictions.encode())
    objective = StudyResults.from_study(opened.study).objective
    recorded, reproduced = map(objective.format_value, result.values)
    pruned = f", pruned after epoch {max(result.reproduced)}" if result.pruned else ""
    stdout.print(f"trial {trial}{pruned}: {result.plan.describe()}")
    stdout.print(f"{objective.label} {recorded} then, {reproduced} now")
    stdout.print(f"trained on {result.compute}")
    for line in _differences(result):
        stdout.print(line)
    if predictions is not None:
        stdout.print(f"predictions: {relative_path(predictions)}")
    for change in result.changes:
        stdout.print(f"changed since then: {change}")
    if result.first_difference is not None:
        raise typer.Exit(1)


def _differences(result: Reproduction) -> Iterator[str]:
    epochs = len(result.reproduced)
    if result.first_difference is None:
        yield f"equal bit by bit, after each of {epochs} epochs"
        return
    then, now = result.values
    last = "the last value is equal" if then == now else f"the last value by {now - then:+.2g}"
    epoch, difference = result.largest_difference
    yield (
        f"differs from epoch {result.first_difference} of {epochs} on; {last}; "
        f"epoch {epoch} differs the most, by {difference:+.2g}"
    )
    if result.missing_epochs:
        yield f"the study has no value of the epochs {join_some(result.missing_epochs)}"
    if not result.changes:
        yield (
            "device and versions are the same; another kind of processor, or an earlier attempt "
            "on another device, can round differently"
        )
