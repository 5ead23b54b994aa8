"""Rules for the values of a study file: what each kind of key takes, and the message when not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import BeforeValidator

from autotune.errors import did_you_mean, format_yaml, join_sentences
from autotune.plan import FIRST_ABSOLUTE, KEEP

Scalar = int | float | str
Dimension = Scalar | list[Scalar] | dict[str, Any]

#: What a protocol of so many training images a class ends with.
PER_CLASS = "-per-class"
#: Sides that a kernel can be changed to.
KERNELS = (1, 2, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class FieldRule(BeforeValidator):
    """A check of the value of a key.

    Args:
        func: The check: a value in, a value or a ``ValueError`` out.
        takes: What the key takes, as Markdown for the reference of the study file.
    """

    takes: str = ""


def values_of_dimension(dimension: Any) -> list[Any]:
    """List the values of a dimension one by one; a range is stood for by its lower end."""
    if isinstance(dimension, dict):
        return [dimension["low"]]
    return dimension if isinstance(dimension, list) else [dimension]


def largest(dimension: Any) -> Any:
    """Return the largest value of a dimension of numbers."""
    if isinstance(dimension, dict):
        return dimension["high"]
    return max(dimension) if isinstance(dimension, list) else dimension


def _choose(allowed: tuple[str, ...]) -> str:
    return f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"


def _code(allowed: tuple[str, ...], optional: bool = False) -> str:
    """List names as Markdown."""
    return ", ".join(f"`{one}`" for one in allowed) + (" or `null`" if optional else "")


def choice(allowed: tuple[str, ...], *, optional: bool = False) -> FieldRule:
    """Accept a name from a list, or null; name the nearest one otherwise."""

    def check(value: Any) -> Any:
        if value is None and optional:
            return None
        if value is None and "none" in allowed:
            return "none"
        if value is False and "off" in allowed:  # YAML 1.1 reads a bare off as false
            return "off"
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"{_choose(allowed)}, but got {format_yaml(value)}",
                    did_you_mean(str(value), allowed),
                )
            )
        return value

    return FieldRule(check, takes=_code(allowed, optional))


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
    *words: str,
) -> Callable[[Any], Any]:
    """Make a check for one number between two bounds, or a word in its place.

    The message states the whole rule.
    """
    kind = f"{', '.join(words)} or {_kind(integer)}" if words else _kind(integer)
    rule = f"must be {kind} {_between(low, high, low_open, high_open)}"

    def check(value: Any) -> int | float | str:
        if value is False and "off" in words:  # YAML 1.1 reads a bare off as false
            return "off"
        if isinstance(value, str) and value in words:
            return value
        number = _number(value, integer)
        if (
            number is None
            or not low <= number <= high
            or (low_open and number == low)
            or (high_open and number == high)
        ):
            raise ValueError(
                join_sentences(f"{rule}, but got {format_yaml(value)}", _perhaps(value, *words))
            )
        return number

    return check


def _kind(integer: bool) -> str:
    return f"a {'whole ' if integer else ''}number"


def _between(low: float, high: float, low_open: bool, high_open: bool) -> str:
    """State the bounds of a number."""
    bounds = [f"{'above' if low_open else 'of at least'} {_shown(low)}"]
    if math.isfinite(high):
        bounds.append(f"{'below' if high_open else 'at most'} {_shown(high)}")
    return " and ".join(bounds)


def _perhaps(value: Any, *words: str) -> str:
    return did_you_mean(value, words) if words and isinstance(value, str) else ""


def _shown(number: float) -> str:
    return f"{number:.12g}"


def number(
    integer: bool,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    optional: bool = False,
    words: tuple[str, ...] = (),
) -> FieldRule:
    """Accept one number between two bounds, or null or a word where that means something."""
    rule = _rule(integer, low, high, low_open, high_open, *words)
    takes = f"{_kind(integer)} {_between(low, high, low_open, high_open)}"
    others = [f"`{one}`" for one in (*words, "null" if optional else "") if one]
    return FieldRule(
        lambda value: None if optional and value is None else rule(value),
        takes=" or ".join([takes, *others]),
    )


def number_dimension(
    integer: bool, low: float, high: float, low_open: bool = False, or_keep: bool = False
) -> FieldRule:
    """Accept a dimension of numbers between two bounds, and ``keep`` outside of ranges."""
    scalar = _rule(integer, low, high, low_open, False, *([KEEP] if or_keep else []))
    end = _rule(integer, low, high, low_open, False)

    def check(value: Any) -> Any:
        return _range(value, end, integer) if isinstance(value, dict) else _each(value, scalar)

    takes = f"{_kind(integer)} {_between(low, high, low_open, False)}"
    keep = f" or `{KEEP}`" if or_keep else ""
    return FieldRule(check, takes=f"{takes}{keep}; a list or a range of them")


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
                    did_you_mean(str(key), keys),
                )
            )
    if "low" not in value or "high" not in value:
        raise ValueError(f"a range needs low and high, but got {format_yaml(value)}")
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
        raise ValueError(f"log must be true or false, but got {format_yaml(log)}")
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
            raise ValueError(
                f"step must be a {kind} above 0, but got {format_yaml(value['step'])}"
            )
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


def _no_range(scalar: Callable[[Any], Any], words: str, takes: str) -> FieldRule:
    """Accept a dimension that has no ranges: a single value or a list of them."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError(f"must be {words}, but got {format_yaml(value)}")
        return _each(value, scalar)

    return FieldRule(check, takes=f"{takes}; or a list of them")


def choice_dimension(allowed: tuple[str, ...]) -> FieldRule:
    """Accept a dimension of names from a list."""

    def scalar(value: Any) -> str:
        if value not in allowed:
            raise ValueError(
                join_sentences(
                    f"{_choose(allowed)}, but got {format_yaml(value)}",
                    did_you_mean(str(value), allowed),
                )
            )
        return str(value)

    return _no_range(scalar, "a name or a list of names", _code(allowed))


def bool_dimension() -> FieldRule:
    """Accept a dimension of true and false."""

    def scalar(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, but got {format_yaml(value)}")
        return value

    return _no_range(scalar, "true, false or a list of both", "`true`, `false`")


def kernel_dimension() -> FieldRule:
    """Accept a dimension of sides of a kernel."""
    allowed = (KEEP, *map(str, KERNELS))

    def scalar(value: Any) -> int | str:
        if value == KEEP:
            return KEEP
        number = _number(value, integer=True)
        if number not in KERNELS:
            rule = f"{_choose(allowed)}, but got {format_yaml(value)}"
            raise ValueError(join_sentences(rule, _perhaps(value, KEEP)))
        return int(number)

    return _no_range(scalar, "a side or a list of sides", _code(allowed))


def width_dimension() -> FieldRule:
    """Accept a dimension of widths: ratios and numbers of channels."""
    bounds = (
        f"a ratio of at least 0.1 and below {FIRST_ABSOLUTE}, or a whole number of "
        f"channels of at least {FIRST_ABSOLUTE} and at most 65536"
    )
    rule = f"must be {KEEP}, {bounds}"

    def scalar(value: Any) -> int | float | str:
        if value == KEEP:
            return KEEP
        number = _number(value, integer=False)
        if number is not None and 0.1 <= number < FIRST_ABSOLUTE:
            return number
        number = _number(value, integer=True)
        if number is not None and FIRST_ABSOLUTE <= number <= 65536:
            return number
        raise ValueError(
            join_sentences(f"{rule}, but got {format_yaml(value)}", _perhaps(value, KEEP))
        )

    return _no_range(scalar, "a width or a list of widths", f"`{KEEP}`, {bounds}")


def expression() -> FieldRule:
    """Accept a regular expression with a group, or null."""

    def check(value: Any) -> str | None:
        if value is None:
            return None
        rule = r"must be a regular expression with a group in parentheses, such as '^([^/]+)/'"
        if not isinstance(value, str):
            raise ValueError(f"{rule}, but got {format_yaml(value)}")
        try:
            compiled = re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{rule}, but got {format_yaml(value)}: {error}") from None
        if not compiled.groups:
            raise ValueError(f"{rule}, but got {format_yaml(value)}, which has none")
        return value

    return FieldRule(check, takes="a regular expression with a group in parentheses, or `null`")


def protocol_name() -> FieldRule:
    """Accept a protocol of so many images a class, or null."""

    def check(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not re.fullmatch(rf"[1-9]\d{{0,5}}{PER_CLASS}", value):
            raise ValueError(
                f"must be a number of training images such as 30{PER_CLASS}, or null, but got "
                f"{format_yaml(value)}"
            )
        return value

    return FieldRule(
        check, takes=f"a number of training images such as `30{PER_CLASS}`, or `null`"
    )


def boolean() -> FieldRule:
    """Accept true or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, but got {format_yaml(value)}")
        return value

    return FieldRule(check, takes="`true`, `false`")


def name_or_names(what: str) -> FieldRule:
    """Accept a name, or a list of names that differ."""
    rule = f"must be a name or a list of names of {what}"

    def check(value: Any) -> str | list[str]:
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):
                quotes = "; put it in quotes" if isinstance(one, int | float) else ""
                raise ValueError(f"{rule}, but got {format_yaml(one)}{quotes}")
            if not one.strip():
                raise ValueError("must not be empty")
        if isinstance(value, list):
            _choice(value)
            return value if len(value) > 1 else value[0]
        return str(value)

    return FieldRule(check, takes=f"a name, or a list of names of {what}")


def name_list(what: str) -> FieldRule:
    """Accept a list of names that differ, which may be empty; a single name is a list of one."""

    def check(value: Any) -> list[str]:
        values = value if isinstance(value, list) else [] if value is None else [value]
        for one in values:
            if not isinstance(one, str) or not one.strip():
                raise ValueError(f"must be a list of names of {what}, but got {format_yaml(one)}")
        return values and _choice(values)

    return FieldRule(check, takes=f"a list of names of {what}")


def is_plugin_ref(value: Any) -> bool:
    """Tell whether a value reads ``my_file.py:name``."""
    path, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def plugin_ref() -> FieldRule:
    """Accept ``my_file.py:name``, or nothing."""

    def check(value: Any) -> str | None:
        if value is not None and not is_plugin_ref(value):
            raise ValueError(f"must read my_file.py:name, but got {format_yaml(value)}")
        return None if value is None else str(value)

    return FieldRule(check, takes="`my_file.py:name` or `null`")


def choice_or_plugin(allowed: tuple[str, ...]) -> FieldRule:
    """Accept a name from a list, or ``my_file.py:name``."""

    def check(value: Any) -> str:
        if value is None and "none" in allowed:
            return "none"
        if value not in allowed and not is_plugin_ref(value):
            rule = f"{_choose(allowed)}, or one's own as my_file.py:name"
            raise ValueError(
                join_sentences(
                    f"{rule}, but got {format_yaml(value)}", did_you_mean(str(value), allowed)
                )
            )
        return str(value)

    return FieldRule(check, takes=f"{_code(allowed)}, or one's own as `my_file.py:name`")
