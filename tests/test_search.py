"""Drawn and proposed settings: within their ranges, and the same again after a stop."""

import sys
import types

import numpy as np
import pytest

from sparseshot_jax import search
from sparseshot_jax.ablate import run_trials
from sparseshot_jax.errors import InputError

AXES = search.axes_of(["loss.alpha=0.05:0.5:log", "rho=0.5:0.9", "n=2:4:int", "loss=a,b"])


def test_an_axis_is_read():
    assert search.axis("a.b=1e-4:1e-2:log") == search.Axis(field="a.b", low=1e-4, high=1e-2, scale="log")
    assert search.axis("a=-1:.5") == search.Axis(field="a", low=-1.0, high=0.5)
    assert search.axis("a=0.3,0.6").choices == ("0.3", "0.6")
    assert search.axis("data.root=gs://a:b").choices == ("gs://a:b",)  # no range


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("alpha", "FIELD=LOW:HIGH"),
        ("alpha=", "FIELD=LOW:HIGH"),
        ("=1:2", "FIELD=LOW:HIGH"),
        ("alpha=2:1", "LOW below HIGH; got"),
        ("alpha=1:1", "LOW below HIGH; got"),
        ("alpha=0:1:log", "LOW above 0"),
        ("alpha=1.5:4:int", "whole ends"),
    ],
)
def test_an_axis_that_is_none(text, part):
    with pytest.raises(InputError, match=part):
        search.axis(text)


def test_a_field_has_one_axis():
    with pytest.raises(InputError, match=r"rho: named twice in the axes of the search\. Join its values"):
        search.axes_of(["rho=1:2", "rho=3,4"])


def test_a_choice_is_named_once():
    with pytest.raises(InputError, match=r"a: named twice in the axis 'loss=a,b,a'"):
        search.axis("loss=a,b,a")


def test_draws_lie_in_their_ranges_and_reach_all_of_them():
    found = search.random_settings(AXES, 400, seed=0)
    alpha, rho = (np.array([float(one[name]) for one in found]) for name in ("loss.alpha", "rho"))
    assert alpha.min() >= 0.05
    assert alpha.max() <= 0.5
    assert np.median(alpha) == pytest.approx((0.05 * 0.5) ** 0.5, rel=0.15)  # even in the logarithm
    assert np.median(rho) == pytest.approx(0.7, rel=0.05)
    counts = {name: {one[name] for one in found} for name in ("n", "loss")}
    assert counts == {"n": {"2", "3", "4"}, "loss": {"a", "b"}}


def test_draws_depend_on_the_seed_alone_and_a_longer_search_begins_with_the_shorter():
    short, long = (search.random_settings(AXES, count, seed=3) for count in (5, 12))
    assert long[:5] == short
    assert search.random_settings(AXES, 5, seed=4) != short


def test_draws_are_distinct_and_end_where_there_are_no_more():
    found = search.random_settings(search.axes_of(["x=1,2", "y=1:2:int"]), 9, seed=0)
    assert len(found) == len({tuple(one.items()) for one in found}) == 4


def test_corners_reach_every_choice_and_both_ends():
    found = search.corners(AXES)
    assert len(found) == 4
    for field, ends in {"loss.alpha": {"0.05", "0.5"}, "n": {"2", "4"}, "loss": {"a", "b"}}.items():
        assert {one[field] for one in found} == ends


def test_without_optuna_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'pip install "sparseshot-jax\[search\]"'):
        search.Proposals(AXES, seed=0)
    with pytest.raises(InputError, match=r"not installed"):
        search.optuna_version()


def one_by_one(run_one):
    return lambda rest: (((trial,), (run_one(each) for each in (trial,))) for trial in rest)


class Killed(BaseException):
    pass


def searched(results, *, alive, count=14, batch=3):
    """A search whose trials are a formula, killed after so many of them; what it ran and its rows."""
    pytest.importorskip("optuna")
    ran = []

    def run_one(trial):
        if len(ran) == alive:
            raise Killed
        ran.append(trial.name)
        off = abs(np.log(float(trial.values["loss.alpha"]) / 0.2)) + (trial.values["loss"] == "b")
        return {"error": "not finite"} if trial.values["n"] == "4" else {"dice": float(1 - off / 4)}

    rows = search.run_search(
        search.Proposals(AXES, seed=1),
        count=count,
        batch=batch,
        seeds=(0, 1),
        run=lambda trials: run_trials(trials, one_by_one(run_one), results),
        value_of=lambda row: row.get("dice"),
    )
    return ran, rows


def test_a_search_that_was_killed_proposes_what_it_would_have(tmp_path):
    _, (trials, rows) = searched(tmp_path / "whole.jsonl", alive=999)
    assert len(trials) == len({trial.name for trial in trials}) == 28
    for alive in (5, 1, 9):
        with pytest.raises(Killed):
            searched(tmp_path / "killed.jsonl", alive=alive)
    ran, (again, rows_again) = searched(tmp_path / "killed.jsonl", alive=999)
    assert [trial.name for trial in again] == [trial.name for trial in trials]
    assert rows_again == rows
    assert len(ran) == 28 - 15
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_proposals_follow_what_they_are_told(tmp_path):
    """Told that b is bad and alpha near 0.2 good, the last third lies nearer than the first."""
    _, (trials, _) = searched(tmp_path / "results.jsonl", alive=999, count=30)
    off = [abs(np.log(float(trial.values["loss.alpha"]) / 0.2)) for trial in trials]
    assert np.mean(off[-20:]) < np.mean(off[:20])
    losses = [trial.values["loss"] for trial in trials]
    assert losses[-20:].count("a") > losses[:20].count("a")


def test_equal_proposals_are_one_trial_and_a_setting_fails_with_any_seed():
    told = []
    proposals = types.SimpleNamespace(ask=lambda count: [{"x": "1"}] * count, tell=told.append)
    trials, rows = search.run_search(
        proposals,
        count=3,
        batch=2,
        seeds=(0, 1),
        run=lambda trials: [{"dice": float(trial.seed)} for trial in trials],
        value_of=lambda row: row["dice"],
    )
    assert [trial.name for trial in trials] == ["x=1_seed=0", "x=1_seed=1"]
    assert len(rows) == 2
    assert told == [[0.5, 0.5], [0.5]]
    search.run_search(
        proposals,
        count=1,
        batch=1,
        seeds=(0, 1),
        run=lambda trials: [{"dice": 1.0}, {}],
        value_of=lambda row: row.get("dice"),
    )
    assert told[-1] == [None]
