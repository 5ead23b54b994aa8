"""``autotune ls``: the studies of a storage, and the presets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from autotune.config.loading import presets
from autotune.display import console
from autotune.text import format_bytes

if TYPE_CHECKING:
    from autotune.results.overview import StudyOverview


def ls(storage: console.StorageOption = None, as_json: console.JsonOption = False) -> None:
    """List the studies of a storage, the last one first, and the presets below."""
    url = console.storage_url(storage)
    studies = _read(url, is_given=storage is not None)
    if as_json:
        values = {"studies": [study.to_json() for study in studies], "presets": _presets()}
        typer.echo(json.dumps(values, indent=2))
        return
    from autotune.storage.url import redact

    stdout = console.stdout()
    if studies:
        stdout.print(_studies_table(studies))
        for study in studies:
            if study.problem:
                stdout.print(f"{study.name}: {study.problem}")
    else:
        stdout.print(f"no studies in {redact(url)}; 'autotune run' makes them")
    stdout.print()
    table = Table("preset", "dataset", "backbone", "description", box=None)
    for preset in _presets():
        table.add_row(*map(Text, preset.values()))
    stdout.print(table)


def _read(url: str, *, is_given: bool) -> Sequence[StudyOverview]:
    from autotune.storage.rdb.connection import has_content, open_storage
    from autotune.storage.url import database_path, is_sqlite

    if not is_given and is_sqlite(url) and not has_content(database_path(url)):
        return ()
    from autotune.results.overview import list_overviews

    return list_overviews(open_storage(url), url)


def _presets() -> list[dict[str, str]]:
    rows = []
    for name, path in presets().items():
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        backbones = values.get("backbone", "")
        rows.append(
            {
                "preset": name,
                "dataset": str(values.get("dataset", "")),
                "backbone": ", ".join(backbones if isinstance(backbones, list) else [backbones]),
                "description": " ".join(str(values.get("description", "")).split()),
            }
        )
    return rows


def _studies_table(studies: Sequence[StudyOverview]) -> Table:
    table = Table(box=None)
    table.add_column("study", overflow="fold")
    for title in ("state", "trials", "best", "baseline", "size", "last"):
        is_number = title in ("best", "baseline", "size")
        table.add_column(title, justify="right" if is_number else "left")
    for study in studies:
        results, state = study.results, study.state
        scores = ["–", "–"]
        if results is not None and results.best is not None:
            scores[0] = results.format_values(results.best)
        if results is not None and results.baseline is not None:
            scores[1] = results.format_values(results.baseline)
        if study.workers:
            state += f" ({study.workers})"
        size = "elsewhere" if study.size_bytes is None else format_bytes(study.size_bytes)
        last = f"{datetime.fromtimestamp(study.last):%Y-%m-%d %H:%M}" if study.last else "–"
        table.add_row(Text(study.name), state, study.finished, *scores, size, last)
    return table
