"""Studies with files as runs, reports and refits leave them, made in a moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

from optuna.study import Study
from sqlalchemy import func, select

from autotune.optuna_private import models
from autotune.storage.artifacts import add_artifact
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.studies import make_study

HOUR = 3600.0


def kept_study(url: str, name: str, **options: object) -> StudyPaths:
    """Make a study with a file of every kind; return its paths."""
    options = {"trials": 3, "running": 0, "failed": 0, "retried": 0, "budget": 3, **options}
    study = make_study(name, storage=open_storage(url, create=True), **options)  # type: ignore[arg-type]
    files = StudyPaths.from_url(url)
    study.set_user_attr(attrs.FILES, str(files.root) if "postgres" in url else None)
    add_files(study, files)
    return files


def add_files(study: Study, files: StudyPaths) -> None:
    name = study.study_name
    for path in (
        files.checkpoint(name, 0),
        files.confirmed(name) / "key.json",
        files.log(name, "worker-0"),
        files.model(name) / "model.safetensors",
        files.report(name),
        files.predictions(name),
    ):
        write(path)
    files.artifacts.mkdir(exist_ok=True)
    add_artifact(study, write(files.root / "split.json"), files.artifacts)
    (files.root / "split.json").unlink()


def write(path: Path, size: int = 1000, age_s: float = 2 * HOUR) -> Path:
    """Write a file that is some hours old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def count_rows(url: str) -> int:
    """Count the rows of all tables of a storage."""
    tables = models.BaseModel.metadata.sorted_tables
    with open_storage(url).engine.connect() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        )
