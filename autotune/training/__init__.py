"""Training of one network, or of one for each fold."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "CrossValidationTrainer": "folds",
        "FeatureCache": "features",
        "Metrics": "metrics",
        "Trainer": "trainer",
    },
)
