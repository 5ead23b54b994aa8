"""A study as the results see it: read once, at one moment.

A page about a study asks for its trials dozens of times. Every time costs a look at the storage
and a sort of all trials, and a trial that ends in between would be in one half of the page and not
in the other. So a page reads the study once, and everything on it is made from that.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune import optuna_private
from autotune.errors import FormatError
from autotune.optuna_private import StorageProxy
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.search.space import Space
from autotune.study.state import attrs
from autotune.study.state.budget import Ending


class _Reading(StorageProxy):
    """A storage that answers for one study from what was read of it.

    Args:
        storage: The storage; it is asked for everything else.
        trials: The trials of the study, in order.
        attributes: The user attributes of the study.
    """

    def __init__(
        self, storage: BaseStorage, trials: tuple[FrozenTrial, ...], attributes: Mapping[str, Any]
    ) -> None:
        super().__init__(storage)
        self._trials = trials
        self._attributes = attributes

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials that were read."""
        found = [one for one in self._trials if states is None or one.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes that were read."""
        return dict(self._attributes)


@dataclass(frozen=True, eq=False)
class StudyResults:
    """A study at one moment.

    Args:
        study: The study; its trials and user attributes are those of this moment.
        trials: All trials, in order.
        attributes: What the study remembers, see :mod:`autotune.study.state.attrs`.
        objective: What is optimized.
        cost: The second objective, or ``None``.
    """

    study: Study
    trials: tuple[FrozenTrial, ...]
    attributes: Mapping[str, Any]
    objective: Objective
    cost: Objective | None

    @staticmethod
    def from_study(study: Study | StudyResults) -> StudyResults:
        """Read a study; return what was read before as it is.

        Args:
            study: The study, or what was read of it.
        """
        if isinstance(study, StudyResults):
            return study
        trials = tuple(study.get_trials(deepcopy=False))
        attributes = study.user_attrs
        reading = _Reading(optuna_private.storage(study), trials, attributes)
        shown = optuna_private.with_storage(study, reading)
        return StudyResults(
            shown,
            trials,
            attributes,
            Objective.from_study(study),
            Objective.cost_from_study(study),
        )

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.study_name

    @property
    def direction(self) -> StudyDirection:
        """Direction of the metric."""
        return self.objective.direction

    @cached_property
    def best(self) -> FrozenTrial | None:
        """The best complete trial within the limits, or ``None``."""
        return ranking.best_of(self.trials, self.direction)

    @cached_property
    def baseline(self) -> FrozenTrial | None:
        """The complete baseline, or ``None``."""
        return attrs.baseline_of(self.trials)

    @cached_property
    def progress(self) -> attrs.Progress:
        """How many trials ended how."""
        budget = self.attributes.get(attrs.BUDGET, {})
        return attrs.progress_of(self.trials, int(budget.get("trials", 0)))

    @property
    def ended(self) -> Ending | None:
        """What has ended the study; ``None`` while something runs, or could."""
        return None if self.progress.running else Ending.from_attributes(self.attributes)

    @cached_property
    def superseded(self) -> frozenset[int]:
        """Numbers of the attempts that have a successor."""
        return frozenset(attrs.superseded(self.trials))

    @cached_property
    def front(self) -> tuple[FrozenTrial, ...]:
        """The Pareto front from the best metric to the lowest cost; empty with one objective."""
        if self.cost is None:
            return ()
        return tuple(ranking.front_of(self.trials, self.direction))

    @cached_property
    def space(self) -> Space | None:
        """The space that the study remembers, or ``None`` when it cannot be read."""
        try:
            return attrs.space_of(self.study)
        except FormatError:
            return None  # of another version of autotune: its trials can still be drawn

    @property
    def has_several_backbones(self) -> bool:
        """Whether a plan has to name its backbone."""
        return attrs.has_several(self.attributes)

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """The searched parameters, in the order of the space."""
        return tuple(dict.fromkeys(name for one in self.trials for name in one.distributions))
