"""``ls``, ``rename``, ``rm``, ``du`` and ``gc``: a storage with studies in every state."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import typer
from optuna.trial import TrialState

from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.doctor.checks import check_study
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.cli.test_older_study import folder as older_folder
from tests.support.commands.inline import run
from tests.support.commands.inside import Ended, call, contents
from tests.support.study.broken import claim, silence
from tests.support.study.small import open_small
from tests.support.study.studies import count_rows, kept_study, write

__all__ = ["older_folder"]
pytestmark = pytest.mark.usefixtures("closed_connections")


def at(url: str, *arguments: str) -> Ended:
    return call(*arguments, cwd=Path.cwd(), AUTOTUNE_STORAGE=url)


def done(url: str, *arguments: str) -> str:
    ended = at(url, *arguments)
    assert (ended.code, ended.err) == (0, ""), ended
    return ended.out


def refused(url: str, *arguments: str) -> str:
    before = contents(Path.cwd())
    ended = at(url, *arguments)
    assert ended.code == 2 and ended.err.startswith("error: "), ended
    assert contents(Path.cwd()) == before
    return " ".join(ended.err.split())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_rm_removes_a_study_and_nothing_else(url: str) -> None:
    kept_study(url, "photos")
    rows, before = count_rows(url), contents(Path.cwd())
    files = kept_study(url, "photos-2", running=1)
    assert "nothing was removed" in refused(url, "rm", "photos-2")
    shown = done(url, "rm", "photos-2", "--yes").splitlines()
    assert shown[0] == f"study photos-2: 4 trials; its files are in {files.root}"
    assert [line.split()[:4] for line in shown[2:9]] == [
        ["artifacts", "1.0", "kB", "goes"],
        ["checkpoints", "1.0", "kB", "goes"],
        ["confirmed", "1.0", "kB", "goes"],
        ["logs", "1.0", "kB", "goes"],
        ["models", "1.0", "kB", "stays"],
        ["predictions", "1.0", "kB", "stays"],
        ["reports", "1.0", "kB", "stays"],
    ]
    assert shown[9] == "removed the study 'photos-2'"
    assert count_rows(url) == rows
    left = contents(Path.cwd())
    new = {Path(path).name for path in left.keys() - before.keys()}
    assert new == {"photos-2", "model.safetensors", "photos-2.html", "photos-2.csv"}
    assert all(left[path] == before[path] for path in before if not path.endswith(".db"))
    # What is kept makes no orphans of other studies' artifacts, and no stranger for the doctor.
    evidence = check_study(open_existing("photos", url)).evidence
    assert evidence is not None and evidence.foreign_studies == ()


def test_rm_of_two_studies_with_all_they_have(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "of two words", "b"):
        files = kept_study(sqlite, name)
    monkeypatch.setattr("autotune.display.console.is_terminal", lambda: True)
    answers = iter([False, True])

    def confirm(question: str, **_: object) -> None:
        assert question == "remove 'a', 'of two words'?"
        if not next(answers):
            raise typer.Abort

    monkeypatch.setattr(typer, "confirm", confirm)
    arguments = ("rm", "a", "of two words", "--all")
    assert at(sqlite, *arguments).code == 1 and files.model("a").exists()
    assert at(sqlite, *arguments).code == 0
    assert optuna.get_all_study_names(open_storage(sqlite)) == ["b"]
    names = {path.stem for path in files.root.rglob("*")}
    assert "b" in names and not names & {"a", "of two words"}


def test_a_study_that_runs_stays(sqlite: str) -> None:
    opened = open_small(Path.cwd())
    trial = claim(opened)
    expected = "the study 'small' runs (1 trial, by box/1/0); 'autotune stop' stops it"
    for arguments in (("rm", "small", "--yes"), ("rename", "small", "other")):
        assert expected in refused(sqlite, *arguments)
    silence(opened.storage, trial, 100)  # its worker is lost
    done(sqlite, "rename", "small", "other")
    done(sqlite, "rm", "other", "--yes")


def begun(study: optuna.Study) -> None:
    study.set_user_attr(attrs.UUID, "of a launcher that was killed")


def damaged(study: optuna.Study) -> None:
    study.set_user_attr(attrs.DEFINITION, {"name": 7})
    study.set_user_attr(attrs.SPACE, [])


def later(study: optuna.Study) -> None:
    study.set_user_attr("format", {"format": 99, "autotune": "99.0"})


@pytest.mark.parametrize("make", [begun, damaged, None])
def test_rm_of_what_cannot_be_run(make: object, sqlite: str) -> None:
    storage = open_storage(sqlite, create=True)
    study = optuna.create_study(study_name="half", storage=storage)
    if callable(make):
        make(study)
    done(sqlite, "rm", "half", "--yes")
    assert optuna.get_all_study_names(storage) == []


def test_a_name_like_a_value(sqlite: str) -> None:
    kept_study(sqlite, "a=b")
    assert "but got 'a=c'" in refused(sqlite, "rm", "a=c")
    assert "compare needs two studies" in refused(sqlite, "compare", "a=b")
    done(sqlite, "rm", "a=b", "--yes")
    assert optuna.get_all_study_names(open_storage(sqlite)) == []


@pytest.mark.parametrize("name", ["..", "a/b", "x"])
def test_a_study_of_another_program_stays(name: str, sqlite: str) -> None:
    kept_study(sqlite, "photos")
    study = optuna.create_study(study_name=name, storage=open_storage(sqlite))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    for arguments in (("rm", name, "--yes"), ("rename", name, "y")):
        message = refused(sqlite, *arguments)
        assert "was not made by autotune" in message or "no study file" in message
    study.set_user_attr(attrs.DEFINITION, {})  # one that was renamed in the dashboard
    study.set_user_attr(attrs.FILES, None)
    if "/" not in name:
        before = contents(Path.cwd())
        done(sqlite, "rm", name, "--yes")
        assert contents(Path.cwd()).keys() == before.keys()


@pytest.mark.parametrize("verb", ["rm", "rename"])
def test_a_study_of_a_later_version_stays(verb: str, sqlite: str) -> None:
    kept_study(sqlite, "photos")
    later(open_existing("photos", sqlite).study)
    rest = ("--yes",) if verb == "rm" else ("new",)
    assert "was written by autotune 99.0" in refused(sqlite, verb, "photos", *rest)


@pytest.mark.parametrize("verb", ["rm", "rename", "stop"])
def test_a_name_that_is_not_there(verb: str, sqlite: str) -> None:
    kept_study(sqlite, "photos")
    rest = ("x",) if verb == "rename" else ()
    assert "did you mean 'photos'?" in refused(sqlite, verb, "fotos", *rest)


def test_rename_takes_everything_along(url: str) -> None:
    files = kept_study(url, "my photos")  # as the dashboard may have named it
    files.report("my photos", "md").write_text("about my photos")
    kept_study(url, "photos")
    message = refused(url, "rename", "my photos", "photos")
    assert "has a study 'photos' already" in message
    assert "letters, digits and . _ + -" in refused(url, "rename", "photos", "my photos")
    write(files.model("flowers") / "model.safetensors")
    assert "models/flowers exists and is not over" in refused(url, "rename", "photos", "flowers")
    shown = done(url, "rename", "my photos", "mine")
    assert shown == (
        "the study 'my photos' is now 'mine'; 'autotune run' continues it with --name mine\n"
    )
    assert not [path for path in files.owned_by("my photos") if path.exists()]
    assert {path.name for path in files.owned_by("mine") if path.exists()} == {
        *("mine", "mine.html", "mine.md", "mine.csv"),
    }
    assert all("mine" in files.report("mine", form).read_text() for form in ("html", "md"))
    opened = open_existing("mine", url)
    assert len(opened.study.trials) == 3
    checked = check_study(opened)
    assert checked.evidence is not None and checked.evidence.foreign_studies == ()


def test_a_renamed_study_goes_on_from_its_checkpoint(sqlite: str) -> None:
    opened = open_small(Path.cwd(), search__trials=1, training__epochs=6)
    run(opened, lambda event: event["event"] == "epoch" and event["epoch"] == 3)
    done(sqlite, "rename", "small", "other")
    other = open_existing("other", sqlite)
    reason = StopReason.from_attributes(other.study.user_attrs)
    assert (
        reason is not None and reason.text == "renamed from 'small'; 'autotune run' continues it"
    )
    queue = other.trial_queue()
    queue.set_budget(queue.budget())
    epochs = [one["epoch"] for one in run(other) if one["event"] == "epoch"]
    assert epochs == [4, 5, 6]
    assert other.study.trials[-1].state == TrialState.COMPLETE


def test_rename_puts_everything_back_where_the_name_is_taken_meanwhile(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_study(sqlite, "photos")
    kept_study(sqlite, "other")
    files = StudyPaths.from_url(sqlite)
    for path in files.owned_by("other"):
        path.rename(f"{path}.away") if path.exists() else None
    monkeypatch.setattr(optuna, "get_all_study_names", lambda _: ["photos"])
    assert "has got a study 'other' meanwhile" in refused(sqlite, "rename", "photos", "other")


def test_du_adds_up(url: str) -> None:
    files = kept_study(url, "photos")
    kept_study(url, "my photos")
    write(files.cache / "images/0", 5000)
    values = json.loads(done(url, "du", "--json"))
    assert [study["name"] for study in values["studies"]] == ["photos", "my photos"]
    sizes = values["studies"][0]["bytes"]
    kinds = ("artifacts", "checkpoints", "confirmed", "logs", "models", "predictions", "reports")
    assert sizes == dict.fromkeys(kinds, 1000)
    shared = {part["what"]: part["bytes"] for part in values["shared"]}
    assert shared["cache"] == 5000 and shared["database"] > 10_000
    write(files.trainings("photos") / "key.pt", 500)
    header, *rows = done(url, "du").splitlines()
    assert set(header.split()) == {"study", *sizes, "trainings", "all"}
    assert [row.split()[-2:] for row in rows[:2]] == [["7.5", "kB"], ["7.0", "kB"]]


def test_gc_removes_what_is_of_no_more_use(url: str) -> None:
    files = kept_study(url, "photos")
    opened = open_existing("photos", url)
    opened.study.set_user_attr(attrs.ENDED, StopReason("trials", "3 finished trials").to_json())
    orphan = write(files.artifacts / "nobodys")
    entry = files.cache / "features/0"
    write(entry / "record.json", 10)
    left = [write(files.log("gone", "worker-0")), write(files.model("gone") / "model.json")]
    before = contents(Path.cwd())
    ended = at(url, "gc")
    assert ended.code == 2 and contents(Path.cwd()).keys() - before.keys() <= set()
    assert "artifacts of no study" in ended.out and "may be those of gone" in ended.out
    shown = done(url, "gc", "--yes")
    assert "removed 2.0 kB" in shown
    assert not entry.exists() and not files.checkpoint("photos", 0).exists()
    assert list(files.logs("photos").iterdir()) == []
    kept = (
        orphan,
        *left,
        files.model("photos"),
        files.report("photos"),
        files.confirmed("photos"),
    )
    assert all(path.exists() for path in kept)
    done(url, "gc", "--yes", "--deleted")
    assert not orphan.exists() and not left[0].exists() and left[1].exists()
    assert files.model("photos").exists()
    done(url, "gc", "--yes", "--models")
    assert not files.model("photos").exists()
    assert done(url, "gc") == "there is nothing to remove\n"
    assert check_study(opened).findings == ()


def test_gc_leaves_a_study_that_runs_alone(sqlite: str) -> None:
    opened = open_small(Path.cwd())
    claim(opened)
    checkpoint = write(opened.files.checkpoint("small", 9))
    assert done(sqlite, "gc").splitlines()[-1] == "there is nothing to remove"
    assert checkpoint.exists()


def test_ls_names_the_state_of_every_study(sqlite: str) -> None:
    opened = open_small(Path.cwd())
    claim(opened)
    kept_study(sqlite, "my photos")
    kept_study(sqlite, "lost", running=1)
    ended = open_existing("my photos", sqlite)
    ended.study.set_user_attr(attrs.ENDED, StopReason("trials", "3 finished trials").to_json())
    kept_study(sqlite, "nothing", trials=0, failed=3)
    nothing = open_existing("nothing", sqlite)
    nothing.study.set_user_attr(attrs.ENDED, StopReason("trials", "3 finished trials").to_json())
    kept_study(sqlite, "empty", trials=0)
    kept_study(sqlite, "later")
    later(open_existing("later", sqlite).study)
    damaged(optuna.create_study(study_name="damaged", storage=open_storage(sqlite)))
    optuna.create_study(study_name="foreign", storage=open_storage(sqlite))
    studies = {one["name"]: one for one in json.loads(done(sqlite, "ls", "--json"))["studies"]}
    assert {name: study["state"] for name, study in studies.items()} == {
        "small": "running",
        "my photos": "ended",
        "lost": "lost workers",
        "nothing": "no result",
        "empty": "unfinished",
        "later": "unreadable",
        "damaged": "unfinished",
        "foreign": "other program",
    }
    assert studies["my photos"]["size_bytes"] == 7000
    assert studies["my photos"]["best"] >= studies["my photos"]["baseline"]
    shown = done(sqlite, "ls").splitlines()
    assert shown[0].split() == ["study", "state", "trials", "best", "baseline", "size", "last"]
    assert shown[1].split()[:6] == ["small", "running", "(1)", "0", "of", "3"]
    assert any(line.startswith("later: the study 'later' was written by") for line in shown)
    done(sqlite, "stop", "my photos")
    call("stop", "small", "--wait", "0", cwd=Path.cwd(), AUTOTUNE_STORAGE=sqlite)
    assert "stopping (1)" in done(sqlite, "ls")


def test_an_older_study(older_folder: Path) -> None:
    url = f"sqlite:///{older_folder}/storage/autotune.db"
    assert "2 of 4" in done(url, "ls")
    assert "digits" in done(url, "du")
    done(url, "rename", "digits", "older")
    done(url, "stop", "older")
    done(url, "gc", "--yes")
    done(url, "rm", "older", "--yes")


def test_verbs_without_a_database(sqlite: str) -> None:
    assert (
        "no studies in sqlite:///storage/autotune.db; 'autotune run' makes them"
        in call("ls", cwd=Path.cwd()).out
    )
    for arguments in (("ls",), ("du",), ("gc",), ("rm", "photos")):
        assert "there is no database" in refused(sqlite, *arguments)
