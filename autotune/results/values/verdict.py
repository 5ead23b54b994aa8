"""The verdict of ``autotune confirm``: stored with the study, and described in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autotune.format_versions import reading
from autotune.results.values.objective import Objective
from autotune.study.state import attrs

#: Key of the stored verdict that holds its selection bias.
_SELECTION_BIAS = "shrank"


@dataclass(frozen=True)
class Verdict:
    """Whether the best of some plans is better than the baseline over seeds.

    Args:
        trial: The trial with the best mean.
        mean: Its mean over the seeds.
        baseline: Mean of the baseline.
        gain: By how much the trial is better; positive also where less is better.
        low: Lower end of the interval of the gain.
        high: Upper end.
        selection_bias: By how much the mean is worse than the value in the search.
        seeds: Number of seeds.
        trials: All trials that were compared.
        splits: Whether the images were divided anew under each seed.
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
    splits: bool = False

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
        """Describe the verdict in a sentence.

        Example:
            ``trial 12 beats the baseline by 2.1 points (95 % interval 0.9 to 3.3, 5 seeds,
            corrected for choosing among 5); its mean is 0.8 points worse than its value in the
            search``
        """
        several = len(self.trials) > 1
        over = "seeds and splits" if self.splits else "seeds"
        interval = objective.format_interval(self.low, self.high)
        basis = f"95 % interval {interval}, {self.seeds} {over}"
        basis += f", corrected for choosing among {len(self.trials)}" if several else ""
        gain, bias = objective.format_gain(self.gain), self._describe_bias(objective)
        if self.is_better:
            return f"trial {self.trial} beats the baseline by {gain} ({basis}); {bias}"
        mean, baseline = (objective.format_value(value) for value in (self.mean, self.baseline))
        best = (
            f"the best mean is that of trial {self.trial} with {mean}"
            if several
            else f"trial {self.trial} has a mean of {mean}"
        )
        return (
            f"no plan is shown to beat the baseline ({baseline}): {best}, a gain of {gain} "
            f"({basis}); {bias}"
        )

    def _describe_bias(self, objective: Objective) -> str:
        bias = objective.format_gain(abs(self.selection_bias))
        if bias == objective.format_gain(0.0):
            return "its mean is its value in the search"
        side = "worse" if self.selection_bias > 0 else "better"
        return f"its mean is {bias} {side} than its value in the search"
