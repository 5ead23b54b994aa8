"""Is a network in prefix and tail the whole network, on the GPU, in bf16 and in float32?"""

from __future__ import annotations

import time
import traceback

import torch
from split_exactness import differences, outcome
from torch import Tensor

from autotune.errors import SplitError
from autotune.models.backbone import Backbone, load_backbone
from autotune.models.network import build_network
from autotune.models.prefix.split import split_network
from autotune.study.devices import find_device
from autotune.training.compute.amp import AmpPolicy, set_float32_precision
from autotune.training.inputs.batches import to_channels_last
from gpu_steps.context import Context
from gpu_steps.material import plan_of_depth

#: The layers that train in the networks that are compared.
DEPTH = 2
#: Images in a batch: another number than :func:`split` learns from or checks with.
COUNT = 4
CLASSES = 10
MODES = ("off", "bf16")


def compare(context: Context) -> None:
    """Compare backbone by backbone; one that cannot be split is a line like the others."""
    device = find_device()
    # Exact products: what is left of a difference is the split's.
    set_float32_precision(device, "ieee")
    for name in context.sizes.split_backbones:
        start = time.perf_counter()
        backbone = load_backbone(name, "none", context.sizes.image_px)
        for mode in MODES:
            try:
                values = _compare(
                    backbone, context.sizes.image_px, AmpPolicy.from_mode(mode, device)
                )
            except (SplitError, RuntimeError) as error:
                print(traceback.format_exc(), flush=True)
                context.add("split", backbone=name, mode=mode, error=str(error)[:500])
                continue
            context.add("split", backbone=name, mode=mode, error="", **values)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def _compare(backbone: Backbone, size: int, amp: AmpPolicy) -> dict[str, float]:
    """Return relative differences between split and whole, and between the GPU and the CPU."""
    device = amp.device
    drawn = torch.Generator().manual_seed(1)
    images = to_channels_last(torch.randn(COUNT, 3, size, size, generator=drawn))
    network = build_network(backbone, plan_of_depth(backbone.name, DEPTH), CLASSES, seed=0)
    network.to(device).to(memory_format=torch.channels_last)
    on_device = images.to(device)
    with amp.autocast():
        found = split_network(network, on_device)
    network.attach(found)
    prefix = found.prefix()
    assert prefix is not None, "the images suffice"
    with amp.autocast():
        features = prefix(on_device)
    split_outcome = outcome(network, features, amp.autocast)
    whole_outcome = outcome(network, on_device, amp.autocast)
    values = differences(split_outcome, whole_outcome)
    if amp.dtype is None:
        on_cpu = _features_on_cpu(backbone, images)
        values["cpu"] = max(
            _difference(one.cpu(), other) for one, other in zip(features, on_cpu, strict=True)
        )
    return values


def _features_on_cpu(backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
    """Return what crosses the same cut on the CPU."""
    network = build_network(backbone, plan_of_depth(backbone.name, DEPTH), CLASSES, seed=0)
    network.to(memory_format=torch.channels_last)
    prefix = split_network(network, images).prefix()
    assert prefix is not None, "the images suffice"
    return prefix(images)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return a relative difference (Frobenius norm)."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
