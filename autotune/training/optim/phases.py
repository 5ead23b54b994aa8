"""The two phases of a training: the head only, then all trainable layers (LP-FT)."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.errors import PlanError
from autotune.models.network import Network
from autotune.plan import TrainingPolicy


@dataclass(frozen=True)
class Phases:
    """Linear probing, then fine-tuning (Kumar et al. 2022): two trainings, one after the other.

    With a fresh head, the first steps of fine-tuning would destroy pretrained features in the
    trainable layers. Each phase has its own learning-rate schedule and its own moving average; a
    training without head-only epochs has only the second phase.
    """

    head_epochs: int
    batches: int

    @staticmethod
    def from_policy(network: Network, policy: TrainingPolicy, epochs: int, batches: int) -> Phases:
        """Make the phases of a training of ``epochs`` epochs of ``batches`` steps.

        Raises:
            PlanError: When the trainable layers would never train.
        """
        if not network.depth:
            return Phases(0, batches)  # there is nothing to unfreeze
        if policy.head_epochs >= epochs:
            raise PlanError(
                f"head_epochs must be below the {epochs} epochs of the training, or the trainable "
                f"layers never train, but got {policy.head_epochs}"
            )
        return Phases(policy.head_epochs, batches)

    @property
    def head_steps(self) -> int:
        """Steps of the first phase."""
        return self.head_epochs * self.batches

    def is_head_only(self, epoch: int) -> bool:
        """Tell whether only the head trains in an epoch, counted from 0."""
        return epoch < self.head_epochs

    def steps_of_phase(self, steps: int) -> int:
        """Count the steps of the current phase, from the steps of the training so far.

        Steps that fp16 skips are not counted: after such steps, rate and average begin their
        second phase that many steps late, with a rate near zero until then.
        """
        return steps - self.head_steps if steps > self.head_steps else steps
