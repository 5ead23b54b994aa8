"""Compute the gradients of a batch by one replay of a CUDA graph, not by hundreds of launches.

A head, or a shallow tail on features that stay on the GPU, computes faster than the host can
launch its kernels. So what a step launches is captured once and replayed: forward pass, loss,
backward pass and clipping. What changes on the host from step to step stays outside, the same code
for captured and plain steps: learning rate, optimizer, schedule, moving average.

Before it is used, a captured step is compared with a plain one, twice: from the same state, on
two batches. Neither that nor the capture changes a weight, a norm statistic or a random number. If
anything differs, or the capture fails, training continues with plain steps.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autotune.training.compute.micro_batches import empty_cache

logger = logging.getLogger(__name__)

#: Minimum steps of a training that is captured. A capture costs about as much as 10 plain steps,
#: and a tenth of a second.
MIN_STEPS = 300
#: Plain steps on a separate stream before a capture, as torch asks for: libraries choose their
#: kernels and allocate their workspaces.
WARM_UPS = 3
#: Largest share of the memory of a GPU that a captured step may hold for its activations, as long
#: as its training. A step that needs more computes long enough for the host.
MEMORY_SHARE = 0.02
#: Largest relative difference between a captured step and a plain one: sums in another order, in
#: single precision (TF32 has 11 bits) and in half precision (bf16 has 8).
ROUNDING = {True: 1e-3, False: 2e-2}

#: GPUs on which a capture broke off in this process: nothing is captured or replayed there.
_broken: set[torch.device] = set()

#: Computes the gradients of a batch; returns its loss.
Compute = Callable[[tuple[Tensor, ...], Tensor], Tensor]
#: Captures a function and returns a function that replays it on the same tensors.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CaptureError(RuntimeError):
    """A step cannot be captured; the text says why."""


class CapturedStep:
    """Computes the gradients of batches of one size by a replay.

    Args:
        compute: Computes the gradients of a batch, from features ``(B, *shape)`` each and labels.
        network: The network; its buffers may change in a step.
        parameters: All parameters that may have a gradient.
        features: Features of a batch; later batches are copied into a copy of them.
        labels: Its labels, likewise.
        capture: Captures a function.
        single: Whether the network computes in single precision throughout.

    Raises:
        CaptureError: When the step cannot be captured, or differs from a plain one. Network,
            gradients and generators are as they were before.
    """

    def __init__(
        self,
        compute: Compute,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        features: tuple[Tensor, ...],
        labels: Tensor,
        capture: Capture,
        single: bool,
    ) -> None:
        self._parameters = list(parameters)
        self._buffers = list(network.buffers())
        self._device = labels.device
        self._features = tuple(feature.clone() for feature in features)
        self._labels = labels.clone()
        begin = self._state()
        # Other images with the same labels show what a capture has fixed of the first batch.
        others = tuple(feature.roll(1, 0) for feature in features)
        expected = []
        try:
            for batch in (features, others):
                before = self._state()
                loss = compute(batch, labels)
                expected.append((batch, before, self._outcome(loss)))
            self._restore(begin)

            def step() -> None:
                self._loss = compute(self._features, self._labels)

            self._replay = capture(step)
            self._gradients = [parameter.grad for parameter in self._parameters]
            for batch, before, outcome in expected:
                self._restore(before)
                problem = outcome.difference(self._outcome(self(batch, labels)), ROUNDING[single])
                if problem:
                    raise CaptureError(problem)
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0] if str(error) else "") from error
        finally:
            for parameter in self._parameters:
                parameter.grad = None
            self._restore(begin)

    def __call__(self, features: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Compute the gradients of a batch of the captured size; return its loss."""
        for target, feature in zip(self._features, features, strict=True):
            target.copy_(feature)
        self._labels.copy_(labels)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a plain step in between has put others there
        return self._loss

    def _state(self) -> _State:
        on_gpu = self._device.type == "cuda"
        return _State(
            [buffer.clone() for buffer in self._buffers],
            torch.get_rng_state(),
            [torch.cuda.get_rng_state(self._device)] if on_gpu else [],
        )

    @torch.no_grad()
    def _restore(self, state: _State) -> None:
        for buffer, before in zip(self._buffers, state.buffers, strict=True):
            buffer.copy_(before)
        torch.set_rng_state(state.cpu_rng)
        for gpu_rng in state.gpu_rng:
            torch.cuda.set_rng_state(gpu_rng, self._device)

    def _outcome(self, loss: Tensor) -> _Outcome:
        gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        return _Outcome(loss.clone(), gradients, self._state())


@dataclass(frozen=True, eq=False)
class _State:
    """What a step changes besides gradients: buffers and generators."""

    buffers: list[Tensor]
    cpu_rng: Tensor
    gpu_rng: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Mean loss of a batch, gradient of each parameter or ``None``, state afterwards."""

    loss: Tensor
    gradients: list[Tensor | None]
    state: _State

    def difference(self, other: _Outcome, rounding: float) -> str:
        """Describe a difference to another outcome beyond rounding; empty if there is none."""
        if [g is None for g in self.gradients] != [g is None for g in other.gradients]:
            return "other parameters have gradients"
        pairs = {
            "loss": ([self.loss], [other.loss]),
            "gradients": tuple(
                [g for g in one.gradients if g is not None] for one in (self, other)
            ),
            "norm statistics": (self.state.buffers, other.state.buffers),
        }
        for what, (expected, values) in pairs.items():
            relative = _relative(expected, values)
            if not relative <= rounding:
                return f"its {what} differ by {relative:.1e} from those of a plain step"
        ours, theirs = ([one.state.cpu_rng, *one.state.gpu_rng] for one in (self, other))
        same = all(map(torch.equal, ours, theirs))
        return "" if same else "it draws other random numbers than a plain step"


def _relative(expected: list[Tensor], values: list[Tensor]) -> float:
    """Return the norm of the difference of lists of tensors, relative to that of the first."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, values, strict=True)]
    if not pairs:
        return 0.0
    # Summed on the device: the host waits for two numbers, not for two of each tensor.
    square = float(torch.stack([(a - b).square().sum() for a, b in pairs]).sum())
    size = float(torch.stack([a.square().sum() for a, _ in pairs]).sum())
    return float((square / size) ** 0.5) if size else square


def capture_graph(device: torch.device, compute: Callable[[], None]) -> Callable[[], None]:
    """Capture what a function launches on a GPU.

    Raises:
        RuntimeError: When it cannot be captured, or holds too much memory.
    """
    current = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    # What would make a capture fail fails here already, where nothing is left half done.
    with torch.cuda.stream(side), _refuse_waits():
        for _ in range(WARM_UPS):
            compute()
    current.wait_stream(side)
    empty_cache(device)
    held = torch.cuda.memory_reserved(device)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads of the process may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            compute()
    except RuntimeError:
        _end_capture(device)
        raise
    held = torch.cuda.memory_reserved(device) - held
    limit = MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    if held > limit:
        raise CaptureError(f"it would hold {held >> 20} MiB, and {int(limit) >> 20} are allowed")
    return graph.replay


def _end_capture(device: torch.device) -> None:
    """Have a GPU draw random numbers again after a capture broke off.

    torch may still treat the generator as captured: "Offset increment outside graph capture
    encountered unexpectedly". A copy of its state is free of that. Steps that were captured before
    would continue with the old state, so none of them is replayed any more.
    """
    _broken.add(device)
    try:
        torch.rand((), device=device)
    except RuntimeError:
        generator = torch.cuda.default_generators[device.index or 0]
        generator.graphsafe_set_state(generator.clone_state())


def is_usable(device: torch.device) -> bool:
    """Tell whether steps may be captured and replayed on a device: no capture broke off there."""
    return device not in _broken


@contextmanager
def _refuse_waits() -> Iterator[None]:
    """Have torch refuse operations that make the host wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@functools.cache
def log_not_captured(reason: str) -> None:
    """Log why steps are not captured, each reason once."""
    logger.warning("steps are launched one by one, not captured in a CUDA graph: %s", reason)
