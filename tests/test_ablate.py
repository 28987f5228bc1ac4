import json

import pytest

from sparseshot_jax.ablate import Trial, grid, over_seeds, run_trials
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


@pytest.mark.parametrize(
    ("axes", "part"),
    [
        (["x=1,2,1"], r"1: named twice in the grid axis 'x=1,2,1'"),
        (["x=1", "y=2", "x=3"], r"x: named twice in --grid"),
    ],
)
def test_nothing_is_named_twice(axes, part):
    with pytest.raises(InputError, match=part):
        grid(axes, [0])


def test_two_trials_of_one_name_are_refused(tmp_path):
    """They would share a folder and a row."""
    trials = grid(["data.root=a/b,a-b"], [0])
    with pytest.raises(InputError, match=r"data\.root=a-b_seed=0: named twice in the trials"):
        run_trials(trials, lambda rest: pytest.fail("nothing is run"), tmp_path / "results.jsonl")
    assert not (tmp_path / "results.jsonl").exists()


def test_a_row_made_again_keeps_what_was_found_before(tmp_path):
    trials, results = grid(["x=1,2"], [0]), tmp_path / "results.jsonl"
    run_trials(trials, one_by_one(lambda t: {"dice": 1.0, "test_dice_fixed": 0.5}), results)

    def again(trial):
        return {"error": "not finite"} if trial.values["x"] == "2" else {"dice": 1.0, "lee_liu": 2.0}

    rows = run_trials(trials, one_by_one(again), results, complete=lambda row: "lee_liu" in row)
    assert rows == rows_of(results)
    assert rows[0] == {
        **{"trial": "x=1_seed=0", "x": "1", "seed": 0},
        **{"dice": 1.0, "test_dice_fixed": 0.5, "lee_liu": 2.0},
    }
    assert rows[1] == {"trial": "x=2_seed=0", "x": "2", "seed": 0, "error": "not finite"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def one_by_one(run_one):
    return lambda rest: (((trial,), (run_one(each) for each in (trial,))) for trial in rest)


def test_trials_run_once_in_order_and_a_killed_sweep_goes_on(tmp_path):
    trials, results, ran = grid(["x=1,2,3"], [0]), tmp_path / "sweep" / "results.jsonl", []

    def run_one(trial):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(trial.name)
        return {"score": int(trial.values["x"]) * 10}

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials, one_by_one(run_one), results)
    assert [row["score"] for row in rows_of(results)] == [10, 20]
    with results.open("a") as file:
        file.write('{"trial": "x=3_seed=0", "sc')  # what a kill in mid-row leaves
    told = []
    rows = run_trials(
        trials,
        one_by_one(lambda trial: {"score": 30}),
        results,
        on_done=lambda trial, row: told.append((trial.name, row["score"])),
    )
    assert [row["score"] for row in rows] == [10, 20, 30]
    assert rows_of(results) == rows
    assert rows[0] == {"trial": "x=1_seed=0", "x": "1", "seed": 0, "score": 10}
    assert told == [("x=1_seed=0", 10), ("x=2_seed=0", 20), ("x=3_seed=0", 30)]


@pytest.mark.parametrize(
    "line", ['{"a": 1}', "[1]", '{"trial": "x=1_seed=0", "sc', '{"trial": "x", "seed": "0"}']
)
def test_a_damaged_row_stops_the_sweep_and_no_other_is_lost(tmp_path, line):
    trials, results = grid(["x=1,2,3"], [0]), tmp_path / "results.jsonl"
    run_trials(trials[:2], one_by_one(lambda trial: {"score": 1}), results)
    first, second = results.read_text().splitlines()
    results.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(
        InputError, match=r"results\.jsonl, line 2: must be .*Correct that line, or remove it"
    ):
        run_trials(trials, lambda rest: pytest.fail("nothing is run"), results)
    assert results.read_text().splitlines() == [first, line, second]


def test_rows_come_in_the_order_asked_for(tmp_path):
    results = tmp_path / "results.jsonl"
    run_trials(grid(["x=1,2"], [0]), one_by_one(lambda trial: {}), results)
    rows = run_trials(grid(["x=2,1,5"], [0]), one_by_one(lambda trial: {}), results)
    assert [row["x"] for row in rows] == ["2", "1", "5"]


def test_a_group_gives_its_rows_as_they_come(tmp_path):
    trials, results, asked = grid(["x=1,2,3"], [0]), tmp_path / "results.jsonl", []

    def groups_of(rest):
        asked.append([trial.name for trial in rest])
        yield rest[1:], iter([{"score": 2.0}, {"error": "not finite"}])
        assert [row["x"] for row in rows_of(results)] == ["2", "3"]
        yield rest[:1], iter([{"score": 1.0}])

    rows = run_trials(trials, groups_of, results)
    assert [(row["x"], row.get("score"), row.get("error")) for row in rows] == [
        ("1", 1.0, None),
        ("2", 2.0, None),
        ("3", None, "not finite"),
    ]
    assert run_trials(trials, groups_of_none, results) == rows


def groups_of_none(rest):
    assert rest == []  # what diverged once is not tried again
    return ()


def test_the_spread_is_over_the_seeds_that_gave_a_number():
    trials = grid(["x=1,2"], [0, 1, 2])
    rows = [{"seed": trial.seed, "dice": float(trial.values["x"]) * trial.seed} for trial in trials]
    rows[4] = {"seed": 1, "error": "not finite"}
    rows[5] = {"seed": 2, "dice": 4.0, "recall": None}
    assert over_seeds(trials, rows) == [
        {"x": "1", "seeds": 3, "dice": 1.0, "dice_sd": 1.0},
        {"x": "2", "seeds": 2, "failed": 1, "dice": 2.0, "dice_sd": pytest.approx(8**0.5)},
    ]


def test_an_axis_with_the_name_of_a_measure_keeps_its_value(tmp_path):
    results = tmp_path / "results.jsonl"
    (row,) = run_trials(grid(["loss=focal"], [0]), one_by_one(lambda trial: {"loss": 0.3}), results)
    assert row == {"trial": "loss=focal_seed=0", "loss": "focal", "seed": 0}


def test_a_row_that_lacks_what_is_asked_for_is_made_again(tmp_path):
    trials, results, ran = grid(["x=1,2,3"], [0]), tmp_path / "results.jsonl", []
    run_trials(
        trials, one_by_one(lambda t: {"error": "no"} if t.values["x"] == "3" else {"dice": 1.0}), results
    )

    def with_test(trial):
        ran.append(trial.values["x"])
        return {"dice": 1.0, "test": 2.0}

    for _ in range(2):
        rows = run_trials(trials, one_by_one(with_test), results, complete=lambda row: "test" in row)
        assert ran == ["1", "2"]  # what failed once is not tried again
        assert [row.get("test") for row in rows] == [2.0, 2.0, None]
    assert sorted(row["trial"] for row in rows_of(results)) == sorted(trial.name for trial in trials)
