"""Plans to start a search from: plans that often work, and the best plans of other studies.

A model of the search space needs some trials before it is better than chance. So a few plans that
fine-tuning by hand would try go first, and plans that were good elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution

from autotune.config.schema import BaselineConfig
from autotune.plan import KEEP, SOLVED, TrainingPolicy, TrialPlan
from autotune.search.parameters.activity import is_active
from autotune.search.parameters.by_optimizer import (
    FINE_TUNING_LR,
    HEAD_FACTOR,
    WEIGHT_DECAY,
    optimizer_of,
    shared_name,
)
from autotune.search.parameters.dimensions import (
    contains,
    describe,
    ends,
    inactive_value,
    integer_values,
    least_change,
    nearest_in,
)
from autotune.search.space import Params, Space, plan_values

#: The same where the head and few layers share one rate: about the root of ten.
MIDDLE_FACTOR = 3.0
#: Between the 0.65 and 0.75 with which BEiT is fine-tuned (Bao et al. 2022, appendix).
LAYER_DECAY = 0.7
#: Share of the epochs in which the head trains alone before the rest joins (Kumar et al. 2022):
#: enough for a linear layer, and most of the training is left for the network.
HEAD_SHARE = 0.25
_PROBED = "linear probing, then fine-tuning"
_SOLVED = {"head_start": SOLVED}


@dataclass(frozen=True)
class InitialPlan:
    """A plan to try before the search chooses its own."""

    title: str
    params: Params
    plan: TrialPlan


@dataclass(frozen=True)
class SkippedPlan:
    """A plan that is not tried, and why."""

    title: str
    reason: str


def default_plans(
    space: Space, config: BaselineConfig | None = None, epochs: int = 1
) -> tuple[InitialPlan, ...]:
    """Return the plans that often work: few layers, all layers with small rates, the head first.

    All layers are tried with layer-wise decay and at one low rate. Each value is the intended one
    if the space has it, else the nearest that it has. The learning rate follows that of the
    baseline in the study file, which is that of a head; if the file gives none, it is
    :data:`FINE_TUNING_LR`. Where the trainable layers have a rate of their own, the head above all
    layers keeps the baseline's.

    Of several image sizes all plans have the largest, but one: all layers at one low rate are
    tried with the smallest, which costs little and shows what it loses.

    Of several optimizers the others get the plans for which they are known: SGD trains all layers
    at one low rate (Kornblith et al. 2019, Kolesnikov et al. 2020), and each trains few layers, as
    AutoTune does with Adagrad (Basha et al. 2020).

    Returns:
        Up to five plans, and up to two for each further optimizer, that differ from each other and
        from the baseline; none if the space trains no layer.
    """
    searched = space.distributions.get("depth")
    depths = [space.fixed["depth"]] if searched is None else integer_values(searched)
    depths = sorted(int(depth) for depth in depths if depth)
    if not depths:
        return ()
    baseline = space.baseline(config)
    gentle = _fine_tuning_lr(space, baseline, config or BaselineConfig())
    head, middle = (_as_written(factor * gentle) for factor in (HEAD_FACTOR, MIDDLE_FACTOR))
    few, last = {"depth": depths[0], "layer_decay": 1.0}, {"depth": depths[-1]}
    decayed, uniform = {**last, "layer_decay": LAYER_DECAY}, {**last, "layer_decay": 1.0}
    probed = {**decayed, "head_epochs": max(1, round(HEAD_SHARE * epochs))}
    few |= {"lr": middle, "backbone_lr": 1.0}
    if "training.backbone_lr" in space.distributions:
        for values in (decayed, uniform, probed):
            values |= {"lr": head, "backbone_lr": 1 / HEAD_FACTOR}
    else:
        decayed["lr"], uniform["lr"] = gentle, gentle
        # One rate for both phases: the head alone wants more, the trainable layers want less.
        probed["lr"] = middle
    # A solved head is as good as a head gets, and one low rate suffices for all that trains.
    solved = {**decayed, **_SOLVED, "lr": gentle, "backbone_lr": 1.0}
    searched_start = space.distributions.get("training.head_start")
    can_solve = searched_start is not None and contains(searched_start, SOLVED)
    small, at_size = uniform, ""
    if sizes := space.distributions.get("image_size"):
        size = int(min(ends(sizes)))
        small, at_size = {**uniform, "image_size": size}, f", images of {size} px"
    wanted = [
        ("{layers}", few),
        ("{layers}", decayed),
        ("{layers} at a low rate" + at_size, small),
        *(
            [("solved head, {layers}", solved), ("solved head", {"depth": 0, **_SOLVED})]
            if can_solve
            else [(_PROBED, probed)]
        ),
    ]
    others = space.distributions.get("training.optimizer")
    for name in others.choices if isinstance(others, CategoricalDistribution) else ():
        if name != _first_optimizer(space, baseline):
            wanted += _of_optimizer(str(name), space, few, uniform)
    plans: list[InitialPlan] = []
    for title, values in wanted:
        params = _nearest_params(space, baseline, {"head_start": "random", **values})
        plan = space.plan(params)
        if title != _PROBED or plan.policy.head_epochs:
            title = title.format(layers=_describe_depth(plan))
            plans.append(InitialPlan(f"known good: {title}", params, plan))
    return tuple(drop_duplicates(plans, [baseline])[0])


def drop_duplicates(
    plans: Iterable[InitialPlan], before: Sequence[TrialPlan]
) -> tuple[list[InitialPlan], list[SkippedPlan]]:
    """Separate new plans from plans that are queued already."""
    seen = list(before)
    kept: list[InitialPlan] = []
    skipped: list[SkippedPlan] = []
    for initial in plans:
        if initial.plan in seen:
            skipped.append(SkippedPlan(initial.title, "the same plan is queued already"))
        else:
            kept.append(initial)
            seen.append(initial.plan)
    return kept, skipped


def adapt_plan(space: Space, title: str, plan: TrialPlan) -> InitialPlan | SkippedPlan:
    """Return a plan of another study as a plan of this space, or why it does not fit."""
    reason = misfit_reason(space, plan)
    params = space.params(plan)
    if params is None or reason:
        return SkippedPlan(title, reason or "means something else in the space of this study")
    return InitialPlan(title, params, plan)


def misfit_reason(space: Space, plan: TrialPlan) -> str:
    """Name the first parameter of a plan that a space does not have; empty if it has all."""
    if plan.backbone not in space.backbones:
        return f"backbone is {plan.backbone}, and this study has {', '.join(space.backbones)}"
    values = plan_values(plan)
    for name, value in values.items():
        if not is_active(name, values):
            continue
        text = f"{name} is {_format(value)}, and this study"
        if name in space.distributions:
            if not contains(space.distributions[name], value):
                return f"{text} has {describe(space.distributions[name])}"
        elif name in space.fixed:
            if space.fixed[name] != value:
                return f"{text} has it fixed at {_format(space.fixed[name])}"
        elif name.startswith("layer.") and value != KEEP:
            return f"{text} keeps that of this layer"
    return ""


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_written(rate: float) -> float:
    """Round a rate to what people write: 0.009, and not 0.009000000000000001."""
    return float(f"{rate:.6g}")


def _of_optimizer(
    optimizer: str, space: Space, few: Mapping[str, Any], uniform: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the plans of another optimizer than that of the baseline, with its own rates."""
    gentle = FINE_TUNING_LR[optimizer]
    has_ratio = "training.backbone_lr" in space.distributions
    head, middle = (_as_written(factor * gentle) for factor in (HEAD_FACTOR, MIDDLE_FACTOR))
    plans = [("{layers}", {**few, "lr": middle})]
    if optimizer != "adagrad":
        plans.append(("{layers} at a low rate", {**uniform, "lr": head if has_ratio else gentle}))
    return [(f"{title}, {optimizer}", {**own, "optimizer": optimizer}) for title, own in plans]


def _first_optimizer(space: Space, baseline: TrialPlan) -> str:
    """Return the optimizer of the baseline, or the one nearest to it in the space."""
    name, optimizer = "training.optimizer", baseline.policy.optimizer
    if name in space.fixed:
        return str(space.fixed[name])
    return str(nearest_in(space.distributions[name], optimizer))


def _fine_tuning_lr(space: Space, baseline: TrialPlan, config: BaselineConfig) -> float:
    """Return the rate for a whole network: a tenth of the baseline's own, or a published one."""
    optimizer = _first_optimizer(space, baseline)
    if config.lr is not None and optimizer == baseline.policy.optimizer:
        return config.lr / HEAD_FACTOR
    return FINE_TUNING_LR[optimizer]


def _nearest_params(space: Space, baseline: TrialPlan, values: dict[str, Any]) -> Params:
    """Return the parameters of the plan nearest to the baseline with some values changed."""
    wanted = plan_values(baseline) | {
        name if name in ("depth", "image_size") else f"training.{name}": value
        for name, value in values.items()
    }
    params = {}
    for name, distribution in space.distributions.items():
        if optimizer := optimizer_of(name):
            wanted[name] = wanted[shared_name(name)]  # those of others have no effect
            if shared_name(name) == WEIGHT_DECAY and optimizer != baseline.policy.optimizer:
                wanted[name] = TrainingPolicy().weight_decay
        if name.startswith("layer."):
            params[name] = least_change(distribution)
        elif name in wanted:
            params[name] = nearest_in(distribution, wanted[name])
        else:
            params[name] = inactive_value(distribution)
    return space.canonical(params)


def _describe_depth(plan: TrialPlan) -> str:
    layers = "last layer" if plan.depth == 1 else f"last {plan.depth} layers"
    decay = "" if plan.policy.layer_decay == 1.0 else " with layer-wise decay"
    return f"{layers} trainable{decay}"
