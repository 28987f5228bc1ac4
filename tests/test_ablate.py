import json

import pytest

from sparseshot_jax.ablate import Trial, grid, run_trials
from sparseshot_jax.errors import InputError


def test_a_grid_is_every_combination_of_values_and_seeds():
    trials = grid(["loss.alpha=0.1,0.2", "loss.schedule=fixed,linear"], [0, 7])
    assert [(dict(trial.values), trial.seed) for trial in trials] == [
        ({"loss.alpha": a, "loss.schedule": s}, seed)
        for a in ("0.1", "0.2")
        for s in ("fixed", "linear")
        for seed in (0, 7)
    ]
    assert len({trial.name for trial in trials}) == 8


def test_a_grid_without_axes_is_the_seeds():
    assert [trial.name for trial in grid([], [0, 1])] == ["seed=0", "seed=1"]


def test_a_name_is_a_folder_name():
    assert "/" not in Trial(values={"data.root": "/a/b"}, seed=0).name


@pytest.mark.parametrize("axis", ["loss.alpha", "loss.alpha=", "=1,2", ""])
def test_an_axis_that_is_none(axis):
    with pytest.raises(InputError, match="FIELD=VALUE,VALUE"):
        grid([axis], [0])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_trials_run_once_in_order_and_a_killed_sweep_goes_on(tmp_path):
    trials, results, ran = grid(["x=1,2,3"], [0]), tmp_path / "sweep" / "results.jsonl", []

    def run_one(trial):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(trial.name)
        return {"score": int(trial.values["x"]) * 10}

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials, run_one, results)
    assert [row["score"] for row in rows_of(results)] == [10, 20]
    with results.open("a") as file:
        file.write('{"trial": "x=3_seed=0", "sc')  # what a kill in mid-row leaves
    told = []
    rows = run_trials(
        trials,
        lambda trial: {"score": 30},
        results,
        on_done=lambda trial, row: told.append((trial.name, row["score"])),
    )
    assert [row["score"] for row in rows] == [10, 20, 30]
    assert rows_of(results) == rows
    assert rows[0] == {"trial": "x=1_seed=0", "x": "1", "seed": 0, "score": 10}
    assert told == [("x=1_seed=0", 10), ("x=2_seed=0", 20), ("x=3_seed=0", 30)]


def test_rows_come_in_the_order_asked_for(tmp_path):
    results = tmp_path / "results.jsonl"
    run_trials(grid(["x=1,2"], [0]), lambda trial: {}, results)
    rows = run_trials(grid(["x=2,1,5"], [0]), lambda trial: {}, results)
    assert [row["x"] for row in rows] == ["2", "1", "5"]
