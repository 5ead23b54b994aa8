"""Where the studies of a storage keep their files: the only module that knows their names.

Everything is in one folder beside the database, ``autotune.files/`` beside ``autotune.db``::

    artifacts/                       what optuna-dashboard shows: curves, matrices, weights
    cache/                           what is computed once for all workers, see data/cache/
    checkpoints/<study>/<trial>.pt   state after the last finished epoch of a live trial
    confirmed/<study>/<key>.json     scores of a plan under another seed (``autotune confirm``)
    logs/<study>/<worker>.log        one log a worker
    models/<study>/                  what ``autotune refit`` writes
    predictions/<study>.csv          single images, which ``autotune report`` writes too
    reports/<study>.<format>         what ``autotune report`` writes; tables of epochs have folders
    trainings/<study>/<key>.*        trainings of ``confirm`` and ``refit``: states, locks, results
    tensorboard/<study>/<trial>/     curves for TensorBoard, with ``loggers: tensorboard``

A study remembers its folder only where somebody chose one (``files:``, ``--files``), or where its
database is that of a server. Without that the folder is found beside the SQLite file, wherever the
two were moved or copied.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from autotune.errors import StorageError
from autotune.storage.url import database_path, is_sqlite, parse_url

#: Formats of a report; the endings of its files.
REPORT_FORMATS = ("html", "md", "json", "csv", "parquet", "yaml")
#: The format of a report that is a table of epochs; its files end in ``.csv``.
EPOCHS = "epochs"
#: The same of the trainings of a confirmation, which ``autotune confirm`` writes.
CONFIRMED_EPOCHS = "confirmed-epochs"
#: The file in the folder of a model that says how to build it.
MODEL_RECORD = "record.json"
#: Ending of the default folder, where a database has ``.db``.
_ENDING = ".files"
#: User attribute in which a study remembers the folder of its files, see :func:`remembered_root`.
ATTRIBUTE = "files"


@dataclass(frozen=True)
class StudyPaths:
    """The files of the studies of one storage, in the folder ``root``."""

    root: Path

    @staticmethod
    def from_url(url: str, root: str | None = None) -> StudyPaths:
        """Return the files that belong to a storage, or those in another folder.

        The files of SQLite are beside the database, those of a server in ``storage/`` under the
        working directory, named after the database.
        """
        if root is not None:
            try:
                return StudyPaths(Path(root).expanduser().absolute())
            except RuntimeError as error:  # ~somebody without a home
                raise StorageError(f"files: {root}: {error}") from None
        if is_sqlite(url):
            path = database_path(url)
            return StudyPaths(path.with_name(f"{path.name.removesuffix('.db')}{_ENDING}"))
        database = parse_url(url).database or "autotune"
        return StudyPaths(Path("storage").absolute() / f"{Path(database).name}{_ENDING}")

    @staticmethod
    def from_study(url: str, remembered: str | None, root: str | None = None) -> StudyPaths:
        """Return the files of a study that exists.

        Args:
            url: Its storage.
            remembered: Its attribute :data:`ATTRIBUTE`.
            root: The folder that somebody names now; it takes precedence.
        """
        if root is None and remembered and not _is_former_default(url, remembered):
            root = remembered
        return StudyPaths.from_url(url, root)

    @staticmethod
    def for_run(url: str, remembered: str | None, root: str | None = None) -> StudyPaths:
        """Return the files of a study that is run here, as :meth:`from_study` does.

        The folder that was remembered with a server may be that of another machine.
        """
        if remembered and not is_sqlite(url) and not Path(remembered).is_dir():
            remembered = None
        return StudyPaths.from_study(url, remembered, root)

    def written_folders(self, url: str) -> tuple[Path, ...]:
        """Return the folders into which a study of a storage writes."""
        return (self.root, database_path(url).parent) if is_sqlite(url) else (self.root,)

    @property
    def artifacts(self) -> Path:
        """Folder of Optuna's artifact store."""
        return self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """Folder of what is computed once for all workers, such as decoded images."""
        return self.root / "cache"

    def checkpoints(self, study: str) -> Path:
        """Return the folder of a study's checkpoints."""
        return self.root / "checkpoints" / _file_name(study)

    def checkpoint(self, study: str, trial: int) -> Path:
        """Return the checkpoint of a live trial, by the number of its first attempt."""
        return self.checkpoints(study) / f"{trial}.pt"

    def confirmed(self, study: str) -> Path:
        """Return the folder of the scores that plans of a study reached under other seeds."""
        return self.root / "confirmed" / _file_name(study)

    def logs(self, study: str) -> Path:
        """Return the folder of a study's logs."""
        return self.root / "logs" / _file_name(study)

    def log(self, study: str, worker: str) -> Path:
        """Return the log file of a worker."""
        return self.logs(study) / f"{worker}.log"

    def model(self, study: str) -> Path:
        """Return the folder of a study's refitted model."""
        return self.root / "models" / _file_name(study)

    def report(self, study: str, format: str = REPORT_FORMATS[0]) -> Path:
        """Return the file of a study's report in a format.

        Tables of epochs have folders: no study shares their names, whatever it is called.
        """
        if format in (EPOCHS, CONFIRMED_EPOCHS):
            return self.root / "reports" / format / f"{_file_name(study)}.csv"
        return self.root / "reports" / f"{_file_name(study)}.{format}"

    def tensorboard(self, study: str) -> Path:
        """Return the folder of a study's curves for TensorBoard."""
        return self.root / "tensorboard" / _file_name(study)

    def predictions(self, study: str) -> Path:
        """Return the file of what a study predicted for single images."""
        return self.root / "predictions" / f"{_file_name(study)}.csv"

    def trainings(self, study: str) -> Path:
        """Return the folder of a study's trainings outside of the search."""
        return self.root / "trainings" / _file_name(study)

    def studies(self) -> set[str]:
        """Return the names of the studies that were run here.

        Models and reports may have outlived theirs.
        """
        return {
            unquote(path.name)
            for folder in ("checkpoints", "confirmed", "logs", "tensorboard", "trainings")
            if (self.root / folder).is_dir()
            for path in (self.root / folder).iterdir()
        }

    def owned_by(self, study: str) -> tuple[Path, ...]:
        """Return what belongs to one study alone; its artifacts are among those of others.

        A study that another program has named like a path has nothing here.
        """
        if study in ("", ".", "..") or "/" in study:
            return ()
        return (
            *(self.checkpoints(study), self.confirmed(study), self.logs(study), self.model(study)),
            self.trainings(study),
            *(
                self.report(study, format)
                for format in (*REPORT_FORMATS, EPOCHS, CONFIRMED_EPOCHS)
            ),
            self.predictions(study),
            self.tensorboard(study),
        )


def _file_name(study: str) -> str:
    """Return the name of a study as that of a file.

    Somebody may have given it any name in the dashboard, ``../x`` as well; what a file cannot have
    is written as in a URL.
    """
    return re.sub(r"^\.|^$|[/%\x00-\x1f\x7f]", lambda found: f"%{ord(found[0] or '%'):02X}", study)


def remembered_root(url: str, files: StudyPaths) -> str | None:
    """Return what a study stores of the folder of its files: ``None`` for the default one.

    The default of a server depends on the working directory, so it is stored. Earlier versions
    stored the default of a file too; a slash at the end tells a chosen folder from such a one.
    """
    if is_sqlite(url) and files == StudyPaths.from_url(url):
        return None
    return f"{files.root}/" if files.root.suffix == _ENDING else str(files.root)


def _is_former_default(url: str, remembered: str) -> bool:
    """Tell whether a folder was stored by an earlier version, which stored the default too.

    If it was the default of the database where that was then, it must not be used: it does not
    exist any more, or belongs to the database that was copied.
    """
    folder = Path(remembered)
    if not is_sqlite(url) or remembered.endswith("/") or folder.suffix != _ENDING:
        return False
    database = folder.with_suffix("")
    databases = (database.with_name(f"{database.name}.db"), database)
    if beside := [path for path in databases if path.is_file()]:
        return not any(os.path.samefile(path, database_path(url)) for path in beside)
    return not folder.exists() or StudyPaths.from_url(url).root.exists()
