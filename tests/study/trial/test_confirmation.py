"""The file with the scores of one training of a confirmation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.format_versions import CONFIRMATION, stamp
from autotune.plan import TrainingPolicy, TrialPlan
from autotune.study.trial.retrain import read_scores, write_scores
from autotune.study.trial.trainings import Training


def as_json(plan: TrialPlan) -> Any:
    return json.loads(json.dumps(plan.to_json()))


def test_a_kept_score_is_whole_and_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    plan = TrialPlan("tiny", policy=TrainingPolicy(lr=0.1))
    asked = Training("trial 1, seed 3", plan, 3)
    kept = {"plan": as_json(plan), "seed": 3, "metrics": {"accuracy": 0.8125}, "failed": ""}
    write_scores(path, kept)
    found = read_scores(path, asked)
    assert found is not None and found == {**kept, **stamp(CONFIRMATION)}
    assert read_scores(path, replace(asked, seed=4)) is None
    assert read_scores(path, replace(asked, plan=replace(plan, backbone="other"))) is None
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        # A flip may meet white space: never what counts.
        found = read_scores(path, asked)
        assert found is None or {key: found.get(key) for key in kept} == kept
    for end in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        assert read_scores(path, asked) is None
    path.write_text(json.dumps(kept))  # of a version before checksums
    assert read_scores(path, asked) == kept
    path.write_text(json.dumps({**kept, **stamp(CONFIRMATION)}))  # which this version never wrote
    assert read_scores(path, asked) is None
    assert read_scores(tmp_path / "none.json", asked) is None
