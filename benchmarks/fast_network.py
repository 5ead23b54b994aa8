"""How much faster are refitted models than the untouched backbone, and what does that cost?

    for seed in 0 1 2; do
        autotune run digits-fast search.seed=$seed --name digits-fast.seed$seed --workers 1
        autotune refit digits-fast.seed$seed --trial cheapest --workers 1
    done
    python benchmarks/fast_network.py storage/autotune.files/models/digits-fast.seed*
    python benchmarks/fast_network.py --shapes

One image at a time, on one thread. Two networks take turns, so that the load of the machine meets
both; a ratio is the median over the turns, with an interval from drawing them again. Parameters
and floating-point operations do not depend on the machine. ``--shapes`` measures what each change
of the last layers brings at several image sizes, without training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reports import date_and_machine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autotune.models.backbone import load_backbone
from autotune.models.network import Network, build_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.results.model.model_folder import load_model
from autotune.results.values.intervals import CONFIDENCE_LEVEL, Estimate, t_interval
from autotune.results.values.markdown import table
from autotune.results.values.speed import Speed
from autotune.training.cost_profile import count_parameters, turns_ms
from autotune.training.inputs.batches import to_channels_last

BACKBONE = "test_resnet.letters"
SIZES = (16, 24, 32, 48, 64, 96)
#: Changes of the last layers, and of how many.
SHAPES: tuple[tuple[str, LayerPlan, int], ...] = (
    ("width 0.5", LayerPlan(width=0.5), 2),
    ("width 0.5", LayerPlan(width=0.5), 5),
    ("width 0.25", LayerPlan(width=0.25), 2),
    ("width 0.25", LayerPlan(width=0.25), 5),
    ("kernel 1", LayerPlan(kernel=1), 2),
    ("kernel 1", LayerPlan(kernel=1), 5),
    ("kernel 1, width 0.25", LayerPlan(kernel=1, width=0.25), 5),
    ("low rank 0.25", LayerPlan(bridge=0.25), 1),
)


@dataclass(frozen=True)
class Measured:
    """A refitted model: its record, and its speed against the untouched backbone.

    Args:
        speed: Against the untouched backbone at the study's largest image size, the baseline.
        same_size: Against the untouched backbone at the model's own size.
    """

    record: dict[str, Any]
    speed: Speed
    same_size: Speed
    parameters: tuple[int, int]
    mflop: tuple[float, float]


def build(plan: TrialPlan, size: int, classes: int = 10) -> nn.Module:
    """Build a network as a trial does; weights do not change how long it takes."""
    backbone = load_backbone(plan.backbone, "none", size)
    network = build_network(backbone, plan, classes, 0)
    return network.eval().to(memory_format=torch.channels_last)


def image_of(size: int) -> torch.Tensor:
    """Return an image of noise."""
    return to_channels_last(torch.randn(1, 3, size, size))


def compare(first: nn.Module, size: int, second: nn.Module, other_size: int) -> Speed:
    """Say how many times as fast the first network is as the second."""
    turns = turns_ms((first, image_of(size)), (second, image_of(other_size)))
    return Speed.from_turns(turns, "cpu")


@torch.no_grad()
def mflop(network: nn.Module, size: int) -> float:
    """Count the floating-point operations of a pass, in millions."""
    with FlopCounterMode(display=False) as counter:
        network(image_of(size))
    return counter.get_total_flops() / 1e6


def measure(folder: Path) -> Measured:
    """Measure a model that ``autotune refit`` has written."""
    model = load_model(folder)
    record = json.loads((folder / "record.json").read_text("utf-8"))
    size, plan = model.spec.size, model.model_spec.plan
    given = record["definition"]["data"]["image_size"]
    largest = max(given) if isinstance(given, list) else size
    network = model.network
    assert isinstance(network, Network)
    network.to(memory_format=torch.channels_last)
    linear = TrialPlan(plan.backbone)
    baseline, same = (build(linear, side, len(model.classes)) for side in (largest, size))
    return Measured(
        record,
        compare(network, size, baseline, largest),
        compare(network, size, same, size),
        (count_parameters(network), count_parameters(baseline)),
        (mflop(network, size), mflop(baseline, largest)),
    )


def report(found: list[Measured]) -> Iterator[str]:
    """Yield the table of the models, and the means over them."""
    rows, gains, ratios = [], [], []
    for one in found:
        gap = one.record["intervals"]["difference"]["accuracy"]
        gains.append(100 * gap["value"])
        ratios.append(one.speed.ratio.value)
        rows.append(
            (
                one.record["study"],
                f"{100 * one.record['test']['accuracy']:.1f}",
                f"{100 * one.record['baseline_test']['accuracy']:.1f}",
                f"{100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})",
                f"{one.speed.latency_ms:.3f} / {one.speed.baseline_latency_ms:.3f}",
                interval(one.speed.ratio),
                interval(one.same_size.ratio),
                f"{one.parameters[0] / 1e3:.0f} / {one.parameters[1] / 1e3:.0f}",
                f"{one.mflop[0]:.1f} / {one.mflop[1]:.1f}",
                TrialPlan.from_json(one.record["plan"]).describe(),
            )
        )
    titles = ("study", "test %", "baseline %", "difference", "ms", "times as fast")
    titles += ("at the same size", "1000 parameters", "MFLOP", "plan")
    yield table(titles, rows)
    if len(found) > 1:
        mean, gain = (t_interval(each, CONFIDENCE_LEVEL) for each in (ratios, gains))
        yield (
            f"Mean over {len(found)} seeds: {mean.mean:.2f} times as fast as the baseline (95 % "
            f"interval {mean.low:.2f} to {mean.high:.2f}), {gain.mean:+.1f} points of accuracy on "
            f"the test split ({gain.low:+.1f} to {gain.high:+.1f})."
        )


def shapes() -> Iterator[str]:
    """Yield how much faster each change makes the backbone, by image size."""
    rows = []
    untouched = {size: build(TrialPlan(BACKBONE), size) for size in SIZES}
    largest = max(SIZES)
    sizes = []
    for size in SIZES:
        speed = compare(untouched[size], size, untouched[largest], largest)
        sizes.append(f"{speed.latency_ms:.3f} ms")
    rows.append(("untouched", "", *sizes))
    for name, layer, depth in SHAPES:
        plan = TrialPlan(BACKBONE, depth, (layer,) * depth)
        ratios = [
            f"{compare(build(plan, size), size, untouched[size], size).ratio.value:.2f}"
            for size in SIZES
        ]
        rows.append((name, f"last {depth}", *ratios))
    yield table(("change", "layers", *(f"{size} px" for size in SIZES)), rows)


def interval(ratio: Estimate) -> str:
    """Write a ratio with its interval."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="folders that 'refit' has written")
    parser.add_argument("--shapes", action="store_true", help="measure single changes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(date_and_machine("torch", "timm"))
    for block in (*shapes(),) if options.shapes else report([measure(f) for f in options.models]):
        print(f"\n{block}")


if __name__ == "__main__":
    main()
