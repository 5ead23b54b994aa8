"""What one layer can become, as found by trying it on its backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.config.fields import KERNELS
from autotune.errors import did_you_mean, join_sentences
from autotune.models.surgery.aligned_pool import POOLS
from autotune.models.surgery.channel_groups import ChannelGroup
from autotune.models.surgery.components import ACTIVATIONS
from autotune.plan import FIRST_ABSOLUTE, KEEP, LayerPlan

#: Limits of the ratio by which a width may change.
MIN_RATIO, MAX_RATIO = 0.1, 8.0

Value = int | float | str
_CHOICES: Mapping[str, Sequence[Value]] = {
    "kernel": KERNELS,
    "activation": tuple(ACTIVATIONS),
    "pool": tuple(POOLS),
}


def channel_count(value: float | str, size: int, unit: int) -> int:
    """Turn a width of a plan into a number of channels.

    Args:
        value: A ratio of ``size`` below :data:`~autotune.plan.FIRST_ABSOLUTE`, else a number of
            channels.
        size: The present number of channels.
        unit: The result of a ratio is the nearest multiple of it, at least one.
    """
    number = float(value)
    if number >= FIRST_ABSOLUTE:
        return int(number)
    return max(1, round(size * number / unit)) * unit


@dataclass(frozen=True)
class LayerCapabilities:
    """What one layer can become.

    Args:
        index: The layer, counted from the output.
        convolutions: Its spatial convolutions, with the sides of their kernels.
        groups: The channels that ``width`` changes.
        can_grow: Whether these can become more, not only fewer.
        residual_writers: What ``bridge`` changes: convolutions and linear layers that write to
            channels of other layers, with the number of channels they write.
        activations: Its activation functions, with their names (empty for unusual ones).
        pools: Its poolings, with their type and window.
        dropouts: Its dropout modules.
        drop_paths: The places of its drop paths.
        reasons: Why nothing can change, for each field of which this is so.
    """

    index: int
    convolutions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    groups: tuple[ChannelGroup, ...] = ()
    can_grow: bool = False
    residual_writers: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, str] = field(default_factory=dict)
    dropouts: tuple[str, ...] = ()
    drop_paths: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def _counts(self, width: Value) -> list[tuple[ChannelGroup, int]]:
        """Return each group with its number of channels at a width."""
        return [(group, channel_count(width, group.size, group.unit)) for group in self.groups]

    def is_noop(self, name: str, value: Value) -> bool:
        """Return whether the layer already has a possible value of a field of its plan."""
        if value == KEEP:
            return True
        match name:
            case "kernel":
                kernels = self.convolutions.values()
                return {side for kernel in kernels for side in kernel if side > 1} == {value}
            case "width":
                return all(count == group.size for group, count in self._counts(value))
            case "activation" | "pool":
                present = self.activations if name == "activation" else self.pools
                return set(present.values()) == {value}
        return False

    def is_function_preserving(self, plan: LayerPlan, inherit: str) -> bool:
        """Return whether the layer computes the same, up to rounding, after a possible plan."""
        for name, value in plan.changes().items():
            shaping = name in ("kernel", "width", "bridge")
            if self.is_noop(name, value) or name in ("dropout", "drop_path"):
                continue
            if not shaping or inherit == "none":
                return False
            if name == "kernel" and max(map(max, self.convolutions.values())) > value:
                return False
            if name == "bridge" and any(
                channel_count(value, size, 1) < size for size in self.residual_writers.values()
            ):
                return False
            if name == "width" and not all(
                count == group.size or (count > group.size and group.exact and group.inner)
                for group, count in self._counts(value)
            ):
                return False
        return True

    def reason_unsupported(self, name: str, value: Value) -> str:
        """Return why the layer cannot take a value of a field, or "" if it can."""
        if value == KEEP:
            return ""
        if name in self.reasons:
            return f"must be keep, but got {value!r}: {self.reasons[name]}"
        if name in _CHOICES:
            names = [KEEP, *map(str, _CHOICES[name])]
            message = f"must be one of {', '.join(names)}, but got {value!r}"
            allowed = value in _CHOICES[name]
            return "" if allowed else join_sentences(message, did_you_mean(str(value), names))
        if isinstance(value, str):
            return f"must be keep or a number, but got {value!r}"
        if name in ("width", "bridge"):
            return self._width_problem(name, value)
        return "" if 0 <= value < 1 else f"must be from 0 to below 1, but got {value}"

    def _width_problem(self, name: str, value: float) -> str:
        if not value >= MIN_RATIO or (value >= FIRST_ABSOLUTE and value != int(value)):
            return (
                f"must be keep, a ratio from {MIN_RATIO:g} to below {FIRST_ABSOLUTE}, or a "
                f"whole number of channels from {FIRST_ABSOLUTE} on, but got {value}"
            )
        for group, count in self._counts(value) if name == "width" else []:
            channels = f"because the channels of {group.producers[0]!r}"
            if count % group.unit:
                return (
                    f"must be a multiple of {group.unit} {channels} are grouped, but got {value:g}"
                )
            if count > group.size and not self.can_grow:
                return (
                    f"must be at most {group.size} or a ratio up to 1 {channels} cannot become "
                    f"more, but got {value:g}"
                )
        return ""
