"""A study that runs: its state, its setup, its trials, its workers, its doctor."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "Definition": "setup.definition",
        "OpenStudy": "setup.opening",
        "TrialQueue": "state.trial_queue",
        "define": "setup.definition",
        "open_existing": "setup.opening",
        "run_study": "engine.launcher",
        "run_worker": "engine.worker",
    },
)
