"""The simulated CUDA device itself: what it refuses, counts and undoes."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autotune.study.state.failures import FailureKind as Failure
from autotune.study.state.failures import classify, device_responds
from autotune.study.state.oom import measure_shortage
from autotune.training.inputs.normalizer import Normalizer
from tests.support.simulated_gpu import GpuTensor, Kind, SimulatedGpu, simulated_gpu
from tests.support.simulated_gpu.traffic import COPIES

CUDA = torch.device("cuda:0")
MIB = 2**20


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    with simulated_gpu() as device:
        yield device


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)
    )


def test_torch_is_as_it_was_afterwards() -> None:
    modules = (torch, torch.cuda, torch._C, torch.autocast, torch.accelerator, threading.Thread)
    before = [{name: getattr(module, name) for name in dir(module)} for module in modules]
    precision = torch.backends.cuda.matmul.fp32_precision
    with simulated_gpu():
        assert torch.cuda.is_available()
        torch.ones(2, device="cuda")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    for module, names in zip(modules, before, strict=True):
        now = {name: getattr(module, name) for name in dir(module)}
        changed = {name for name in {*names, *now} if names.get(name) is not now.get(name)}
        # Methods of classes in C are made anew at every look.
        assert not {name for name in changed if not name.startswith("__")}
    assert torch.backends.cuda.matmul.fp32_precision == precision
    assert not torch.cuda.is_initialized()
    assert type(torch.ones(2) + 1) is Tensor
    assert not torch.__future__.get_overwrite_module_params_on_conversion()


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda here, there: here + there,
    "product": lambda here, there: there @ here,
    "cat": lambda here, there: torch.cat([here, there]),
    "stack": lambda here, there: torch.stack([here, there]),
    "in place on the host": lambda here, there: here.add_(there),
    "scalar of the host written to": lambda here, there: here.sum().add_(there.sum()),
    "where": lambda here, there: torch.where(there > 0, there, here),
    "index of the device on the host": lambda here, there: here[there[0].long().clamp(0, 1)],
    "gather": lambda here, there: there.gather(0, here.long().clamp(0, 1)),
    "layer": lambda here, there: nn.Linear(2, 2).to(CUDA)(here),
    "loss": lambda here, there: nn.functional.cross_entropy(there, here.argmax(1)),
    "foreach": lambda here, there: torch._foreach_add([there], [here]),
}


@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
def test_two_devices_are_refused(gpu: SimulatedGpu, mixed: Callable[..., object]) -> None:
    with pytest.raises(RuntimeError, match="on the same device"):
        mixed(torch.randn(2, 2), torch.randn(2, 2, device=CUDA))
    assert len(gpu.faults) == 1
    gpu.faults.clear()


def test_a_fault_that_nobody_heard_of_is_told_at_the_end() -> None:
    with (
        pytest.raises(AssertionError, match="at least two devices"),
        simulated_gpu(),
        suppress(RuntimeError),  # as a fallback in the product would do
    ):
        torch.ones(2) + torch.ones(2, device=CUDA)


def test_what_cuda_takes_of_the_host(gpu: SimulatedGpu) -> None:
    there = torch.arange(6.0, device="cuda").view(3, 2)
    for made in (there + torch.tensor(2.0), there * 2, there[torch.tensor([0, 2])], there[:2]):
        assert isinstance(made, GpuTensor) and made.device == CUDA
    there.copy_(torch.ones(3, 2))
    assert there.tolist() == [[1.0, 1.0]] * 3
    with pytest.raises(TypeError, match=r"use Tensor\.cpu\(\)|Use Tensor\.cpu\(\)"):
        there.numpy()
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        np.asarray(there)
    assert there.cpu().numpy().sum() == 6.0
    assert there.cpu().device.type == torch.zeros_like(there, device="cpu").device.type == "cpu"
    assert not torch.zeros_like(there, device="cpu").is_cuda
    assert there.to("meta").is_meta and torch.ones(2).to("meta").is_meta
    assert small_network().to("meta")[0].weight.is_meta
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        torch.ones(2, device="cuda:1")


def test_arguments_are_checked_as_by_torch(gpu: SimulatedGpu) -> None:
    """The fault that let every trial fail on every GPU: see docs/gpus.md."""
    with pytest.raises(ValueError, match="specified index"):
        torch.cuda.get_per_process_memory_fraction(torch.device("cuda"))
    assert torch.cuda.get_per_process_memory_fraction(CUDA) == 1.0
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.cuda.get_device_properties(1)
    assert torch.cuda.get_device_name(torch.device("cuda")) == "Simulated GPU"
    assert torch.cuda.current_device() == 0
    assert device_responds(CUDA)


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    here, images = small_network(), torch.randn(4, 3, 8, 8)
    labels = torch.tensor([0, 1, 1, 0])
    with simulated_gpu() as gpu:
        there = copy.deepcopy(here).to("cuda").to(memory_format=torch.channels_last)
        copied = copy.deepcopy(there)
        assert all(one.is_cuda for one in (*copied.parameters(), *copied.buffers()))
        losses: list[float] = []
        for network, device in ((here, torch.device("cpu")), (there, CUDA)):
            optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                logits = network(images.to(device))
                loss = nn.functional.cross_entropy(logits, labels.to(device), label_smoothing=0.1)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert gpu.memory.allocated > 0
        state = {name: one.cpu() for name, one in there.state_dict().items()}
        there.load_state_dict(here.state_dict())
        there.cpu()
        assert not next(there.parameters()).is_cuda
    for name, one in here.state_dict().items():
        torch.testing.assert_close(state[name], one, rtol=1e-4, atol=1e-5)


def test_a_gradient_goes_back_to_the_host(gpu: SimulatedGpu) -> None:
    here = torch.ones(3, requires_grad=True)
    (here.to(CUDA) * torch.arange(3.0, device=CUDA)).sum().backward()
    assert here.grad is not None and not here.grad.is_cuda
    assert here.grad.tolist() == [0.0, 1.0, 2.0]


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda there: there.sum().item(),
    "float": lambda there: float(there.mean()),
    "truth": lambda there: bool((there > 0).all()),
    "nonzero": lambda there: there.nonzero(),
    "mask": lambda there: there[there > 0],
    "written by a mask": lambda there: there.index_put_((there > 0,), torch.tensor(0.0)),
    "equal": lambda there: torch.equal(there, there),
    "unique": lambda there: there.unique(),
    "repeated by counts": lambda there: there.repeat_interleave(
        torch.ones(3, device=CUDA).long(), 0
    ),
    "to the host": lambda there: there.cpu(),
    "to a list": lambda there: there.tolist(),
    "printed": repr,
    "from the host": lambda there: torch.ones(2).to(CUDA),
    "made of numbers": lambda there: torch.tensor([1.0, 2.0], device=CUDA),
    "index on the host": lambda there: there[torch.tensor([0])],
    "synchronize": lambda there: torch.cuda.synchronize(),
    "stream": lambda there: torch.cuda.current_stream().synchronize(),
}


@pytest.mark.parametrize("waiting", WAITS.values(), ids=WAITS)
def test_the_host_waits(gpu: SimulatedGpu, waiting: Callable[[Tensor], object]) -> None:
    there = torch.ones(3, 2, device=CUDA)
    gpu.traffic.reset()
    waiting(there)
    assert gpu.traffic.of(Kind.WAIT)


def test_the_host_does_not_wait_for_a_training_step(gpu: SimulatedGpu) -> None:
    network = small_network().to(CUDA)
    optimizer = torch.optim.AdamW(network.parameters())
    images, labels = torch.randn(4, 3, 8, 8, device=CUDA), torch.zeros(4, device=CUDA).long()
    gpu.traffic.reset()
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    assert gpu.traffic.lines(*Kind) == {}
    assert gpu.traffic.operations > 50


def test_copies_are_told_apart_and_name_who_asked(gpu: SimulatedGpu) -> None:
    normalise = Normalizer.from_config({"mean": (0.5,) * 3, "std": (0.5,) * 3}, CUDA)
    gpu.traffic.reset()
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert not images.is_pinned() and images.pin_memory().is_pinned()
    normalise(images)
    normalise(images.pin_memory()[:1])
    pageable, pinned = gpu.traffic.of(*COPIES)
    assert pageable.kind == Kind.PAGEABLE_TO_DEVICE and pinned.kind == Kind.PINNED_TO_DEVICE
    assert (pageable.nbytes, pinned.nbytes) == (96, 48)
    assert pageable.callers[0].startswith("training/inputs/normalizer.py:")
    assert pageable.is_within("Normalizer.__call__") and not pageable.is_within("recalibrate")
    assert gpu.traffic.of(Kind.WAIT) == []  # both do not block
    there = torch.ones(2, device=CUDA)
    there.to("cpu", non_blocking=True)
    torch.empty(2, pin_memory=True).copy_(there, non_blocking=True)
    assert [one.kind for one in gpu.traffic.of(*COPIES)[2:]] == [Kind.TO_HOST, Kind.TO_PINNED_HOST]
    assert len(gpu.traffic.of(Kind.WAIT)) == 1


@pytest.mark.parametrize("how", ["event", "stream", "other stream", "device", "value"])
def test_pinned_memory_is_free_once_its_copy_was_waited_for(gpu: SimulatedGpu, how: str) -> None:
    buffer, copying = torch.zeros(4, pin_memory=True), torch.cuda.Stream()
    with torch.cuda.stream(copying):
        there = buffer.to(CUDA, non_blocking=True)
        done = copying.record_event()
    torch.cuda.current_stream().wait_stream(copying)
    there.record_stream(torch.cuda.current_stream())
    match how:
        case "event":
            done.synchronize()
        case "stream":
            copying.synchronize()
        case "other stream":
            torch.cuda.current_stream().synchronize()
        case "device":
            torch.cuda.synchronize()
        case "value":
            there.sum().item()
    buffer.fill_(1.0)


@pytest.mark.parametrize("write", [lambda one: one.fill_(1.0), lambda one: one.numpy().fill(1.0)])
def test_pinned_memory_that_is_written_to_too_early_is_a_fault(
    write: Callable[[Tensor], object],
) -> None:
    with pytest.raises(AssertionError, match="pinned memory was written to"), simulated_gpu():
        buffer = torch.zeros(4, pin_memory=True)
        buffer.to(CUDA, non_blocking=True)
        torch.cuda.Event().synchronize()  # was never recorded
        write(buffer)


def test_memory_is_counted(gpu: SimulatedGpu) -> None:
    held = torch.zeros(MIB, dtype=torch.uint8, device=CUDA)
    view = held[:100]
    assert torch.cuda.memory_allocated(CUDA) == MIB
    more = held + 1
    assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == 2 * MIB
    del more
    free, total = torch.cuda.mem_get_info(CUDA)
    assert torch.cuda.memory_allocated() == MIB
    assert total - free == torch.cuda.memory_reserved() == 2 * MIB  # kept by the allocator
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] == total - MIB
    torch.cuda.reset_peak_memory_stats(CUDA)
    assert torch.cuda.max_memory_allocated() == MIB
    del held
    assert torch.cuda.memory_allocated() == MIB
    del view
    assert torch.cuda.memory_allocated() == 0


def test_memory_gives_out() -> None:
    with simulated_gpu(total_bytes=8 * MIB) as gpu:
        held = torch.zeros(5 * MIB, dtype=torch.uint8, device=CUDA)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.zeros(4 * MIB, dtype=torch.uint8, device=CUDA)
        assert classify(caught.value, CUDA) == Failure.MEMORY
        need = measure_shortage(caught.value, CUDA)
        assert (need.wanted_bytes, need.device_bytes) == (9 * MIB, 8 * MIB)
        assert not need.is_shared_device
        torch.cuda.set_per_process_memory_fraction(0.5)
        with pytest.raises(torch.OutOfMemoryError):
            held + 1
        del held
        torch.zeros(4 * MIB, dtype=torch.uint8, device=CUDA)
        assert gpu.memory.peak == 5 * MIB


def test_a_neighbor_holds_memory_for_a_while() -> None:
    with simulated_gpu(total_bytes=8 * MIB) as gpu:
        gpu.memory.crowd(6 * MIB)
        with pytest.raises(torch.OutOfMemoryError, match=r"Process \d+ has 6.00 MiB") as caught:
            torch.zeros(4 * MIB, dtype=torch.uint8, device=CUDA)
        assert measure_shortage(caught.value, CUDA).is_shared_device
        gpu.memory.crowd(6 * MIB, calls=1)
        assert torch.cuda.mem_get_info() == (2 * MIB, 8 * MIB)
        assert torch.cuda.mem_get_info() == (8 * MIB, 8 * MIB)
        torch.zeros(4 * MIB, dtype=torch.uint8, device=CUDA)


def test_out_of_memory_is_provoked_where_it_is_wanted(gpu: SimulatedGpu) -> None:
    network, images = small_network().to(CUDA), torch.randn(4, 3, 8, 8, device=CUDA)
    rule = gpu.memory.provoke(3, times=1)
    network(images[:3])
    with pytest.raises(torch.OutOfMemoryError):
        network(images)
    network(images)
    gpu.memory.provoke(3, inside="recalibrate")
    network(images)
    assert rule.count == 1


@pytest.mark.parametrize(("capability", "bf16"), [((9, 0), True), ((7, 5), False)])
def test_a_card_has_bf16_or_not(capability: tuple[int, int], bf16: bool) -> None:
    with simulated_gpu(capability=capability):
        assert torch.cuda.get_device_capability() == capability
        assert torch.cuda.is_bf16_supported(including_emulation=False) is bf16
        scaler = torch.amp.GradScaler("cuda")
        weight = nn.Parameter(torch.ones(2, 2, device=CUDA))
        optimizer = torch.optim.SGD([weight])
        with torch.autocast("cuda", dtype=torch.float16):
            product = weight @ torch.ones(2, 2, device=CUDA)
        assert product.dtype == torch.float16
        scaler.scale(product.float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()


def test_a_card_that_cuda_cannot_use() -> None:
    with simulated_gpu(unusable="The NVIDIA driver on your system is too old"):
        assert torch.cuda.device_count() == 1
        assert not torch.cuda.is_available()
        with pytest.raises(RuntimeError, match="too old"):
            torch.cuda.init()
        with pytest.raises(RuntimeError, match="too old"):
            torch.ones(2, device="cuda")


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("0", 1), ("1", 0), ("GPU-01234567", 1), ("GPU-9", 0)]
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with simulated_gpu():
        assert torch.cuda.device_count() == count
        assert torch.cuda.is_available() is bool(count)


def test_threads_see_the_device_and_forked_processes_do_not(gpu: SimulatedGpu) -> None:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(torch.ones(2).to(CUDA) + 1))
    thread.start()
    thread.join()
    assert isinstance(made[0], GpuTensor)
    assert not gpu.traffic.records[0].in_main_thread
    child = os.fork()
    if not child:
        try:
            torch.ones(2, device=CUDA)
        except RuntimeError as error:
            os._exit(7 if "in forked subprocess" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_graphs_are_refused(gpu: SimulatedGpu) -> None:
    with pytest.raises(torch.AcceleratorError, match="not supported"):
        torch.cuda.CUDAGraph()
    assert not torch.cuda.is_current_stream_capturing()


def captured(
    optimizer: torch.optim.Optimizer, weight: Tensor, given: Tensor
) -> torch.cuda.CUDAGraph:
    """Capture a step, after one to warm up on its own stream."""
    graph = torch.cuda.CUDAGraph()

    def step() -> None:
        (weight * given).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_captured_step_is_that_of_the_plain_path() -> None:
    values = [torch.full((3,), float(one)) for one in (1, 2, 3, 4)]
    with simulated_gpu(graphs=True) as gpu:
        plain = nn.Parameter(torch.ones(3, device=CUDA))
        optimizer = torch.optim.AdamW([plain], lr=0.1, capturable=True)
        for one in values:
            (plain * one.to(CUDA)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        weight = nn.Parameter(torch.ones(3, device=CUDA))
        given = values[0].to(CUDA)
        graph = captured(torch.optim.AdamW([weight], lr=0.1, capturable=True), weight, given)
        gpu.traffic.reset()
        for one in values[1:]:
            given.copy_(one.pin_memory(), non_blocking=True)
            graph.replay()
        assert gpu.traffic.of(Kind.WAIT) == []
        assert torch.equal(weight, plain)


def test_what_a_graph_may_not_hold() -> None:
    with simulated_gpu(graphs=True):
        weight = nn.Parameter(torch.ones(3, device=CUDA))
        given = torch.ones(3, device=CUDA)
        with pytest.raises(RuntimeError, match="capturable is False"):
            captured(torch.optim.AdamW([weight]), weight, given)
        torch.cuda.CUDAGraph().reset()
    with simulated_gpu(graphs=True):
        there = torch.ones(3, device=CUDA)
        with (
            pytest.raises(torch.AcceleratorError, match="when stream is capturing"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            there.sum().item()
