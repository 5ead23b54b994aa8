"""The gradients of a batch by one replay of a CUDA graph, in place of some hundred launches.

A head, or a shallow tail on features that stay on the GPU, computes less long than the host needs
to launch its kernels. So what a step launches is captured once and replayed: forward pass, loss,
backward pass and clipping. What changes from step to step on the host stays outside and is the
same code for both ways: learning rate, optimizer, schedule, moving average.

Before it is used, a captured step is compared with a plain one, twice: from the same state, on
two batches. Neither that nor the capture itself changes a weight, a norm statistic or a random
number. Where anything differs, or capturing fails, the plain steps go on.
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

#: A training of fewer steps is over before a capture has paid: it costs about as much as 10 plain
#: steps, and a tenth of a second.
MIN_STEPS = 300
#: Plain steps on a stream of their own before a capture, as torch asks for: libraries choose their
#: kernels and take their workspaces.
WARM_UPS = 3
#: Share of the memory of a GPU that a captured step may hold for its activations, which stay as
#: long as its training. What holds more computes long enough for the host.
MEMORY_SHARE = 0.02
#: Largest relative difference between a captured step and a plain one: sums in another order, in
#: single precision (TF32 has 11 bits) and in half precision (bf16 has 8).
ROUNDING = {True: 1e-3, False: 2e-2}

#: GPUs on which a capture broke off in this process: nothing is captured or replayed there.
_broken: set[torch.device] = set()

#: Computes the gradients of a batch; returns its loss.
Compute = Callable[[tuple[Tensor, ...], Tensor], Tensor]
#: Captures a function and returns what does its work again on the same tensors.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CaptureError(RuntimeError):
    """A step cannot be captured; the text says why."""


class CapturedStep:
    """The gradients of batches of one size, by a replay.

    Args:
        compute: Computes the gradients of a batch, from features ``(B, *shape)`` each and labels.
        network: The network; its buffers may change in a step.
        parameters: All parameters that may have a gradient.
        features: Features of a batch; a copy of them is where the batches to come are put.
        labels: Its labels, likewise.
        record: Captures a function.
        single: Whether the network computes in single precision throughout.

    Raises:
        CaptureError: When the step cannot be captured, or gives something else than a plain one.
            Network, gradients and generators are as they were before.
    """

    def __init__(
        self,
        compute: Compute,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        features: tuple[Tensor, ...],
        labels: Tensor,
        record: Capture,
        single: bool,
    ) -> None:
        self._parameters = list(parameters)
        self._buffers = list(network.buffers())
        self._device = labels.device
        self._features = tuple(one.clone() for one in features)
        self._labels = labels.clone()
        begin = self._state()
        # Other images for the same labels: what a capture has fixed of the first batch shows.
        others = tuple(one.roll(1, 0) for one in features)
        expected = []
        try:
            for some in (features, others):
                before = self._state()
                loss = compute(some, labels)
                expected.append((some, before, self._outcome(loss)))
            self._put_back(begin)

            def step() -> None:
                self._loss = compute(self._features, self._labels)

            self._again = record(step)
            self._gradients = [one.grad for one in self._parameters]
            for some, before, outcome in expected:
                self._put_back(before)
                off = outcome.difference(self._outcome(self(some, labels)), ROUNDING[single])
                if off:
                    raise CaptureError(off)
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0] if str(error) else "") from error
        finally:
            for one in self._parameters:
                one.grad = None
            self._put_back(begin)

    def __call__(self, features: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Compute the gradients of a batch of the size that was captured; return its loss."""
        for one, some in zip(self._features, features, strict=True):
            one.copy_(some)
        self._labels.copy_(labels)
        self._again()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a plain step in between has put others there
        return self._loss

    def _state(self) -> _State:
        there = self._device.type == "cuda"
        return _State(
            [one.clone() for one in self._buffers],
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self._device) if there else None,
        )

    @torch.no_grad()
    def _put_back(self, state: _State) -> None:
        for one, before in zip(self._buffers, state.buffers, strict=True):
            one.copy_(before)
        torch.set_rng_state(state.generator)
        if state.of_gpu is not None:
            torch.cuda.set_rng_state(state.of_gpu, self._device)

    def _outcome(self, loss: Tensor) -> _Outcome:
        gradients = [None if one.grad is None else one.grad.clone() for one in self._parameters]
        return _Outcome(loss.clone(), gradients, self._state())


@dataclass(frozen=True, eq=False)
class _State:
    """What a step changes beside gradients.

    Args:
        buffers: Of the network.
        generator: State of the generator of the CPU.
        of_gpu: State of that of the GPU, ``None`` without one.
    """

    buffers: list[Tensor]
    generator: Tensor
    of_gpu: Tensor | None


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What a step gives.

    Args:
        loss: Mean loss of the batch.
        gradients: Of each parameter, ``None`` where it has none.
        state: What else it has changed.
    """

    loss: Tensor
    gradients: list[Tensor | None]
    state: _State

    def difference(self, other: _Outcome, rounding: float) -> str:
        """Say in what another outcome differs by more than rounding; empty where it does not."""
        if [one is None for one in self.gradients] != [one is None for one in other.gradients]:
            return "other parameters have gradients"
        pairs = {
            "loss": ([self.loss], [other.loss]),
            "gradients": (_present(self.gradients), _present(other.gradients)),
            "norm statistics": (self.state.buffers, other.state.buffers),
        }
        for what, (mine, theirs) in pairs.items():
            off = _relative(mine, theirs)
            if not off <= rounding:
                return f"its {what} differ by {off:.1e} from those of a plain step"
        mine_there, theirs_there = self.state.of_gpu, other.state.of_gpu
        same = torch.equal(self.state.generator, other.state.generator)
        if mine_there is not None and theirs_there is not None:
            same = same and torch.equal(mine_there, theirs_there)
        return "" if same else "it draws other random numbers than a plain step"


def _present(gradients: list[Tensor | None]) -> list[Tensor]:
    return [one for one in gradients if one is not None]


def _relative(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the norm of the difference of lists of tensors, relative to that of the first."""
    pairs = [(one.double(), two.double()) for one, two in zip(expected, found, strict=True)]
    if not pairs:
        return 0.0
    # Summed where they are: the host waits for two numbers, and not for two of each tensor.
    square = float(torch.stack([(one - two).square().sum() for one, two in pairs]).sum())
    size = float(torch.stack([one.square().sum() for one, _ in pairs]).sum())
    return float((square / size) ** 0.5) if size else square


def capture_graph(device: torch.device, compute: Callable[[], None]) -> Callable[[], None]:
    """Capture what a function launches on a GPU.

    Args:
        device: The GPU.
        compute: The function: it may not make the host wait. It is called ``WARM_UPS`` times
            first, and is not done by the call that is captured.

    Returns:
        What launches all of it again.

    Raises:
        RuntimeError: When it cannot be captured, or holds too much memory.
    """
    current = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    # What would make a capture fail fails here already, where nothing is left half done.
    with torch.cuda.stream(side), _waits_refused():
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

    torch may take the generator for one that is captured still: "Offset increment outside graph
    capture encountered unexpectedly". A copy of its state is free of that. Steps that were
    captured before would go on with the old state, so none of them is replayed any more.
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


def make_capture(device: torch.device) -> Capture:
    """Return what captures functions on a GPU."""
    return functools.partial(capture_graph, device)


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Have torch refuse what makes the host wait for the GPU."""
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
