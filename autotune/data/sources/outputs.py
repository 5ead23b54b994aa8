"""Folders that programs have written beside images, and that are no classes.

A folder with images is left out only where files in it say what wrote it: a class may have any
name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

OWN = "folders of autotune"
OTHERS = "folders of other programs"
#: Files or folders that together tell who has written the folder that they are in.
_MARKS: tuple[tuple[str, frozenset[str]], ...] = (
    (OWN, frozenset(("record.json", "model.safetensors"))),  # a refitted model
    (OTHERS, frozenset(("args.yaml", "weights"))),  # a run of Ultralytics
    (OTHERS, frozenset(("opt.yaml", "hyp.yaml"))),  # of YOLOv5 and its kin
    (OTHERS, frozenset((".hydra",))),
    (OTHERS, frozenset(("pyvenv.cfg",))),
    (OTHERS, frozenset(("conda-meta",))),
    (OTHERS, frozenset(("PG_VERSION", "base"))),  # a database of Postgres
)
#: Name of a folder, a pattern of what is in it, and who has written it.
_NAMED: tuple[tuple[str, str, str], ...] = (
    ("unpacked", "[0-9a-f]{32}", OWN),
    ("runs", "detect|segment|classify|pose|obb", OTHERS),  # of Ultralytics
    ("wandb", r"(offline-)?run-\d{8}_\d{6}-.*|latest-run", OTHERS),
    ("lightning_logs", r"version_\d+", OTHERS),
    ("mlruns", r"\.trash|\d+|models", OTHERS),
    ("node_modules", r"\.package-lock\.json|\.yarn-integrity|\.bin|\.modules\.yaml", OTHERS),
)
#: Beginnings of names in folders without images: a log of TensorBoard, the cache of a hub.
_BEGINNINGS = ("events.out.tfevents.", "models--", "datasets--")
#: Folders in the files of studies, see ``autotune/storage/paths.py``.
_FILES = frozenset(
    (
        *("artifacts", "cache", "checkpoints", "confirmed", "logs", "models", "predictions"),
        *("reports", "tensorboard", "trainings"),
    )
)
#: Names of folders, in lower case, that are output where they hold no image.
_IMAGELESS = {
    **dict.fromkeys((*_FILES, "storage"), OWN),
    **dict.fromkeys(("runs", "wandb", "mlruns", "mlartifacts", "lightning_logs"), OTHERS),
    **dict.fromkeys(("tb_logs", "outputs", "multirun", "ray_results", "venv", "env"), OTHERS),
}
_OWN_ENDINGS = (".files", ".db", ".db.lock")


#: Folders into which this process will write.
_left_out: set[str] = set()


def leave_out(folders: Iterable[Path]) -> None:
    """Take folders for output of autotune as long as they hold no images, also before they do."""
    _left_out.update(os.path.realpath(folder) for folder in folders)


def written_by(path: str, names: Collection[str], has_images: bool) -> str:
    """Tell by what is in a folder whether a program has written it, its images too.

    Returns:
        :data:`OWN`, :data:`OTHERS`, or an empty text where nothing speaks for that.
    """
    entries = frozenset(names)
    for kind, marks in _MARKS:
        if marks <= entries:
            return kind
    if has_images:
        return ""
    for name, pattern, kind in _NAMED:
        if os.path.basename(path) == name and any(map(re.compile(pattern).fullmatch, names)):
            return kind
    return ""


def written_by_imageless(folder: str) -> str:
    """Tell by names whether a program has written a folder without images, as ``written_by``."""
    if kind := _IMAGELESS.get(os.path.basename(folder).lower()):
        return kind
    real = os.path.realpath(folder)
    if any(own == real or own.startswith(real + os.sep) for own in _left_out):
        return OWN
    for path, folders, files in os.walk(folder):
        is_files_of_studies = _FILES.issuperset(folders) and {"artifacts", "cache"} & {*folders}
        if is_files_of_studies or any(name.endswith(_OWN_ENDINGS) for name in (path, *files)):
            return OWN
        if any(name.startswith(_BEGINNINGS) for name in (*folders, *files)):
            return OTHERS
    return ""
