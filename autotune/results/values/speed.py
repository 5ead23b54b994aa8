"""How many times faster a model is than the baseline, on the machine of the refit.

The two take turns, so that the load of the machine meets both. The interval comes from drawing the
turns again: it says how exactly the ratio is known on this machine, and nothing about others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autotune.results.values.intervals import Estimate

#: How often the turns are drawn again.
RESAMPLES = 2000


@dataclass(frozen=True)
class Speed:
    """A model and the baseline, one image at a time.

    Args:
        ratio: How many times as fast as the baseline the model is: the median of all turns.
        latency_ms: Time of an image, likewise.
        baseline_latency_ms: That of the baseline.
        device: Where it was measured.
    """

    ratio: Estimate
    latency_ms: float
    baseline_latency_ms: float
    device: str

    @staticmethod
    def from_turns(turns: Sequence[tuple[float, float]], device: str) -> Speed:
        """Summarize turns of a model and the baseline, in milliseconds."""
        times = np.array(turns)
        ratios = times[:, 1] / times[:, 0]
        draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
        ratio = Estimate.from_draws(np.median(ratios), np.median(draws, axis=1))
        latency_ms, baseline_ms = (round(float(each), 4) for each in np.median(times, axis=0))
        return Speed(ratio, latency_ms, baseline_ms, device)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def describe_speed(speed: Mapping[str, Any]) -> str:
    """Say in a sentence how fast a model is; ``speed`` is what :meth:`Speed.to_json` returns."""
    ratio = speed["ratio"]
    return (
        f"One image takes {speed['latency_ms']:.3g} ms, and {speed['baseline_latency_ms']:.3g} ms "
        f"with the baseline ({speed['device']}): {ratio['value']:.2f} times as fast "
        f"(95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})."
    )
