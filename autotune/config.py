"""What a study file may say: one pydantic model per section, one rule per key.

Values of ``space`` are *dimensions*: a single value is fixed, a list is a choice among its
members, and ``{low, high}`` (with ``step`` or ``log``) is a range. They are kept as the plain
values of the file, so that a definition can be stored, compared and shown as it was written;
``autotune.search.space`` turns them into Optuna distributions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from autotune.errors import join_sentences, nearest

SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("median", "percentile", "hyperband", "none")
OPTIMIZERS = ("adamw", "sgd", "adagrad")
POOLS = ("keep", "avg", "max", "avgmax")
#: Objective name -> direction of optimisation.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "log_loss": "minimize",
}
NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")

Scalar = int | float | str
Dimension = Scalar | list[Scalar] | dict[str, Any]


def _one_of(allowed: tuple[str, ...]) -> BeforeValidator:
    """Accept a name from a list; name the nearest one otherwise."""

    def check(value: Any) -> Any:
        if value is None and "none" in allowed:
            return "none"
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"must be one of {', '.join(allowed)}, but got {value!r}",
                    nearest(str(value), allowed),
                )
            )
        return value

    return BeforeValidator(check)


def _number(value: Any, integer: bool) -> int | float:
    """Read a number; YAML 1.1 reads ``1e-4`` (no dot) as a string, which is a number to us."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"must be a number, but got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be a finite number, but got {value!r}")
    if integer:
        if value != int(value):
            raise ValueError(f"must be a whole number, but got {value!r}")
        return int(value)
    return float(value)


def _numbers(integer: bool, low: float, high: float, low_open: bool = False) -> BeforeValidator:
    """Accept a dimension of numbers between two bounds."""
    bound = f"{'above' if low_open else 'at least'} {low:g}"
    if math.isfinite(high):
        bound += f" and at most {high:g}"

    def scalar(value: Any) -> int | float:
        number = _number(value, integer)
        if number < low or (low_open and number == low) or number > high:
            raise ValueError(f"must be {bound}, but got {number:g}")
        return number

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            return _range(value, scalar, integer)
        if isinstance(value, list):
            return _choice([scalar(one) for one in value])
        return scalar(value)

    return BeforeValidator(check)


def _range(
    value: dict[str, Any], scalar: Callable[[Any], int | float], integer: bool
) -> dict[str, Any]:
    keys = ("low", "high", "step", "log")
    for key in value:
        if key not in keys:
            raise ValueError(
                join_sentences(
                    f"a range has the keys {', '.join(keys)}, but got {key!r}",
                    nearest(str(key), keys),
                )
            )
    if "low" not in value or "high" not in value:
        raise ValueError(f"a range needs low and high, but got {value!r}")
    result: dict[str, Any] = {"low": scalar(value["low"]), "high": scalar(value["high"])}
    if result["low"] > result["high"]:
        raise ValueError(f"low must not exceed high, but got {result['low']} > {result['high']}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, but got {log!r}")
    if log and value.get("step") is not None:
        raise ValueError("a range has either log or step, but got both")
    if log and result["low"] <= 0:
        raise ValueError(f"low must be above 0 with log, but got {result['low']}")
    if log:
        result["log"] = True
    if value.get("step") is not None:
        step = _number(value["step"], integer)
        if step <= 0:
            raise ValueError(f"step must be above 0, but got {step}")
        result["step"] = step
    return result


def _choice(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("a choice needs at least one value, but got an empty list")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ValueError(f"the values of a choice must differ, but got {repeated[0]!r} twice")
    return values


def _names(allowed: tuple[str, ...]) -> BeforeValidator:
    """Accept a dimension of names from a list."""

    def scalar(value: Any) -> str:
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"must be one of {', '.join(allowed)}, but got {value!r}",
                    nearest(str(value), allowed),
                )
            )
        return str(value)

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(f"must be a name or a list of names, but got {value!r}")
        return (
            _choice([scalar(one) for one in value]) if isinstance(value, list) else scalar(value)
        )

    return BeforeValidator(check)


def _study_name(value: str | None) -> str | None:
    if value is not None and not NAME_RULE.fullmatch(value):
        raise ValueError(
            "a study's name has up to 100 letters, digits and . _ + - and starts with a letter "
            f"or digit, but got {value!r}"
        )
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Name = Annotated[str, AfterValidator(_not_empty)]
#: Per-layer fields exist in every plan; a backbone's layers keep their shape.
Keep = Annotated[Dimension, _names(("keep",))]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSpace(_Section):
    """``space.layers``: what every tuned layer may become."""

    kernel: Keep = "keep"
    width: Keep = "keep"
    activation: Keep = "keep"
    pool: Keep = "keep"
    drop: Keep = "keep"


class HeadSpace(_Section):
    """``space.head``: hidden layers, their units and dropout, and the global pooling."""

    hidden_layers: Annotated[Dimension, _numbers(True, 0, 3)] = 0
    units: Annotated[Dimension, _numbers(True, 1, 65536)] = 256
    dropout: Annotated[Dimension, _numbers(False, 0.0, 0.95)] = 0.0
    pool: Annotated[Dimension, _names(POOLS)] = "keep"


class PolicySpace(_Section):
    """``space.training``: the training policy of a trial."""

    optimizer: Annotated[Dimension, _names(OPTIMIZERS)] = "adamw"
    lr: Annotated[Dimension, _numbers(False, 0.0, 100.0, low_open=True)] = 3e-3
    layer_decay: Annotated[Dimension, _numbers(False, 0.0, 1.0, low_open=True)] = 1.0
    weight_decay: Annotated[Dimension, _numbers(False, 0.0, 10.0)] = 1e-4
    label_smoothing: Annotated[Dimension, _numbers(False, 0.0, 0.9)] = 0.0


class SpaceConfig(_Section):
    """``space``: what is searched."""

    depth: Annotated[Dimension, _numbers(True, 0, 10000)] = 0
    layers: LayerSpace = Field(default_factory=LayerSpace)
    head: HeadSpace = Field(default_factory=HeadSpace)
    training: PolicySpace = Field(default_factory=PolicySpace)


class DataConfig(_Section):
    """``data``: how the images are split and read.

    Shares are of all readable images; they are ignored for a part that the folder already has.
    """

    validation: float = Field(0.2, gt=0.0, lt=1.0)
    test: float = Field(0.2, gt=0.0, lt=1.0)
    train_per_class: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    image_size: int | None = Field(None, ge=8, le=4096)
    unreadable_limit: float = Field(0.01, ge=0.0, lt=1.0)


class AugmentConfig(_Section):
    """``training.augment``: what differs between the views of an image."""

    crop: float = Field(0.5, gt=0.0, le=1.0)
    flip: float = Field(0.5, ge=0.0, le=1.0)
    rotate: float = Field(0.0, ge=0.0, le=180.0)
    jitter: float = Field(0.0, ge=0.0, le=1.0)


class TrainingConfig(_Section):
    """``training``: what all trials of the study share."""

    epochs: int = Field(20, ge=1, le=100000)
    batch_size: int = Field(64, ge=1, le=65536)
    objective: Annotated[str, _one_of(tuple(OBJECTIVES))] = "accuracy"
    views: int = Field(8, ge=1, le=1024)
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(1.0, gt=0.0)
    ema: float | None = Field(None, gt=0.0, lt=1.0)
    amp: Annotated[str, _one_of(("auto", "off", "bf16", "fp16"))] = "auto"
    augment: AugmentConfig = Field(default_factory=AugmentConfig)


class SearchConfig(_Section):
    """``search``: how the space is searched, and for how long."""

    sampler: Annotated[str, _one_of(SAMPLERS)] = "tpe"
    pruner: Annotated[str, _one_of(PRUNERS)] = "median"
    order: Annotated[Literal["joint"], _one_of(("joint",))] = "joint"
    trials: int = Field(40, ge=1)
    timeout: float | None = Field(None, gt=0.0)
    seed: int = Field(0, ge=0, lt=2**31)


class StudyConfig(_Section):
    """A whole study file."""

    name: Annotated[str | None, AfterValidator(_study_name)] = None
    description: str = ""
    dataset: Name
    backbone: Name
    weights: Name = "hub"
    data: DataConfig = Field(default_factory=DataConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
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
