"""What is made of several trainings: an ensemble, a soup, or one network that learns from many.

- ``ensemble``: the probabilities of several plans, averaged;
- ``soup``: the weights of several trainings of one plan, averaged (Wortsman et al. 2022);
- ``distill``: one plan, trained on the labels and on the probabilities of the ensemble.

Whether there is one is decided on the validation split, before the test split is read. Where the
validation does not agree, the single plan is refitted as if nothing had been asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.errors import UserError, did_you_mean, join_sentences
from autotune.plan import TrialPlan
from autotune.results.evaluation.bootstrap import Assessment
from autotune.results.evaluation.ensemble_selection import EnsembleChoice, rank_metrics
from autotune.results.values.intervals import Estimate
from autotune.results.values.objective import Objective
from autotune.study.trial.build import build_trial_trainer
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.refit import read_result
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.folds import trainers_of
from autotune.training.metrics import Metrics, mean_metrics

NONE, ENSEMBLE, SOUP, DISTILL = "none", "ensemble", "soup", "distill"
COMBINATIONS = (NONE, ENSEMBLE, SOUP, DISTILL)
#: Trainings of a soup, by default.
SOUP_SEEDS = 3


def check_combination(kind: str, members: int | None) -> None:
    """Refuse a combination that does not exist, and fewer than two members.

    Raises:
        UserError: With what is allowed.
    """
    if kind not in COMBINATIONS:
        raise UserError(
            join_sentences(
                f"combine: must be {', '.join(COMBINATIONS)}, but got {kind!r}",
                did_you_mean(str(kind), COMBINATIONS),
            )
        )
    if members is not None and (kind == NONE or members < 2):
        got = f"got {members}" if kind != NONE else "nothing is combined; add --combine ensemble"
        raise UserError(f"members: must be at least 2 networks to combine, but {got}")


@dataclass(frozen=True)
class Member:
    """A network of a combination: the plan of a trial, and its weight."""

    trial: int
    plan: TrialPlan
    weight: int = 1


@dataclass(frozen=True)
class ModelScores:
    """A model on the test split.

    Args:
        name: ``baseline``, ``trial 7``, ``ensemble`` and so on.
        scores: Its metrics with their intervals.
        gain: Difference of each metric to the single plan, on the same images; empty for that.
        latency_ms: Time of one image on the device of the refit, see
            :func:`autotune.training.cost_profile.forward_ms`.
    """

    name: str
    scores: Assessment
    gain: Mapping[str, Estimate]
    parameters: int
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "name": self.name,
            "test": self.scores.values,
            "intervals": self.scores.intervals,
            "difference_to_single": {name: asdict(gap) for name, gap in self.gain.items()},
            "parameters": self.parameters,
            "latency_ms": self.latency_ms,
        }


@dataclass(frozen=True)
class Combination:
    """What was asked for, what the validation split said, and how all models do on the test split.

    Args:
        kind: ``ensemble``, ``soup`` or ``distill``.
        is_used: Whether it is the model; otherwise that is the single plan.
        decision: What was decided on the validation split and why, in a sentence.
        members: Its networks, that of the single plan first.
        device: Where latencies were measured.
        models: Baseline, single plan and combination; of a distillation also its teacher.
    """

    kind: str
    is_used: bool
    decision: str
    members: tuple[Member, ...]
    device: str = ""
    models: tuple[ModelScores, ...] = ()

    @property
    def name(self) -> str:
        """What the model is, in a few words: ``the ensemble of trials 7 (twice) and 3``."""
        return describe_members(self.kind, self.members)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "kind": self.kind,
            "is_used": self.is_used,
            "decision": self.decision,
            "name": self.name,
            "members": [
                {"trial": one.trial, "weight": one.weight, "plan": one.plan.to_json()}
                for one in self.members
            ],
            "device": self.device,
            "models": [model.to_json() for model in self.models],
        }


def describe_members(kind: str, members: Sequence[Member]) -> str:
    """Name a combination by its members."""
    first = members[0].trial
    if kind == SOUP:
        return f"the soup of {members[0].weight} trainings of trial {first}"
    weights = (f" (weight {one.weight})" if one.weight > 1 else "" for one in members)
    named = [f"{one.trial}{weight}" for one, weight in zip(members, weights, strict=True)]
    ensemble = f"the ensemble of trials {', '.join(named[:-1])} and {named[-1]}"
    return ensemble if kind == ENSEMBLE else f"trial {first}, taught by {ensemble}"


def describe_choice(kind: str, choice: EnsembleChoice, objective: Objective) -> str:
    """Say what the validation split says about an ensemble."""
    both = _describe_scores(objective, choice.single, choice.together)
    what = "Ensemble" if kind == ENSEMBLE else "Ensemble as teacher"
    text = f"{what}, chosen on the validation split, which flatters it: {both}."
    if not choice.is_better:
        text = (
            f"No ensemble: none of {choice.considered - 1} other trials adds anything to the "
            "single plan on the validation split."
        )
    if lost := choice.without_logits:
        text += f" {lost} of the best trials have no validation logits, and were not considered."
    return text


def _describe_scores(objective: Objective, single: Metrics, together: Metrics) -> str:
    """Write the objective of both, and the log loss, which decides between equal ones."""
    names = dict.fromkeys((objective.name, "log_loss"))
    metrics = [objective.with_name(name) for name in names]
    return ", ".join(
        f"{metric.label} {metric.format_value(single.objective(metric.name))} → "
        f"{metric.format_value(together.objective(metric.name))}"
        for metric in metrics
    )


def judge_soup(
    trainings: Sequence[Training], ctx: WorkerContext, objective: Objective
) -> tuple[bool, str]:
    """Compare the average of the weights with the single trainings, on the validation split.

    A refit is one training, of which nobody knows whether it is the best of several. So the soup
    is compared with their mean.

    Args:
        trainings: Trainings on the training split that have a result.
        ctx: The context of the study.
        objective: What the study optimizes.

    Returns:
        Whether the soup is better, and the comparison in a sentence.
    """
    files = [TrainingFiles.of(each, ctx.handle, ctx.config) for each in trainings]
    results = [read_result(each) for each in files]
    training = build_trial_trainer(
        trainings[0].plan, ctx, micro_batch_size=trainings[0].micro_batch_size
    )
    for fold, trainer in enumerate(trainers_of(training)):
        trainer.average_weights([result["weights"][fold] for result in results if result])
    soup = training.validate()
    single = mean_metrics([Metrics(**result["metrics"]) for result in results if result])
    both = _describe_scores(objective, single, soup)
    text = f"on the validation split, mean of the single ones → average of weights: {both}"
    count = f"{len(trainings)} trainings"
    if rank_metrics(soup, objective) < rank_metrics(single, objective):
        return True, f"Soup of {count}; {text}."
    return False, f"No soup: averaging the weights of {count} does not help; {text}."
