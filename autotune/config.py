"""What a study file may say: one pydantic model per section, one rule per key.

Values of ``space`` are *dimensions*: a single value is fixed, a list is a choice among its
members, and ``{low, high}`` (with ``step`` or ``log``) is a range. They are kept as the plain
values of the file, so that a definition can be stored, compared and shown as it was written;
``autotune.search.space`` turns them into Optuna distributions.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from autotune.errors import in_yaml
from autotune.plan import KEEP
from autotune.rules import (
    Dimension,
    flags,
    kernels,
    names,
    numbers,
    one_of,
    single,
    widths,
)

SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("median", "percentile", "hyperband", "none")
OPTIMIZERS = ("adamw", "sgd", "adagrad")
POOLS = (KEEP, "avg", "max", "avgmax")
INHERIT = ("weights", "data", "none")
ACTIVATIONS = (
    "relu",
    "gelu",
    "silu",
    "hardswish",
    "leaky_relu",
    "elu",
    "selu",
    "sigmoid",
    "tanh",
    "mish",
)
LAYER_POOLS = ("max2", "max3", "avg2", "avg3")
#: Objective name -> direction of optimisation.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "log_loss": "minimize",
}
MAX_NAME = 100
NAME_RULE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{MAX_NAME - 1}}}")


def _study_name(value: str | None) -> str | None:
    if value is not None and not NAME_RULE.fullmatch(value):
        raise ValueError(
            f"a study's name has up to {MAX_NAME} letters, digits and . _ + - and starts with a "
            f"letter or digit, but got {in_yaml(value)}"
        )
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Name = Annotated[str, AfterValidator(_not_empty)]
_Part = Annotated[float, single(False, 0, 1, low_open=True, high_open=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSpace(_Section):
    """``space.layers``: what every tuned layer may become; a layer takes the values that it can.

    ``last`` is how many of the last layers have these fields, deeper ones keep their shape: every
    layer brings as many parameters as there are searched fields, and a sampler that has to model
    hundreds of them from a few dozen trials finds nothing.
    """

    kernel: Annotated[Dimension, kernels()] = KEEP
    width: Annotated[Dimension, widths()] = KEEP
    bridge: Annotated[Dimension, widths()] = KEEP
    activation: Annotated[Dimension, names((KEEP, *ACTIVATIONS))] = KEEP
    pool: Annotated[Dimension, names((KEEP, *LAYER_POOLS))] = KEEP
    dropout: Annotated[Dimension, numbers(False, 0.0, 0.9, or_keep=True)] = KEEP
    drop_path: Annotated[Dimension, numbers(False, 0.0, 0.9, or_keep=True)] = KEEP
    last: Annotated[int, single(True, 1)] = 8


class HeadSpace(_Section):
    """``space.head``: the hidden layers and the global pooling."""

    hidden_layers: Annotated[Dimension, numbers(True, 0, 3)] = 0
    units: Annotated[Dimension, numbers(True, 1, 65536)] = 256
    activation: Annotated[Dimension, names(ACTIVATIONS)] = "relu"
    batch_norm: Annotated[bool | list[bool], flags()] = True
    dropout: Annotated[Dimension, numbers(False, 0.0, 0.95)] = 0.0
    pool: Annotated[Dimension, names(POOLS)] = KEEP


class PolicySpace(_Section):
    """``space.training``: the training policy of a trial."""

    optimizer: Annotated[Dimension, names(OPTIMIZERS)] = "adamw"
    lr: Annotated[Dimension, numbers(False, 0.0, 100.0, low_open=True)] = 3e-3
    layer_decay: Annotated[Dimension, numbers(False, 0.0, 1.0, low_open=True)] = 1.0
    weight_decay: Annotated[Dimension, numbers(False, 0.0, 10.0)] = 1e-4
    label_smoothing: Annotated[Dimension, numbers(False, 0.0, 0.9)] = 0.0


class SpaceConfig(_Section):
    """``space``: what is searched."""

    depth: Annotated[Dimension, numbers(True, 0, 10000)] = 0
    layers: LayerSpace = Field(default_factory=LayerSpace)
    head: HeadSpace = Field(default_factory=HeadSpace)
    training: PolicySpace = Field(default_factory=PolicySpace)


class BaselineConfig(_Section):
    """``baseline``: training policy of trial 0, the locked backbone with a linear head.

    A baseline that is trained badly flatters the search: give it the values that suit it. What is
    left out takes the study's own value where that is fixed, and a default where it is searched.
    """

    optimizer: Annotated[str, one_of(OPTIMIZERS)] | None = None
    lr: Annotated[float | None, single(False, 0, 100, low_open=True, optional=True)] = None
    weight_decay: Annotated[float | None, single(False, 0, 10, optional=True)] = None
    label_smoothing: Annotated[float | None, single(False, 0, 0.9, optional=True)] = None


class DataConfig(_Section):
    """``data``: how the images are split and read.

    Shares are of all readable images; they are ignored for a part that the folder already has.
    """

    validation: _Part = 0.2
    test: _Part = 0.2
    train_per_class: Annotated[int | None, single(True, 1, optional=True)] = None
    seed: Annotated[int, single(True, 0, 2**32 - 1)] = 0
    image_size: Annotated[int | None, single(True, 8, 4096, optional=True)] = None
    unreadable_limit: Annotated[float, single(False, 0, 1, high_open=True)] = 0.01


class AugmentConfig(_Section):
    """``training.augment``: what differs between the views of an image."""

    crop: Annotated[float, single(False, 0, 1, low_open=True)] = 0.5
    flip: Annotated[float, single(False, 0, 1)] = 0.5
    rotate: Annotated[float, single(False, 0, 180)] = 0.0
    jitter: Annotated[float, single(False, 0, 1)] = 0.0


class TrainingConfig(_Section):
    """``training``: what all trials of the study share."""

    epochs: Annotated[int, single(True, 1, 100000)] = 20
    batch_size: Annotated[int, single(True, 2, 65536)] = 64
    objective: Annotated[str, one_of(tuple(OBJECTIVES))] = "accuracy"
    views: Annotated[int, single(True, 1, 1024)] = 8
    warmup: Annotated[float, single(False, 0, 1, high_open=True)] = 0.1
    clip_norm: Annotated[float | None, single(False, 0, low_open=True, optional=True)] = 1.0
    ema: Annotated[
        float | None, single(False, 0, 1, low_open=True, high_open=True, optional=True)
    ] = None
    amp: Annotated[str, one_of(("auto", "off", "bf16", "fp16"))] = "auto"
    augment: AugmentConfig = Field(default_factory=AugmentConfig)


class SearchConfig(_Section):
    """``search``: how the space is searched, and for how long."""

    sampler: Annotated[str, one_of(SAMPLERS)] = "tpe"
    pruner: Annotated[str, one_of(PRUNERS)] = "median"
    order: Annotated[Literal["joint"], one_of(("joint",))] = "joint"
    trials: Annotated[int, single(True, 1)] = 40
    timeout: Annotated[float | None, single(False, 0, low_open=True, optional=True)] = None
    seed: Annotated[int, single(True, 0, 2**31 - 1)] = 0


class StudyConfig(_Section):
    """A whole study file."""

    name: Annotated[str | None, AfterValidator(_study_name)] = None
    description: str = ""
    dataset: Name
    backbone: Name
    weights: Name = "hub"
    inherit: Annotated[Dimension, names(INHERIT)] = "weights"
    data: DataConfig = Field(default_factory=DataConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    storage: Name = "sqlite:///storage/autotune.db"
    files: str | None = None

    def definition(self) -> dict[str, Any]:
        """Return what makes the study the study it is, as plain JSON values.

        Left out is what may change between two runs of the same study: its description, its
        budget, and where it is stored.
        """
        values = self.model_dump(mode="json", exclude={"name", "description", "storage", "files"})
        for key in ("trials", "timeout"):
            del values["search"][key]
        return values
