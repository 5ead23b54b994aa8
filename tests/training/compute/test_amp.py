from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from autotune.training.compute import amp as amp_module
from autotune.training.compute.amp import (
    AmpPolicy,
    describe_compute,
    fastest_precision,
    float32_precision,
    half_precision_for,
    keep_slow_convs_fp32,
    set_float32_precision,
)
from tests.support.models.backbones import CPU, plan, training

BF16 = AmpPolicy(CPU, torch.bfloat16)
CUDA = torch.device("cuda", 0)


def pretend_card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    """Let torch name a card that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.fixture
def float32_as_before() -> Iterator[None]:
    """Leave the precision of float32 as it was."""
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("auto", None), ("off", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_modes(mode: str, dtype: torch.dtype | None) -> None:
    assert AmpPolicy.from_mode(mode, CPU).dtype is dtype
    with AmpPolicy.from_mode(mode, CPU).autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == (dtype or torch.float32)


@pytest.mark.parametrize(
    ("half", "single", "expected"),
    [(1.0, 3.0, "bf16"), (3.0, 1.0, "off"), (3.0, 3.3, "off"), (3.0, 4.0, "bf16")],
)
def test_the_fastest_precision(
    half: float, single: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = amp_module._step_s
    timed: list[str] = []

    def step_s(network: nn.Module, images: Tensor, amp: AmpPolicy) -> float:
        assert step(network, images, amp) > 0
        timed.append(amp.mode)
        first = len(timed) <= 2  # in which kernels are chosen
        return 0.0 if first else {"bf16": half, "off": single}[amp.mode] + len(timed) % 3

    monkeypatch.setattr(amp_module, "_step_s", step_s)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    before = copy.deepcopy(network.state_dict())
    assert fastest_precision(network, torch.randn(2, 3, 2, 2)) == expected
    assert timed.count("bf16") == timed.count("off") == 4
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(one, before[key]) for key, one in network.state_dict().items())


@pytest.mark.parametrize(
    ("capability", "half"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_the_half_precision_of_a_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], half: str
) -> None:
    assert half_precision_for(CPU) == "bf16"
    pretend_card(monkeypatch, "a card", capability)
    assert half_precision_for(CUDA) == half


@pytest.mark.usefixtures("float32_as_before")
def test_the_precision_of_float32_is_that_of_gpus_alone() -> None:
    of_cpu = torch.backends.mkldnn.matmul.fp32_precision
    set_float32_precision(CUDA, "ieee")
    set_float32_precision(CPU, "tf32")
    assert (float32_precision(CUDA), float32_precision(CPU)) == ("ieee", "ieee")
    set_float32_precision(CUDA, "tf32")
    assert (float32_precision(CUDA), float32_precision(CPU)) == ("tf32", "ieee")
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == of_cpu


@pytest.mark.usefixtures("float32_as_before")
def test_devices_that_compute_otherwise_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_compute(BF16) == ("cpu", "torch.bfloat16")
    assert describe_compute(AmpPolicy(CPU, None)) == ("cpu", "None")
    found = set()
    for name, capability in [("NVIDIA A100", (8, 0)), ("NVIDIA H100", (9, 0))]:
        pretend_card(monkeypatch, name, capability)
        for precision in ("ieee", "tf32"):
            set_float32_precision(CUDA, precision)
            for dtype in (None, torch.bfloat16):
                found.add(describe_compute(AmpPolicy(CUDA, dtype)))
    assert len(found) == 8
    assert ("cuda", "torch.bfloat16", "NVIDIA A100", "8.0", "tf32") in found


def dtypes_of(network: nn.Module, inputs: Tensor, amp: AmpPolicy) -> dict[str, torch.dtype]:
    """Return what each convolution gives."""
    found: dict[str, torch.dtype] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: found.update({name: output.dtype})
        )
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with amp.autocast():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return found


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(8, 4, 3, stride=2),
    )


def test_slow_convolutions_stay_in_single_precision() -> None:
    network, images = convolutions(), torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(network)
    keep_slow_convs_fp32(network, BF16)
    keep_slow_convs_fp32(network, BF16)  # a second time changes nothing
    found = dtypes_of(network, images, BF16)
    single = {name for name, dtype in found.items() if dtype == torch.float32}
    assert single == {"2", "3"}
    assert set(dtypes_of(plain, images, BF16).values()) == {torch.bfloat16}
    assert network.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(network(images), plain(images))  # without autocast it is as it was
    copied = copy.deepcopy(network)
    assert dtypes_of(copied, images, BF16) == found


def test_nothing_is_spared_without_half_precision_on_the_cpu() -> None:
    network = convolutions()
    for amp in (AmpPolicy(CPU, None), AmpPolicy(CUDA, torch.bfloat16)):
        keep_slow_convs_fp32(network, amp)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_convolution_that_fails_leaves_the_precision_as_it_was() -> None:
    network = convolutions()
    keep_slow_convs_fp32(network, BF16)
    with BF16.autocast():
        with pytest.raises(RuntimeError):
            network[2](torch.randn(2, 7, 8, 8))  # 8 channels are wanted
        assert torch.is_autocast_enabled("cpu")
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_training_spares_its_network() -> None:
    """MobileNet and its like have depthwise convolutions with strides."""
    run = training(plan("test_efficientnet", 2, lr=0.01), precision="bf16")
    found = dtypes_of(run.network, torch.randn(2, 3, 32, 32), run.amp)
    strided = {
        name
        for name, module in run.network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1
    }
    assert strided
    assert {name for name, dtype in found.items() if dtype == torch.float32} >= strided
    assert torch.bfloat16 in found.values()
    assert [one.epoch for one in run.run()] == list(range(1, run.config.epochs + 1))
