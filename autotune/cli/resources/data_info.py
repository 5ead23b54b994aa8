"""``autotune data info``: images, classes, sizes, colours, duplicates; a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotune.config.loading import find_study_file
from autotune.config.schema import StudyConfig
from autotune.display.console import (
    Overrides,
    check_writable,
    console,
    describe_image_progress,
    error_console,
    load,
)
from autotune.errors import StudyError, disk_full_as_user_error

if TYPE_CHECKING:
    from autotune.data.preprocessing import ImageSpec
    from autotune.data.quality.statistics import DatasetStatistics
    from autotune.data.splits.dataset import Dataset

#: Classes of which a line is shown; of more, the smallest and the largest are.
_LINES = 20


def info(
    dataset: Annotated[
        str,
        typer.Argument(help="A data set as study files name it, a preset, or a study file."),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Draw a contact sheet into this PNG file."),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Decode the test images too, for sizes and duplicates.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count images, classes, sizes and duplicates; test images are in the counts alone."""
    config = _config(dataset, list(overrides or ()))
    if output is not None:
        check_writable(str(output))
    shown = console()
    with error_console().status("finding the images") as line:
        from autotune.data.quality.statistics import compute_statistics
        from autotune.data.splits.dataset import Dataset
        from autotune.study.setup.manifest_store import look_up_existing

        def tell(done: int, total: int) -> None:
            line.update(f"looking at {done} of {total} images")

        manifest = look_up_existing(config).manifest if _is_study(dataset) else None
        opened = Dataset.open(
            config.dataset,
            config.data,
            manifest,
            lambda *done: line.update(describe_image_progress(*done)),
        )
        census = compute_statistics(opened, config.data.duplicates, test, tell)
        spec = _spec(config) if output is not None or _is_study(dataset) else None
        if output is not None and spec is not None:
            line.update("drawing the contact sheet")
            _draw(opened, config, spec, output, {key for key, _ in census.unreadable})
    if as_json:
        typer.echo(json.dumps(census.to_json(), indent=2))
    else:
        _print(shown, census, opened, config, spec if _is_study(dataset) else None)
        if output is not None:
            shown.print(Text(f"contact sheet: {output}"), soft_wrap=True)


def _is_study(name: str) -> bool:
    try:
        find_study_file(name)
    except StudyError:
        return False
    return not Path(name).is_dir()


def _config(name: str, overrides: list[str]) -> StudyConfig:
    """Read a study file, or take a data set with what the preset ``folder`` says of images."""
    if _is_study(name) or name.endswith((".yaml", ".yml")):
        return load(name, overrides, None, None)
    quoted = name.replace("'", "''")
    return load("folder", [f"dataset='{quoted}'", *overrides], None, None)


def _spec(config: StudyConfig) -> ImageSpec:
    """Return how images enter the first backbone; its weights are not needed."""
    from autotune.data.preprocessing import ImageSpec
    from autotune.models.backbone import build_backbone, check_name, data_config

    name, size = config.backbones[0], config.data.image_size
    check_name(name)
    return ImageSpec.from_data_config(
        data_config(build_backbone(name, size, device="meta"), size), size
    )


def _draw(
    dataset: Dataset, config: StudyConfig, spec: ImageSpec, output: Path, unreadable: set[str]
) -> None:
    from autotune.data.quality.contact_sheet import draw_contact_sheet

    training = config.training
    sheet = draw_contact_sheet(
        dataset,
        spec,
        training.augment,
        training.view_count,
        config.search.seed,
        config.data.decode == "fast",
        unreadable,
    )
    with disk_full_as_user_error(output):
        sheet.save(output, format="PNG")


def _print(
    shown: Console,
    census: DatasetStatistics,
    dataset: Dataset,
    config: StudyConfig,
    spec: ImageSpec | None,
) -> None:
    totals = {part: sum(one[part] for one in census.classes.values()) for part in _parts(census)}
    images = sum(sum(one.values()) for one in census.classes.values())
    counted = ", ".join(f"{count:,} {part}" for part, count in totals.items())
    facts = {
        "images": f"{images:,}: {counted}",
        "classes": f"{len(census.classes):,}",
        "fingerprint": census.fingerprint,
        "looked at": f"{census.num_decoded:,} images ({', '.join(census.splits)})",
        "width": _range(census.widths),
        "height": _range(census.heights),
        "mean": _channels(census.mean, spec.mean if spec else None),
        "deviation": _channels(census.std, spec.std if spec else None),
        "unreadable": f"{len(census.unreadable):,}",
    }
    if dataset.num_added:
        facts["left out"] = f"{dataset.num_added:,} that came after the study was made"
    duplicates = census.checks.get("duplicates")
    if duplicates:
        near = "too many alike" if duplicates["too_many"] else f"{duplicates['near']:,} near ones"
        facts["duplicates"] = f"{duplicates['exact']:,} exact ones, {near}"
    if groups := census.checks.get("groups"):
        facts["groups"] = f"{groups['count']:,}, {groups['across']:,} of them in several parts"
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, fact in facts.items():
        table.add_row(Text(title, style="dim"), Text(fact))
    shown.print(Text(census.name, style="bold"))
    shown.print(table)
    _print_classes(shown, census)
    for key, reason in census.unreadable[:10]:
        shown.print(Text(f"unreadable: {key} ({reason})"))
    if len(census.unreadable) > 10:
        shown.print(f"and {len(census.unreadable) - 10} more")
    from autotune.data.quality.checks import dataset_warnings

    for remark in dataset_warnings(census.checks, config.training.model_dump()):
        shown.print(Text(remark))


def _parts(census: DatasetStatistics) -> list[str]:
    unused = any(one["unused"] for one in census.classes.values())
    return ["train", "validation", "test", *(["unused"] if unused else [])]


def _print_classes(shown: Console, census: DatasetStatistics) -> None:
    parts = _parts(census)
    ranked = sorted(census.classes.items(), key=lambda one: -sum(one[1].values()))
    left = len(ranked) - _LINES
    table = Table("class", *parts, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for place, (name, counts) in enumerate(ranked):
        if left > 0 and place == _LINES // 2:
            table.add_row(Text(f"... {left} classes between", style="dim"))
        if left <= 0 or place < _LINES // 2 or place >= len(ranked) - _LINES // 2:
            table.add_row(Text(name), *(f"{counts[part]:,}" for part in parts))
    shown.print()
    shown.print(table)
    shown.print()


def _range(values: tuple[int, int, int]) -> str:
    low, middle, high = values
    return f"{low} px" if low == high else f"{low} to {high} px, median {middle}"


def _channels(values: tuple[float, ...], wanted: tuple[float, ...] | None) -> str:
    text = ", ".join(f"{value:.3f}" for value in values)
    if wanted is None:
        return text
    return f"{text}; the backbone expects {', '.join(f'{value:.3f}' for value in wanted)}"
