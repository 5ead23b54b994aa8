"""The trial plan: everything that tells one trial of a study from another.

A plan is a frozen value: JSON in, JSON out, equal when it means the same network and the same
training. It is stored with every trial, and whatever is done with a trial later (rerun, fit,
report) starts from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEEP = "keep"


@dataclass(frozen=True)
class LayerPlan:
    """What one tuned layer becomes; ``keep`` leaves a field as the backbone has it."""

    kernel: str = KEEP
    width: str = KEEP
    activation: str = KEEP
    pool: str = KEEP
    drop: str = KEEP


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer of the head: linear, batch norm, ReLU, dropout.

    Args:
        units: Output features of the linear layer.
        dropout: Share of the activations that are dropped in training.
    """

    units: int
    dropout: float = 0.0


@dataclass(frozen=True)
class HeadPlan:
    """The head: pooling, hidden layers, and one linear layer to the classes.

    Args:
        hidden: Hidden layers from the backbone to the output; empty for a linear head.
        pool: Global pooling (``avg``, ``max``, ``avgmax``), or ``keep`` for the backbone's own.
    """

    hidden: tuple[HiddenLayer, ...] = ()
    pool: str = KEEP


@dataclass(frozen=True)
class TrainingPolicy:
    """How the tuned part is trained.

    Args:
        optimizer: ``adamw``, ``sgd`` (Nesterov momentum 0.9) or ``adagrad`` (the paper's).
        lr: Peak learning rate of the head.
        layer_decay: Layer ``i`` (counted from the output) trains with ``lr * layer_decay ** i``
            (discriminative fine-tuning, Howard and Ruder 2018, section 3.2).
        weight_decay: Decoupled for AdamW, L2 otherwise; never on norms and biases.
        label_smoothing: As in Szegedy et al. 2016, section 7.
    """

    optimizer: str = "adamw"
    lr: float = 3e-3
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class TrialPlan:
    """One layer configuration of one backbone.

    Args:
        backbone: timm model name with its pretrained tag.
        depth: How many of the last layers are tuned; 0 trains the head alone.
        layers: Plans of the tuned layers, layer 1 (the last) first; ``len(layers) == depth``.
        head: The head.
        policy: How the tuned part is trained.
    """

    backbone: str
    depth: int = 0
    layers: tuple[LayerPlan, ...] = ()
    head: HeadPlan = field(default_factory=HeadPlan)
    policy: TrainingPolicy = field(default_factory=TrainingPolicy)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, ready for a trial's user attributes."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrialPlan:
        """Build a plan from what :meth:`to_json` returned.

        Raises:
            KeyError: When a required field is missing.
            TypeError: When there is a field that no plan has.
        """
        head = values["head"]
        return TrialPlan(
            backbone=values["backbone"],
            depth=values["depth"],
            layers=tuple(LayerPlan(**layer) for layer in values["layers"]),
            head=HeadPlan(
                hidden=tuple(HiddenLayer(**hidden) for hidden in head["hidden"]),
                pool=head["pool"],
            ),
            policy=TrainingPolicy(**values["policy"]),
        )

    def in_words(self) -> str:
        """Describe the plan in one line.

        Example:
            >>> TrialPlan("resnet18", depth=2, layers=(LayerPlan(),) * 2).in_words()
            'last 2 layers tuned, linear head, adamw lr 0.003'
        """
        tuned = {0: "backbone locked", 1: "last layer tuned"}.get(
            self.depth, f"last {self.depth} layers tuned"
        )
        hidden = " + ".join(
            f"{layer.units}" + (f" (dropout {layer.dropout:g})" if layer.dropout else "")
            for layer in self.head.hidden
        )
        head = f"head {hidden}" if hidden else "linear head"
        if self.head.pool != KEEP:
            head += f", {self.head.pool} pooling"
        policy = f"{self.policy.optimizer} lr {self.policy.lr:.3g}"
        if self.depth and self.policy.layer_decay != 1.0:
            policy += f", layer decay {self.policy.layer_decay:.2g}"
        return f"{tuned}, {head}, {policy}"
