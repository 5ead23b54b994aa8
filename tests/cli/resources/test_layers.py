"""``autotune layers``: the table of a backbone, and the picture of a plan."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.config.schema import SpaceConfig
from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from autotune.study.state import attrs
from tests.support.commands.inside import Ended, call, contents
from tests.support.marks import slow
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
NAME = "test_resnet.r160_in1k"
PLAN = TrialPlan(
    NAME,
    3,
    (LayerPlan(), LayerPlan(kernel=5, width=0.5), LayerPlan(activation="gelu")),
    HeadPlan((HiddenLayer(64, 0.2),)),
)


def shown(*arguments: str, cwd: Path, **extra: str) -> str:
    before = contents(cwd)
    ended = call("layers", *arguments, cwd=cwd, **extra)
    assert (ended.code, ended.err) == (0, "")
    assert contents(cwd) == before
    return ended.out


def refused(*arguments: str, cwd: Path) -> str:
    before = contents(cwd)
    ended: Ended = call("layers", *arguments, cwd=cwd)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("error: ") == 1 and "Traceback" not in ended.err
    assert contents(cwd) == before
    return " ".join(ended.err.split())


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if re.match(r" *\d+ ", line)]


def write(folder: Path, values: Any, name: str = "plan.json") -> str:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return name


# The table


def test_one_row_a_layer_the_head_first(tmp_path: Path) -> None:
    out = shown("resnet50.a1_in1k", cwd=tmp_path)
    lines = out.splitlines()
    assert lines[0] == (
        "resnet50.a1_in1k at 224x224 px: 17 layers, 23.5 M parameters, 4.09 G "
        "multiply-accumulates an image"
    )
    header = "layer modules kind output params FLOPs kernel width bridge activation pool drop"
    assert lines[2].split() == header.split()
    table = rows(out)
    assert [row[0] for row in table] == [str(index) for index in range(18)]
    assert table[0] == ["0", "head", "linear", "2048", "→", "n"]
    assert " ".join(table[1]) == (
        "1 layer4.2 Bottleneck 2048x7x7 4.46 M 5.3 % 3x3 512 2048 relu – path"
    )
    assert " ".join(table[17]) == "17 conv1, bn1 stem 64x56x56 9.54 k 2.9 % 7x7 64 – – max3 –"
    assert re.search(r"^kernel +1 2 3 5 7 *$", out, re.MULTILINE)
    assert re.search(r"^pool +max2 max3 avg2 avg3 *$", out, re.MULTILINE)
    assert re.search(r"^dropout +no layer: it has no dropout *$", out, re.MULTILINE)
    assert "pool keep avg max avgmax" in out
    assert "outside of all layers" not in out


@pytest.mark.parametrize("name", ["test_vit", slow("mobilenetv3_small_050")])
def test_the_line_for_a_study_file_is_one(name: str, tmp_path: Path) -> None:
    (line,) = re.findall(r"^in a study file: (.*)$", shown(name, cwd=tmp_path), re.MULTILINE)
    space = SpaceConfig.model_validate(yaml.safe_load(line)["space"])
    assert space.trainable_layers == {"low": 0, "high": 4}
    assert [layer for layer in SpaceConfig().layers if layer not in list(space.layers)]


def test_the_last_layers_alone(tmp_path: Path) -> None:
    out = shown(NAME, "--last", "2", cwd=tmp_path)
    assert [row[0] for row in rows(out)] == ["0", "1", "2"]
    assert "5 layers" in out
    message = refused(NAME, "--last", "6", cwd=tmp_path)
    assert "--last must be at most 5, the number of layers of" in message


def test_the_size_of_the_images(tmp_path: Path) -> None:
    out = shown(NAME, "--image-size", "64", cwd=tmp_path)
    assert out.startswith(f"{NAME} at 64x64 px: 5 layers")
    assert rows(out)[1][3].endswith("x2x2")


def test_why_a_field_cannot_change(tmp_path: Path) -> None:
    out = shown("resnet50.a1_in1k", "--why", cwd=tmp_path)
    reasons = out.partition("why not")[2]
    assert re.search(r"^pool +1-16 +it does not pool", reasons, re.MULTILINE)
    assert re.search(r"^dropout +1-17 +it has no dropout", reasons, re.MULTILINE)
    assert re.search(r"^activation +17 +it has no activation", reasons, re.MULTILINE)
    assert "kernel" not in reasons.partition("in a study file")[0]


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_vit", slow("mobilenetv3_small_050")],
)
def test_narrow_terminals_lose_nothing(name: str, tmp_path: Path) -> None:
    wide = rows(shown(name, cwd=tmp_path).partition("what a value above")[0])
    for width in (100, 72):
        out = shown(name, cwd=tmp_path, COLUMNS=str(width)).partition("what a value above")[0]
        table = out.splitlines()[1:]
        assert max(len(line) for line in table) <= width
        assert "…" not in "".join(table)
        assert {cell for row in wide for cell in row} <= set(" ".join(table).split())


def test_long_names_make_two_tables(tmp_path: Path) -> None:
    out = shown("test_byobnet", cwd=tmp_path, COLUMNS="70")
    assert [line.split()[0] for line in out.splitlines() if "layer " in line[:6]] == ["layer"] * 2


def test_a_file_has_no_edge(tmp_path: Path) -> None:
    out = shown("test_vit", cwd=tmp_path, COLUMNS="")
    lines = out.splitlines()
    assert len(rows(out)) == 8
    assert any("cls_token, pos_embed, patch_embed" in line for line in lines)
    assert max(map(len, lines)) < 200
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)


def test_json(tmp_path: Path) -> None:
    values = json.loads(shown(NAME, "--json", "--last", "1", cwd=tmp_path))
    assert values["backbone"] == NAME
    assert [layer["label"] for layer in values["layers"]] == ["layer4"]
    assert values["layers"][0]["reasons"]["dropout"] == "it has no dropout"
    assert values["head"]["pool"] == ["keep", "avg", "max", "avgmax"]


# The picture of a plan


@pytest.mark.parametrize(
    "values",
    [
        PLAN.to_json(),
        {"study": "tiny", "trial": 3, "accuracy": 0.9, "plan": PLAN.to_json()},
        {"plan": PLAN.to_json(), "definition": {"data": {"image_size": None}}},
    ],
    ids=["plan", "best", "record"],
)
def test_a_plan_in_a_file(values: dict[str, Any], tmp_path: Path) -> None:
    out = shown("--plan", write(tmp_path, values), cwd=tmp_path)
    assert out == shown(NAME, "--plan", "plan.json", cwd=tmp_path)
    assert out.startswith(f"{NAME}, plan.json: last 3 layers trainable")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "kernel 5, width 0.5" in lines["▣ layer 2"]
    assert "gelu" in lines["▣ layer 3"]
    assert "64 (dropout 0.2)" in lines["■ head"]
    assert {"□ layer 4", "□ layer 5", "■ layer 1"} <= set(lines)
    assert re.search(r"^□ frozen: 2 of 5 layers, ", out, re.MULTILINE)
    assert re.search(r"^■ trainable: the head on 96 features and 3 layers, ", out, re.MULTILINE)
    assert re.search(r"^▣ reshaped: layers 2-3; the backbone goes from ", out, re.MULTILINE)


def test_a_plan_as_json(tmp_path: Path) -> None:
    name = write(tmp_path, PLAN.to_json())
    values = json.loads(shown("--plan", name, "--json", cwd=tmp_path))
    assert TrialPlan.from_json(values["plan"]) == PLAN
    states = {row["index"]: row["state"] for row in values["layers"]}
    assert states == {
        5: "frozen",
        4: "frozen",
        3: "reshaped",
        2: "reshaped",
        1: "trainable",
        0: "trainable",
    }


def test_a_record_s_image_size_counts(tmp_path: Path) -> None:
    definition = {"data": {"image_size": 9}}
    vit = replace(PLAN, backbone="test_vit", depth=0, layers=())
    name = write(tmp_path, {"plan": vit.to_json(), "definition": definition})
    assert "cannot take images of 9 px" in refused("--plan", name, cwd=tmp_path)
    assert "frozen: 7 of 7 layers" in shown("--plan", name, "--image-size", "32", cwd=tmp_path)


def test_the_plan_of_a_trial(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = make_study("photos", trials=6, storage=url)
    which = ("--study", "photos", "--storage", url)
    trial = max(study.get_trials(), key=lambda one: one.user_attrs[attrs.PLAN]["depth"])
    depth = trial.user_attrs[attrs.PLAN]["depth"]
    assert depth > 1
    out = call("layers", "--plan", str(trial.number), *which, cwd=tmp_path).out
    assert out == shown("--plan", str(trial.number), *which, cwd=tmp_path)
    assert out.startswith(f"{NAME}, trial {trial.number}: last {depth} layers trainable")
    assert out.count("■ layer ") == depth
    message = refused("--plan", "99", *which, cwd=tmp_path)
    assert "--plan: the study 'photos' has the trials 0 to " in message
    assert "but got 99" in message
    message = refused("--plan", "0", "--study", "fotos", "--storage", url, cwd=tmp_path)
    assert "has no study 'fotos'; it has photos; did you mean 'photos'?" in message


def changed(**values: Any) -> dict[str, Any]:
    return {**PLAN.to_json(), **values}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            replace(PLAN, layers=(LayerPlan(), LayerPlan(kernel=4), LayerPlan())).to_json(),
            f"plan.json does not fit '{NAME}': layer 2, kernel: must be one of keep, 1, 2, 3, 5, "
            "7, but got 4",
        ),
        (changed(depth="3"), "depth must be a whole number, but got '3'"),
        ({"plan": {"backbone": NAME}}, "'plan.json' has no 'head'"),
        (["a", "list"], "--plan must be the number of a trial, or a file that holds a plan"),
        (changed(backbone="test_resnt"), "did you mean 'test_resnet'?"),
    ],
)
def test_a_plan_that_does_not_fit(values: Any, said: str, tmp_path: Path) -> None:
    assert said in refused("--plan", write(tmp_path, values), cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "BACKBONE must be given, a timm model name, or --plan"),
        (("test_vit", "--study", "digits"), "--study and --name say whose trial is meant"),
        (("--plan", "nowhere.json"), "cannot read 'nowhere.json': No such file or directory"),
        (("--plan", "."), "cannot read '.': Is a directory"),
        (
            ("--plan", "a.json", "--why"),
            "--plan shows all layers of a plan; leave --last and --why out",
        ),
        (("--plan", "a.json", "--name", "b"), "--plan must be the number of a trial together"),
        (("--plan", "3"), "storage: there is no database"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refused(*arguments, cwd=tmp_path)


def test_another_backbone_than_the_plan_s(tmp_path: Path) -> None:
    message = refused("test_vit", "--plan", write(tmp_path, PLAN.to_json()), cwd=tmp_path)
    assert (
        f"BACKBONE must be left out or that of the plan, '{NAME}', but got 'test_vit'" in message
    )
