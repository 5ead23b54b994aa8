"""Where studies are kept: databases, files, and looking after them."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "RetryingStorage": "rdb.retry",
        "StudyPaths": "paths",
        "open_storage": "rdb.connection",
        "redact": "url",
        "study_lock": "rdb.study_lock",
    },
)
