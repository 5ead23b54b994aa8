"""Diagnostics of a study: the questions of a tuning playbook, answered from its trials.

They are those of the Deep Learning Tuning Playbook (Godbole et al. 2023, above all "Extracting
insight from experiment results"): https://github.com/google-research/tuning_playbook

Every question is answered, by evidence: where the trials do not know yet, the answer says so and
what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autotune.results.diagnosis import curve_checks, gain_checks, space_checks
from autotune.results.diagnosis.facts import Facts, Finding, Severity
from autotune.results.study_results import StudyResults


@dataclass(frozen=True)
class Diagnostic:
    """A question, and what the trials say.

    Args:
        question: The question.
        answer: The answer in a sentence or two, with its numbers.
        severity: ``ok``: nothing to do; ``warning``: worth a look; ``action``: change something;
            ``unknown``: it cannot be answered yet, and the answer says what is missing.
        advice: What to do about it; empty where nothing needs to be done.
    """

    question: str
    answer: str
    severity: Severity
    advice: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether the trials cannot answer it yet."""
        return self.severity == "unknown"


def diagnose(
    results: StudyResults, measured: Mapping[str, float] | None = None
) -> tuple[Diagnostic, ...]:
    """Answer the questions about a study.

    Of two objectives, the metric is diagnosed.
    """
    facts = Facts(results, measured)
    return tuple(Diagnostic(question, *check(facts)) for question, check in _CHECKS.items())


_CHECKS: Mapping[str, Callable[[Facts], Finding]] = {
    "Does the best plan lie at an edge of the space?": space_checks.check_edges,
    "Were enough plans tried near the best one?": space_checks.check_density,
    "Would more trials help?": space_checks.check_more_trials,
    "Is much of the space infeasible, or failing?": space_checks.check_failures,
    "Is training stable?": curve_checks.check_stability,
    "Does the best plan overfit?": curve_checks.check_overfitting,
    "Was training long enough?": curve_checks.check_epochs,
    "Which parameters matter, and which could be fixed?": space_checks.check_parameters,
    "Did pruning cut plans that would have won?": curve_checks.check_pruning,
    "Is the gain over the baseline larger than the noise?": gain_checks.check_noise,
    "Is the gain larger than what choosing among the trials brings?": gain_checks.check_selection,
}
