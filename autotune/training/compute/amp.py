"""Mixed precision: the dtype that a network computes in, and whether that is worth it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

#: Minimum speedup of a step in half precision. On two cores of an EPYC with AVX-512 bf16 it is
#: 1.5 (MobileNetV2) to 2 times (ResNet-18, ViT, ConvNeXt) as fast.
MIN_SPEEDUP = 1.3
#: Steps of each precision that are timed; the shortest counts.
_ROUNDS = 3
#: GPUs from here on (Ampere) compute bf16 and TF32 in hardware.
#: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
BF16_CAPABILITY = (8, 0)
#: Precision on GPUs of what is not in half precision: norms, losses, everything without autocast.
FLOAT32_PRECISION = "tf32"
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AmpPolicy:
    """Mixed precision of a training.

    Args:
        device: The device that trains.
        dtype: Type of convolutions and matrix products; ``None`` is float32 throughout.
    """

    device: torch.device
    dtype: torch.dtype | None

    @staticmethod
    def from_mode(mode: str, device: torch.device) -> AmpPolicy:
        """Make the policy of a mode: ``off``, ``bf16`` or ``fp16``."""
        return AmpPolicy(device, _HALF.get(mode))

    @property
    def mode(self) -> str:
        """Its mode: ``off``, ``bf16`` or ``fp16``."""
        return next((name for name, dtype in _HALF.items() if dtype is self.dtype), "off")

    def autocast(self) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def half_precision_for(device: torch.device) -> str:
    """Name the half precision of a device: fp16 only for a GPU without bf16."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        return "fp16"
    return "bf16"


def set_float32_precision(device: torch.device, precision: str = FLOAT32_PRECISION) -> None:
    """Set how a GPU computes what stays in float32, for the whole process.

    TF32 rounds the factors of a product to 10 bits and adds in float32. A matrix product takes an
    eighth of the time on an A100 (https://pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere).
    torch enables it for convolutions, not for matrix products. Older GPUs ignore it. The CPU is
    left as it is.
    """
    if device.type != "cuda":
        return
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9 and later
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    else:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def float32_precision(device: torch.device) -> str:
    """Return how matrix products in float32 are computed: ``ieee`` or ``tf32``."""
    if device.type != "cuda":
        return "ieee"
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9 and later
        current = str(torch.backends.cuda.matmul.fp32_precision)
        return "ieee" if current == "none" else current
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def describe_compute(amp: AmpPolicy) -> tuple[str, ...]:
    """Return what the values of one network depend on besides the network.

    Returns:
        The type of the device and the half precision; of a GPU also its name, its capability and
        the precision of what stays in float32.
    """
    device = amp.device
    facts = (device.type, str(amp.dtype))
    if device.type != "cuda":
        return facts
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return (*facts, name, f"{major}.{minor}", float32_precision(device))


def fastest_precision(network: nn.Module, images: Tensor) -> str:
    """Time a few steps in each precision.

    Args:
        network: The network on its device, as it trains. Its gradients are removed afterwards;
            batch norm sees the images.
        images: Normalized images ``(N, C, H, W)``, at least two.

    Returns:
        ``off``, or the half precision of the device if that is ``MIN_SPEEDUP`` times as fast.
    """
    half = half_precision_for(images.device)
    network.train()
    keep_slow_convs_fp32(network, AmpPolicy.from_mode(half, images.device))
    best = {"off": math.inf, half: math.inf}
    for is_timed in [False, *[True] * _ROUNDS]:  # the first steps of all choose their kernels
        for mode in best:
            seconds = _step_s(network, images, AmpPolicy.from_mode(mode, images.device))
            if is_timed:
                best[mode] = min(best[mode], seconds)
    return half if best["off"] >= MIN_SPEEDUP * best[half] else "off"


def _step_s(network: nn.Module, images: Tensor, amp: AmpPolicy) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    with amp.autocast():
        output = network(images)
    output.float().square().mean().backward()
    wait()
    seconds = time.perf_counter() - start
    network.zero_grad(set_to_none=True)
    return seconds


def keep_slow_convs_fp32(network: nn.Module, amp: AmpPolicy) -> None:
    """Keep those convolutions in float32 whose gradients have no fast kernel in half precision.

    On the CPU those are depthwise ones with a stride or a kernel of five or more: 2 to 90 times
    slower (torch 2.15, oneDNN on AVX-512). Modules, their names and states stay the same.
    """
    if amp.device.type != "cpu" or amp.dtype is None:
        return
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or not module.groups == module.in_channels > 1:
            continue
        if max(module.stride) > 1 or max(module.kernel_size) >= 5:
            keep_fp32(module)


def keep_fp32(module: nn.Module) -> None:
    """Have a module and its copies compute in float32 under autocast on the CPU."""
    if not is_kept_fp32(module):
        module.register_forward_pre_hook(_enter, with_kwargs=True)
        module.register_forward_hook(_leave, always_call=True)


def is_kept_fp32(module: nn.Module) -> bool:
    """Tell whether a module computes in float32 under autocast."""
    return _enter in module._forward_pre_hooks.values()


class _Contexts(threading.local):
    """The open contexts of the modules of a thread."""

    def __init__(self) -> None:
        self.open: list[torch.autocast] = []


_contexts = _Contexts()


def _enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    context = torch.autocast("cpu", enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    _contexts.open.append(context)
    to_float32 = partial(
        tree_map_only, Tensor, lambda t: t.float() if t.is_floating_point() else t
    )
    return to_float32(args), to_float32(kwargs)


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    _contexts.open.pop().__exit__(None, None, None)
