"""Diagnostics of a study: the questions of a tuning playbook, answered from its trials.

They are those of the Deep Learning Tuning Playbook (Godbole et al. 2023, above all "Extracting
insight from experiment results"): https://github.com/google-research/tuning_playbook

Every question is answered, by evidence: where the trials do not know yet, the answer says so and
what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.results.diagnosis import curve_checks, gain_checks, space_checks
from autotune.results.diagnosis.facts import Facts, Finding

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


def diagnose(facts: Facts) -> dict[str, Finding]:
    """Answer the questions about a study; of two objectives, the metric is diagnosed."""
    return {question: check(facts) for question, check in _CHECKS.items()}
