"""Renaming a study: its files, which are found by its name, and its row."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import optuna
import sqlalchemy

from autotune.config.schema import check_study_name
from autotune.errors import StorageError, StudyError, UserError
from autotune.storage.admin.study_rows import rename_study_row
from autotune.storage.url import is_sqlite, redact
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import STOPPED, StopReason
from autotune.study.upkeep.stored_studies import locked_at_rest


def rename_study(handle: OpenStudy, new: str) -> OpenStudy:
    """Give a study that does not run another name, with its files; return it.

    Until it is run again it counts as stopped: a worker that knows it by its old name, and is
    between two trials, starts no other one.

    Raises:
        UserError: When the name is none for a study.
        StudyError: When the study runs, or the storage has one of that name.
        StorageError: When files of that name are in the way, or its files are not here.
    """
    try:
        check_study_name(new)
    except ValueError as error:
        raise UserError(str(error)) from None
    old, files = handle.name, handle.files
    if not is_sqlite(handle.url) and not files.root.is_dir():
        raise StorageError(
            f"the files of {old!r} are in {files.root}, which is not on this machine; rename the "
            "study where they are, or name their folder with --files"
        )
    with locked_at_rest(handle):
        if new in optuna.get_all_study_names(handle.storage):
            raise StudyError(
                f"the storage {redact(handle.url)} has a study {new!r} already; choose another "
                "name"
            )
        moves = list(zip(files.owned_by(old), files.owned_by(new), strict=False))
        if taken := next((path for _, path in moves if path.exists()), None):
            raise StorageError(
                f"{taken} exists and is not overwritten; move it away, or choose another name"
            )
        moved: list[tuple[Path, Path]] = []
        try:
            for source, target in moves:
                if source.exists():
                    os.rename(source, target)
                    moved.append((source, target))
            if StopReason.from_attributes(handle.study.user_attrs) is None:
                reason = StopReason(STOPPED, f"renamed from {old!r}; 'autotune run' continues it")
                handle.study.set_user_attr(attrs.ENDED, reason.to_json())
            rename_study_row(handle.storage.engine, old, new)
        except BaseException as error:
            for source, target in reversed(moved):
                with suppress(OSError):
                    os.rename(target, source)
            if isinstance(error, OSError):
                raise StorageError(
                    f"{error.filename} cannot be renamed: {error.strerror}; nothing was changed"
                ) from error
            if isinstance(error, sqlalchemy.exc.IntegrityError):
                raise StudyError(
                    f"the storage has got a study {new!r} meanwhile; choose another name"
                ) from error
            raise
    return open_existing(new, handle.url, str(files.root))
