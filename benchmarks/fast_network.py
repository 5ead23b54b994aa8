"""How much faster is a refitted model than its untouched backbone with a linear head?

    python benchmarks/fast_network.py storage/autotune.files/models/digits-fast

One image at a time, on one thread. The two networks take turns, so that the load of the machine
meets both; the ratio is the median over the turns, with an interval from resampling them.
Parameters and floating-point operations do not depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from heading import date_and_machine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autotune.models.backbone import load_backbone
from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.results.model.model_folder import load_model

#: Passes of a turn, and turns of each network.
PASSES, TURNS = 20, 200
#: Share of the draws that the interval holds.
COVERAGE = 0.95


def seconds(network: nn.Module, image: torch.Tensor) -> float:
    """Time the fastest pass of a turn: other processes delay passes, and speed up none."""
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - start)
    return min(times)


def operations(network: nn.Module, image: torch.Tensor) -> int:
    """Count the floating-point operations of a pass."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder that 'autotune refit' has written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    size = model.spec.size
    backbone = load_backbone(model.model_spec.plan.backbone, "none", size)
    untouched = build_network(backbone, TrialPlan(backbone.name), len(model.classes), 0)
    assert isinstance(model.network, Network)
    networks = {"untouched": untouched.eval(), "reshaped": model.network.eval()}
    image = torch.randn(1, 3, size, size)
    for network in networks.values():
        seconds(network, image)
    turns = [[seconds(network, image) for network in networks.values()] for _ in range(TURNS)]
    ratios = np.array([before / after for before, after in turns])
    draws = np.random.default_rng(0).choice(ratios, (2000, TURNS))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    print(date_and_machine("torch", "timm"))
    for index, (name, network) in enumerate(networks.items()):
        parameters = sum(parameter.numel() for parameter in network.parameters())
        latency = 1000 * statistics.median(turn[index] for turn in turns)
        flops = operations(network, image)
        print(f"{name}: {parameters} parameters, {flops / 1e6:.2f} MFLOP, {latency:.3f} ms")
    print(f"{np.median(ratios):.2f} times as fast, 95 % interval {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
