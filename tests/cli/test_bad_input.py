"""What a user can get wrong: one message that helps, exit code 2, nothing written."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import optuna
import pytest

from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.commands.inside import Ended, call, contents
from tests.support.commands.runs import SMALL, autotune
from tests.support.data.images import make_class_folders, make_split_folder
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
#: The digits study on the user's images.
OWN = ("run", "digits", "data.train_per_class=null")


def refused(*arguments: str, cwd: Path) -> str:
    """Run a command that must be refused; return its message on one line."""
    before = contents(cwd)
    ended = call(*arguments, cwd=cwd)
    return checked(ended, before, contents(cwd))


def checked(ended: Ended, before: object, after: object) -> str:
    assert ended.code == 2, ended
    progress = ("checking the study file", "decoding images")
    assert all(any(one in line for one in progress) for line in ended.out.splitlines())
    message = re.sub(r"^warning: every user .*\n", "", ended.err)  # of a password
    assert message.count("error: ") == 1 and message.startswith("error: ")
    assert "Traceback" not in ended.err
    assert after == before
    return " ".join(ended.err.split())


# The study file and what the command line says about it


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("run", "digts"),
            "transfer-pets, and a path must be that of a YAML file; did you mean 'digits'?",
        ),
        (
            ("run", "digits", "search.sampler=tpee"),
            "search.sampler: must be one of gp, tpe, random, or a plugin as my_file.py:name, "
            "but got 'tpee'; did you mean 'tpe'?",
        ),
        (
            ("run", "digits", "dataset=digit"),
            "or hf://owner/name, but 'digit' is none of these; did you mean 'digits'?; nothing is",
        ),
        (
            ("run", "digits", "weights=mine.safetensors"),
            "weights: there is no file 'mine.safetensors'; allowed are 'hub', 'none' or the path",
        ),
        (("status", "tiny", "search.trials=3"), "no study file 'tiny'"),
        (("run", "digits", "--workers", "0"), "--workers: must be at least 1, but got 0"),
        (
            ("cp", "digts", "my.yaml"),
            "there is no preset 'digts'; there are caltech101, caltech256, digits-fast, digits",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_study_files_and_options(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refused(*arguments, cwd=tmp_path)


# The images


def folder_of_one_class(root: Path) -> None:
    make_class_folders(root, {"cat": 9})


def damaged_test_image(root: Path) -> None:
    counts = {"cat": 9, "dog": 9}
    make_split_folder(root, {"train": counts, "val": counts, "test": counts})
    path = root / "test/dog/004.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (folder_of_one_class, "a dataset needs at least two classes, but {0} has one, 'cat'"),
        (damaged_test_image, "1 of 18 are: test/dog/004.png"),
    ],
)
def test_images(make: object, said: str, tmp_path: Path) -> None:
    assert callable(make)
    root = tmp_path / "photos"
    make(root)
    message = refused(*OWN, f"dataset={root}", cwd=tmp_path)
    assert said.format(root) in message


# The weights


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"no weights at all")
    said = refused("run", "digits", "weights=mine.safetensors", cwd=tmp_path)
    assert (
        "weights: cannot read 'mine.safetensors': it is a text file; give a .safetensors" in said
    )


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    arguments = ("run", "digits", "backbone=test_resnet.r160_in1k")
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    ended = autotune(*arguments, cwd=work, **closed)
    said = checked(Ended(ended.returncode, "", ended.stderr), {}, contents(work))
    assert "weights of 'test_resnet.r160_in1k' from the hub" in said
    assert "give their file with weights=path/to/file.safetensors" in said


# The storage


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("mysql://me:hunter2@host/db", "but got 'mysql' in mysql://me:***@"),
        (
            "postgresql://me:hunter2@127.0.0.1:9/db",
            "postgresql://me:***@127.0.0.1:9/db cannot be used",
        ),
        ("sqlite:///taken", "the file is something else; name another with --storage"),
    ],
)
def test_storages(storage: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file that is no database, and long enough to be read\n" * 9)
    message = refused("run", "digits", "--storage", storage, cwd=tmp_path)
    assert said in message
    assert "hunter2" not in message


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    where = (f"storage=sqlite:///{small_disk}/studies/a.db", f"files={small_disk}/files")
    said = refused("run", "digits", *where, cwd=tmp_path)
    assert f"no space left: {small_disk} has 1 MiB free" in said


# Studies that are not there, or are other ones


@pytest.mark.parametrize("verb", ["status", "doctor", "best", "dashboard", "refit", "worker"])
def test_a_study_that_does_not_exist(verb: str, finished: Path, tmp_path: Path) -> None:
    said = refused(verb, "tini", cwd=finished)
    assert "has no study 'tini'; it has tiny; did you mean 'tiny'?" in said
    said = refused(verb, "tini", cwd=tmp_path)
    assert f"there is no database {tmp_path}/storage/autotune.db; 'autotune run' makes one" in said


@pytest.mark.parametrize("verb", ["best", "refit"])
def test_a_study_without_a_complete_trial(verb: str, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/storage/autotune.db", create=True)
    make_study("young", trials=0, storage=storage)
    said = refused(verb, "young", cwd=tmp_path)
    assert said == "error: the study 'young' has no complete trial yet"


@pytest.mark.slow
def test_a_study_with_another_definition(finished: Path) -> None:
    other = (*SMALL, "training.epochs=4", "space.training.lr=0.01", "search.trials=3")
    said = refused("run", "digits", *other, "--name", "tiny", cwd=finished)
    assert "the study 'tiny' exists with another definition:" in said
    assert "training.epochs: 3 in the study, 4 now" in said
    assert (
        "space.training.lr: {'low': 0.001, 'high': 0.1, 'log': True} in the study, 0.01 now"
        in (said)
    )
    assert "--name tiny-2" in said
    # The command that it names works, and begins with the best plans of the first study.
    command = shlex.split(said[said.index("autotune run ") :])
    assert command[-2:] == ["--name", "tiny-2"] and "search.warm_start=[tiny]" in command
    wider = "space.training.lr={low: 0.001, high: 0.2, log: true}"
    ended = call(*command[1:], "search.trials=1", wider, cwd=finished)
    assert (ended.code, ended.err) == (0, "")
    study = optuna.load_study(
        study_name="tiny-2", storage=f"sqlite:///{finished}/storage/autotune.db"
    )
    warm = study.user_attrs[attrs.WARM_START]  # its plans, or those that are queued already
    titles = [*warm["taken"], *(title for title, _ in warm["dropped"])]
    assert titles and all("study tiny" in title for title in titles)
    assert call("rm", "tiny-2", "--yes", cwd=finished).code == 0  # others use the folder


def test_a_port_in_use(finished: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        said = refused("dashboard", "tiny", "--port", port, cwd=finished)
    assert f"port {port} cannot be used (Address already in use); choose another one with" in said
