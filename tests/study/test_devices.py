"""Which device a process trains on, which GPUs there are for it, and why one cannot be used."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import DeviceError, NoDeviceError, UserError
from autotune.runtime import set_gpu_defaults
from autotune.study import devices
from autotune.study.engine.launcher import resolve_gpus
from autotune.study.engine.pool import CHECK_GPU
from autotune.study.engine.worker_process import run_worker_process, run_worker_reporting_errors
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from tests.support.commands.inline import job, run
from tests.support.commands.inside import call
from tests.support.commands.runs import in_workers, trials_of, with_site
from tests.support.cuda import (
    NO_DRIVER,
    NO_GPUS,
    OUT_OF_MEMORY,
    TOO_OLD,
    UNEXPECTED,
    UNKNOWN,
    accelerator_error,
    list_gpus,
    pretend_gpus,
    refuse_gpus,
)
from tests.support.simulated_gpu import simulated_gpu
from tests.support.study.small import open_small

UUIDS = ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-8a32f937-d72c-4106-c12f-20bd9faed9f6")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about no usable GPU")


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the environment of the machine out, and put back what is set in it."""
    for name in (
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"),
        *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    ):
        monkeypatch.setenv(name, "")  # or what a test sets would stay
        monkeypatch.delenv(name)


@without_gpu
def test_without_a_gpu_it_is_the_cpu() -> None:
    assert devices.find_device() == devices.CPU
    assert devices.gpu_name(devices.CPU) == ""


def test_a_gpu_has_an_index_for_whatever_torch_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``get_per_process_memory_fraction`` refuses a device without one, after every trial."""
    handle = open_small(tmp_path)
    pretend_gpus(monkeypatch, "NVIDIA H200")
    device = build_context(handle).device
    assert device == torch.device("cuda", 0)
    assert torch.cuda.get_per_process_memory_fraction(device) == 1.0


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (RuntimeError(TOO_OLD), "update the driver"),
        (RuntimeError(NO_DRIVER), "start the container with its GPUs"),
        (RuntimeError(NO_GPUS), "see what CUDA_VISIBLE_DEVICES names"),
        (RuntimeError(UNKNOWN), "see what nvidia-smi says"),
        (RuntimeError(UNEXPECTED.format("802: system not yet initialized")), "fabric manager"),
        (
            RuntimeError(UNEXPECTED.format("304: OS call failed or operat")),
            "access to /dev/nvidia",
        ),
        (RuntimeError(UNEXPECTED.format("803: display driver / cuda driver")), "fit each other"),
        (accelerator_error("CUDA-capable device(s) is/are busy or unavailable"), "compute mode"),
        (AssertionError("Torch not compiled with CUDA enabled"), "install a torch with CUDA"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_gpu_that_is_listed_and_cannot_be_used_is_no_cpu(
    error: Exception, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_gpus(monkeypatch, *UUIDS)
    refuse_gpus(monkeypatch, error)
    assert torch.cuda.device_count() == 2 and not torch.cuda.is_available()
    with pytest.raises(DeviceError) as caught:
        devices.find_device()
    message = str(caught.value)
    assert message.startswith(f"the GPU of this machine cannot be used: {str(error)[:30]}")
    assert way_out in message
    assert message.endswith('--gpus none or CUDA_VISIBLE_DEVICES="" trains on the CPU')
    assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
    with pytest.raises(NoDeviceError, match="the GPU 1 cannot be used: "):
        devices.find_device("1")
    assert devices.find_device("") == devices.CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.find_device() == devices.CPU


def test_a_gpu_on_which_nothing_runs_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    error = accelerator_error("no kernel image is available for execution on the device")
    pretend_gpus(monkeypatch, "Tesla K80", fails=error)
    with pytest.raises(NoDeviceError, match="too old or too new for this torch"):
        devices.find_device()


def test_a_gpu_that_others_fill_may_be_free_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, "NVIDIA H200", fails=torch.cuda.OutOfMemoryError(OUT_OF_MEMORY))
    with pytest.raises(
        DeviceError, match="the GPU 0 has no memory left for this process"
    ) as caught:
        devices.find_device("0")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("fails", "event", "code"),
    [
        (torch.cuda.OutOfMemoryError(OUT_OF_MEMORY), "crowded", 0),
        (accelerator_error("unspecified launch failure"), "no_device", 2),
    ],
)
def test_a_process_that_finds_its_gpu_full_waits_for_its_job(
    fails: Exception,
    event: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its place would stay empty for all of a study, because of a neighbor of a moment."""
    pretend_gpus(monkeypatch, "NVIDIA H200", fails=fails)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # the launcher has no job after all
    assert run_worker_process([CHECK_GPU]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["event"] == event and told["message"].startswith("the GPU 0 ")


def test_a_driver_that_does_not_work_is_no_machine_without_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container without nvidia-smi has no NVML either, and nothing lists its GPU."""
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: -1)
    refuse_gpus(monkeypatch, RuntimeError(TOO_OLD))
    with pytest.raises(NoDeviceError, match="driver on your system is too old"):
        devices.find_device()
    with pytest.raises(NoDeviceError, match="driver on your system is too old"):
        resolve_gpus(None)
    assert resolve_gpus("none") == ()
    refuse_gpus(monkeypatch, RuntimeError(NO_GPUS))
    assert devices.find_device() == devices.CPU
    assert resolve_gpus(None) == ()


@without_gpu
@pytest.mark.parametrize("visible", ["7", "GPU-8932", "MIG-8932"])
def test_a_gpu_that_is_named_must_be_there(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(
        NoDeviceError, match=f"the GPU of CUDA_VISIBLE_DEVICES={visible} cannot be"
    ):
        devices.find_device()


@pytest.mark.parametrize("visible", ["", "-1", "-1,0", "NoDevFiles", " "])
def test_naming_no_gpu_is_the_cpu(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    list_gpus(monkeypatch, *UUIDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.find_device() == devices.CPU
    assert resolve_gpus(None) == ()


@pytest.mark.parametrize("visible", ["0-3", "0 1", "0;1", "0,1:2"])
def test_numbers_that_are_not_separated_by_commas_are_no_wish_for_the_cpu(
    visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_gpus(monkeypatch, *UUIDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for find in (devices.find_device, partial(resolve_gpus, None)):
        with pytest.raises(NoDeviceError, match=f"DEVICES={visible}: .* separate them by commas"):
            find()
    assert devices.find_device("") == devices.CPU
    assert resolve_gpus("none") == ()


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0,1", ("0", "1")),
        ("1", ("1",)),
        (" 1 , 0 ", ("1", "0")),
        ("1,1", ("1",)),
        ("1,0,1", ("1", "0")),
        ("1,-1,0", ("1",)),
        ("0,7,1", ("0",)),
        ("0,,1", ("0",)),
        ("01", ("1",)),
        ("GPU-8a", ("GPU-8a",)),
        (f"{UUIDS[1]}, {UUIDS[0]}", (UUIDS[1], UUIDS[0])),
        ("GPU-89,GPU-77", ("GPU-89",)),
        ("1,GPU-89", ("1", "GPU-89")),
        ("MIG-a,MIG-b,MIG-c", ("MIG-a", "MIG-b", "MIG-c")),
        (
            "MIG-GPU-8932f937/7/0,MIG-GPU-8932f937/8/0",
            ("MIG-GPU-8932f937/7/0", "MIG-GPU-8932f937/8/0"),
        ),
        ("GPU-8a,MIG-b,MIG-c", ("GPU-8a", "MIG-b", "MIG-c")),
        ("MIG-b,0,MIG-c", ("MIG-b", "0", "MIG-c")),
        ("MIG-b,MIG-b", ("MIG-b",)),
    ],
)
def test_gpus_by_the_names_that_the_environment_gives(
    visible: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    list_gpus(monkeypatch, *UUIDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resolve_gpus(None) == resolve_gpus("all") == found
    assert resolve_gpus(str(len(found) - 1)) == found[-1:]
    with pytest.raises(UserError, match=f"indices below {len(found)}, but got '{len(found)}'"):
        resolve_gpus(str(len(found)))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_an_allocation_of_slurm_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    list_gpus(monkeypatch, *(f"GPU-{number}" for number in range(8)))
    monkeypatch.setenv("SLURM_JOB_GPUS", "4,6,7")
    assert resolve_gpus(None) == ("4", "6", "7")
    assert resolve_gpus("1") == ("6",)
    monkeypatch.setenv("SLURM_STEP_GPUS", "6")  # a step has a part of the job
    assert resolve_gpus(None) == ("6",)
    # SLURM has hidden the others, and what is left is numbered anew.
    list_gpus(monkeypatch, "GPU-6")
    assert resolve_gpus(None) == ("0",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert resolve_gpus("0") == ("0",)
    with pytest.raises(
        UserError, match="below 1, but got '6'; visible are CUDA_VISIBLE_DEVICES=0"
    ):
        resolve_gpus("6")


@pytest.mark.parametrize(
    ("visible", "uuid", "called"),
    [
        (None, "", "GPU 0"),
        (None, "8932f937-d72c-4106", "GPU 0 (8932f937)"),
        ("3", "8932f937-d72c-4106", "GPU 3 (8932f937)"),
        (UUIDS[0], "8932f937-d72c-4106", "GPU-8932f937"),
        ("GPU-89", "8932f937-d72c-4106", "GPU-89"),
        ("MIG-8a32f937-d72c-4106-c12f-20bd9faed9f6", "8a32f937", "MIG-8a32f937"),
        (f"MIG-{UUIDS[0]}/7/0", "", "MIG-GPU-8932f937/7/0"),
    ],
)
def test_a_gpu_has_a_name_by_which_it_is_told_from_others(
    visible: str | None, uuid: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pretend_gpus(monkeypatch, "NVIDIA A100", uuid=uuid)
    assert devices.gpu_name(devices.find_device()) == called


def test_what_the_user_has_set_is_kept() -> None:
    environment: dict[str, str] = {}
    set_gpu_defaults(environment)
    assert environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        given = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", name: "max_split_size_mb:64"}
        environment = dict(given)
        set_gpu_defaults(environment)
        assert environment == given


def test_gpus_are_numbered_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    list_gpus(monkeypatch, *UUIDS)
    refuse_gpus(monkeypatch, RuntimeError(NO_GPUS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 1")  # of which CUDA would show none
    with pytest.raises(NoDeviceError):
        devices.find_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_worker_without_its_gpu_says_so_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path)
    list_gpus(monkeypatch, *UUIDS)
    refuse_gpus(monkeypatch, RuntimeError(TOO_OLD))
    events: list[dict[str, Any]] = []
    assert run_worker_reporting_errors(job(handle, gpu="1"), threading.Event(), events.append) == 2
    (event,) = events
    assert event["event"] == "no_device"
    assert event["message"].startswith("the GPU 1 cannot be used: The NVIDIA driver")
    assert not handle.study.get_trials(states=[], deepcopy=False)
    assert handle.progress().attempts == 0


def test_a_worker_says_which_gpu_it_has(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=1)
    with simulated_gpu():
        events = run(handle, gpu="0")
        name = torch.cuda.get_device_name()
    ready = next(event for event in events if event["event"] == "ready")
    assert ready["device"] == name
    assert ready["gpu"].startswith("GPU 0 (")
    (trial,) = handle.study.trials
    assert trial.user_attrs[attrs.GPU] == ready["gpu"]
    assert attrs.device_name(trial) == f"{name}, {ready['gpu']}"


#: The driver lists two GPUs, and CUDA itself says what it says on a machine without any.
LISTED = """
import torch
torch.cuda._raw_device_count_nvml = lambda: 2
"""


on_gpus = partial(call, processes=True)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a process for which the driver lists two GPUs, as for those of ``LISTED``."""
    list_gpus(monkeypatch, *UUIDS)
    work = tmp_path / "work"
    work.mkdir()
    return work


@without_gpu
@pytest.mark.slow
def test_a_run_whose_gpus_cannot_be_used_ends_before_there_is_a_study(
    tmp_path: Path, work: Path
) -> None:
    ended = on_gpus("run", "digits", "--name", "tiny", cwd=work, **with_site(tmp_path, LISTED))
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: the GPUs 0, 1 cannot be used: Found no NVIDIA driver")
    assert ended.err.count("Found no NVIDIA driver") == 1
    assert "--gpus none" in ended.err
    assert list(work.iterdir()) == []


#: Worker processes with GPU 0 train (on the CPU); those with GPU 1 find it lost.
ONE_LOST = LISTED + in_workers("""
import autotune.study.devices as devices
find = devices.find_device
devices.find_device = lambda gpu=None: devices.CPU if gpu == '0' else find(gpu)
""")
#: The same; but GPU 1 is lost in the middle of the second trial that trains on it.
LOST_LATER = LISTED + in_workers("""
import os, pathlib
import autotune.study.devices as devices
from tests.support.cuda import accelerator_error
lost = pathlib.Path(__file__).with_name('lost')
mine, find = os.environ['CUDA_VISIBLE_DEVICES'], devices.find_device
forward = torch.nn.CrossEntropyLoss.forward
calls = 0
def found(gpu=None):
    return devices.CPU if gpu == '0' or not lost.exists() else find(gpu)
def computed(self, *given):
    global calls
    calls += 1
    if mine == '1' and calls > 20:
        lost.touch()
        raise accelerator_error('unspecified launch failure', 'cudaErrorLaunchFailure')
    return forward(self, *given)
devices.find_device = found
torch.nn.CrossEntropyLoss.forward = computed
""")
SMALL = (
    *("data.train_per_class=5", "data.image_size=16", "training.num_views=1", "training.epochs=4"),
    *("search.default_plans=false", "search.trials=5", "training.batch_size=10"),
    "space.layers={}",
)


@without_gpu
@pytest.mark.slow
def test_a_run_names_the_gpu_that_cannot_be_used(tmp_path: Path, work: Path) -> None:
    environment = with_site(tmp_path, ONE_LOST)
    ended = on_gpus("run", "digits", *SMALL, "--name", "tiny", cwd=work, **environment)
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: the GPU 1 cannot be used: Found no NVIDIA driver")
    assert ended.err.splitlines()[-1] == "  CUDA_VISIBLE_DEVICES=0 uses the others alone"
    assert list(work.iterdir()) == []


@without_gpu
@pytest.mark.slow
def test_a_gpu_that_is_lost_leaves_the_others_at_work(tmp_path: Path, work: Path) -> None:
    environment = with_site(tmp_path, LOST_LATER)
    ended = on_gpus("run", "digits", *SMALL, "--name", "tiny", cwd=work, **environment)
    assert ended.code == 0, ended.err + ended.out
    said = [line for line in ended.out.splitlines() if "is not started again" in line]
    (line,) = said
    assert line.startswith("worker 1 is not started again: the GPU 1 cannot be used: Found no")
    assert ended.out.count("worker 1 failed (exit code 75) and is replaced") == 1
    progress = attrs.count_progress(trials_of(work, "tiny"), 5)
    assert (progress.finished, progress.failed, progress.running) == (5, 0, 0)


@without_gpu
@pytest.mark.slow
def test_a_run_ends_when_its_last_gpu_is_lost(tmp_path: Path, work: Path) -> None:
    environment = with_site(tmp_path, LOST_LATER)
    given = ("run", "digits", *SMALL, "--name", "tiny", "--gpus", "1")
    ended = on_gpus(*given, cwd=work, **environment)
    assert ended.code == 2, ended.err + ended.out
    assert ended.err.startswith("error: the GPU 1 cannot be used: Found no NVIDIA driver")
    assert ended.out.count("is replaced") == 1
    progress = attrs.count_progress(trials_of(work, "tiny"), 5)
    assert (progress.failed, progress.running, progress.waiting > 0) == (0, 0, True)
    # The CPU goes on with what is queued.
    assert call(*given[:-1], "none", cwd=work).code == 0
    assert attrs.count_progress(trials_of(work, "tiny"), 5).finished == 5


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study ``tiny``, which was run on the CPU."""
    folder = tmp_path_factory.mktemp("ran")
    given = ("digits", *SMALL, "training.epochs=1", "search.trials=2", "--name", "tiny")
    assert call("run", *given, "--gpus", "none", cwd=folder).code == 0
    return folder


@without_gpu
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["worker", "refit", "confirm", "reproduce"])
def test_no_verb_falls_back_to_the_cpu(
    verb: str, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_gpus(monkeypatch, *UUIDS)
    more = ("0",) if verb == "reproduce" else ()
    ended = on_gpus(verb, "tiny", *more, cwd=ran, **with_site(tmp_path, LISTED))
    assert ended.code == 2, ended.out
    assert re.search("error: the GPUs? .*cannot be used: Found no NVIDIA driver", ended.err)
    assert 'CUDA_VISIBLE_DEVICES=""' in ended.err


@without_gpu
def test_a_run_on_a_gpu_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    ended = call("run", "digits", "--name", "tiny", cwd=tmp_path, CUDA_VISIBLE_DEVICES="7")
    assert ended.code == 2
    assert ended.err.startswith("error: the GPU of CUDA_VISIBLE_DEVICES=7 cannot be used: ")
    assert list(tmp_path.iterdir()) == []
