"""Mixed precision: in which dtype a network computes, and whether that is worth it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: So many times as fast has a step to be in half precision. On two cores of an EPYC with AVX-512
#: bf16 it is 1.5 (MobileNetV2) to 2 times (ResNet-18, ViT, ConvNeXt) as fast.
GAIN = 1.3
#: Steps of each precision that are timed; the shortest counts.
_ROUNDS = 3
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Autocast:
    """Mixed precision of a training.

    Args:
        device: Where it trains.
        dtype: What convolutions and matrix products compute in; ``None`` is float32 throughout.
    """

    device: torch.device
    dtype: torch.dtype | None

    @staticmethod
    def of(mode: str, device: torch.device) -> Autocast:
        """Make what a mode names: ``off``, ``bf16`` or ``fp16``."""
        return Autocast(device, _HALF.get(mode))

    def __call__(self) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def half_of(device: torch.device) -> str:
    """Name the half precision that suits a device: fp16 only where a GPU has no bf16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


def faster(network: nn.Module, images: Tensor) -> str:
    """Find out by a few steps in which precision a network trains faster.

    Args:
        network: The network on its device, as it trains; it gathers gradients, which are taken
            away again, and batch norm sees the images.
        images: Normalised images ``(N, C, H, W)``, at least two.

    Returns:
        ``off``, or the half precision of the device where a step of it is at least ``GAIN`` times
        as fast.
    """
    half = half_of(images.device)
    network.train()
    spare(network, Autocast.of(half, images.device))
    best = {"off": math.inf, half: math.inf}
    for timed in [False, *[True] * _ROUNDS]:  # the first steps of all choose their kernels
        for mode in best:
            seconds = _step_s(network, images, Autocast.of(mode, images.device))
            if timed:
                best[mode] = min(best[mode], seconds)
    return half if best["off"] >= GAIN * best[half] else "off"


def _step_s(network: nn.Module, images: Tensor, autocast: Autocast) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    with autocast():
        output = network(images)
    output.float().square().mean().backward()
    wait()
    seconds = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    return seconds


def spare(network: nn.Module, autocast: Autocast) -> None:
    """Leave those convolutions in float32 whose gradients have no fast kernel in half precision.

    On the CPU those are depthwise ones with a stride or a kernel of five or more: 2 to 90 times
    slower (torch 2.15, oneDNN on AVX-512). Which modules the network has, their names and states
    stay the same.
    """
    if autocast.device.type != "cpu" or autocast.dtype is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_slow(module) and _enter not in _hooks(module):
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = convolution.groups == convolution.in_channels > 1
    return depthwise and (max(convolution.stride) > 1 or max(convolution.kernel_size) >= 5)


def _hooks(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


class _Contexts(threading.local):
    """The contexts that the modules of a thread are in."""

    def __init__(self) -> None:
        self.open: list[torch.autocast] = []


_contexts = _Contexts()


def _enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    context = torch.autocast("cpu", enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    _contexts.open.append(context)
    return tuple(one.float() for one in inputs)


def _leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _contexts.open.pop().__exit__(None, None, None)
