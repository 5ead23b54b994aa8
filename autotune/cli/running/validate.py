"""``autotune validate``: check a study file without running it."""

from __future__ import annotations

from autotune.display.console import (
    NameOption,
    Overrides,
    StorageOption,
    StudyArgument,
    console,
    describe_image_progress,
    error_console,
    load_checked,
    print_plugins,
)


def validate(
    study: StudyArgument,
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Check a study file, its images, its backbones and their weights; write nothing."""
    config = load_checked(study, overrides, name, storage)
    shown = console()
    print_plugins(shown, config)
    from autotune.search.dimensions import describe
    from autotune.study.setup.definition import define

    with error_console().status("looking at what the file names") as line:
        definition = define(
            config,
            progress=lambda *done: line.update(describe_image_progress(*done)),
        )
    source = definition.dataset.source
    backbones = ", ".join(
        f"{one.name} with {len(one.layers)} layers" for one in definition.backbones
    )
    shown.print(
        f"{study} is valid: study {config.name!r}, {len(source.samples)} images of "
        f"{len(source.classes)} classes, {backbones}",
        highlight=False,
    )
    if config.data.folds is not None:
        given = any(sample.split == "validation" for sample in source.samples)
        joins = "; the validation part that the data set has is in them" if given else ""
        shown.print(f"  split     {config.data.folds} folds and a test part{joins}")
    for key, distribution in definition.space.distributions.items():
        shown.print(f"  searched  {key}: {describe(distribution)}", highlight=False)
    for key, value in definition.space.fixed.items():
        shown.print(f"  fixed     {key}: {value}", highlight=False)
