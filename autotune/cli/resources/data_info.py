"""``autotune data info``: images, classes, sizes, colors, duplicates; a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotune.atomic import atomic_file
from autotune.config.fields import largest
from autotune.config.loading import find_study_file
from autotune.config.schema import StudyConfig
from autotune.display import console
from autotune.errors import StudyError, place_as_user_error

if TYPE_CHECKING:
    from autotune.data.preprocessing import ImageSpec
    from autotune.data.quality.statistics import DatasetStatistics
    from autotune.data.splits.dataset import Dataset

#: Limits the number of classes that get a line.
_MAX_CLASSES = 20


def info(
    dataset: Annotated[
        str,
        typer.Argument(help="A dataset as study files name it, a preset, or a study file."),
    ],
    overrides: console.Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Draw a contact sheet into this PNG file."),
    ] = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Include the test images in sizes, colors and duplicates."),
    ] = False,
    as_json: console.JsonOption = False,
) -> None:
    """Count images, classes, sizes and duplicates; test images are counted, and opened."""
    is_study = _is_study(dataset)
    config = _load_config(dataset, list(overrides or ()), is_study)
    if output is not None:
        console.check_writable(output)
    stdout = console.stdout()
    with console.stderr().status("finding the images") as status:
        from autotune.data.quality.statistics import compute_statistics
        from autotune.data.sources.outputs import leave_out
        from autotune.data.splits.dataset import Dataset
        from autotune.storage.paths import StudyPaths
        from autotune.study.setup.manifest_store import look_up_existing

        manifest = look_up_existing(config).manifest if is_study else None
        if is_study:
            files = StudyPaths.from_url(config.storage, config.files)
            leave_out(files.written_folders(config.storage))
        opened = Dataset.open(config.dataset, config.data, manifest, status.on_progress)
        statistics = compute_statistics(
            opened,
            config.data.duplicates,
            test,
            lambda done, total: status.update(f"reading {done} of {total} images"),
        )
        spec = _image_spec(config) if is_study or output is not None else None
        if output is not None and spec is not None:
            status.update("drawing the contact sheet")
            unreadable = {key for key, _ in statistics.unreadable}
            _draw_contact_sheet(opened, config, spec, output, unreadable)
    if as_json:
        typer.echo(json.dumps(statistics.to_json(), indent=2))
        return
    _print(stdout, statistics, opened, config, spec if is_study else None)
    if output is not None:
        stdout.print(f"contact sheet: {output}", soft_wrap=True)


def _is_study(name: str) -> bool:
    try:
        find_study_file(name)
    except StudyError:
        return False
    return not Path(name).is_dir()


def _load_config(name: str, overrides: list[str], is_study: bool) -> StudyConfig:
    """Load a study file, or a dataset with the other values of the preset ``folder``."""
    if is_study or name.endswith((".yaml", ".yml")):
        return console.load(name, overrides, None, None)
    return console.load("folder", [f"dataset={name}", *overrides], None, None)


def _image_spec(config: StudyConfig) -> ImageSpec:
    """Return how the first backbone takes images, without loading its weights."""
    from autotune.data.preprocessing import ImageSpec
    from autotune.models.backbone import build_backbone, data_config
    from autotune.models.pretrained.names import check_name

    name, size = config.backbones[0], config.image_sizes[0]
    check_name(name)
    return ImageSpec.from_data_config(
        data_config(build_backbone(name, size, device="meta"), size), size
    )


def _draw_contact_sheet(
    dataset: Dataset, config: StudyConfig, spec: ImageSpec, output: Path, unreadable: set[str]
) -> None:
    from autotune.data.quality.contact_sheet import draw_contact_sheet

    config = config.for_images(None, largest(config.training.augment.strength))
    sheet = draw_contact_sheet(
        dataset,
        spec,
        config.training.augment,
        config.training.view_count,
        config.search.seed,
        config.data.decode == "fast",
        unreadable,
    )
    with place_as_user_error(output), atomic_file(output) as temporary:
        sheet.save(temporary, format="PNG")


def _print(
    stdout: Console,
    statistics: DatasetStatistics,
    dataset: Dataset,
    config: StudyConfig,
    spec: ImageSpec | None,
) -> None:
    from autotune.data.image_formats import list_kinds
    from autotune.data.quality.checks import dataset_warnings

    classes, checks = statistics.classes, statistics.checks
    splits = ["train", "validation", "test"]
    if any(counts["unused"] for counts in classes.values()):
        splits.append("unused")
    totals = {split: sum(counts[split] for counts in classes.values()) for split in splits}
    split_counts = ", ".join(f"{count:,} {split}" for split, count in totals.items())
    facts = {
        "images": f"{sum(sum(counts.values()) for counts in classes.values()):,}: {split_counts}",
        "classes": f"{len(classes):,}",
        "fingerprint": statistics.fingerprint,
        "read": f"{statistics.num_decoded:,} images ({', '.join(statistics.splits)})",
        "width": _format_range(statistics.widths),
        "height": _format_range(statistics.heights),
        "mean": _format_channels(statistics.mean, spec.mean if spec else None),
        "deviation": _format_channels(statistics.std, spec.std if spec else None),
        "unreadable": _format_unreadable(statistics),
    }
    if statistics.blank:
        facts["one color"] = f"{len(statistics.blank):,}"
    if counts := statistics.passed_over:
        total = sum(sum(endings.values()) for endings in counts.values())
        facts["passed over"] = f"{total:,}: {list_kinds(counts)}"
    if dataset.num_added:
        facts["not used"] = f"{dataset.num_added:,} that were added after the study was made"
    if duplicates := checks.get("duplicates"):
        near = (
            "too many similar ones" if duplicates["too_many"] else f"{duplicates['near']:,} near"
        )
        facts["duplicates"] = f"{duplicates['exact']:,} exact, {near}"
    if groups := checks.get("groups"):
        facts["groups"] = f"{groups['count']:,}, {groups['across']:,} of them in several splits"
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, fact in facts.items():
        table.add_row(Text(title, style="dim"), fact)
    stdout.print(Text(statistics.name, style="bold"))
    stdout.print(table, "", _classes_table(classes, splits), "", sep="\n")
    for key, reason in statistics.unreadable[:10]:
        stdout.print(f"unreadable: {key} ({reason})")
    if len(statistics.unreadable) > 10:
        stdout.print(f"and {len(statistics.unreadable) - 10} more")
    for remark in dataset_warnings(checks, config.training.model_dump()):
        stdout.print(remark)


def _classes_table(classes: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> Table:
    """Return a row for each class; of many, the largest and the smallest ones."""
    ranked = sorted(classes.items(), key=lambda item: -sum(item[1].values()))
    half = _MAX_CLASSES // 2
    table = Table("class", box=None, pad_edge=False)
    for split in splits:
        table.add_column(split, justify="right")
    for rank, (name, counts) in enumerate(ranked):
        omitted = len(ranked) - _MAX_CLASSES
        if omitted <= 0 or rank < half or rank >= len(ranked) - half:
            table.add_row(name, *(f"{counts[split]:,}" for split in splits))
        elif rank == half:
            table.add_row(Text(f"... {omitted} classes between", style="dim"))
    return table


def _format_unreadable(statistics: DatasetStatistics) -> str:
    tests = statistics.num_unreadable_test
    return f"{len(statistics.unreadable):,}" + (
        f", {tests:,} of them test images" if tests else ""
    )


def _format_range(values: tuple[int, int, int]) -> str:
    low, median, high = values
    return f"{low} px" if low == high else f"{low} to {high} px, median {median}"


def _format_channels(values: Sequence[float], expected: Sequence[float] | None) -> str:
    texts = [", ".join(f"{value:.3f}" for value in group) for group in (values, expected or ())]
    return "; the backbone expects ".join(text for text in texts if text)
