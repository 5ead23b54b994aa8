"""What layers can become, without a backbone: for tests of what a space makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.plan import KEEP

Value = int | float | str


@dataclass(frozen=True)
class FakeCapabilities:
    """Stands for a ``LayerCapabilities``.

    Args:
        index: The layer, counted from the output.
        present: What the layer has already, by field.
        refused: Values that the layer cannot take, by field.
        reasons: Why nothing can change, for the fields of which this is so.
    """

    index: int
    present: Mapping[str, Value] = field(default_factory=dict)
    refused: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reason_unsupported(self, name: str, value: Value) -> str:
        if value == KEEP:
            return ""
        if name in self.reasons:
            return f"must be keep, but got {value!r}: {self.reasons[name]}"
        return f"cannot be {value!r}" if value in self.refused.get(name, ()) else ""

    def is_noop(self, name: str, value: Value) -> bool:
        assert not self.reason_unsupported(name, value)
        return value == KEEP or self.present.get(name) == value


def fake_capabilities(count: int) -> tuple[FakeCapabilities, ...]:
    """Return layers that can take everything and have none of it."""
    return tuple(FakeCapabilities(index) for index in range(1, count + 1))
