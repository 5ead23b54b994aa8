"""The tables of a report: trials and failures."""

from __future__ import annotations

from optuna.trial import create_trial

from autotune.study.state import attrs
from tests.support.pages.page import page_of
from tests.support.study.studies import make_study


def test_the_table_has_every_trial() -> None:
    study = make_study(failed=3)
    page = page_of(study)
    assert "3 failed DivergedError: the loss is nan in epoch 2" in page.text
    assert "1 retried the worker was lost" in page.text
    start = page.tags.index(("table", {"class": "trials"}))
    rows = [attributes for tag, attributes in page.tags[start:] if tag == "tr"]
    assert [row["class"] for row in rows if "class" in row] == ["best", "baseline"]
    cells = set(page.of("td"))
    assert {str(trial.number) for trial in study.trials} <= cells
    assert {"the worker was lost: no heartbeat for 120 s", "retry of 2"} <= set(page.of("span"))
    assert {"84.2 %", "83.8 %", "0.4000"} <= cells


def test_where_a_trial_came_from_is_shown() -> None:
    study = make_study(trials=3)
    known = {"taken": ["warm start: trial 1 of <b>"], "dropped": [["trial 2", "too deep"]]}
    study.set_user_attr(attrs.WARM_START, known)
    plan = study.trials[1].user_attrs[attrs.PLAN]
    origin = {attrs.PLAN: plan, attrs.ORIGIN: "known good: last layer trainable"}
    study.add_trial(create_trial(value=0.5, user_attrs=origin))
    study.add_trial(create_trial(value=0.6, user_attrs={**origin, attrs.RETRIES: [4]}))
    page = page_of(study)
    assert "known good: last layer trainable" in page.of("span")
    assert "retry of 4; known good: last layer trainable" in page.of("span")
    assert page.of("li")[-2:] == [
        "warm start: trial 1 of <b> is queued",
        "trial 2 is dropped: too deep",
    ]
