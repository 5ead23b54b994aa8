"""What a network costs, measured before it trains: parameters, latency, memory.

Measuring leaves the network and the generators of random numbers as they were, so that a study
with limits trains exactly as one without.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from autotune.runtime import single_threaded
from autotune.training.trainer import Trainer

#: Passes before the clock counts: caches fill, CUDA chooses its kernels.
WARM_UP_S, WARM_UP_PASSES = 0.2, 20
#: Passes that are timed, until one of the two is reached; never fewer than three.
TIMED_S, TIMED_PASSES = 0.5, 200
#: The share of passes on a GPU that no other process has made late.
QUICK = 0.1
#: For how long a GPU is waited for on which another process times its network.
ALONE_WITHIN_S = 30.0
#: Images in the two passes whose saved activations are counted; batch norm needs two.
FEW, MORE = 2, 4
_MIB = 2**20
#: Tensors of a parameter's size that an optimizer keeps beside it.
_KEPT: dict[type[Optimizer], int] = {AdamW: 2, Adagrad: 1, SGD: 1}


def measure_costs(
    training: Trainer, wanted: Collection[str], networks: int = 1
) -> dict[str, float]:
    """Measure what the network of a training costs.

    Args:
        training: The training, before its first epoch.
        wanted: Which of ``autotune.config.schema.COSTS`` to measure; parameters are always
        counted.
        networks: How many such networks train in turns, see :func:`memory_mb`.

    Returns:
        Cost by name, as it is to be recorded: parameters as a whole number, milliseconds, MB of
        2**20 bytes.
    """
    costs: dict[str, float] = {"parameters": count_parameters(training.network)}
    if "latency_ms" in wanted:
        costs["latency_ms"] = round(latency_ms(training), 4)
    if "memory_mb" in wanted:
        costs["memory_mb"] = round(memory_mb(training, networks), 2)
    return costs


def count_parameters(network: nn.Module) -> int:
    """Count all parameters of a network, frozen ones and those of the head included."""
    return sum(one.numel() for one in network.parameters())


def latency_ms(training: Trainer) -> float:
    """Time the forward pass of one image, in milliseconds.

    In evaluation mode on the device that trains, under the mixed precision of the validation;
    the image is on the device and normalized. On the CPU on one thread, whatever the worker has:
    so the number does not depend on how many workers share the machine.

    What else runs makes single passes late, and none early. On a GPU that workers share, one of
    them measures at a time; but the kernels of another one's training come between its own, and
    where two processes take turns at least every second pass can be late.

    Returns:
        On the CPU the median of the passes; on a GPU the time that a tenth of them keeps within.
    """
    network, device = training.network, training.device

    def timed() -> float:
        start = time.perf_counter()
        with training.amp.autocast():
            network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    alone = single_threaded() if device.type == "cpu" else _only_one(device)
    with _untouched(network, device), torch.no_grad(), alone:
        image, _ = _images(training, 1)
        network.eval()
        _repeat(timed, WARM_UP_S, WARM_UP_PASSES)
        times = _repeat(timed, TIMED_S, TIMED_PASSES)
    return 1000.0 * (statistics.median(times) if device.type == "cpu" else fast_quantile(times))


def fast_quantile(times: Sequence[float]) -> float:
    """Return the time that a tenth of all passes keeps within, at least one of them."""
    return sorted(times)[max(0, math.ceil(QUICK * len(times)) - 1)]


@contextmanager
def _only_one(device: torch.device) -> Iterator[None]:
    """Have one process of this user time its network on a GPU at a time.

    One that hangs, or a folder that cannot be written, keeps nobody from measuring: its figure is
    then a little less sure.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    path = Path(tempfile.gettempdir()) / f"autotune-{os.getuid()}-{uuid}.lock"
    lock = FileLock(path)
    with suppress(Timeout, OSError):
        lock.acquire(timeout=ALONE_WITHIN_S)
    try:
        yield
    finally:
        lock.release()


def _repeat(timed: Callable[[], float], seconds: float, passes: int) -> list[float]:
    """Time passes until the time is up or there are enough; at least three."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < passes):
        times.append(timed())
    return times


def memory_mb(training: Trainer, networks: int = 1) -> float:
    """Return what the training holds at the study's batch size, in MB of 2**20 bytes.

    That is the network (twice where a moving average of it is kept), the gradients and the
    optimizer's state of its trainable part, with L2-SP what its trainable layers started from, and
    the activations that are saved for the backward pass. Not in it: what an operation needs for a
    moment, the space of CUDA's libraries, what the allocator loses; a device has to have more.

    Args:
        training: The training.
        networks: How many such networks train in turns (folds). Each has a trainable part of its
            own, with what the optimizer keeps; gradients and activations are those of one at a
            time.
    """
    weights = _bytes([*training.network.parameters(), *training.network.buffers()])
    copies = 1 if training.ema is None else 2
    few, more = (saved_bytes(training, images) for images in (FEW, MORE))
    # What is saved once (the statistics of a norm, weights cast to another precision) does not
    # grow with the batch, and the two passes tell it apart.
    images = training.config.batch_size
    activations = few + (more - few) * (images - FEW) / (MORE - FEW)
    starts = _bytes_of_starts(training)
    total = copies * weights + _bytes_of_steps(training.optimizer) + starts + activations
    if networks > 1:
        changing = training.network.trainable_state()
        trainable = _bytes(changing.values())
        total -= (copies - 1) * (weights - trainable)  # what is frozen is shared, by averages too
        of_one = copies * trainable + _bytes_of_steps(training.optimizer, gradients=False) + starts
        total += (networks - 1) * of_one
    return total / _MIB


def saved_bytes(training: Trainer, count: int) -> int:
    """Count the bytes that a forward pass of some images saves for the backward pass.

    A storage that several operations save counts once, one that holds parameters or buffers not
    at all: they are there anyway.
    """
    network = training.network
    own = {_address(one) for one in (*network.parameters(), *network.buffers())}
    # The storages themselves, not their addresses alone: memory that was given back would be
    # handed out again under the same address.
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> None:
        if _address(tensor) not in own:
            saved[_address(tensor)] = tensor.untyped_storage()

    def never(_: None) -> Tensor:
        raise RuntimeError("nothing goes backwards here")

    with _untouched(network, training.device), torch.enable_grad():
        images, labels = _images(training, count)
        network.train()
        if training.mixing is not None:  # its targets are shares of all classes
            images, labels = training.mixing(images, labels)
        with saved_tensors_hooks(keep, never):
            with training.amp.autocast():
                logits = network(images)
            training.loss(logits.float(), labels)
    return sum(storage.nbytes() for storage in saved.values())


def _images(training: Trainer, count: int) -> tuple[Tensor, Tensor]:
    """Return normalized training images ``(count, C, H, W)`` and their labels."""
    rows = torch.arange(count) % len(training.raw_train)
    batches = training.raw_train.batches(rows, training.raw_train.views_for_epoch(None), count)
    images, labels = next(batches)
    return training.normalize(images), labels.to(training.device)


@contextmanager
def _untouched(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put everything back that a forward pass changes: modes, norm statistics, generators."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)


def _bytes_of_steps(optimizer: Optimizer, gradients: bool = True) -> int:
    """Count the bytes of the gradients and of what the optimizer keeps for each parameter."""
    total = 0
    for group in optimizer.param_groups:
        kept = _KEPT[type(optimizer)] if group.get("momentum", 1.0) else 0
        total += (gradients + kept) * _bytes(group["params"])
    return total


def _bytes_of_starts(training: Trainer) -> int:
    """Count the bytes of the weights that L2-SP pulls towards, a copy of the trainable layers."""
    if not training.policy.l2_sp:
        return 0
    return _bytes(one for _, one, layer in training.network.layer_of_parameters() if layer > 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
