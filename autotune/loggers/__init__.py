"""Loggers: what receives the events of a study, see :mod:`autotune.events`.

A logger is anything that can be called with an event. Here are those for TensorBoard, MLflow and
Weights & Biases, the notification at the end of a study, and the threads in which loggers run.
Their packages are extras and are imported when a logger is made.
"""

from __future__ import annotations

from autotune.loggers.mlflow import MLflow
from autotune.loggers.tensorboard import TensorBoard
from autotune.loggers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "WandB"]
