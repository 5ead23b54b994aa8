"""The trial plan: all settings in which the trials of a study differ.

A plan is a frozen value, and equal plans mean the same network and the same training. It is stored
as JSON with every trial; reproduce, refit and report start from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from autotune.format_versions import refuse_unknown
from autotune.text import plural

KEEP = "keep"
#: Annotation of a field -> types of a stored value, and their name in messages.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a word"),
    "int | None": ((int, type(None)), "a whole number or null"),
    "float | None": ((int, float, type(None)), "a number or null"),
    "int | str": ((int, str), "a whole number or a word"),
    "float | str": ((int, float, str), "a number or a word"),
}


#: Limits ratios of widths (0.5: half as many channels); from it on a width is a channel number.
FIRST_ABSOLUTE = 8
#: A linear head whose weights are computed from the features, and not trained from the start.
SOLVED = "solved"
#: Fields of a layer plan that make new weights; ``inherit`` says how those are initialized.
INHERITING = ("kernel", "width", "bridge")
#: Changed layers inherit their weights, and are fitted to the pretrained ones before they train.
FITTED = "fit"
#: Fields of a training policy that count with trainable layers alone.
OF_LAYERS = ("layer_decay", "head_epochs", "l2_sp", "backbone_lr", "parameters")
#: Fields of a plan that decide what its images look like; ``None``: as the study file has them.
OF_IMAGES = ("image_size", "augment_strength")
#: A backbone, a size of images and a strength of augmentation: what decides how images enter it.
Images = tuple[str, int | None, float | None]


@dataclass(frozen=True)
class LayerPlan:
    """The changes of one trainable layer; ``keep`` leaves a field as the backbone has it.

    Args:
        kernel: Side of its spatial convolutions: 1, 2, 3, 5 or 7.
        width: Number of its inner channels (of its output channels where it has no inner ones
            and nothing else writes to them): a ratio below 8, a number of channels from 8 on.
        bridge: Output channels of its last convolution or linear layer, given like ``width``; a
            1x1 convolution restores the number that the rest of the network expects.
        activation: Name of its activation function.
        pool: Type and window of its pooling: ``max2``, ``max3``, ``avg2`` or ``avg3``.
        dropout: Share of the activations that its dropout drops in training.
        drop_path: Share of the images for which its residual branch is left out in training
            (stochastic depth, Huang et al. 2016).
    """

    kernel: int | str = KEEP
    width: float | str = KEEP
    bridge: float | str = KEEP
    activation: str = KEEP
    pool: str = KEEP
    dropout: float | str = KEEP
    drop_path: float | str = KEEP

    def changes(self) -> dict[str, Any]:
        """Return the fields that are not kept."""
        return {name: value for name, value in vars(self).items() if value != KEEP}

    def describe(self) -> str:
        """Describe the changes; return an empty text without changes.

        Example:
            >>> LayerPlan(kernel=5, drop_path=0.1).describe()
            'kernel 5, drop path 0.1'
        """
        return ", ".join(
            f"{name.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in self.changes().items()
        )


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer of the head: linear, batch norm, activation, dropout.

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
        pool: Global pooling (``avg``, ``max``, ``avgmax``), or ``keep`` for that of the backbone.
        activation: Activation function of the hidden layers.
        batch_norm: Whether the hidden layers have batch norm.
    """

    hidden: tuple[HiddenLayer, ...] = ()
    pool: str = KEEP
    activation: str = "relu"
    batch_norm: bool = True

    def describe(self) -> str:
        """Describe the head in a few words.

        Example:
            >>> HeadPlan((HiddenLayer(256, 0.5),), pool="max").describe()
            '256 (dropout 0.5), max pooling'
        """
        hidden = " + ".join(
            f"{layer.units}" + (f" (dropout {layer.dropout:g})" if layer.dropout else "")
            for layer in self.hidden
        )
        words = [hidden or "linear"]
        if hidden and self.activation != "relu":
            words.append(self.activation)
        if hidden and not self.batch_norm:
            words.append("no batch norm")
        if self.pool != KEEP:
            words.append(f"{self.pool} pooling")
        return ", ".join(words)


@dataclass(frozen=True)
class TrainingPolicy:
    """How the trainable part is trained.

    Args:
        optimizer: ``adamw`` (Loshchilov and Hutter 2019), ``sgd`` (with Nesterov momentum) or
            ``adagrad`` (the paper's).
        lr: Peak learning rate of the head.
        layer_decay: Layer ``i`` (counted from the output) trains with
            ``lr * backbone_lr * layer_decay ** i`` (discriminative fine-tuning, Howard and Ruder
            2018, section 3.2; 0.65 to 0.75 is usual for fine-tuning ViTs, Bao et al. 2022, BEiT,
            appendix).
        weight_decay: Decoupled for AdamW, L2 otherwise; never on norms and biases.
        momentum: Momentum of ``sgd``; the other optimizers ignore it. 0.9 is the value of nearly
            all transfer studies; lower ones can be better where source and target are alike (Li
            et al. 2020, Rethinking the Hyperparameters for Fine-tuning).
        label_smoothing: As in Szegedy et al. 2016, section 7, which uses 0.1.
        head_epochs: Epochs at the start in which the head alone trains (linear probing, then
            fine-tuning: Kumar et al. 2022).
        l2_sp: Strength of L2-SP, which pulls the trainable layers towards their pretrained weights
            and replaces their weight decay (Li et al. 2018; they find 0.1 to 0.001 good).
        mixup: Parameter of the beta distribution of mixup (Zhang et al. 2018: 0.1 to 0.4).
        cutmix: Parameter of the beta distribution of CutMix (Yun et al. 2019: 1). With both, each
            batch gets one of the two.
        backbone_lr: Learning rate of the trainable layers relative to that of the head: 0.1 where
            a new head sits on a pretrained network (Long et al. 2015, section 4.1; the factor of
            ten is usual since).
        parameters: What trains of a layer that keeps its shape: ``all``, ``norms`` (weight and
            bias of its norms: Frankle et al. 2021, Training BatchNorm and Only BatchNorm) or
            ``biases`` (all of its biases: Ben Zaken et al. 2022, BitFit). Norm statistics follow
            the images in each case.
        head_start: Initial weights of a linear head: ``random``, or ``solved``, those that fit the
            features of the network best (see :mod:`autotune.training.linear_head`). With trainable
            layers that is linear probing before fine-tuning without its epochs (Kumar et al.
            2022); without any, nothing is left to train.
    """

    optimizer: str = "adamw"
    lr: float = 3e-3
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    label_smoothing: float = 0.0
    head_epochs: int = 0
    l2_sp: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    backbone_lr: float = 1.0
    parameters: str = "all"
    head_start: str = "random"

    def describe(self, trainable: bool = True) -> str:
        """Describe the optimizer and the values that differ from the default.

        Example:
            >>> TrainingPolicy("sgd", 0.1, momentum=0.5, head_epochs=3, mixup=0.2).describe()
            'sgd lr 0.1, momentum 0.5, head alone for 3 epochs, mixup 0.2'
        """
        if self.head_start == SOLVED and not trainable:
            return "solved"
        words = ["solved first"] if self.head_start == SOLVED else []
        words += [f"{self.optimizer} lr {self.lr:.3g}"]
        others = {
            "momentum": f"momentum {self.momentum:.3g}" if self.optimizer == "sgd" else "",
            "parameters": f"{self.parameters} alone",
            "backbone_lr": f"backbone x{self.backbone_lr:.2g}",
            "layer_decay": f"layer decay {self.layer_decay:.2g}",
            "head_epochs": f"head alone for {plural(self.head_epochs, 'epoch')}",
            "l2_sp": f"L2-SP {self.l2_sp:.3g}",
            "mixup": f"mixup {self.mixup:.3g}",
            "cutmix": f"cutmix {self.cutmix:.3g}",
        }
        for name, text in others.items():
            counts = trainable or name not in OF_LAYERS
            if counts and text and getattr(self, name) != getattr(TrainingPolicy, name):
                words.append(text)
        return ", ".join(words)


@dataclass(frozen=True)
class TrialPlan:
    """One layer configuration of one backbone.

    Args:
        backbone: timm model name with its pretrained tag.
        depth: How many of the last layers are trainable; 0 trains the head alone.
        layers: Plans of the trainable layers, layer 1 (the last) first; ``len(layers) == depth``.
        head: The head.
        policy: How the trainable part is trained.
        inherit: Initial weights of changed layers: ``weights`` (the pretrained ones, channels
            chosen by magnitude), ``data`` (the same, channels chosen by activity on training
            images), ``fit`` (as ``weights``, then fitted to what the pretrained layers compute on
            training images) or ``none`` (He initialization).
        image_size: Side of its images in pixels; ``None`` where the study has one size.
        augment_strength: Strength of the augmentation policy; ``None`` where the study has one.
    """

    backbone: str
    depth: int = 0
    layers: tuple[LayerPlan, ...] = ()
    head: HeadPlan = field(default_factory=HeadPlan)
    policy: TrainingPolicy = field(default_factory=TrainingPolicy)
    inherit: str = "weights"
    image_size: int | None = None
    augment_strength: float | None = None

    @property
    def images(self) -> Images:
        """What decides how the images enter the network: equal for plans that share theirs."""
        return self.backbone, self.image_size, self.augment_strength

    @property
    def is_solved(self) -> bool:
        """Whether a solved head is all there is to train."""
        return not self.depth and not self.head.hidden and self.policy.head_start == SOLVED

    @property
    def reshaped(self) -> tuple[int, ...]:
        """Numbers of the changed layers, counted from the output."""
        return tuple(index for index, layer in enumerate(self.layers, start=1) if layer.changes())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, ready for a trial's user attributes.

        What the study file decides is left out, so that plans of earlier versions stay as they
        are, and so do the names of files that are made of them.
        """
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrialPlan:
        """Build a plan from what :meth:`to_json` returned.

        Raises:
            KeyError: When a required field is missing.
            TypeError: When a field is unknown, or a value has another type.
        """
        refuse_unknown(values, [field.name for field in dataclasses.fields(TrialPlan)], "a plan")
        head = values["head"]
        hidden = tuple(HiddenLayer(**layer) for layer in head["hidden"])
        plan = TrialPlan(
            backbone=values["backbone"],
            depth=values["depth"],
            layers=tuple(LayerPlan(**layer) for layer in values["layers"]),
            head=HeadPlan(**{**head, "hidden": hidden}),
            policy=TrainingPolicy(**values["policy"]),
            inherit=values["inherit"],
            **{name: values[name] for name in OF_IMAGES if name in values},
        )
        parts: list[tuple[Any, str]] = [
            (layer, f"layer {index}, ") for index, layer in enumerate(plan.layers, start=1)
        ]
        parts += [(unit, "head.hidden.") for unit in plan.head.hidden]
        parts += [(plan.head, "head."), (plan.policy, "policy."), (plan, "")]
        for part, where in parts:
            _check_types(part, where)
        return plan

    def describe(self, named: bool = False) -> str:
        """Describe the plan in one line.

        Args:
            named: Begin with the backbone, for studies of several.

        Example:
            >>> TrialPlan("resnet18", depth=2, layers=(LayerPlan(),) * 2).describe()
            'last 2 layers trainable, linear head, adamw lr 0.003'
            >>> TrialPlan("resnet18").describe(named=True)
            'resnet18: backbone frozen, linear head, adamw lr 0.003'
            >>> TrialPlan("resnet18", depth=1, layers=(LayerPlan(kernel=5, width=0.5),)).describe()
            'last layer trainable (layer 1 kernel 5, width 0.5), linear head, adamw lr 0.003'
        """
        trainable = {0: "backbone frozen", 1: "last layer trainable"}.get(
            self.depth, f"last {self.depth} layers trainable"
        )
        if changes := self._describe_changes():
            trainable += f" ({changes})"
        head = self.head.describe()
        head = f"head {head}" if self.head.hidden else head.replace("linear", "linear head", 1)
        name = f"{self.backbone}: " if named else ""
        text = f"{name}{trainable}, {head}, {self.policy.describe(trainable=self.depth > 0)}"
        size, strength = self.image_size, self.augment_strength
        text += f", images of {size} px" if size is not None else ""
        return text + (f", augmentation {strength:.2g}" if strength is not None else "")

    def _describe_changes(self) -> str:
        """Describe the changed layers; neighbors with the same changes are named together."""
        words = []
        for change, run in groupby(
            enumerate(self.layers, start=1), key=lambda numbered: numbered[1].describe()
        ):
            indices = [index for index, _ in run]
            first, last = indices[0], indices[-1]
            name = f"layer {first}" if first == last else f"layers {first}-{last}"
            if change:
                words.append(f"{name} {change}")
        changed = {name for layer in self.layers for name in layer.changes()}
        if self.inherit == "none" and changed & set(INHERITING):
            words.append("changed layers drawn anew")
        if self.inherit == FITTED and changed & set(INHERITING):
            words.append("fitted")
        if self.inherit == "data" and "width" in changed:
            words.append("channels chosen by activity")
        return "; ".join(words)


def _check_types(part: Any, where: str) -> None:
    """Raise a TypeError for the first value that has not the type of its field."""
    for field_ in dataclasses.fields(part):
        if field_.type not in _KINDS:  # the parts of a plan, which are checked by themselves
            continue
        kinds, words = _KINDS[str(field_.type)]
        value = getattr(part, field_.name)
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise TypeError(f"{where}{field_.name} must be {words}, but got {value!r}")
