"""What ``autotune confirm`` found, in short: kept with the study, and said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.study import Study

from autotune.format_versions import reading
from autotune.results.values.objective import Objective
from autotune.study.state import attrs

#: Key of the stored verdict that holds its selection bias.
_SELECTION_BIAS = "shrank"


@dataclass(frozen=True)
class Verdict:
    """Whether the best of some plans beats the baseline over seeds.

    Args:
        trial: The trial with the best mean.
        mean: Its mean over the seeds.
        baseline: Mean of the baseline.
        gain: By how much it is better, positive where less is better too.
        low: Lower end of the interval of the gain.
        high: Upper end.
        selection_bias: By how much the mean is worse than the value in the search.
        seeds: How many seeds.
        trials: All trials that were compared.
    """

    trial: int
    mean: float
    baseline: float
    gain: float
    low: float
    high: float
    selection_bias: float
    seeds: int
    trials: tuple[int, ...]

    @staticmethod
    def from_study(study: Study) -> Verdict | None:
        """Return what was found for a study, or ``None``."""
        return Verdict.from_attributes(study.user_attrs)

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> Verdict | None:
        """Return the verdict in the user attributes of a study, or ``None``."""
        stored: Mapping[str, Any] | None = attributes.get(attrs.CONFIRMED)
        if not stored:
            return None
        by = attrs.written_by_version(attributes)
        with reading("what 'autotune confirm' has written with the study", by=by):
            values = {**stored, "trials": tuple(stored["trials"])}
            return Verdict(selection_bias=values.pop(_SELECTION_BIAS), **values)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = {**asdict(self), "trials": list(self.trials)}
        values[_SELECTION_BIAS] = values.pop("selection_bias")
        return values

    @property
    def is_better(self) -> bool:
        """Whether the plan is shown to be better than the baseline."""
        return self.low > 0.0

    def describe(self, objective: Objective) -> str:
        """Say it in a sentence.

        Args:
            objective: How values of the study are written.

        Example:
            ``trial 12 beats the baseline by 2.1 points (95 % interval 0.9 to 3.3, 5 seeds,
            corrected for choosing among 5); its mean is 0.8 points worse than its value in the
            search``
        """
        chosen = f", corrected for choosing among {len(self.trials)}"
        known = (
            f"95 % interval {format_gain(objective, self.low, unit=False)} to "
            f"{format_gain(objective, self.high, unit=False)}, {self.seeds} seeds"
            + (chosen if len(self.trials) > 1 else "")
        )
        if self.is_better:
            gained = format_gain(objective, self.gain)
            return (
                f"trial {self.trial} beats the baseline by {gained} ({known}); "
                f"{self._shrunk(objective)}"
            )
        mean = objective.format_value(self.mean)
        where = f"the best mean is that of trial {self.trial} with {mean}"
        if len(self.trials) == 1:
            where = f"trial {self.trial} has a mean of {mean}"
        return (
            f"no plan is shown to beat the baseline ({objective.format_value(self.baseline)}): "
            f"{where}, a gain of {format_gain(objective, self.gain)} ({known}); "
            f"{self._shrunk(objective)}"
        )

    def _shrunk(self, objective: Objective) -> str:
        worse = format_gain(objective, abs(self.selection_bias))
        if worse == format_gain(objective, 0.0):
            return "its mean is its value in the search"
        side = "worse" if self.selection_bias > 0 else "better"
        return f"its mean is {worse} {side} than its value in the search"


def format_gain(objective: Objective, gain: float, *, unit: bool = True) -> str:
    """Write by how much something is better: ``2.1 points``, or ``0.0310``.

    Args:
        objective: What is compared.
        gain: The difference, positive for better.
        unit: Whether to name the unit.
    """
    if not objective.is_share:
        return f"{gain:.4f}".replace("-", "−")
    shown = f"{100 * gain:.{objective.decimals}f}"
    if float(shown) == 0.0:
        shown = shown.removeprefix("-")
    return shown.replace("-", "−") + (" points" if unit else "")
