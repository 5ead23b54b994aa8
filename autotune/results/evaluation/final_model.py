"""What a refit trains, and the models that are made of it.

A single plan is a model by itself. Several plans make an ensemble, and several trainings of one
plan a soup; all models are measured on the same test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from autotune.data.views.views import Views
from autotune.plan import Images, TrialPlan
from autotune.results.evaluation.bootstrap import compare
from autotune.results.evaluation.combination import (
    DISTILL,
    ENSEMBLE,
    SOUP,
    Combination,
    ModelScores,
)
from autotune.results.evaluation.plan_selection import SelectedPlan
from autotune.results.model.model import Model, ModelSpec, join_networks
from autotune.results.values.speed import Speed
from autotune.study.devices import find_device
from autotune.study.engine.launcher import resolve_gpus
from autotune.study.engine.trainings import Workers, train_all, train_here
from autotune.study.state.constraints import violations
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.refit import (
    StoredRefit,
    forget_other_tests,
    open_refit_tests,
    read_refit,
)
from autotune.study.trial.run import EventCallback, torch_device_name
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.cost_profile import count_parameters, forward_ms, turns_ms
from autotune.training.inputs.batches import to_channels_last
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.trainer import Trainer

#: Names of the trainings of a refit; further members are called by their trials or seeds.
BEST, BASELINE, STUDENT = "best plan", "baseline", "student"
#: Test images that go through a network at a time.
BATCH_SIZE = 64
#: What the rows of a combination are called.
_NAMES = {ENSEMBLE: "ensemble", SOUP: "soup", DISTILL: "distilled"}


@dataclass(frozen=True)
class FinalModel:
    """A model on the test split.

    Args:
        model: The model.
        logits: Its logits of the test images.
        training: The trainer of its network; ``None`` for an ensemble.
    """

    model: Model
    logits: Tensor
    training: Trainer | None


@dataclass(frozen=True)
class Refitting:
    """Trains, and makes models of what was trained.

    Args:
        ctx: The context of this process.
        workers: Who trains; ``None`` for this process.
        on_event: Called with what happens.
        computes: Whether this process takes a device too when nobody trains.
        tests: The test images by what decides how they enter a backbone.
    """

    ctx: WorkerContext
    workers: Workers | None
    on_event: EventCallback
    computes: bool
    tests: dict[Images, Views] = field(default_factory=dict)

    def do(self, trainings: Sequence[Training]) -> None:
        """Do the trainings that have no result."""
        if self.workers is None:
            train_here(trainings, self.ctx, self.on_event)
        else:
            train_all(self.ctx.handle, trainings, self.ctx.config, self.workers, self.on_event)

    def train(self, trainings: Sequence[Training]) -> dict[str, StoredRefit]:
        """Do the refits that have no result; return all by name."""
        handle, config = self.ctx.handle, self.ctx.config
        files = [TrainingFiles.of(training, handle, config) for training in trainings]
        for training, its_files in zip(trainings, files, strict=True):
            key = training.plan.images
            if key not in self.tests:  # opened before hours of training, measured after them
                spec = self.ctx.resources.of(training.plan).data.spec
                self.tests[key] = open_refit_tests(handle, config, spec)
            forget_other_tests(its_files, self.tests[key])
        self.do(trainings)
        ctx = self.on_device()
        pairs = zip(trainings, files, strict=True)
        return {training.name: read_refit(training, each, ctx) for training, each in pairs}

    def on_device(self) -> WorkerContext:
        """Return the context of a process that has a device while no worker trains."""
        if self.workers is None or not self.computes or not resolve_gpus(self.workers.gpus):
            return self.ctx
        return replace(self.ctx, device=find_device())

    def spec(self, plan: TrialPlan) -> ModelSpec:
        """Return how the network of a plan is built."""
        resources, config = self.ctx.resources.of(plan), self.ctx.config
        return ModelSpec(
            plan,
            resources.data.classes,
            resources.backbone.data_config,
            config.for_images(*plan.images[1:]).image_size,
            fast_decode=config.data.decode == "fast",
        )

    def single(self, plan: TrialPlan, stored: StoredRefit) -> FinalModel:
        """Return the model of one training."""
        model = Model(stored.training.eval_model, self.spec(plan)).eval()
        return FinalModel(model, stored.logits, stored.training)

    def combine(
        self,
        combination: Combination | None,
        selection: SelectedPlan,
        stored: Mapping[str, StoredRefit],
    ) -> FinalModel:
        """Return the model of a combination; that of the single plan where there is none."""
        single = self.single(selection.plan, stored[BEST])
        if combination is None or not combination.is_used:
            return single
        if combination.kind == DISTILL:
            return self.single(selection.plan, stored[STUDENT])
        if combination.kind == ENSEMBLE:
            return self.ensemble(combination, stored)
        parts = [part.training for name, part in stored.items() if name != BASELINE]
        trainer = stored[BEST].training
        trainer.average_weights([part.eval_state() for part in parts])
        logits = predict_views(single.model, self.tests[selection.plan.images])
        return FinalModel(single.model, logits, trainer)

    def ensemble(self, combination: Combination, stored: Mapping[str, StoredRefit]) -> FinalModel:
        """Return the model of an ensemble."""
        plans = [member.plan for member in combination.members]
        specs = [self.spec(plan) for plan in plans]
        weights = [member.weight for member in combination.members]
        spec = replace(specs[0], members=tuple(zip(weights, specs, strict=True)))
        by_plan = {
            one.plan: one.training.eval_model for name, one in stored.items() if name != STUDENT
        }
        model = Model(join_networks([by_plan[plan] for plan in plans], spec), spec).eval()
        images = next(
            self.tests[each.plan.images] for each in specs if each.spec.size == spec.spec.size
        )
        return FinalModel(model, predict_views(model, images), None)

    def speed(self, stored: Mapping[str, StoredRefit]) -> Speed | None:
        """Compare the latency of the single plan with that of the baseline.

        ``None`` where they have the same layers, image size and backbone.
        """
        best, base = stored[BEST], stored.get(BASELINE, stored[BEST])
        if not best.plan.reshaped and best.plan.images[:2] == base.plan.images[:2]:
            return None
        models = [self.single(each.plan, each).model for each in (best, base)]
        first, second = ((model.network, random_image(model)) for model in models)
        turns = turns_ms(first, second)
        return Speed.from_turns(turns, torch_device_name(self.on_device().device))

    def measure(
        self,
        combination: Combination,
        selection: SelectedPlan,
        stored: Mapping[str, StoredRefit],
        final: FinalModel,
    ) -> Combination:
        """Put all models of a refit beside each other: scores on the test split, and costs."""
        single, labels = stored[BEST], stored[BEST].labels
        rows = [(f"trial {selection.trial}", self.single(selection.plan, single))]
        if BASELINE in stored:
            plan = stored[BASELINE].plan
            rows.insert(0, (BASELINE, self.single(plan, stored[BASELINE])))
        if combination.is_used:
            if combination.kind == DISTILL:
                rows.append((ENSEMBLE, self.ensemble(combination, stored)))
            rows.append((_NAMES[combination.kind], final))
        models = []
        for name, row in rows:
            comparison = compare(row.logits, single.logits, labels)
            gain = {} if row.logits is single.logits else comparison.difference
            latency = round(forward_ms(row.model.network, random_image(row.model)), 4)
            parameters = count_parameters(row.model)
            models.append(ModelScores(name, comparison.model, gain, parameters, latency))
        costs = {"parameters": models[-1].parameters, "latency_ms": models[-1].latency_ms}
        limits = {k: v for k, v in self.ctx.config.constraints.limits.items() if k in costs}
        decision = combination.decision
        if combination.is_used and (beyond := violations(costs, limits)):
            decision = f"{decision} It is beyond the limits of the study: {beyond}."
        device = torch_device_name(self.on_device().device)
        return replace(combination, decision=decision, device=device, models=tuple(models))


@torch.no_grad()
def predict_views(model: Model, views: Views) -> Tensor:
    """Return the logits ``(N, classes)`` of the evaluation views, on the CPU."""
    normalize = Normalizer.from_config(asdict(model.spec), torch.device("cpu"))
    batches = views.batches(torch.arange(len(views)), views.views_for_epoch(None), BATCH_SIZE)
    return torch.cat([model.logits(normalize(images)) for images, _ in batches])


def random_image(model: Model) -> Tensor:
    """Return an image ``(1, 3, size, size)`` of noise, on the device of a model, to time it."""
    size, device = model.spec.size, next(model.parameters()).device
    return to_channels_last(torch.randn(1, 3, size, size, device=device))
