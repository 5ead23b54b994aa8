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
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from autotune.errors import in_yaml, join_sentences, nearest

SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("median", "percentile", "hyperband", "none")
OPTIMIZERS = ("adamw", "sgd", "adagrad")
_KEEP = "keep"
POOLS = (_KEEP, "avg", "max", "avgmax")
INHERIT = ("weights", "data", "none")
KERNELS = (1, 2, 3, 5, 7)
#: A width below this is a ratio (0.5: half as many channels), from it on a number of channels.
FIRST_ABSOLUTE = 8
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

Scalar = int | float | str
Dimension = Scalar | list[Scalar] | dict[str, Any]


def _choose(allowed: tuple[str, ...]) -> str:
    return f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"


def _one_of(allowed: tuple[str, ...]) -> BeforeValidator:
    """Accept a name from a list; name the nearest one otherwise."""

    def check(value: Any) -> Any:
        if value is None and "none" in allowed:
            return "none"
        if value is False and "off" in allowed:  # YAML 1.1 reads a bare off as false
            return "off"
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"{_choose(allowed)}, but got {in_yaml(value)}",
                    nearest(str(value), allowed),
                )
            )
        return value

    return BeforeValidator(check)


def _number(value: Any, integer: bool) -> int | float | None:
    """Read a number, ``None`` when it is none.

    YAML 1.1 reads ``1e-4`` (no dot) as a string, which is a number to us.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
        if not math.isfinite(number) or (integer and not number.is_integer()):
            return None
        if not integer:
            return number
        return value if isinstance(value, int) else int(number)
    except (ValueError, OverflowError):
        return None


def _rule(
    integer: bool,
    low: float,
    high: float,
    low_open: bool,
    high_open: bool,
    or_keep: bool = False,
) -> Callable[[Any], Any]:
    """Make a check for one number between two bounds; its message states the whole rule."""
    bounds = [f"{'above' if low_open else 'of at least'} {_shown(low)}"]
    if math.isfinite(high):
        bounds.append(f"{'below' if high_open else 'at most'} {_shown(high)}")
    kind = f"{'keep or ' if or_keep else ''}a {'whole ' if integer else ''}number"
    rule = f"must be {kind} {' and '.join(bounds)}"

    def check(value: Any) -> int | float | str:
        if or_keep and value == _KEEP:
            return _KEEP
        number = _number(value, integer)
        if (
            number is None
            or not low <= number <= high
            or (low_open and number == low)
            or (high_open and number == high)
        ):
            raise ValueError(
                join_sentences(
                    f"{rule}, but got {in_yaml(value)}", _perhaps_keep(value) if or_keep else ""
                )
            )
        return number

    return check


def _perhaps_keep(value: Any) -> str:
    return nearest(value, (_KEEP,)) if isinstance(value, str) else ""


def _shown(number: float) -> str:
    return f"{number:.12g}"


def _single(
    integer: bool,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    optional: bool = False,
) -> BeforeValidator:
    """Accept one number between two bounds, or null where that means something."""
    rule = _rule(integer, low, high, low_open, high_open)
    return BeforeValidator(lambda value: None if optional and value is None else rule(value))


def _numbers(
    integer: bool, low: float, high: float, low_open: bool = False, or_keep: bool = False
) -> BeforeValidator:
    """Accept a dimension of numbers between two bounds, and ``keep`` outside of ranges."""
    scalar = _rule(integer, low, high, low_open, False, or_keep)
    end = _rule(integer, low, high, low_open, False)

    def check(value: Any) -> Any:
        return _range(value, end, integer) if isinstance(value, dict) else _each(value, scalar)

    return BeforeValidator(check)


def _each(value: Any, scalar: Callable[[Any], Any]) -> Any:
    """Check a single value, or every member of a choice."""
    return _choice([scalar(one) for one in value]) if isinstance(value, list) else scalar(value)


def _range(
    value: dict[str, Any], rule: Callable[[Any], int | float], integer: bool
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
        raise ValueError(f"a range needs low and high, but got {in_yaml(value)}")
    result: dict[str, Any] = {}
    for key in ("low", "high"):
        try:
            result[key] = rule(value[key])
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
    if result["low"] > result["high"]:
        raise ValueError(f"low must not exceed high, but got {result['low']} > {result['high']}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, but got {in_yaml(log)}")
    if log and value.get("step") is not None:
        raise ValueError("a range has either log or step, but got both")
    if log and result["low"] <= 0:
        raise ValueError(f"low must be above 0 with log, but got {result['low']}")
    if log:
        result["log"] = True
    if value.get("step") is not None:
        step = _number(value["step"], integer)
        if step is None or step <= 0:
            kind = "whole number" if integer else "number"
            raise ValueError(f"step must be a {kind} above 0, but got {in_yaml(value['step'])}")
        _check_grid(result["low"], result["high"], step)
        result["step"] = step
    return result


def _check_grid(low: float, high: float, step: float) -> None:
    """Refuse a high that no whole number of steps reaches; Optuna would lower it.

    In decimals, as Optuna counts: in binary, 0.8 is not eight steps of 0.1.
    """
    start, end, size = (Decimal(str(one)) for one in (low, high, step))
    try:
        rest = (end - start) % size
    except InvalidOperation:
        raise ValueError(f"step is too small for a range to {high}, but got {step}") from None
    if rest:
        last = end - rest
        way_out = (
            f"the nearest below is {_shown(float(last))}" if last > start else "one step is more"
        )
        raise ValueError(f"high must be low plus whole steps of {step}, but got {high}; {way_out}")


def _choice(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("a choice needs at least one value, but got an empty list")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ValueError(f"the values of a choice must differ, but got {repeated[0]!r} twice")
    return values


def _no_range(scalar: Callable[[Any], Any], words: str) -> BeforeValidator:
    """Accept a dimension that has no ranges: a single value or a list of them."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(f"must be {words}, but got {in_yaml(value)}")
        return _each(value, scalar)

    return BeforeValidator(check)


def _names(allowed: tuple[str, ...]) -> BeforeValidator:
    """Accept a dimension of names from a list."""

    def scalar(value: Any) -> str:
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"{_choose(allowed)}, but got {in_yaml(value)}",
                    nearest(str(value), allowed),
                )
            )
        return str(value)

    return _no_range(scalar, "a name or a list of names")


def _flags() -> BeforeValidator:
    """Accept a dimension of true and false."""

    def scalar(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, but got {in_yaml(value)}")
        return value

    return _no_range(scalar, "true, false or a list of both")


def _kernels() -> BeforeValidator:
    """Accept a dimension of sides of a kernel."""
    allowed = (_KEEP, *map(str, KERNELS))

    def scalar(value: Any) -> int | str:
        if value == _KEEP:
            return _KEEP
        number = _number(value, integer=True)
        if number not in KERNELS:
            rule = f"{_choose(allowed)}, but got {in_yaml(value)}"
            raise ValueError(join_sentences(rule, _perhaps_keep(value)))
        return int(number)

    return _no_range(scalar, "a side or a list of sides")


def _widths() -> BeforeValidator:
    """Accept a dimension of widths: ratios and numbers of channels."""
    rule = (
        f"must be keep, a ratio of at least 0.1 and below {FIRST_ABSOLUTE}, or a whole number of "
        f"channels of at least {FIRST_ABSOLUTE} and at most 65536"
    )

    def scalar(value: Any) -> int | float | str:
        if value == _KEEP:
            return _KEEP
        number = _number(value, integer=False)
        if number is not None and 0.1 <= number < FIRST_ABSOLUTE:
            return number
        number = _number(value, integer=True)
        if number is not None and FIRST_ABSOLUTE <= number <= 65536:
            return number
        raise ValueError(join_sentences(f"{rule}, but got {in_yaml(value)}", _perhaps_keep(value)))

    return _no_range(scalar, "a width or a list of widths")


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
_Part = Annotated[float, _single(False, 0, 1, low_open=True, high_open=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSpace(_Section):
    """``space.layers``: what every tuned layer may become; a layer takes the values that it can.

    ``last`` is how many of the last layers have these fields, deeper ones keep their shape: every
    layer brings as many parameters as there are searched fields, and a sampler that has to model
    hundreds of them from a few dozen trials finds nothing.
    """

    kernel: Annotated[Dimension, _kernels()] = _KEEP
    width: Annotated[Dimension, _widths()] = _KEEP
    bridge: Annotated[Dimension, _widths()] = _KEEP
    activation: Annotated[Dimension, _names((_KEEP, *ACTIVATIONS))] = _KEEP
    pool: Annotated[Dimension, _names((_KEEP, *LAYER_POOLS))] = _KEEP
    dropout: Annotated[Dimension, _numbers(False, 0.0, 0.9, or_keep=True)] = _KEEP
    drop_path: Annotated[Dimension, _numbers(False, 0.0, 0.9, or_keep=True)] = _KEEP
    last: Annotated[int, _single(True, 1)] = 8


class HeadSpace(_Section):
    """``space.head``: the hidden layers and the global pooling."""

    hidden_layers: Annotated[Dimension, _numbers(True, 0, 3)] = 0
    units: Annotated[Dimension, _numbers(True, 1, 65536)] = 256
    activation: Annotated[Dimension, _names(ACTIVATIONS)] = "relu"
    batch_norm: Annotated[bool | list[bool], _flags()] = True
    dropout: Annotated[Dimension, _numbers(False, 0.0, 0.95)] = 0.0
    pool: Annotated[Dimension, _names(POOLS)] = _KEEP


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


class BaselineConfig(_Section):
    """``baseline``: training policy of trial 0, the locked backbone with a linear head.

    A baseline that is trained badly flatters the search: give it the values that suit it. What is
    left out takes the study's own value where that is fixed, and a default where it is searched.
    """

    optimizer: Annotated[str, _one_of(OPTIMIZERS)] | None = None
    lr: Annotated[float | None, _single(False, 0, 100, low_open=True, optional=True)] = None
    weight_decay: Annotated[float | None, _single(False, 0, 10, optional=True)] = None
    label_smoothing: Annotated[float | None, _single(False, 0, 0.9, optional=True)] = None


class DataConfig(_Section):
    """``data``: how the images are split and read.

    Shares are of all readable images; they are ignored for a part that the folder already has.
    """

    validation: _Part = 0.2
    test: _Part = 0.2
    train_per_class: Annotated[int | None, _single(True, 1, optional=True)] = None
    seed: Annotated[int, _single(True, 0, 2**32 - 1)] = 0
    image_size: Annotated[int | None, _single(True, 8, 4096, optional=True)] = None
    unreadable_limit: Annotated[float, _single(False, 0, 1, high_open=True)] = 0.01


class AugmentConfig(_Section):
    """``training.augment``: what differs between the views of an image."""

    crop: Annotated[float, _single(False, 0, 1, low_open=True)] = 0.5
    flip: Annotated[float, _single(False, 0, 1)] = 0.5
    rotate: Annotated[float, _single(False, 0, 180)] = 0.0
    jitter: Annotated[float, _single(False, 0, 1)] = 0.0


class TrainingConfig(_Section):
    """``training``: what all trials of the study share."""

    epochs: Annotated[int, _single(True, 1, 100000)] = 20
    batch_size: Annotated[int, _single(True, 2, 65536)] = 64
    objective: Annotated[str, _one_of(tuple(OBJECTIVES))] = "accuracy"
    views: Annotated[int, _single(True, 1, 1024)] = 8
    warmup: Annotated[float, _single(False, 0, 1, high_open=True)] = 0.1
    clip_norm: Annotated[float | None, _single(False, 0, low_open=True, optional=True)] = 1.0
    ema: Annotated[
        float | None, _single(False, 0, 1, low_open=True, high_open=True, optional=True)
    ] = None
    amp: Annotated[str, _one_of(("auto", "off", "bf16", "fp16"))] = "auto"
    augment: AugmentConfig = Field(default_factory=AugmentConfig)


class SearchConfig(_Section):
    """``search``: how the space is searched, and for how long."""

    sampler: Annotated[str, _one_of(SAMPLERS)] = "tpe"
    pruner: Annotated[str, _one_of(PRUNERS)] = "median"
    order: Annotated[Literal["joint"], _one_of(("joint",))] = "joint"
    trials: Annotated[int, _single(True, 1)] = 40
    timeout: Annotated[float | None, _single(False, 0, low_open=True, optional=True)] = None
    seed: Annotated[int, _single(True, 0, 2**31 - 1)] = 0


class StudyConfig(_Section):
    """A whole study file."""

    name: Annotated[str | None, AfterValidator(_study_name)] = None
    description: str = ""
    dataset: Name
    backbone: Name
    weights: Name = "hub"
    inherit: Annotated[Dimension, _names(INHERIT)] = "weights"
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
