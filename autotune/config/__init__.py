"""Study files: their keys, the rules of the keys, and how a file is read."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "StudyConfig": "schema",
        "find_study_file": "loading",
        "load_study_file": "loading",
        "presets": "loading",
    },
)
