"""Check convolutions and matrix products in half precision on a CPU against float32.

Not every kernel can be trusted: oneDNN of torch 2.15 returns uninitialized memory for the gradient
of the weights of a 3x3 convolution with stride 2 on maps of 1x1 in bf16, whether it is plain,
grouped or depthwise. Which shapes are wrong depends on the machine and the version. So the
operations of a network are tried: output and all gradients, several times, in memory that is full
of NaN. What is wrong stays in float32.

On a GPU nothing is compared: the field trains in half precision with its libraries, and hundreds
of shapes would take seconds of every new study.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.models import get_notrace_modules
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from autotune.training.compute.amp import AmpPolicy, keep_fp32
from autotune.training.inputs.batches import to_channels_last

logger = logging.getLogger(__name__)

#: Largest relative difference from float32. Sound kernels are off by 1.4e-3 to 3.3e-3 in bf16 and
#: by 2e-4 to 6e-4 in fp16 (13 networks in bf16, fewer in fp16, torch 2.15), wrong ones by 1 or
#: more.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
#: Tries of an operation: uninitialized memory may hold the right values by chance.
_ROUNDS = 3
#: Blocks of NaN left in memory before a try, for each tensor of it.
_BLOCKS = 3
#: Pixels of the images with which a network is recorded: two images of 224 x 224, or up to
#: sixteen small ones. Which kernels are wrong did not depend on their number.
_PIXELS = 2 * 224**2
_MAX_IMAGES = 16
#: Operations that autocast computes in half precision, as they arrive below autocast.
#: https://docs.pytorch.org/docs/stable/amp.html#cpu-ops-that-autocast-to-bfloat16
_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        *("convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear"),
        *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    )
)


@dataclass(frozen=True)
class _Form:
    """The properties of a tensor that choose a kernel, whatever its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Operation:
    """A convolution or matrix product, without its values."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """A description that is the same in every process."""
        return f"{self.function} {self.arguments!r} {sorted(self.options.items())!r}"


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products in half precision, and the module of each."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.stack: list[nn.Module] = []
        self.operations: dict[nn.Module, dict[str, Operation]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if func._schema.name in _PRODUCTS and any(t.dtype == self.dtype for t in tensors):
            operation = Operation(func, _to_forms(args), _to_forms(options), self.dtype)
            self.operations.setdefault(self.stack[-1], {})[operation.key] = operation
        return func(*args, **options)


def _to_forms(arguments: Any) -> Any:
    return tree_map_only(Tensor, lambda t: _Form(tuple(t.shape), t.stride(), t.dtype), arguments)


def record_operations(
    network: nn.Module, image: tuple[int, int, int], amp: AmpPolicy
) -> dict[nn.Module, list[Operation]]:
    """Run a network once, and return its products in half precision by module."""
    assert amp.dtype is not None, "products in half precision"
    recorder = _Recorder(amp.dtype)
    count = max(2, min(_MAX_IMAGES, _PIXELS // (image[1] * image[2])))
    images = torch.randn((count, *image), generator=torch.Generator().manual_seed(0))
    handles = []
    for module in network.modules():
        handles += [
            module.register_forward_pre_hook(lambda entered, _: recorder.stack.append(entered)),
            module.register_forward_hook(
                lambda *_: recorder.stack.pop() and None, always_call=True
            ),
        ]
    try:
        with _eval_mode(network), torch.no_grad(), amp.autocast(), recorder:
            network(to_channels_last(images.to(amp.device)))
    finally:
        for handle in handles:
            handle.remove()
    return {module: list(by_key.values()) for module, by_key in recorder.operations.items()}


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation, in which no buffer changes; restore its modes afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def is_inaccurate(operation: Operation) -> bool:
    """Tell whether an operation or one of its gradients is wrong in half precision."""
    generator = torch.Generator().manual_seed(0)
    arguments, options = (
        tree_map(lambda form: _random(form, generator) if isinstance(form, _Form) else form, given)
        for given in (operation.arguments, operation.options)
    )
    limit = _TOLERANCE[operation.dtype]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        expected, grad = _compute(operation, arguments, options, torch.float32, None, generator)
        for _ in range(_ROUNDS):
            _fill_memory(expected)
            values, _ = _compute(operation, arguments, options, operation.dtype, grad, generator)
            for value, reference in zip(values, expected, strict=True):
                error = (value.float() - reference).norm() / reference.norm().clamp_min(1e-30)
                if not error <= limit:  # also NaN
                    return True
    return False


def _compute(
    operation: Operation,
    arguments: Any,
    options: Any,
    dtype: torch.dtype,
    grad: Tensor | None,
    generator: torch.Generator,
) -> tuple[list[Tensor], Tensor]:
    """Return the output of an operation and its gradients, and the gradient of the output."""
    inputs: list[Tensor] = []

    def convert(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        inputs.append(tensor.detach().to(dtype).requires_grad_())
        return inputs[-1]

    results = operation.function(
        *tree_map_only(Tensor, convert, arguments), **tree_map_only(Tensor, convert, options)
    )
    output: Tensor = results[0] if isinstance(results, tuple | list) else results
    if grad is None:  # of values that half precision can represent
        grad = torch.empty_like(output, dtype=torch.float32).normal_(generator=generator)
        grad = grad.to(operation.dtype)
    gradients = torch.autograd.grad(output, inputs, grad.to(dtype), allow_unused=True)
    return [output.detach(), *(g for g in gradients if g is not None)], grad


def _random(form: _Form, generator: torch.Generator) -> Tensor:
    """Make a tensor of random values that half precision can represent."""
    if not form.dtype.is_floating_point:
        return torch.ones(form.shape, dtype=form.dtype)
    shape = [1 if step == 0 else size for size, step in zip(form.shape, form.strides, strict=True)]
    try:
        values = torch.empty_strided(shape, form.strides).normal_(generator=generator)
    except RuntimeError:  # elements that share memory, of a sliding window
        values = torch.randn(shape, generator=generator)
    return values.to(form.dtype).expand(form.shape)


def _fill_memory(expected: list[Tensor]) -> None:
    """Leave NaN where the next results will lie, in case their kernel does not write them.

    The allocator hands out what was freed last, of the same size.
    """
    blocks = [
        torch.full((max(1, tensor.numel() * size // 4),), torch.nan)
        for tensor in expected
        for size in (2, 4)
        for _ in range(_BLOCKS)
    ]
    del blocks


def keep_inaccurate_fp32(
    network: nn.Module,
    image: tuple[int, int, int],
    amp: AmpPolicy,
    is_inaccurate: Callable[[Operation], bool] = is_inaccurate,
) -> AmpPolicy:
    """Keep those modules of a network in float32 that half precision gets wrong on a CPU.

    Names and states of the network stay the same.

    Returns:
        The mixed precision in which it can train: none if an operation is wrong that does not
        belong to its own module.
    """
    if amp.device.type != "cpu" or amp.dtype is None:
        return amp
    names = {module: name for name, module in network.named_modules()}
    for module, operations in record_operations(network, image, amp).items():
        wrong = next((operation for operation in operations if is_inaccurate(operation)), None)
        if wrong is None:
            continue
        logger.info("%s is wrong in %s: %s", names[module], amp.dtype, wrong.key)
        if not _stays_module(module):
            return replace(amp, dtype=None)
        keep_fp32(module)
    return amp


def _stays_module(module: nn.Module) -> bool:
    """Tell whether a module is still called as one after a split, so that its hooks work."""
    untraced = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]
    return isinstance(module, untraced) or fx.Tracer().is_leaf_module(module, "")


@cache
def describe_cpu() -> tuple[str, ...]:
    """Return what decides which kernels a CPU computes with."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        names = (text.strip() for name, _, text in lines if name.strip() == "model name")
        model = next(names, model)
    limits = (os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    return (model, torch.backends.cpu.get_cpu_capability(), *limits)


def operation_id(operation: Operation) -> str:
    """Name an operation on this machine, with this version of torch: 32 hexadecimal digits."""
    facts = (*describe_cpu(), torch.__version__, torch.get_num_threads(), operation.key)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
