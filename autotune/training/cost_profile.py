"""What a network costs, measured before it trains: parameters, latency, memory.

Measuring leaves the network and the random generators as they were, so a study with limits trains
exactly like one without.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from autotune.runtime import single_threaded
from autotune.training.compute.amp import AmpPolicy
from autotune.training.trainer import Trainer

#: Passes before timing starts: caches fill, CUDA chooses its kernels.
WARM_UP_S, WARM_UP_PASSES = 0.2, 20
#: Timed passes, until one of the two is reached; never fewer than three.
TIMED_S, TIMED_PASSES = 0.5, 200
#: Passes of a turn, until one of the two is reached; and turns of two networks likewise.
TURN_S, TURN_PASSES = 0.01, 20
TURNS_S, TURNS = 2.0, 100
#: Share of passes that no other process has delayed.
FAST_SHARE = 0.1
#: Seconds of waiting for a GPU on which another process times its network.
LOCK_TIMEOUT_S = 30.0
#: Images of the two passes whose saved activations are counted; batch norm needs two.
FEW, MORE = 2, 4
_MIB = 2**20
#: Tensors of a parameter's size in the state of an optimizer.
_STATE_TENSORS: dict[type[Optimizer], int] = {AdamW: 2, Adagrad: 1, SGD: 1}


def measure_costs(
    trainer: Trainer, wanted: Collection[str], networks: int = 1
) -> dict[str, float]:
    """Measure what the network of a training costs.

    Returns:
        Cost by name, as recorded: parameters as an integer, milliseconds, MB of 2**20 bytes.
    """
    costs: dict[str, float] = {"parameters": count_parameters(trainer.network)}
    if "latency_ms" in wanted:
        costs["latency_ms"] = round(latency_ms(trainer), 4)
    if "memory_mb" in wanted:
        costs["memory_mb"] = round(memory_mb(trainer, networks), 2)
    return costs


def count_parameters(network: nn.Module) -> int:
    """Count all parameters of a network, frozen ones and those of the head included."""
    return sum(parameter.numel() for parameter in network.parameters())


def latency_ms(trainer: Trainer) -> float:
    """Time the forward pass of one image, in the precision of the validation."""
    with _untouched(trainer.network, trainer.device):
        image, _ = _images(trainer, 1)
    return forward_ms(trainer.network, image, trainer.amp)


def forward_ms(network: nn.Module, image: Tensor, amp: AmpPolicy | None = None) -> float:
    """Time the forward pass of one image, in milliseconds.

    In evaluation mode on the device of the image. On the CPU it takes one thread, whatever the
    worker has, so the number does not depend on how many workers share the machine.

    Other processes delay single passes, and speed up none. On a shared GPU one worker measures at
    a time; but the kernels of another one's training come between its own, and where two
    processes take turns at least every second pass can be late.

    Args:
        network: The network, on that device.
        image: A normalized image ``(1, C, H, W)``.
        amp: Mixed precision; by default none.

    Returns:
        The time within which a tenth of the passes ends.
    """
    device = image.device
    with _ready(network, image, amp) as timed, _alone(device):
        _repeat(timed, WARM_UP_S, WARM_UP_PASSES)
        times = _repeat(timed, TIMED_S, TIMED_PASSES)
    return 1000.0 * fast_quantile(times)


def turns_ms(
    first: tuple[nn.Module, Tensor], second: tuple[nn.Module, Tensor]
) -> list[tuple[float, float]]:
    """Time the forward pass of one image of two networks that take turns.

    So the load of the machine meets both, and their ratio is known better than either time. The
    arguments are a network and a normalized image ``(1, C, H, W)`` on its device each.

    Returns:
        The fastest pass of both networks in each turn, in milliseconds.
    """
    turns: list[tuple[float, float]] = []
    with _ready(*first) as one, _ready(*second) as other, _alone(first[1].device):
        for timed in (one, other):
            _repeat(timed, WARM_UP_S, WARM_UP_PASSES)
        end = time.perf_counter() + TURNS_S
        while len(turns) < 3 or (len(turns) < TURNS and time.perf_counter() < end):
            fastest = [1000.0 * min(_repeat(timed, TURN_S, TURN_PASSES)) for timed in (one, other)]
            turns.append((fastest[0], fastest[1]))
    return turns


@contextmanager
def _ready(
    network: nn.Module, image: Tensor, amp: AmpPolicy | None = None
) -> Iterator[Callable[[], float]]:
    """Yield a function that times a pass in seconds; restore the network afterwards."""

    def timed() -> float:
        start = time.perf_counter()
        with nullcontext() if amp is None else amp.autocast():
            network(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter() - start

    with _untouched(network, image.device), torch.no_grad():
        network.eval()
        yield timed


def _alone(device: torch.device) -> AbstractContextManager[None]:
    """Keep other threads away on the CPU, other timings on a GPU."""
    return single_threaded() if device.type == "cpu" else _gpu_lock(device)


def fast_quantile(times: Sequence[float]) -> float:
    """Return the time within which a tenth of all passes ends, at least one of them."""
    return sorted(times)[max(0, math.ceil(FAST_SHARE * len(times)) - 1)]


@contextmanager
def _gpu_lock(device: torch.device) -> Iterator[None]:
    """Let one process of this user time its network on a GPU at a time.

    If another process hangs, or the folder cannot be written, the time is measured anyway: it is
    then a little less certain.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    path = Path(tempfile.gettempdir()) / f"autotune-{os.getuid()}-{uuid}.lock"
    lock = FileLock(path)
    with suppress(Timeout, OSError):
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        lock.release()


def _repeat(timed: Callable[[], float], seconds: float, passes: int) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < passes):
        times.append(timed())
    return times


def memory_mb(trainer: Trainer, networks: int = 1) -> float:
    """Return the memory that a training holds at the study's batch size, in MB of 2**20 bytes.

    That is the network (twice with a moving average), the gradients and the optimizer's state of
    its trainable part, with L2-SP the initial weights of its trainable layers, and the activations
    saved for the backward pass. Not included: workspace of operations, CUDA's libraries, what the
    allocator loses; a device has to have more.

    Args:
        trainer: The training.
        networks: How many such networks train in turns (folds). Each has its own trainable part
            and optimizer state; gradients and activations are those of one at a time.
    """
    weights = _bytes([*trainer.network.parameters(), *trainer.network.buffers()])
    copies = 1 if trainer.ema is None else 2
    few, more = (saved_bytes(trainer, images) for images in (FEW, MORE))
    # What is saved once (the statistics of a norm, weights cast to another precision) does not
    # grow with the batch, and the two passes tell it apart.
    activations = few + (more - few) * (trainer.config.batch_size - FEW) / (MORE - FEW)
    state, gradients = _optimizer_bytes(trainer.optimizer)
    if trainer.policy.l2_sp:  # a copy of the trainable layers, towards which L2-SP pulls
        layers = trainer.network.layer_of_parameters()
        state += _bytes(parameter for _, parameter, layer in layers if layer > 0)
    total = copies * weights + gradients + state + activations
    if networks > 1:
        trainable = _bytes(trainer.network.trainable_state().values())
        total -= (copies - 1) * (weights - trainable)  # frozen tensors are shared, by averages too
        total += (networks - 1) * (copies * trainable + state)
    return total / _MIB


def saved_bytes(trainer: Trainer, count: int) -> int:
    """Count the bytes that a forward pass of some images saves for the backward pass.

    A storage that several operations save counts once, one of parameters or buffers not at all.
    """
    network = trainer.network
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    # The storages themselves, not only their addresses: freed memory would be handed out again
    # under the same address.
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> None:
        if _address(tensor) not in own:
            saved[_address(tensor)] = tensor.untyped_storage()

    def unpack(_: None) -> Tensor:
        raise RuntimeError("there is no backward pass here")

    with _untouched(network, trainer.device), torch.enable_grad():
        images, labels = _images(trainer, count)
        network.train()
        if trainer.mixing is not None:  # its targets are shares of all classes
            images, labels = trainer.mixing(images, labels)
        with saved_tensors_hooks(keep, unpack):
            with trainer.amp.autocast():
                logits = network(images)
            trainer.loss(logits.float(), labels)
    return sum(storage.nbytes() for storage in saved.values())


def _images(trainer: Trainer, count: int) -> tuple[Tensor, Tensor]:
    """Return normalized training images ``(count, C, H, W)`` and their labels."""
    train = trainer.raw_train
    rows = torch.arange(count) % len(train)
    images, labels = next(train.batches(rows, train.views_for_epoch(None), count))
    return trainer.normalize(images), labels.to(trainer.device)


@contextmanager
def _untouched(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore what a forward pass changes: modes, norm statistics, generators."""
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


def _optimizer_bytes(optimizer: Optimizer) -> tuple[int, int]:
    """Count the bytes of the optimizer's state and of the gradients."""
    state = gradients = 0
    for group in optimizer.param_groups:
        size = _bytes(group["params"])
        gradients += size
        state += size * (_STATE_TENSORS[type(optimizer)] if group.get("momentum", 1.0) else 0)
    return state, gradients


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
