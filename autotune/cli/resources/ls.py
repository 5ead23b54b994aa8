"""``autotune ls``: the studies of a storage, and the presets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    studies, sizes = _read(url, is_given=storage is not None)
    if as_json:
        rows = [{**study.to_json(), "size_bytes": sizes.get(study.name)} for study in studies]
        values = {"studies": rows, "presets": _presets()}
        typer.echo(json.dumps(values, indent=2))
        return
    from autotune.storage.url import redact

    stdout = console.stdout()
    if studies:
        stdout.print(_studies_table(studies, sizes))
        for study in studies:
            if study.state in ("no result", "not made", "unreadable"):
                stdout.print(f"{study.name}: {study.reason}")
    else:
        stdout.print(f"no studies in {redact(url)}; 'autotune run' makes them")
    stdout.print()
    table = Table("preset", "dataset", "backbone", "description", box=None)
    for preset in _presets():
        table.add_row(*map(Text, preset.values()))
    stdout.print(table)


def _read(url: str, *, is_given: bool) -> tuple[Sequence[StudyOverview], Mapping[str, int | None]]:
    """Read the studies, and the bytes of their files; ``None`` where these are elsewhere."""
    from autotune.storage.rdb.connection import has_content, open_storage
    from autotune.storage.url import database_path, is_sqlite

    if not is_given and is_sqlite(url) and not has_content(database_path(url)):
        return (), {}
    from autotune.results.overview import StudyOverviews
    from autotune.study.upkeep.stored_studies import stored_studies

    storage = open_storage(url)
    sizes = {
        study.name: sum(study.sizes().values()) if study.is_here else None
        for study in stored_studies(storage, url)
    }
    return StudyOverviews(storage, url).read(), sizes


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


def _studies_table(studies: Sequence[StudyOverview], sizes: Mapping[str, int | None]) -> Table:
    table = Table(box=None)
    table.add_column("study", overflow="fold")
    for title in ("state", "trials", "best", "baseline", "size", "last"):
        is_number = title in ("best", "baseline", "size")
        table.add_column(title, justify="right" if is_number else "left")
    for study in studies:
        outcome, state = study.outcome, study.state
        scores = (outcome.best, outcome.baseline) if outcome else ("", "")
        if study.workers:
            state += f" ({study.workers})"
        bytes_ = sizes.get(study.name)
        size = "elsewhere" if bytes_ is None else format_bytes(bytes_)
        last = f"{datetime.fromtimestamp(study.last):%Y-%m-%d %H:%M}" if study.last else "–"
        values = (score or "–" for score in scores)
        table.add_row(Text(study.name), state, study.finished, *values, size, last)
    return table
