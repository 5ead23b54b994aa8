"""``autotune ls``: the presets, and the studies of a storage."""

from __future__ import annotations

import yaml
from rich.table import Table

from autotune.config.loading import presets
from autotune.display import console
from autotune.errors import StorageError


def ls(storage: console.StorageOption = None) -> None:
    """List the presets; with --storage, the studies there as well."""
    stdout = console.stdout()
    table = Table("preset", "dataset", "backbone", "description", box=None)
    for name, path in presets().items():
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        backbones = values.get("backbone", "")
        table.add_row(
            name,
            str(values.get("dataset", "")),
            ", ".join(backbones if isinstance(backbones, list) else [backbones]),
            " ".join(str(values.get("description", "")).split()),
        )
    stdout.print(table)
    if storage is None:
        return
    import optuna

    from autotune.storage.rdb.connection import open_storage, storage_errors
    from autotune.storage.url import redact

    with storage_errors(storage):
        summaries = optuna.get_all_study_summaries(open_storage(storage), include_best_trial=False)
    if not summaries:
        raise StorageError(f"the storage {redact(storage)} has no study")
    studies = Table("study", "trials", "started", box=None)
    for summary in summaries:
        start = summary.datetime_start
        studies.add_row(
            summary.study_name,
            str(summary.n_trials),
            start.isoformat(" ", "seconds") if start else "",
        )
    stdout.print(studies)
