"""``autotune reproduce``: train one trial once more, as the study did."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    describe_image_progress,
    locate,
)


def reproduce(
    study: ExistingArgument,
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Train one trial once more, as the study did, and compare every epoch with it.

    Exit code 0: all values are equal, bit by bit. 1: some differ, or the study lacks some.
    """
    located = locate(study, overrides, name, storage)
    shown = console()
    with shown.status("opening the study") as line:
        from autotune.results.evaluation.reproduce import reproduce_trial
        from autotune.results.study_results import StudyResults
        from autotune.study.setup.opening import open_existing
        from autotune.text import join_some

        opened = open_existing(located.name, located.storage, located.files)
        found = reproduce_trial(
            opened,
            trial,
            lambda epoch, epochs: line.update(f"trial {trial}: epoch {epoch} of {epochs}"),
            lambda step, done, total: line.update(describe_image_progress(step, done, total)),
        )
    objective = StudyResults.from_study(opened.study).objective
    then, now = found.values
    epochs = len(found.reproduced)
    pruned = f", pruned after epoch {max(found.reproduced)}" if found.pruned else ""
    shown.print(Text(f"trial {trial}{pruned}: {found.plan.describe()}"))
    shown.print(
        Text(
            f"{objective.label} {objective.format_value(then)} then, "
            f"{objective.format_value(now)} now"
        )
    )
    shown.print(Text(f"trained on {found.compute}"))
    if found.first_difference is None:
        shown.print(Text(f"equal bit by bit, after each of {epochs} epochs"))
    else:
        last = "the last value is equal" if then == now else f"the last value by {now - then:+.2g}"
        epoch, apart = found.largest_difference
        most = f"epoch {epoch} differs the most, by {apart:+.2g}"
        shown.print(
            Text(f"differs from epoch {found.first_difference} of {epochs} on; {last}; {most}")
        )
        if found.missing_epochs:
            shown.print(
                Text(f"the study has no value of the epochs {join_some(found.missing_epochs)}")
            )
        if not found.changes:
            shown.print(
                Text(
                    "device and versions are those of then; another kind of processor, or an "
                    "earlier attempt on another device, rounds otherwise"
                )
            )
    for change in found.changes:
        shown.print(Text(f"not as it was: {change}"))
    if found.first_difference is not None:
        raise typer.Exit(1)
