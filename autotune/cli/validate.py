"""``autotune validate``: check a study file without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.cli.console import (
    NameOption,
    Overrides,
    StorageOption,
    StudyArgument,
    console,
    load_checked,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def validate(
    study: StudyArgument,
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Check a study file, its images, its backbones and their weights; write nothing."""
    config = load_checked(study, overrides, name, storage)
    from autotune.study.definition import define

    definition = define(config)
    shown = console()
    classes = len(definition.source.classes)
    backbones = ", ".join(
        f"{one.name} with {len(one.layers)} layers" for one in definition.backbones
    )
    shown.print(
        f"{study} is valid: study {config.name!r}, {len(definition.source.samples)} images of "
        f"{classes} classes, {backbones}",
        highlight=False,
    )
    for key, distribution in definition.space.distributions.items():
        shown.print(f"  searched  {key}: {in_words(distribution)}", highlight=False)
    for key, value in definition.space.fixed.items():
        shown.print(f"  fixed     {key}: {value}", highlight=False)


def in_words(distribution: BaseDistribution) -> str:
    """Write a distribution as one reads it: ``0.001 to 0.1, log``."""
    # Every kind but a choice has bounds; to ask for its class would import Optuna.
    values = distribution._asdict()
    if "choices" in values:
        return ", ".join(map(str, values["choices"]))
    text = f"{values['low']} to {values['high']}"
    if values["log"]:
        return f"{text}, log"
    whole = isinstance(values["low"], int) and values["step"] == 1
    return text if whole or values["step"] is None else f"{text} in steps of {values['step']}"
