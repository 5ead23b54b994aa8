"""Plans to start a search from: those that often work, and the best ones of other studies.

A model of the search space needs some trials before it is better than chance. What is known
beforehand goes first: three plans that fine-tuning by hand would try, and what was good elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.config.schema import BaselineConfig
from autotune.plan import KEEP, TrialPlan
from autotune.search.dimensions import (
    contains,
    describe,
    inactive_value,
    integer_values,
    nearest_in,
)
from autotune.search.space import Params, Space, is_active, plan_values

#: Peak learning rates with which a whole pretrained network is fine-tuned, for batches of about
#: 64. AdamW: 1e-3 for batches of 256, scaled linearly (He et al. 2022, Masked Autoencoders, table
#: 9, which tunes with layer decay as well). SGD: the value of most fine-tuning studies (Li et al.
#: 2020, Rethinking the Hyperparameters for Fine-tuning, section 1). Adagrad: that of AutoTune
#: (Basha et al. 2020).
FINE_TUNING_LR = {"adamw": 3e-4, "sgd": 1e-2, "adagrad": 1e-2}
#: A new head learns ten times as fast as what is fine-tuned below it (Long et al. 2015, Learning
#: Transferable Features with Deep Adaptation Networks, section 4.1).
HEAD_FACTOR = 10.0
#: Between the two (about the root of ten): where the head and few layers share one rate.
MIDDLE_FACTOR = 3.0
#: Between the 0.65 and 0.75 with which BEiT is fine-tuned (Bao et al. 2022, appendix).
LAYER_DECAY = 0.7
#: Share of the epochs in which the head alone trains before the rest joins (Kumar et al. 2022):
#: enough for a linear layer, and most of the training is left for the network.
HEAD_SHARE = 0.25


@dataclass(frozen=True)
class InitialPlan:
    """A plan to try before the search chooses its own.

    Args:
        title: Where it comes from, in words.
        params: Its canonical parameters.
        plan: The plan.
    """

    title: str
    params: Params
    plan: TrialPlan


@dataclass(frozen=True)
class SkippedPlan:
    """A plan of another study that is not tried, and why.

    Args:
        title: Where it comes from, in words.
        reason: The parameter that does not fit, its value and what this study has.
    """

    title: str
    reason: str


def default_plans(
    space: Space, config: BaselineConfig | None = None, epochs: int = 1
) -> tuple[InitialPlan, ...]:
    """Return the plans that often work: a few layers, all layers with small rates, the head first.

    Each value is the intended one where the space has it, and the nearest that it has otherwise.
    The learning rate follows the one that the study file gives the baseline, which trains a head,
    and :data:`FINE_TUNING_LR` where it gives none.

    Args:
        space: The static space of the study.
        config: The ``baseline`` section of the study file.
        epochs: Epochs of a trial.

    Returns:
        Up to three plans that differ from each other and from the baseline; none when the space
        tunes no layer.
    """
    depths = _trainable_depths(space)
    if not depths:
        return ()
    baseline = space.baseline(config)
    gentle = _fine_tuning_lr(space, baseline, config or BaselineConfig())
    middle = float(f"{MIDDLE_FACTOR * gentle:.6g}")  # as people write it: 0.009
    head_epochs = round(HEAD_SHARE * epochs)
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("", {"depth": depths[0], "lr": middle, "layer_decay": 1.0}),
        ("", {"depth": depths[-1], "lr": gentle, "layer_decay": LAYER_DECAY}),
        (
            "linear probing, then fine-tuning",
            # One rate for both phases: the head alone wants more, the trainable layers want less.
            {
                "depth": depths[-1],
                "lr": middle,
                "layer_decay": LAYER_DECAY,
                "head_epochs": max(1, head_epochs),
            },
        ),
    ]
    found: list[InitialPlan] = []
    for title, values in wanted:
        start = _nearest_start(space, baseline, values)
        if "head_epochs" in values and not start.plan.policy.head_epochs:
            continue
        title = title or _trainable_in_words(start.plan)
        found.append(replace(start, title=f"known good: {title}"))
    return tuple(drop_duplicates(found, [baseline])[0])


def drop_duplicates(
    starts: Iterable[InitialPlan], before: Sequence[TrialPlan]
) -> tuple[list[InitialPlan], list[SkippedPlan]]:
    """Tell the plans that are new from those that are there already.

    Args:
        starts: The plans, in their order.
        before: Plans that are queued before them.
    """
    seen = list(before)
    kept: list[InitialPlan] = []
    dropped: list[SkippedPlan] = []
    for start in starts:
        if start.plan in seen:
            dropped.append(SkippedPlan(start.title, "the same plan is queued already"))
        else:
            kept.append(start)
            seen.append(start.plan)
    return kept, dropped


def adapt_plan(space: Space, title: str, plan: TrialPlan) -> InitialPlan | SkippedPlan:
    """Bring a plan of another study into a space, or say why it does not fit.

    Args:
        space: The static space of the study that is to start.
        title: Where the plan comes from, in words.
        plan: The plan.
    """
    reason = misfit_reason(space, plan)
    params = space.params(plan)
    if params is None or reason:
        return SkippedPlan(title, reason or "means something else in the space of this study")
    return InitialPlan(title, params, plan)


def misfit_reason(space: Space, plan: TrialPlan) -> str:
    """Say which parameter of a plan a space does not have, in an empty string if it has all."""
    if plan.backbone not in space.backbones:
        return f"backbone is {plan.backbone}, and this study has {', '.join(space.backbones)}"
    values = plan_values(plan)
    for name, value in values.items():
        if not is_active(name, values):
            continue
        if name in space.distributions:
            if not contains(space.distributions[name], value):
                allowed = describe(space.distributions[name])
                return f"{name} is {_shown(value)}, and this study has {allowed}"
        elif name in space.fixed:
            if space.fixed[name] != value:
                fixed = _shown(space.fixed[name])
                return f"{name} is {_shown(value)}, and this study has it fixed at {fixed}"
        elif name.startswith("layer.") and value != KEEP:
            return f"{name} is {_shown(value)}, and this study keeps that of this layer"
    return ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trainable_depths(space: Space) -> list[int]:
    """List the depths of a space that tune a layer, the smallest first."""
    found = space.distributions.get("depth")
    depths = [space.fixed["depth"]] if found is None else integer_values(found)
    return sorted(int(depth) for depth in depths if depth)


def _fine_tuning_lr(space: Space, baseline: TrialPlan, config: BaselineConfig) -> float:
    """Return the rate for a whole network: one that is known, or a tenth of the baseline's own."""
    name = "training.optimizer"
    optimizer = baseline.policy.optimizer
    if name in space.fixed:
        optimizer = space.fixed[name]
    else:
        optimizer = nearest_in(space.distributions[name], optimizer)
    if config.lr is not None and optimizer == baseline.policy.optimizer:
        return config.lr / HEAD_FACTOR
    return FINE_TUNING_LR[optimizer]


def _nearest_start(space: Space, baseline: TrialPlan, values: dict[str, Any]) -> InitialPlan:
    """Return the point of a space nearest to the baseline with some values changed."""
    wanted = plan_values(baseline) | {
        name if name == "depth" else f"training.{name}": value for name, value in values.items()
    }
    params = {}
    for name, found in space.distributions.items():
        if name.startswith("layer."):
            params[name] = _nearest_to_keep(found)
        else:
            params[name] = (
                nearest_in(found, wanted[name]) if name in wanted else inactive_value(found)
            )
    plan = space.plan(params)
    canonical = space.params(plan)
    assert canonical is not None
    return InitialPlan("", canonical, plan)


def _nearest_to_keep(found: BaseDistribution) -> Any:
    """Return ``keep`` where a layer has the choice; a range is one of dropout: its lower end."""
    if isinstance(found, IntDistribution | FloatDistribution):
        return found.low
    return nearest_in(found, KEEP)


def _trainable_in_words(plan: TrialPlan) -> str:
    trainable = (
        "last layer trainable" if plan.depth == 1 else f"last {plan.depth} layers trainable"
    )
    return trainable if plan.policy.layer_decay == 1.0 else f"{trainable} with layer-wise decay"
