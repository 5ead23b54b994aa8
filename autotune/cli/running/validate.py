"""``autotune validate``: check a study file without running it."""

from __future__ import annotations

from autotune.data.image_formats import describe_passed_over
from autotune.display import console
from autotune.text import plural


def validate(
    study: console.StudyArgument,
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Check a study file, its images, its backbones and their weights; write nothing."""
    config = console.load_checked(study, overrides, name, storage)
    stdout = console.stdout()
    console.print_plugins(stdout, config)
    from autotune.loggers.opening import open_loggers
    from autotune.search.dimensions import describe
    from autotune.study.setup.definition import define

    with console.stderr().status("checking the images and the backbone") as status:
        definition = define(config, progress=status.on_progress)
    open_loggers(config.loggers)  # they may be missing here
    samples, classes = definition.dataset.source.samples, definition.dataset.source.classes
    backbones = ", ".join(
        f"{backbone.name} with {plural(len(backbone.layers), 'layer')}"
        for backbone in definition.backbones
    )
    stdout.print(
        f"{study} is valid: study {config.name!r}, {plural(len(samples), 'image')} of "
        f"{plural(len(classes), 'class', 'classes')}, {backbones}"
    )
    for note in definition.notes:
        stdout.print(f"  {note}", soft_wrap=True)
    if counts := definition.dataset.source.passed_over:
        stdout.print(f"  {describe_passed_over(counts)}")
    if config.data.folds is not None:
        has_validation = any(sample.split == "validation" for sample in samples)
        note = "; the validation split of the data set is in the folds" if has_validation else ""
        stdout.print(f"  split     {config.data.folds} folds and a test split{note}")
    for key, distribution in definition.space.distributions.items():
        stdout.print(f"  searched  {key}: {describe(distribution)}")
    for key, value in definition.space.fixed.items():
        stdout.print(f"  fixed     {key}: {value}")
