"""Where a study keeps its files: the one place that knows their names.

Everything lies in one folder beside the database, ``autotune.files/`` beside ``autotune.db``::

    artifacts/                       what optuna-dashboard shows: curves, matrices, weights
    cache/                           what is computed once for all workers, see data/shelf.py
    checkpoints/<study>/<trial>.pt   state after the last finished epoch of a live trial
    confirmed/<study>/<key>.json     scores of a plan under another seed (``autotune confirm``)
    logs/<study>/<worker>.log        one log a worker
    models/<study>/                  what ``autotune refit`` writes
    reports/<study>.<form>           what ``autotune report`` writes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.storage.url import database_path, is_sqlite, parse_url

#: What a report can be; the endings of its files.
REPORT_FORMATS = ("html", "md", "json", "csv", "parquet")
#: The user attribute in which a study remembers the folder of its files.
ATTRIBUTE = "files"


@dataclass(frozen=True)
class StudyPaths:
    """The files of the studies of one storage.

    Args:
        root: The folder that holds them all.
    """

    root: Path

    @staticmethod
    def from_url(url: str, root: str | None = None) -> StudyPaths:
        """Return the files that belong to a storage.

        Args:
            url: Storage URL. SQLite's files lie beside the database, those of a server in
                ``storage/`` under the working directory, named after the database.
            root: Another folder; on a cluster one that all machines share.
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
        """Folder of what is computed once for all workers, decoded images for one."""
        return self.root / "cache"

    def checkpoints(self, study: str) -> Path:
        """Folder of the checkpoints of a study."""
        return self.root / "checkpoints" / study

    def checkpoint(self, study: str, trial: int) -> Path:
        """File of a live trial's checkpoint; ``trial`` is the number of its first attempt."""
        return self.checkpoints(study) / f"{trial}.pt"

    def confirmed(self, study: str) -> Path:
        """Folder of what plans of a study reached under other seeds."""
        return self.root / "confirmed" / study

    def studies(self) -> set[str]:
        """Return the names of the studies that have left something here, artifacts aside."""
        return {
            path.stem if folder == "reports" and path.suffix[1:] in REPORT_FORMATS else path.name
            for folder in ("checkpoints", "confirmed", "logs", "models", "reports")
            if (self.root / folder).is_dir()
            for path in (self.root / folder).iterdir()
        }

    def logs(self, study: str) -> Path:
        """Folder of the logs of a study."""
        return self.root / "logs" / study

    def log(self, study: str, worker: str) -> Path:
        """Log file of a worker."""
        return self.logs(study) / f"{worker}.log"

    def model(self, study: str) -> Path:
        """Folder of the fitted model of a study."""
        return self.root / "models" / study

    def report(self, study: str, form: str = REPORT_FORMATS[0]) -> Path:
        """File of a study's report; ``form`` is one of :data:`REPORT_FORMATS`."""
        return self.root / "reports" / f"{study}.{form}"

    def owned_by(self, study: str) -> tuple[Path, ...]:
        """What belongs to one study alone; its artifacts lie among those of other studies."""
        folders = ("checkpoints", "confirmed", "logs")
        own = (self.root / folder / study for folder in folders)
        reports = (self.report(study, form) for form in REPORT_FORMATS)
        return (*own, self.model(study), *reports)
