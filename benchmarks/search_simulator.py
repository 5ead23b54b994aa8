"""Studies simulated on a table of learning curves, in virtual time.

A trial of a simulated study reports what the real training of its plan reported, every second
epoch; samplers and pruners are the real ones. Several workers run in virtual time: an evaluation
is an event, and whoever is through with a trial asks for the next one at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import Trial, TrialState
from search_curves import DIVERGED, EVERY, Params, Table, load_config

from autotune.config.schema import StudyConfig
from autotune.search.initial_plans import default_plans
from autotune.search.parameters.dimensions import suggest
from autotune.search.pruners import make_pruner
from autotune.search.samplers import make_sampler
from autotune.search.space import Space
from autotune.search.study_view import FAILED_PLAN, FinalValuePredictor

#: An epoch of a plan with the last ``n`` layers trainable takes ``1 + n * COST_OF_LAYER``: roughly
#: what the trainings of the table took on images.
COST_OF_LAYER = 0.1


class Strategy(Protocol):
    """One way to search."""

    def start(self, study: Study) -> None:
        """Queue what is to be tried first."""

    def sampler(self, seed: int) -> BaseSampler:
        """Make the sampler of one worker."""

    def exhausted_reason(self, sampler: BaseSampler, study: Study) -> str:
        """Say why no further plan can be drawn; empty: go on."""

    def suggest(self, trial: Trial) -> Params:
        """Draw the parameters of a trial."""


@dataclass(frozen=True)
class Ours:
    """What autotune does: a static space, a canonical sampler, the baseline first.

    Args:
        config: The study.
        space: Its static space.
    """

    config: StudyConfig
    space: Space

    def start(self, study: Study) -> None:
        """Queue the plans that autotune queues."""
        for params in starting_params(self.config, self.space):
            study.enqueue_trial(params)

    def sampler(self, seed: int) -> BaseSampler:
        """Make autotune's sampler."""
        return make_sampler(self.config, self.space, seed)

    def exhausted_reason(self, sampler: BaseSampler, study: Study) -> str:
        """Ask the sampler, where it is one that can run out of plans."""
        ask: Callable[[Study], str] = getattr(sampler, "exhausted", lambda study: "")
        return ask(study)

    def suggest(self, trial: Trial) -> Params:
        """Suggest all parameters of the space at once."""
        return {name: suggest(trial, name, one) for name, one in self.space.distributions.items()}


def starting_params(config: StudyConfig, space: Space) -> list[Params]:
    """List what autotune tries first: the baseline, and plans that often work."""
    baseline = space.params(space.baseline(config.baseline))
    assert baseline is not None, "outside the space"
    starts = ()
    if config.search.default_plans:
        starts = default_plans(space, config.baseline, config.training.epochs)
    return [baseline, *(start.params for start in starts)]


@dataclass(frozen=True)
class Rival:
    """What a user of Optuna would write: suggest what has a meaning, when it has one.

    Args:
        make: Makes the sampler from a seed.
        space: Gives the ranges.
    """

    make: Callable[[int], BaseSampler]
    space: Space

    def start(self, study: Study) -> None:
        """Queue nothing."""

    def sampler(self, seed: int) -> BaseSampler:
        """Make Optuna's sampler."""
        return self.make(seed)

    def exhausted_reason(self, sampler: BaseSampler, study: Study) -> str:
        """Never end before the budget does."""
        return ""

    def suggest(self, trial: Trial) -> Params:
        """Define by run."""
        params: Params = {}

        def ask(name: str) -> Any:
            params[name] = suggest(trial, name, self.space.distributions[name])
            return params[name]

        depth = ask("depth")
        for layer in (1, 2):
            if layer <= depth:
                ask(f"layer.{layer}.kernel")
                ask(f"layer.{layer}.width")
        if ask("head.hidden_layers"):
            ask("head.units.1")
            ask("head.dropout.1")
        ask("training.lr")
        if depth:
            ask("training.layer_decay")
        return params


#: Makes a strategy for a space and a number of trials.
Builder = Callable[[Space, int], Strategy]


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


def _rival(make: Callable[[int], BaseSampler]) -> Builder:
    return lambda space, trials: Rival(make, space)


def _ours(*overrides: str) -> Builder:
    return lambda space, trials: Ours(
        load_config("digits", f"search.trials={trials}", *overrides), space
    )


#: How each strategy is built. The first three are what autotune is compared with.
STRATEGIES: Mapping[str, Builder] = {
    "random": _rival(lambda seed: RandomSampler(seed=seed)),
    "tpe-conditional": _rival(lambda seed: TPESampler(seed=seed)),
    "gp-conditional": _rival(_gp),
    "tpe": _ours("search.sampler=tpe"),
    "gp": _ours("search.sampler=gp"),
    "greedy-tpe": _ours("search.sampler=tpe", "search.strategy=greedy"),
    "greedy-gp": _ours("search.sampler=gp", "search.strategy=greedy"),
}
LETTERS = {TrialState.COMPLETE: "C", TrialState.PRUNED: "P", TrialState.FAIL: "F"}


@dataclass(frozen=True)
class Rule:
    """When a trial ends before its last epoch, and what comes after the last trial.

    Args:
        pruner: A pruner of autotune, by name.
        average: Whether trials are compared by the moving average of their weights; their own
            values are those of the weights.
        finished: How many pruned trials with the best predictions are trained to the end at last.
        short: Whether all trials have half of the epochs, and the best ten then all of them.
        share: Share of the trials that the study has.
    """

    pruner: str = "none"
    average: bool = False
    finished: int = 0
    short: bool = False
    share: float = 1.0


#: What may be pruned, and the controls: what the same epochs bring without a pruner.
RULES: Mapping[str, Rule] = {
    "none": Rule(),
    "half the trials": Rule(share=0.5),
    "half the epochs, then ten": Rule(short=True),
    "percentile": Rule("percentile"),
    "median": Rule("median"),
    "narrowing": Rule("narrowing"),
    "median of averages": Rule("median", average=True),
    "median, four finished": Rule("median", finished=4),
    "hyperband": Rule("hyperband"),
}
#: Trials that a short study trains with all epochs.
TOP = 10


@dataclass
class Course:
    """How a simulated study went, trial by trial in the order in which they finished.

    Args:
        right: Right validation images of each trial; 0 where it is not complete.
        epochs: Epochs that all workers together had spent by then.
        rows: The plans, as rows of the table.
        states: One letter each: complete, pruned, failed.
        chosen: The plans among which the best one is chosen at last.
        spent: Epochs of the whole study.
        ended: Why it ended before its budget; empty where it did not.
    """

    right: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    states: str = ""
    chosen: list[int] = field(default_factory=list)
    spent: int = 0
    ended: str = ""


class Simulation:
    """One study in virtual time.

    Args:
        table: The learning curves.
        strategy: How it is searched.
        rule: When its trials end.
        workers: How many train at the same time.
        trials: The budget.
        seed: Of the samplers.
    """

    def __init__(
        self, table: Table, strategy: Strategy, rule: Rule, workers: int, trials: int, seed: int
    ) -> None:
        self.table = table
        self.strategy = strategy
        self.rule = rule
        self.trials = round(rule.share * trials)
        self.samplers = [strategy.sampler((seed * 1009 + one) % 2**31) for one in range(workers)]
        self.study = optuna.create_study(
            direction="maximize",
            sampler=self.samplers[0],
            pruner=make_pruner(rule.pruner, table.epochs, workers),
        )
        self.course = Course()
        self.asked = self.spent = self.events = 0
        # Time, order of arrival, worker, trial, row of the table, evaluation that comes then.
        self.queue: list[tuple[float, int, int, Trial, int, int]] = []
        self.idle: list[int] = []

    def run(self) -> Course:
        """Run the study to its end."""
        self.strategy.start(self.study)
        for worker in range(len(self.samplers)):
            self._claim(worker, 0.0)
        while self.queue:
            now, _, worker, trial, row, evaluation = heapq.heappop(self.queue)
            self.spent += self.table.epochs // 2 if self.rule.short else EVERY
            state = self._report(trial, row, evaluation)
            if state is None:
                self._push(worker, now, trial, row, evaluation + 1)
                continue
            self._tell(worker, trial, row, state)
            # What has just ended may have given those something to do who found nothing.
            waiting, self.idle = [worker, *self.idle], []
            for one in waiting:
                self._claim(one, now)
        self._finish()
        return self.course

    def _claim(self, worker: int, now: float) -> None:
        """Give a worker its next trial, if there is one."""
        if self.asked == self.trials:
            return
        self.study.sampler = self.samplers[worker]
        reason = self.strategy.exhausted_reason(self.samplers[worker], self.study)
        if reason:
            self.course.ended = reason
            self.idle.append(worker)
            return
        self.course.ended = ""
        trial = self.study.ask()
        row = self.table.row(self.strategy.suggest(trial))
        self.asked += 1
        self._push(worker, now, trial, row, 1)

    def _push(self, worker: int, now: float, trial: Trial, row: int, evaluation: int) -> None:
        self.events += 1
        cost = 1.0 + COST_OF_LAYER * trial.params["depth"]
        heapq.heappush(self.queue, (now + cost, self.events, worker, trial, row, evaluation))

    def _report(self, trial: Trial, row: int, evaluation: int) -> TrialState | None:
        """Report an evaluation; return how the trial ends, ``None`` where it goes on."""
        table, last = self.table, self.table.full.right.shape[1]
        if self.rule.short:
            return TrialState.FAIL if table.short.final[row] == 0 else TrialState.COMPLETE
        if table.full.right[row, evaluation - 1] == DIVERGED:
            return TrialState.FAIL
        trial.report(self._value(row, evaluation), EVERY * evaluation)
        if evaluation == last:
            return TrialState.COMPLETE
        return TrialState.PRUNED if trial.should_prune() else None

    def _value(self, row: int, evaluation: int) -> float:
        """Return what a trial reports: the last value is always that of its weights."""
        curves = self.table.full
        is_last = evaluation == curves.right.shape[1]
        values = curves.average if self.rule.average and not is_last else curves.right
        return int(values[row, evaluation - 1]) / self.table.images

    def _tell(self, worker: int, trial: Trial, row: int, state: TrialState) -> None:
        """End a trial and write down where the study stands."""
        course, right = self.course, 0
        value = None
        if state == TrialState.COMPLETE:
            curves = self.table.short if self.rule.short else self.table.full
            right = int(curves.final[row])
            value = right / self.table.images
        if state == TrialState.FAIL:
            trial.set_user_attr(FAILED_PLAN, True)
        self.study.sampler = self.samplers[worker]
        self.study.tell(trial, value, state=state)
        course.right.append(right)
        course.epochs.append(self.spent)
        course.rows.append(row)
        course.states += LETTERS[state]

    def _finish(self) -> None:
        """Train to the end what the rule says, and settle what is chosen from."""
        course, table = self.course, self.table
        ended = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in ended if trial.state.is_finished()]
        rows = {trial.number: table.row(trial.params) for trial in ended}
        complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
        course.spent = self.spent
        if self.rule.short:
            complete.sort(key=lambda trial: -trial.values[0])
            complete = complete[:TOP]
            course.spent += len(complete) * table.epochs
        if self.rule.finished:
            predictor = FinalValuePredictor(
                (trial.intermediate_values, trial.values[0]) for trial in complete
            )
            pruned = [trial for trial in ended if trial.state == TrialState.PRUNED]
            pruned.sort(key=lambda trial: -(predictor.predict(trial.intermediate_values) or 0.0))
            for trial in pruned[: self.rule.finished]:
                course.spent += table.epochs - max(trial.intermediate_values)
                complete.append(trial)
        course.chosen = [rows[trial.number] for trial in complete]
