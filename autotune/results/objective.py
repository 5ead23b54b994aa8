"""What a study optimises, and how its values are written, on a page and in a terminal alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from optuna.study import Study, StudyDirection

from autotune.study import record


@dataclass(frozen=True)
class Objective:
    """What a study optimises, and how its values are written.

    Args:
        name: Name of the metric.
        direction: Whether more or less of it is better.
        decimals: Decimals of a share in percent; what one image of the validation part is worth.
    """

    name: str
    direction: StudyDirection
    decimals: int = 1

    @staticmethod
    def of(study: Study) -> Objective:
        """Read the objective of a study."""
        names = study.metric_names
        images = study.user_attrs.get(record.DATASET, {}).get("validation") or 0
        return Objective(
            names[0] if names else "objective", study.direction, 2 if images >= 1000 else 1
        )

    def other(self, name: str) -> Objective:
        """Return another metric of the same trials, to be written alike."""
        return replace(self, name=name)

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.direction == StudyDirection.MAXIMIZE

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share, to be written in percent."""
        return self.name in ("accuracy", "balanced_accuracy", "macro_f1")

    @property
    def words(self) -> str:
        """The name as one writes it in a sentence."""
        return self.name.replace("_", " ").replace(" f1", " F1")

    @property
    def tick_format(self) -> str:
        """How plotly is to write a value."""
        return f".{self.decimals}%" if self.is_share else ".4f"

    def show(self, value: float | None) -> str:
        """Write a value: ``84.2 %``, or ``0.5130`` where the metric is no share."""
        if value is None or not math.isfinite(value):
            return "–" if value is None or math.isnan(value) else f"{value}"
        return f"{100 * value:.{self.decimals}f} %" if self.is_share else f"{value:.4f}"

    def difference(self, value: float, other: float) -> str:
        """Write how far ``value`` lies from ``other``: ``+10.9 points``, or ``0.2900 lower``."""
        if self.is_share:
            return f"{100 * (value - other):+.{self.decimals}f} points".replace("-", "−")
        side = "lower" if value < other else "higher"
        return "no difference" if value == other else f"{abs(value - other):.4f} {side}"

    def better(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.maximised else min(values)
