"""The manifests of docs/cluster: they parse, and start what the command can do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from autotune.cli.main import app
from tests.support.commands.inside import get_command

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/cluster"
URL = "postgresql://me:secret@db/autotune"


def check_command(*arguments: str) -> None:
    """Have the command parse its arguments; it raises what it would tell the user."""
    verb, *rest = arguments
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, list(rest)).close()


def program(folder: Path, name: str, text: str) -> None:
    """Make a program that stands for one of the cluster's."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A cluster of two tasks; its programs note in ``calls`` how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    program(
        folder,
        "srun",
        "trap 'kill -TERM $(jobs -p)' TERM\n"
        'while [ "${1#--}" != "$1" ]; do shift; done\n'
        'for task in 0 1; do SLURM_PROCID=$task "$@" & done\n'
        "wait; wait\n",
    )
    program(folder, "scontrol", f'echo "scontrol $*" >> {calls}\n')
    program(
        folder,
        "autotune",
        f'echo "autotune $* storage=$AUTOTUNE_STORAGE" >> {calls}\n'
        f"trap 'echo handed back >> {calls}; exit 130' TERM\n"
        '[ -z "$TAKES" ] || { sleep "$TAKES" & wait; }\n',
    )
    secret = tmp_path / "autotune.env"
    secret.write_text(f"AUTOTUNE_STORAGE={URL}\n")
    secret.chmod(0o600)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "AUTOTUNE_ENV": str(secret),
        "SLURM_JOB_ID": "7",
        "TAKES": "",
    }


def test_the_slurm_script_starts_a_launcher_and_workers(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    done = submit(slurm, "my photos.yaml", "photos")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted((tmp_path / "calls").read_text().splitlines()) == [
        f"autotune run my photos.yaml --name photos --workers 1 storage={URL}",
        f"autotune worker photos --wait 3600 storage={URL}",
    ]
    check_command("run", "my photos.yaml", "--name", "photos", "--workers", "1")
    check_command("worker", "photos", "--wait", "3600")


def test_a_slurm_job_that_is_stopped_hands_its_trials_back_and_is_queued_again(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(
        ["bash", FOLDER / "slurm.sh", "photos.yaml", "photos"], env={**slurm, "TAKES": "30"}
    )
    calls = tmp_path / "calls"
    deadline = time.monotonic() + 20
    while not calls.exists() or len(calls.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # for the traps to be set
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    said = calls.read_text().splitlines()[2:]
    assert said == ["handed back", "handed back", "scontrol requeue 7"]


def submit(slurm: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", FOLDER / "slurm.sh", *arguments]
    return subprocess.run(command, env=slurm, capture_output=True, text=True)


@pytest.mark.parametrize("mode", [0o644, None])
def test_a_password_that_others_can_read_is_refused(
    mode: int | None, slurm: dict[str, str], tmp_path: Path
) -> None:
    secret = Path(slurm["AUTOTUNE_ENV"])
    secret.unlink() if mode is None else secret.chmod(mode)
    done = submit(slurm, "photos.yaml", "photos")
    assert done.returncode == 2
    assert f"{secret} must be there, and for you alone: chmod 600" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_what_the_slurm_script_asks_for() -> None:
    text = (FOLDER / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked["signal"] == "B:TERM@120"
    assert "requeue" in asked
    assert asked["gpus-per-task"] == "1"
    assert "postgresql" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_the_manifests_are_those_of_kubernetes(manifests: list[dict[str, Any]]) -> None:
    assert [one["kind"] for one in manifests] == ["PersistentVolumeClaim", "Job", "Job"]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_jobs_start_what_the_command_can_do(manifests: list[dict[str, Any]]) -> None:
    verbs = []
    for job in manifests[1:]:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        check_command(*container["args"])
        verbs.append(container["args"][0])
    assert verbs == ["run", "worker"]
    assert manifests[2]["spec"]["template"]["spec"]["containers"][0]["args"][1] == "photos"


def test_a_pod_can_hand_its_trial_back_and_only_mistakes_end_a_job(
    manifests: list[dict[str, Any]],
) -> None:
    for job in manifests[1:]:
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["terminationGracePeriodSeconds"] >= 60
        assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy asks for
        rules = {
            value: rule["action"]
            for rule in spec["podFailurePolicy"]["rules"]
            for value in rule.get("onExitCodes", {}).get("values", ())
        }
        assert rules == {2: "FailJob", 130: "Ignore"}
        assert spec["backoffLimit"] > 0 and "completions" not in spec
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "autotune"
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}
    assert manifests[2]["spec"]["completionMode"] == "NonIndexed"
    assert manifests[2]["spec"]["parallelism"] > 1
