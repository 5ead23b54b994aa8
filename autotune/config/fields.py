"""Rules for the values of a study file: what a key takes, and the message for everything else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from pydantic import BeforeValidator

from autotune.errors import did_you_mean, format_yaml, join_sentences
from autotune.plan import FIRST_ABSOLUTE, KEEP

Scalar = int | float | str
Dimension = Scalar | list[Scalar] | dict[str, Any]
Check = Callable[[Any], Any]

#: Ending of a protocol with a number of training images a class.
PER_CLASS = "-per-class"
_SPLITS = ("train", "validation", "test")
#: A number of layers: all that the backbone has.
ALL = "all"
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
    """List the values of a dimension; a range is represented by its lower end."""
    if isinstance(dimension, dict):
        return [dimension["low"]]
    return dimension if isinstance(dimension, list) else [dimension]


def largest(dimension: Any) -> Any:
    """Return the largest value of a dimension of numbers."""
    is_range = isinstance(dimension, dict)
    return dimension["high"] if is_range else max(values_of_dimension(dimension))


def all_values(dimension: Any) -> list[Any]:
    """List every value of a dimension of whole numbers.

    Example:
        >>> all_values({"low": 128, "high": 224, "step": 32}), all_values([96, 64]), all_values(8)
        ([128, 160, 192, 224], [96, 64], [8])
    """
    if isinstance(dimension, dict):
        return list(range(dimension["low"], dimension["high"] + 1, dimension.get("step", 1)))
    return values_of_dimension(dimension)


def without_all(dimension: Any, layers: int) -> Any:
    """Replace ``all`` in a dimension of layers by the number of layers of a backbone.

    Example:
        >>> without_all({"low": 0, "high": "all"}, 18), without_all([0, 4, "all"], 18)
        ({'low': 0, 'high': 18}, [0, 4, 18])
    """
    if isinstance(dimension, dict):
        if dimension["high"] != ALL:
            return dimension
        low, step = dimension["low"], dimension.get("step", 1)
        return {**dimension, "high": max(low, layers - (layers - low) % step)}
    numbers = [layers if value == ALL else value for value in values_of_dimension(dimension)]
    return list(dict.fromkeys(numbers)) if isinstance(dimension, list) else numbers[0]


def timm_name(name: str) -> str:
    """Return the name in timm of a model that is given by its address on the Hugging Face hub.

    Example:
        >>> timm_name("hf-hub:timm/resnet18.a1_in1k"), timm_name("resnet18")
        ('resnet18.a1_in1k', 'resnet18')
    """
    address = r"\s*((hf[-_]hub:|https?://(www\.)?(huggingface\.co|hf\.co)/)?timm/)?(.+?)[/\s]*"
    found = re.fullmatch(address, name, re.IGNORECASE | re.DOTALL)
    return found[5] if found else name


def is_plugin_ref(value: Any) -> bool:
    """Tell whether a value reads ``my_file.py:name``."""
    path, colon, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def choice(allowed: tuple[str, ...], *, optional: bool = False, plugin: bool = False) -> FieldRule:
    """Accept a name from a list, and null or a plugin where that is allowed."""
    also = ", or a plugin as {0}my_file.py:name{0}" if plugin else ""
    check_name = _name_check(allowed, also.format(""))

    def check(value: Any) -> Any:
        is_other = (optional and value is None) or (plugin and is_plugin_ref(value))
        return value if is_other else check_name(value)

    takes = _code(allowed) + also.format("`") + (" or `null`" if optional else "")
    return FieldRule(check, takes=takes)


def plugin_ref() -> FieldRule:
    """Accept ``my_file.py:name``, or null."""

    def check(value: Any) -> Any:
        if value is not None and not is_plugin_ref(value):
            _refuse("must read my_file.py:name", value)
        return value

    return FieldRule(check, takes="`my_file.py:name` or `null`")


def choice_dimension(allowed: tuple[str, ...]) -> FieldRule:
    """Accept a dimension of names from a list."""
    return _list_rule(_name_check(allowed), "a name or a list of names", _code(allowed))


def boolean() -> FieldRule:
    """Accept true or false."""
    return FieldRule(_check_bool, takes="`true`, `false`")


def bool_dimension() -> FieldRule:
    """Accept a dimension of true and false."""
    return _list_rule(_check_bool, "true, false or a list of both", "`true`, `false`")


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
    kind = _kind(integer)
    bounds = f"{'above' if low_open else 'of at least'} {low:.12g}"
    if math.isfinite(high):
        bounds += f" and {'below' if high_open else 'at most'} {high:.12g}"
    rule = f"must be {', '.join(words)} or {kind}" if words else f"must be {kind}"
    excluded = [end for end, is_open in ((low, low_open), (high, high_open)) if is_open]

    def check(value: Any) -> int | float | str | None:
        if value is None and optional:
            return None
        if value is False and "off" in words:  # YAML 1.1 reads a bare off as false
            return "off"
        if isinstance(value, str) and value in words:
            return value
        parsed = _parse_number(value, integer)
        if parsed is None or not low <= parsed <= high or parsed in excluded:
            _refuse(f"{rule} {bounds}", value, words)
        return parsed

    others = [f"`{word}`" for word in (*words, *(["null"] if optional else []))]
    return FieldRule(check, takes=" or ".join([f"{kind} {bounds}", *others]))


def number_dimension(
    integer: bool, low: float, high: float, low_open: bool = False, or_keep: bool = False
) -> FieldRule:
    """Accept a dimension of numbers between two bounds, and ``keep`` outside of ranges."""
    words = (KEEP,) if or_keep else ()
    scalar = number(integer, low, high, low_open=low_open, words=words)
    check_scalar: Any = scalar.func
    check_end: Any = number(integer, low, high, low_open=low_open).func

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            return _check_range(value, check_end, integer)
        return _check_each(value, check_scalar)

    return FieldRule(check, takes=f"{scalar.takes}; a list or a range of them")


def size_dimension(low: int, high: int, most: int) -> FieldRule:
    """Accept a dimension of few sizes, or null: each has its own cache of images."""
    dimension = number_dimension(True, low, high)
    check_dimension: Any = dimension.func

    def check(value: Any) -> Any:
        if value is None:
            return None
        checked = check_dimension(value)
        if (
            isinstance(checked, dict)
            and "step" not in checked
            and checked["low"] < checked["high"]
        ):
            raise ValueError(
                "a range of sizes needs a step, such as {low: 128, high: 224, step: 32}, because "
                "images are decoded once for each size"
            )
        if (count := len(all_values(checked))) > most:
            raise ValueError(
                f"must be at most {most} sizes, because images are decoded once for each, but got "
                f"{count}"
            )
        return checked

    return FieldRule(check, takes=f"{dimension.takes} with a `step`; or `null`")


def number_choice(low: float, high: float) -> FieldRule:
    """Accept a number between two bounds, or a list of numbers."""
    scalar: Any = number(False, low, high)
    return _list_rule(scalar.func, "a number or a list of numbers", scalar.takes)


def dimension_by_optimizer(
    dimension: FieldRule, optimizers: tuple[str, ...], auto: str
) -> FieldRule:
    """Accept a dimension, one for each of some optimizers, or ``auto``."""
    check_dimension: Any = dimension.func
    words = (auto, *optimizers)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value[:1].isalpha():
            return value if value == auto else _refuse(f"must be {auto} or a number", value, words)
        if (
            not isinstance(value, dict)
            or value.keys() & {"low", "high", "step", "log"}
            or not value
        ):
            return check_dimension(value)
        checked = {}
        for name, own in value.items():
            if name not in optimizers:
                _refuse(f"names the optimizers {', '.join(optimizers)}", name, optimizers)
            try:
                checked[name] = check_dimension(own)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return checked

    takes = f"{dimension.takes}; `{auto}`; or a mapping from optimizers to any of these"
    return FieldRule(check, takes=takes)


def depth_dimension() -> FieldRule:
    """Accept a dimension of numbers of layers; ``all`` is what the backbone has."""
    low, high = 0, 10000
    end: Any = number(True, low, high).func
    scalar = number(True, low, high, words=(ALL,))
    check_scalar: Any = scalar.func

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            return _check_each(value, check_scalar)
        if value.get("high") != ALL:
            return _check_range(value, end, integer=True)
        checked = _check_range({**value, "high": high}, end, integer=True, is_open=True)
        return {**checked, "high": ALL}

    return FieldRule(check, takes=f"{scalar.takes}; a list or a range of them")


def kernel_dimension() -> FieldRule:
    """Accept a dimension of sides of a kernel."""
    allowed = (KEEP, *map(str, KERNELS))

    def scalar(value: Any) -> int | str:
        side = KEEP if value == KEEP else _parse_number(value, integer=True)
        if side not in (KEEP, *KERNELS):
            _refuse(_one_of(allowed), value, (KEEP,))
        return side  # type: ignore[return-value]

    return _list_rule(scalar, "a side or a list of sides", _code(allowed))


def width_dimension() -> FieldRule:
    """Accept a dimension of widths: ratios and numbers of channels."""
    bounds = (
        f"a ratio of at least 0.1 and below {FIRST_ABSOLUTE}, or a whole number of "
        f"channels of at least {FIRST_ABSOLUTE} and at most 65536"
    )

    def scalar(value: Any) -> int | float | str:
        if value == KEEP:
            return KEEP
        ratio, count = _parse_number(value, integer=False), _parse_number(value, integer=True)
        if ratio is not None and 0.1 <= ratio < FIRST_ABSOLUTE:
            return ratio
        if count is None or not FIRST_ABSOLUTE <= count <= 65536:
            _refuse(f"must be {KEEP}, {bounds}", value, (KEEP,))
        return count

    return _list_rule(scalar, "a width or a list of widths", f"`{KEEP}`, {bounds}")


def expression() -> FieldRule:
    """Accept a regular expression with a group, or null."""
    rule = "must be a regular expression with a group in parentheses, such as '^([^/]+)/'"

    def check(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            _refuse(rule, value)
        try:
            groups = re.compile(value).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{rule}, but got {format_yaml(value)}: {error}") from None
        if not groups:
            raise ValueError(f"{rule}, but got {format_yaml(value)}, which has none")
        return value

    return FieldRule(check, takes="a regular expression with a group in parentheses, or `null`")


def protocol_name() -> FieldRule:
    """Accept a protocol with a number of images a class, or null."""
    rule = "a number of training images such as {0}30-per-class{0}, or {0}null{0}"
    pattern = re.compile(rf"[1-9]\d{{0,5}}{PER_CLASS}")

    def check(value: Any) -> str | None:
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            _refuse(f"must be {rule.format('')}", value)
        return value

    return FieldRule(check, takes=rule.format("`"))


def split_names() -> FieldRule:
    """Accept ``auto``, ``none``, or the names of each split; the value then has lists of text."""
    rule = "must be auto, none or the names of each split, such as {train: a, test: [b, c]}"

    def check(value: Any) -> str | dict[str, list[str]]:
        if value in (None, "none"):
            return "none"
        if value == "auto":
            return "auto"
        if not isinstance(value, dict):
            _refuse(rule, value, ("auto", "none"))
        if unknown := next((str(key) for key in value if key not in _SPLITS), None):
            hint = did_you_mean(unknown, _SPLITS)
            text = f"the splits are {', '.join(_SPLITS)}, but got {unknown!r}"
            raise ValueError(join_sentences(text, hint))
        if "train" not in value:
            _refuse("must name at least the train split", value)
        result = {}
        for split, members in value.items():
            members = members if isinstance(members, list) else [members]
            if not members or not all(isinstance(name, Scalar) and name != "" for name in members):
                _refuse(f"{split} must be a name or a list of names", members)
            result[split] = [str(name) for name in members]
        _check_different([name for members in result.values() for name in members])
        return result

    takes = "`auto`, `none`, or names: `{train: a, validation: b, test: [c, d]}`"
    return FieldRule(check, takes=takes)


def names(what: str, *, optional: bool = False) -> FieldRule:
    """Accept a name or a list of different names, and an empty list where that is allowed.

    Args:
        what: What has the names, in the plural.
        optional: Accept an empty list and null; the value is then always a list.
    """
    takes = f"a list of names of {what}"
    if not optional:
        takes = f"a name, or {takes}"

    def check(value: Any) -> str | list[str]:
        if optional and value in (None, []):
            return []
        members = value if isinstance(value, list) else [value]
        for name in members:
            if not isinstance(name, str) or not name.strip():
                is_number = isinstance(name, int | float)
                quotes = "put it in quotes" if is_number else ""
                text = f"must be {takes.replace(',', '')}, but got {format_yaml(name)}"
                raise ValueError(join_sentences(text, quotes))
        _check_different(members)
        return members if optional or len(members) > 1 else str(members[0])

    return FieldRule(check, takes=takes)


def choices(allowed: tuple[str, ...]) -> FieldRule:
    """Accept a name or a list of different names from a list; the value is always a list."""
    check_name = _name_check(allowed)

    def check(value: Any) -> list[str]:
        if value in (None, []):
            return []
        return _check_different(
            [check_name(name) for name in (value if isinstance(value, list) else [value])]
        )

    return FieldRule(check, takes=f"a list of {_code(allowed)}")


def _refuse(rule: str, value: Any, names: tuple[str, ...] = ()) -> NoReturn:
    """Raise the message that states the rule, the value and the nearest name."""
    hint = did_you_mean(value, names) if isinstance(value, str) else ""
    raise ValueError(join_sentences(f"{rule}, but got {format_yaml(value)}", hint))


def _one_of(allowed: tuple[str, ...]) -> str:
    return f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"


def _code(allowed: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in allowed)


def _name_check(allowed: tuple[str, ...], also: str = "") -> Check:
    def check(value: Any) -> str:
        if value is None and "none" in allowed:
            return "none"
        if value is False and "off" in allowed:  # YAML 1.1 reads a bare off as false
            return "off"
        if value not in allowed:
            _refuse(f"{_one_of(allowed)}{also}", value, allowed)
        return str(value)

    return check


def _check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse("must be true or false", value)
    return value


def _parse_number(value: Any, integer: bool) -> int | float | None:
    """Read a number, also ``1e-4``, which YAML 1.1 reads as a string; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
        if not math.isfinite(parsed) or (integer and not parsed.is_integer()):
            return None
        if not integer:
            return parsed
        return value if isinstance(value, int) else int(parsed)
    except (ValueError, OverflowError):
        return None


def _kind(integer: bool) -> str:
    return f"a {'whole ' if integer else ''}number"


def _list_rule(scalar: Check, words: str, takes: str) -> FieldRule:
    """Accept a dimension that has no ranges: a single value or a list of values."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            _refuse(f"must be {words}", value)
        return _check_each(value, scalar)

    return FieldRule(check, takes=f"{takes}; or a list of them")


def _check_each(value: Any, scalar: Check) -> Any:
    """Check a single value, or every member of a choice."""
    if not isinstance(value, list):
        return scalar(value)
    return _check_different([scalar(member) for member in value])


def _check_different(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("a choice needs at least one value, but got an empty list")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"the values of a choice must differ, but got {value!r} twice")
    return values


def _check_range(
    value: dict[str, Any], check_end: Check, integer: bool, is_open: bool = False
) -> dict[str, Any]:
    """Check a range; the steps of an open one lead to an end that is not known yet."""
    keys = ("low", "high", "step", "log")
    if unknown := next((repr(key) for key in value if key not in keys), None):
        rule = f"a range has the keys {', '.join(keys)}, but got {unknown}"
        raise ValueError(join_sentences(rule, did_you_mean(unknown.strip("'"), keys)))
    if not value.keys() >= {"low", "high"}:
        _refuse("a range needs low and high", value)
    result: dict[str, Any] = {}
    for key in ("low", "high"):
        try:
            result[key] = check_end(value[key])
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
    low, high = result["low"], result["high"]
    if low > high:
        raise ValueError(f"low must not exceed high, but got {low} > {high}")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        _refuse("log must be true or false", log)
    if log and step is not None:
        raise ValueError("a range has either log or step, but got both")
    if log and low <= 0:
        raise ValueError(f"low must be above 0 with log, but got {low}")
    if log:
        result["log"] = True
    if step is not None:
        result["step"] = _check_step(low, low if is_open else high, step, integer)
    return result


def _check_step(low: float, high: float, value: Any, integer: bool) -> float:
    """Refuse a step that does not lead from low to high; Optuna would lower the high end."""
    step = _parse_number(value, integer)
    if step is None or step <= 0:
        _refuse(f"step must be {_kind(integer)} above 0", value)
    # In decimals, as Optuna does: in binary, 0.8 is not eight steps of 0.1.
    start, end, size = (Decimal(str(number)) for number in (low, high, step))
    try:
        rest = (end - start) % size
    except InvalidOperation:
        raise ValueError(f"step is too small for a range to {high}, but got {step}") from None
    if rest:
        last = end - rest
        nearest = (
            f"the nearest below is {float(last):.12g}" if last > start else "one step is more"
        )
        raise ValueError(f"high must be low plus whole steps of {step}, but got {high}; {nearest}")
    return step
