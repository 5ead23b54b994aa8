"""How long a step takes in each precision, and what ``amp: auto`` chooses."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from autotune.models.backbone import Backbone
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.study.devices import find_device
from autotune.study.trial.amp_choice import choose_precision
from autotune.study.trial.context import build_context
from autotune.training.compute.amp import (
    AmpPolicy,
    float32_precision,
    half_precision_for,
    set_float32_precision,
)
from autotune.training.inputs.batches import to_channels_last
from gpu_steps.context import Context
from gpu_steps.device import mode_of
from gpu_steps.material import LR, configure, plan_of_depth
from studies import open_study

#: Steps between two looks at the clock, so that the host runs ahead as it does in a training.
_TOGETHER = 4
_WARM_UP = 3


def time_modes(context: Context) -> None:
    """Time forward, backward and update of whole networks; then ask for ``auto``."""
    sizes, device = context.sizes, find_device()
    opened = open_study(configure(context, "auto", backbone=list(sizes.timed_backbones)))
    ctx = build_context(opened)
    before = float32_precision(device)
    for name in sizes.timed_backbones:
        material = ctx.resources.get(name)
        set_float32_precision(device, before)
        start = time.perf_counter()
        chosen = choose_precision(ctx, material)
        context.add(
            "auto",
            backbone=name,
            chosen=mode_of(chosen),
            float32=float32_precision(device),
            seconds=round(time.perf_counter() - start, 3),
        )
        network = _whole(material.backbone, device)
        for batch in sizes.timed_batches:
            for mode, products in (
                ("off", "ieee"),
                ("tf32", "tf32"),
                (half_precision_for(device), "ieee"),
            ):
                set_float32_precision(device, products)
                amp = AmpPolicy.from_mode("off" if mode == "tf32" else mode, device)
                step_ms = 1e3 * _step_s(network, amp, batch, sizes.image_px, context)
                context.add(
                    "step",
                    backbone=name,
                    batch=batch,
                    mode=mode,
                    step_ms=round(step_ms, 3),
                    images_per_s=round(1e3 * batch / step_ms, 1),
                )


def _whole(backbone: Backbone, device: torch.device) -> Network:
    """Build a network all of whose layers are trainable."""
    depth = len(list_layers(backbone.fresh()))
    network = build_network(backbone, plan_of_depth(backbone.name, depth), 10, seed=0)
    return network.to(device).to(memory_format=torch.channels_last)


def _step_s(network: Network, amp: AmpPolicy, batch: int, size: int, context: Context) -> float:
    """Return the median seconds of a step."""
    device = amp.device
    images = to_channels_last(torch.randn(batch, 3, size, size, device=device))
    goals = torch.zeros(batch, dtype=torch.int64, device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)
    loss = nn.CrossEntropyLoss()
    network.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with amp.autocast():
            logits = network(images)
        loss(logits.float(), goals).backward()
        optimizer.step()

    for _ in range(_WARM_UP):
        step()
    took = []
    for _ in range(max(1, context.sizes.timed_steps // _TOGETHER)):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_TOGETHER):
            step()
        torch.cuda.synchronize(device)
        took.append((time.perf_counter() - start) / _TOGETHER)
    return statistics.median(took)
