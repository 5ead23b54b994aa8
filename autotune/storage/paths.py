"""Where the studies of a storage keep their files: the only module that knows their names.

Everything is in one folder beside the database, ``autotune.files/`` beside ``autotune.db``::

    artifacts/                       what optuna-dashboard shows: curves, matrices, weights
    cache/                           what is computed once for all workers, see data/cache/
    checkpoints/<study>/<trial>.pt   state after the last finished epoch of a live trial
    confirmed/<study>/<key>.json     scores of a plan under another seed (``autotune confirm``)
    logs/<study>/<worker>.log        one log a worker
    models/<study>/                  what ``autotune refit`` writes
    reports/<study>.<format>         what ``autotune report`` writes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.storage.url import database_path, is_sqlite, parse_url

#: Formats of a report; the endings of its files.
REPORT_FORMATS = ("html", "md", "json", "csv", "parquet")
#: The file in the folder of a model that says how to build it.
MODEL_RECORD = "record.json"
#: User attribute in which a study remembers the folder of its files.
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
            return StudyPaths(Path(root).expanduser().absolute())
        if is_sqlite(url):
            path = database_path(url)
            return StudyPaths(path.with_name(f"{path.name.removesuffix('.db')}.files"))
        database = parse_url(url).database or "autotune"
        return StudyPaths(Path("storage").absolute() / f"{Path(database).name}.files")

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
        return self.root / "checkpoints" / study

    def checkpoint(self, study: str, trial: int) -> Path:
        """Return the checkpoint of a live trial, by the number of its first attempt."""
        return self.checkpoints(study) / f"{trial}.pt"

    def confirmed(self, study: str) -> Path:
        """Return the folder of the scores that plans of a study reached under other seeds."""
        return self.root / "confirmed" / study

    def logs(self, study: str) -> Path:
        """Return the folder of a study's logs."""
        return self.root / "logs" / study

    def log(self, study: str, worker: str) -> Path:
        """Return the log file of a worker."""
        return self.logs(study) / f"{worker}.log"

    def model(self, study: str) -> Path:
        """Return the folder of a study's refitted model."""
        return self.root / "models" / study

    def report(self, study: str, format: str = REPORT_FORMATS[0]) -> Path:
        """Return the file of a study's report in one of the :data:`REPORT_FORMATS`."""
        return self.root / "reports" / f"{study}.{format}"

    def studies(self) -> set[str]:
        """Return the names of the studies that have files here, apart from artifacts."""
        return {
            path.stem if folder == "reports" and path.suffix[1:] in REPORT_FORMATS else path.name
            for folder in ("checkpoints", "confirmed", "logs", "models", "reports")
            if (self.root / folder).is_dir()
            for path in (self.root / folder).iterdir()
        }

    def owned_by(self, study: str) -> tuple[Path, ...]:
        """Return what belongs to one study alone; its artifacts are among those of others."""
        return (
            *(self.checkpoints(study), self.confirmed(study), self.logs(study), self.model(study)),
            *(self.report(study, format) for format in REPORT_FORMATS),
        )
