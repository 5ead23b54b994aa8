"""What one layer can become, as far as its backbone was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.config.fields import KERNELS
from autotune.errors import did_you_mean, join_sentences
from autotune.models.surgery.aligned_pool import POOLS
from autotune.models.surgery.channel_groups import ChannelGroup
from autotune.models.surgery.components import ACTIVATIONS
from autotune.plan import FIRST_ABSOLUTE, KEEP, LayerPlan

#: Ratios within which a width may change.
MIN_RATIO, MAX_RATIO = 0.1, 8.0

Value = int | float | str


def channel_count(value: float | str, size: int, unit: int) -> int:
    """Turn a width of a plan into a number of channels.

    Args:
        value: A ratio below :data:`~autotune.plan.FIRST_ABSOLUTE`, a number of channels from it
            on.
        size: The number of channels that the ratio refers to.
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
        can_grow: Whether they can become more, not only fewer.
        residual_writers: What ``bridge`` changes: convolutions and linear layers that write to
            channels of other layers, with the number of channels they write.
        activations: Its activation functions, with their names (empty for unusual ones).
        pools: Its poolings, with their type and window.
        dropouts: Its dropout modules.
        drop_paths: The places of its drop paths.
        reasons: For each field with nothing to change: why.
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

    def is_noop(self, name: str, value: Value) -> bool:
        """Tell whether a value of a field is what the layer has already.

        Args:
            name: A field of :class:`~autotune.plan.LayerPlan`.
            value: A value that the layer can take.
        """
        if value == KEEP:
            return True
        if name == "kernel":
            sides = {side for kernel in self.convolutions.values() for side in kernel if side > 1}
            return sides == {value}
        if name == "width":
            return all(
                channel_count(value, group.size, group.unit) == group.size for group in self.groups
            )
        if name in ("activation", "pool"):
            present = self.activations if name == "activation" else self.pools
            return set(present.values()) == {value}
        return False

    def is_function_preserving(self, plan: LayerPlan, inherit: str) -> bool:
        """Tell whether a plan leaves what the layer computes as it is, up to rounding.

        Args:
            plan: A plan that the layer can take.
            inherit: What changed layers start from.
        """
        values = plan.changes()
        shaping = [name for name in ("kernel", "width", "bridge") if name in values]
        if inherit == "none" and not all(self.is_noop(name, values[name]) for name in shaping):
            return False
        for name in ("activation", "pool"):
            if name in values and not self.is_noop(name, values[name]):
                return False
        if "kernel" in values and max(map(max, self.convolutions.values())) > values["kernel"]:
            return False
        if "bridge" in values and any(
            channel_count(values["bridge"], size, 1) < size
            for size in self.residual_writers.values()
        ):
            return False
        if "width" not in values:
            return True
        changes = [
            (group, channel_count(values["width"], group.size, group.unit))
            for group in self.groups
        ]
        return all(
            count == group.size or (count > group.size and group.exact and group.inner)
            for group, count in changes
        )

    def reason_unsupported(self, name: str, value: Value) -> str:
        """Say why a layer cannot take a value, in an empty string if it can.

        Args:
            name: A field of :class:`~autotune.plan.LayerPlan`.
            value: A value for it.
        """
        if value == KEEP:
            return ""
        if name in self.reasons:
            return f"must be keep, but got {value!r}: {self.reasons[name]}"
        choices: dict[str, Sequence[Value]] = {
            "kernel": KERNELS,
            "activation": tuple(ACTIVATIONS),
            "pool": tuple(POOLS),
        }
        if name in choices:
            return _not_among(value, choices[name])
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
        if name == "bridge":
            return ""
        for group in self.groups:
            count = channel_count(value, group.size, group.unit)
            if count % group.unit:
                return (
                    f"must be a multiple of {group.unit} because the channels of "
                    f"{group.producers[0]!r} are grouped, but got {value:g}"
                )
            if count > group.size and not self.can_grow:
                return (
                    f"must be at most {group.size} or a ratio up to 1 because the channels of "
                    f"{group.producers[0]!r} cannot become more, but got {value:g}"
                )
        return ""

    def choices(self, name: str) -> str:
        """Describe in a few words what a field of the layer can become, empty for nothing."""
        if name in self.reasons:
            return ""
        if name == "width":
            sizes = sorted({group.size for group in self.groups})
            unit = max(group.unit for group in self.groups)
            way = "fewer or more" if self.can_grow else "fewer"
            grouped = f", in steps of {unit}" if unit > 1 else ""
            return f"{'+'.join(map(str, sizes))} {way}{grouped}"
        if name == "bridge":
            return "+".join(str(size) for size in sorted(set(self.residual_writers.values())))
        if name == "kernel":
            return " ".join(map(str, KERNELS))
        if name in ("activation", "pool"):
            return " ".join(ACTIVATIONS if name == "activation" else POOLS)
        return "0 to below 1"


def _not_among(value: Value, allowed: Sequence[Value]) -> str:
    if value in allowed:
        return ""
    names = [KEEP, *map(str, allowed)]
    return join_sentences(
        f"must be one of {', '.join(names)}, but got {value!r}", did_you_mean(str(value), names)
    )
