"""``autotune validate``: check a study file without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.config.fields import all_values
from autotune.data.image_formats import describe_passed_over
from autotune.display import console
from autotune.errors import DeviceError
from autotune.text import format_bytes, format_duration, plural

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.config.schema import StudyConfig
    from autotune.models.backbone import Backbone
    from autotune.study.race.entrants import Entrants
    from autotune.study.setup.definition import Definition


#: Names in messages of what a study can search of its images.
_NOUNS = {"image_size": "image size", "augment_strength": "augmentation"}


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
    from autotune.search.parameters.dimensions import describe
    from autotune.study.setup.definition import define

    entrants = None
    if config.race is not None:
        config = _with_stored_backbones(config)
    if config.race is not None:
        from autotune.study.race.entrants import Entrants

        entrants = Entrants.of(config)
        entrants.check_any()
        config = config.without_race(entrants.running[0].backbone)
    loaded: list[Backbone] = []
    with console.stderr().status("checking the images and the backbone") as status:
        definition = define(config, progress=status.on_progress, on_backbone=loaded.append)
    open_loggers(config.loggers)  # they may be missing here
    samples, classes = definition.dataset.source.samples, definition.dataset.source.classes
    backbones = ", ".join(
        f"{backbone.name} with {plural(len(backbone.layers), 'layer')}"
        for backbone in definition.backbones
    )
    if entrants is not None:
        backbones = f"a race among {plural(len(entrants.running), 'backbone')}"
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
    if entrants is not None:
        _print_race(stdout, entrants, definition)
    with console.stderr().status("measuring how long trials take"):
        lines = _describe_durations(definition, loaded)
    for line in lines:
        stdout.print(f"  seconds   {line}", soft_wrap=True)
    if config.image_dimensions:
        stdout.print(f"  disk      {_describe_disk(definition)}", soft_wrap=True)
    for key, distribution in definition.space.distributions.items():
        stdout.print(f"  searched  {key}: {describe(distribution)}")
    for key, value in definition.space.fixed.items():
        stdout.print(f"  fixed     {key}: {value}")


def _with_stored_backbones(config: StudyConfig) -> StudyConfig:
    """Return the study file with the backbones of its study, if there is one."""
    from autotune.study.race.running import with_stored_backbones
    from autotune.study.setup.manifest_store import find_study
    from autotune.study.state import attrs

    found = find_study(config.name, config.storage)
    if found is None or attrs.DEFINITION not in found[0].user_attrs:
        return config
    return with_stored_backbones(config, found[0])


def _print_race(stdout: Console, entrants: Entrants, definition: Definition) -> None:
    """Print who takes part in a race, who does not, and what it costs; nothing is downloaded."""
    from autotune.study.devices import visible_gpus
    from autotune.study.state.constraints import format_cost
    from autotune.study.state.race_record import describe_left_out

    for entry in entrants.running:
        size = format_cost("parameters", entry.parameters or 0)
        facts = (f"{size} parameters", entry.license, entrants.describe_source(entry))
        text = f"  race      {entry.backbone}: {', '.join(filter(None, facts))}"
        stdout.print(text, soft_wrap=True)
    if costs := entrants.describe_costs(definition.dataset, len(visible_gpus())):
        stdout.print(f"  race      {costs}", soft_wrap=True)
    for line in describe_left_out(entrants.entries):
        stdout.print(f"  left out  {line}", soft_wrap=True)


def _describe_durations(definition: Definition, backbones: list[Backbone]) -> list[str]:
    """Say how long a trial takes by its number of trainable layers, for each backbone."""
    from autotune.study.devices import find_device
    from autotune.study.trial.duration import trial_durations

    try:
        device = find_device()
    except DeviceError:  # which 'autotune run' reports
        return []
    lines = []
    for backbone in backbones:
        durations = trial_durations(definition, backbone, device)
        words = [
            f"{_seconds(one.trial)} with {plural(one.depth, 'trainable layer')}"
            for one in durations
        ]
        name = f"{backbone.name}: " if len(definition.backbones) > 1 else ""
        if len(definition.config.image_sizes) > 1:
            name += f"images of {backbone.data_config['input_size'][-1]} px: "
        epochs = plural(definition.config.training.epochs, "epoch")
        lines.append(f"{name}a trial of {epochs} takes about {', '.join(words)}")
        if longest := max(one.features for one in durations):
            lines.append(
                f"{name}the first trial of each number of layers also computes features, up to "
                f"{_seconds(longest)}"
            )
    return lines


def _describe_disk(definition: Definition) -> str:
    """Say what the caches of several image sizes, or strengths of augmentation, hold on disk."""
    split, config = definition.dataset.split, definition.config
    images = len(split.train) + len(split.validation)
    decoded = images * sum(3 * spec.store_size**2 for spec in definition.specs)
    counts = [
        plural(len(all_values(dimension)), _NOUNS[name])
        for name, dimension in config.image_dimensions.items()
    ]
    return (
        f"decoded images take {format_bytes(decoded)}; features of frozen layers are cached for "
        f"each of {' and '.join(counts)}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99.5 else format_duration(seconds)
