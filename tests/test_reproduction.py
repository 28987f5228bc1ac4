"""scripts/reproduce_tables.py: what is trained for which table, and how numbers become tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
# An image for every pattern of the split; the first four are of the training part.
CRCHISTO = ["img1", "img2", "img22", "img14", "img4", "img24", "img12", "img5"]


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    """As when the script runs: its folder is where modules are looked for."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def evaluation(fixed, carried=0.7, task="detection"):
    def point(value, threshold):
        interval = {"mean": value, "low": value - 0.1, "high": value + 0.1}
        return {"threshold": threshold, "f1_distance": interval, "dice_image": interval}

    return {
        "task": task,
        "operating_points": {
            "fixed": point(fixed, 0.5),
            "carried_over": point(carried, 0.31),
            "elkan_noto": point(0.75, 0.2),
            "oracle": point(0.8, 0.4),
        },
        "per_image": [
            {"name": name, "points": {"fixed": {"dice": fixed + d}, "carried_over": {"dice": carried + d}}}
            for name, d in (("a", 0.1), ("b", -0.1))
        ],
    }


def test_every_method_makes_a_config():
    from reproduction import plan
    from reproduction.runs import trials_of
    from sparseshot_jax.config import load_config
    from sparseshot_jax.sweep import trial_config

    names = set()
    for data in plan.TNBC:
        config = load_config(plan.CONFIGS / plan.DATA_SETS[data].config)
        for method in plan.METHODS | plan.SCHEDULES:
            cell = plan.Cell(data=data, method=method, keep=0.3, seeds=(0, 1))
            first, second = trials_of(cell, config)
            made = trial_config(config, first)
            assert made.data.keep == 0.3
            names |= {made.name, second.name}
    assert len(names) == 2 * len(plan.METHODS | plan.SCHEDULES)


def test_the_mask_is_held_against_the_same_weight_without_it():
    from reproduction import plan
    from reproduction.runs import trials_of
    from sparseshot_jax.config import load_config
    from sparseshot_jax.sweep import trial_config

    config = load_config(plan.CONFIGS / "yollo_tnbc.py")
    cell = plan.Cell(data="tnbc_detection", method=plan.FOCAL_ECE, keep=0.3, seeds=(0,))
    made = trial_config(config, trials_of(cell, config)[0])
    assert made.loss.decision == config.loss.decision
    assert made.loss.alpha is config.loss.background_weight is None


def test_table_2_is_the_papers_grid():
    from reproduction import plan

    cells = plan.table(2, plan.BUDGETS["small"])
    assert sum(len(cell.seeds) for cell in cells) == 4 * 2 * 3
    assert {cell.keep for cell in cells} == {0.3, 0.6}


def test_three_seeds_at_thirty_percent_and_one_elsewhere():
    from reproduction import plan

    budget = plan.BUDGETS["small"]
    seeds = {cell.keep: cell.seeds for cell in plan.figure(4, budget)}
    assert seeds == {0.1: (0,), 0.3: (0, 1, 2), 0.6: (0,), 1.0: (0,)}


def test_cells_that_several_tables_ask_for_are_run_once():
    from reproduction import plan
    from reproduction.runs import merged

    budget = plan.BUDGETS["small"]
    cells = merged([*plan.table(1, budget), *plan.figure(5, budget), *plan.rivals(budget)])
    keys = [(cell.data, cell.method, cell.keep) for cell in cells]
    assert len(keys) == len(set(keys))
    shared = next(
        cell for cell in cells if (cell.data, cell.method, cell.keep) == ("tnbc_detection", plan.CE, 0.6)
    )
    assert shared.seeds == (0, 1, 2)


def test_spread_over_seeds_and_interval_of_one():
    from reproduction.tables import cell_text

    two = {0: evaluation(0.5), 1: evaluation(0.7)}
    assert cell_text(two, "fixed", "f1_distance") == "0.600 ± 0.141"
    assert cell_text({0: evaluation(0.5)}, "fixed", "f1_distance") == "0.500 (0.400 to 0.600)"
    # Of a single image there is no interval.
    single = evaluation(0.5)
    single["operating_points"]["fixed"]["f1_distance"] |= {"low": None, "high": None}
    assert cell_text({0: single}, "fixed", "f1_distance") == "0.500"


def test_table_1_has_the_papers_numbers_beside_ours():
    from reproduction import plan
    from reproduction.tables import table_1

    budget = plan.BUDGETS["small"]
    cells = plan.table(1, budget)
    found = {(cell.data, cell.method, cell.keep): {0: evaluation(0.5)} for cell in cells}
    text = table_1(found, budget)
    assert "| cross-entropy | 0.500 (0.400 to 0.600) |" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(cells) + 2 * 2
    rows = [line for line in text.splitlines() if line.startswith("| cross-entropy | ")]
    assert [row.split("|")[-2].strip() for row in rows] == ["0.65", "0.70"]


def test_the_default_is_held_against_the_best_of_all_labels():
    from reproduction import plan
    from reproduction.tables import against_full

    data = "tnbc_detection"
    found = {
        (data, plan.CE, 1.0): {0: evaluation(0.5, carried=0.8)},
        (data, plan.DEFAULT, 1.0): {0: evaluation(0.6)},
        (data, plan.DEFAULT, 0.3): {0: evaluation(0.6), 1: evaluation(0.6), 2: None},
    }
    row = next(line for line in against_full(found, plan.BUDGETS["small"]).splitlines() if "30%" in line)
    assert row.split("|")[3:8] == [" 0.600 ", " 0.500 ", " 0.800 ", " 0.600 ", " 0.750 "]


def test_differences_are_paired_over_images():
    from reproduction import plan
    from reproduction.tables import differences

    data = "tnbc_segmentation"
    found = {
        (data, plan.DEFAULT, 0.3): {
            5: evaluation(0.6, task="segmentation"),
            7: evaluation(0.8, task="segmentation"),
            9: evaluation(0.6, task="segmentation"),
        },
        (data, plan.CE, 0.3): {
            5: evaluation(0.0, carried=0.5, task="segmentation"),
            7: evaluation(0.0, carried=0.5, task="segmentation"),
            9: None,
        },
        (data, plan.DEFAULT, 1.0): {5: evaluation(0.6, task="segmentation")},
    }
    text = differences(found, plan.DEFAULT, plan.CE, [("fixed", "carried_over"), ("fixed", "fixed")])
    start = "| TNBC, segmentation | 30% |"
    # Both images differ by the same, so there is no spread over them.
    assert f"{start} 5 | +0.100 (+0.100 to +0.100) | +0.600 (+0.600 to +0.600) |" in text
    assert f"{start} 7 | +0.300 (+0.300 to +0.300) | +0.800 (+0.800 to +0.800) |" in text
    assert f"{start} 9 | diverged | diverged |" in text
    assert f"{start} mean | +0.200 ± 0.141 | +0.700 ± 0.141 |" in text
    assert "100%" not in text
    assert differences(found, plan.FOCAL_ECE, plan.DEFAULT, [("fixed", "fixed")]) == ""


def test_differences_refuse_other_seeds():
    from reproduction import plan
    from reproduction.tables import differences
    from sparseshot_jax.errors import InputError

    data = "tnbc_detection"
    found = {
        (data, plan.DEFAULT, 0.3): {0: evaluation(0.6), 1: evaluation(0.6)},
        (data, plan.CE, 0.3): {0: evaluation(0.6), 2: evaluation(0.6)},
    }
    with pytest.raises(InputError, match="same seeds"):
        differences(found, plan.DEFAULT, plan.CE, [("fixed", "fixed")])


def bench_of(tmp_path, budget="small"):
    from rich.console import Console

    from reproduction import plan
    from reproduction.runs import Bench

    budget = plan.BUDGETS[budget]
    return Bench(
        root=tmp_path / "data", runs=tmp_path / "runs", budget=budget, together=1, console=Console(quiet=True)
    )


def write_rows(folder, rows):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_diverged_run_is_not_scored_and_tables_say_so(tmp_path):
    from reproduction import plan
    from reproduction.runs import trials_of
    from reproduction.tables import cell_text

    bench = bench_of(tmp_path)
    cell = plan.Cell(data="tnbc_detection", method=plan.FOCAL, keep=0.3, seeds=(0, 1))
    trials = trials_of(cell, bench.config(cell.data, "report"))
    rows = [{"trial": trial.name, "seed": trial.seed, "error": "loss is nan"} for trial in trials]
    write_rows(bench.runs / cell.data / "report", rows)
    seeds = bench.scored([cell])[cell.data, cell.method, cell.keep]
    assert seeds == {0: None, 1: None}
    assert cell_text(seeds, "fixed", "f1_distance") == "diverged (2 of 2 seeds)"
    some = {0: evaluation(0.5), 1: None, 2: evaluation(0.7)}
    assert cell_text(some, "fixed", "f1_distance") == "0.600 ± 0.141, diverged (1 of 3 seeds)"


def test_a_damaged_row_is_named(tmp_path):
    from sparseshot_jax.errors import InputError

    bench = bench_of(tmp_path)
    write_rows(bench.runs / "tnbc_detection" / "report", [{"trial": "a", "seed": 0}, {"event": "train"}])
    with pytest.raises(InputError, match=r"results\.jsonl, line 2: must be a JSON object with 'trial'"):
        bench.rows("tnbc_detection", "report")


def test_a_run_of_another_config_is_refused(tmp_path):
    from reproduction import plan
    from reproduction.runs import check_unchanged, trials_of
    from sparseshot_jax.config import override
    from sparseshot_jax.errors import InputError
    from sparseshot_jax.run_folder import record_config
    from sparseshot_jax.sweep import trial_config

    bench = bench_of(tmp_path)
    cell = plan.Cell(data="tnbc_detection", method=plan.DEFAULT, keep=0.3, seeds=(0, 1))
    config = bench.config(cell.data, "choose")
    trials = trials_of(cell, config)
    folder = bench.runs / cell.data / "choose"
    record_config(str(folder / trials[0].name), trial_config(config, trials[0]))
    check_unchanged(config, trials, folder, recorded={})
    free = override(config, "train.checkpoint_every", "7")
    check_unchanged(free, trials, folder, recorded={})
    other = override(override(config, "train.steps", "7"), "loss.decision", "0.25")
    with pytest.raises(InputError, match=r"seed0 holds a run .*loss.decision.*; train.steps: 600 -> 7"):
        check_unchanged(other, trials, folder, recorded={})
    with pytest.raises(InputError, match="seed1 holds no run"):
        check_unchanged(config, trials, folder, recorded={trials[1].name: {}})


def test_the_authors_length_is_300_epochs_over_tiles_that_fit(tmp_path):
    """Training images of the true sizes, fewer of them."""
    bench = bench_of(tmp_path, "paper")
    _write_images(bench.root / "tnbc", ["01_1", "02_1", "05_1"], 512)
    _write_images(bench.root / "kumar", "a", 1000)
    _write_images(bench.root / "kumar", "bcd", 64)
    organs = {"train": ["a"], "validation": ["b"], "test_same_organ": ["c"], "test_other_organ": ["d"]}
    (bench.root / "kumar" / "split.json").write_text(json.dumps(organs))
    _write_images(bench.root / "crchisto", CRCHISTO[:4], 500, points=True)
    _write_images(bench.root / "crchisto", CRCHISTO[4:], 64, points=True)
    found = {
        (name, phase): (config.tiles.tile_px, config.train.steps, config.train.checkpoint_every)
        for name, phase in [
            ("tnbc_segmentation", "choose"),
            ("tnbc_detection", "report"),
            ("kumar_segmentation", "choose"),
            ("crchisto_detection", "choose"),
        ]
        for config in [bench.config(name, phase)]
    }
    assert found == {
        ("tnbc_segmentation", "choose"): (512, 300 * 2 // 4, 150),
        ("tnbc_detection", "report"): (512, 300 * 3 // 4, 225),
        ("kumar_segmentation", "choose"): (512, 300 * 4 // 4, 300),
        ("crchisto_detection", "choose"): (496, 300 * 4 // 4, 300),  # one tile an image, whatever its rims
    }


def test_data_cuts_what_is_trained_and_cut_parts_are_not_whole():
    from reproduction import plan

    whole = plan.sections([1, 3], [5], plan.BUDGETS["small"], with_rivals=True)
    assert plan.cut(whole, []) == whole
    parts = plan.cut(whole, ["tnbc_detection"])
    assert parts["table 1"] == whole["table 1"]
    assert parts["table 3"] == []
    assert {cell.data for name in ("figure 5", "rivals") for cell in parts[name]} == {"tnbc_detection"}


def test_cut_parts_are_not_written(tmp_path, monkeypatch):
    import reproduce_tables
    from reproduction import runs, sections

    monkeypatch.setattr(runs.Bench, "trained", lambda self, cells: None)
    monkeypatch.setattr(runs.Bench, "scored", lambda self, cells: {})
    written = {}
    monkeypatch.setattr(sections, "of", lambda found, parts, *rest, **more: written.update(parts) or {})
    reproduce_tables.reproduce(
        reproduce_tables.Args(
            root=tmp_path, runs=tmp_path, table=(1, 3), figure=(5,), rivals=True, data=("tnbc_detection",)
        )
    )
    assert list(written) == ["table 1"]


@pytest.mark.parametrize("more", [["--data", "tnbc_detection", "--budget", "small"], ["--budget", "smoke"]])
def test_only_whole_tables_of_a_real_budget_go_into_the_documentation(monkeypatch, more):
    import reproduce_tables

    monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", "--root", "data", "--write", *more])
    with pytest.raises(SystemExit, match="--write puts whole tables"):
        reproduce_tables.main()


def test_a_call_that_asks_for_nothing_says_what_to_ask_for(monkeypatch):
    import reproduce_tables

    monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", "--root", "data"])
    with pytest.raises(SystemExit, match="--table 1 2 3, --figure 3 4 5 or --rivals"):
        reproduce_tables.main()


def test_data_sets_are_named_alike_in_plan_and_options():
    import typing

    import reproduce_tables
    from reproduction import plan

    assert typing.get_args(reproduce_tables.DataName) == tuple(plan.DATA_SETS)


def test_the_best_rival_is_chosen_on_validation_images_of_both_tasks(tmp_path):
    from reproduction import plan
    from reproduction.runs import trials_of
    from sparseshot_jax.errors import InputError

    bench = bench_of(tmp_path)
    with pytest.raises(InputError, match="with --rivals first"):
        bench.best_rival()
    for name in plan.TNBC:
        rows = []
        for k, method in enumerate(plan.RIVALS):
            cell = plan.Cell(data=name, method=method, keep=0.3, seeds=(0,))
            (trial,) = trials_of(cell, bench.config(name, "choose"))
            # The last is best in one task, and has diverged in the other; nnPU is best in their mean.
            score = {"nnPU": 0.7, "official": 0.9}.get(method, 0.1 + 0.01 * k)
            diverged = method == "official" and name == "tnbc_detection"
            values = {"error": "nan"} if diverged else {plan.DATA_SETS[name].measure: score}
            rows.append({"trial": trial.name, "seed": trial.seed, **values})
        write_rows(bench.runs / name / "choose", rows)
    assert bench.best_rival() == "nnPU"


def test_parts_say_how_they_were_made(tmp_path):
    from reproduction import plan, sections

    bench = bench_of(tmp_path)
    parts = plan.sections([2], [4, 5], bench.budget, with_rivals=True)
    found = {
        (cell.data, cell.method, cell.keep): {
            seed: evaluation(0.5, task=cell.data.split("_")[1]) for seed in (0, 1, 2)
        }
        for cells in parts.values()
        for cell in cells
    }
    # Paired differences of detectors need counts; these have none.
    for key in list(found):
        if key[0].endswith("detection") and key[1] == plan.DEFAULT:
            found[key] = dict.fromkeys((0, 1, 2))
    texts = sections.of(found, parts, bench, tmp_path / "docs", rival="nnPU")
    assert list(texts) == ["table 2", "figure 4", "figure 5", "rivals", "all labels"]
    first = texts["table 2"].splitlines()[0]
    assert first.startswith("`python scripts/reproduce_tables.py --root $DATA --table 2 --budget small`")
    assert "TNBC, detection 600; jax " in first
    assert "standard deviation" in first
    assert "where the paper has 0.2" in texts["table 2"]
    assert "seed 0, on the validation patients" in texts["table 2"]
    assert "--figure 4 --budget small --rival nnPU`" in texts["figure 4"]
    assert "| 10% (n = 1) | 30% (n = 3) |" in texts["figure 4"]
    assert f"**{plan.FOCAL_ECE} less {plan.DEFAULT}, paired" in texts["figure 4"]
    assert "diverged (3 of 3 seeds)" in texts["figure 5"]
    assert (tmp_path / "docs" / "figure_5.png").stat().st_size > 10_000
    assert "![Dice, mean over images, over the share of the labels, a line a method, at" in texts["figure 4"]
    assert "over: TNBC, detection and CRCHistoPhenotypes, detection.](figure_5.png)" in texts["figure 5"]


def points_of(cells):
    from reproduction.pictures import _point

    return [_point(keep, seeds, "fixed", "f1_distance") for keep, seeds in cells]


def test_a_method_without_values_is_not_drawn():
    from matplotlib.figure import Figure

    from reproduction.pictures import _panel

    axes = Figure().subplots()
    cells = [(0.3, {0: None}), (0.6, {0: None})]
    assert _panel(axes, {"ours": points_of(cells)}) == {}
    assert not axes.lines
    drawn = _panel(axes, {"ours": points_of([*cells, (1.0, {0: evaluation(0.5)})])})
    assert np.isnan(np.asarray(drawn["ours"].get_ydata(), float)).tolist() == [True, True, False]


def test_bars_are_of_images_for_one_seed_and_of_seeds_for_several():
    from matplotlib.figure import Figure

    from reproduction import pictures

    single = evaluation(0.5)
    single["operating_points"]["fixed"]["f1_distance"] |= {"low": None, "high": None}
    of_one, of_two, of_one_image = points_of(
        [
            (0.1, {0: evaluation(0.5), 1: None}),
            (0.3, {0: evaluation(0.5), 1: evaluation(0.7)}),
            (1.0, {0: single}),
        ]
    )
    assert (of_one.low, of_one.high, of_one.bar) == (0.4, 0.6, pictures._ONE)
    assert (of_two.low, of_two.high) == pytest.approx((0.6 - 0.02**0.5, 0.6 + 0.02**0.5))
    assert of_two.bar == pictures._SEVERAL
    assert of_one_image.bar == ""
    axes = Figure().subplots()
    drawn = pictures._panel(axes, {"ours": [of_one, of_two, of_one_image], "theirs": [of_one]})
    assert set(drawn) == {"ours", "theirs", pictures._ONE, pictures._SEVERAL}
    ours, theirs = (drawn[name].get_xdata()[0] for name in ("ours", "theirs"))
    assert (ours + theirs) / 2 == pytest.approx(0.1)
    assert theirs > ours


def test_an_axis_spans_the_data_and_a_value_far_below_is_told_at_its_rim():
    from matplotlib.figure import Figure

    from reproduction import pictures

    near = points_of([(0.1 * k, {0: evaluation(0.7 + 0.01 * k)}) for k in range(1, 6)])
    axes = Figure().subplots()
    assert pictures._BELOW not in pictures._panel(axes, {"ours": near})
    low, high = axes.get_ylim()
    assert 0.55 < low < 0.61
    assert 0.85 < high < 0.9
    assert not axes.texts
    lost = points_of([(0.1, {0: evaluation(0.0)})])
    assert pictures._BELOW in pictures._panel(axes, {"ours": near, "theirs": lost})
    assert axes.get_ylim()[0] > 0.5
    assert [text.get_text() for text in axes.texts] == ["0.00"]
    # Where half of the values are low they are no exception.
    both = near + points_of([(0.1 * k, {0: evaluation(0.0)}) for k in range(1, 6)])
    assert pictures._limits(both)[0] < 0


def test_the_picture_is_of_the_image_of_median_score():
    from reproduction.examples import _typical

    def of(**images):
        return {
            "per_image": [
                {"name": name, "points": {"fixed": {"distance": counts}}} for name, counts in images.items()
            ]
        }

    # F1 in the mean of both: a 0.9, b 0.5, c 0.25, d 0.
    ours = of(a=[9, 1, 1], b=[5, 0, 0], c=[1, 1, 1], d=[0, 3, 3])
    theirs = of(a=[9, 1, 1], b=[0, 0, 5], c=[0, 0, 2], d=[0, 0, 0])
    assert _typical([ours, theirs]) == "c"
    assert _typical([evaluation(0.5, task="segmentation")]) == "b"


@pytest.mark.parametrize("detects", [True, False])
def test_a_legend_tells_of_what_is_there(detects, tmp_path):
    from reproduction import examples
    from sparseshot_jax.report import DetectionPanel, Panel, Predicted

    image, mask = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64))
    mask[10:20, 10:20] = 1
    box = np.array([[10.0, 10.0, 20.0, 20.0]])
    none = Predicted(boxes_yxyx_px=np.zeros((0, 4)), score=np.zeros(0))
    every = Predicted(boxes_yxyx_px=box, score=np.ones(1))

    def panel(*found):
        names = {str(k): one for k, one in enumerate(found)}
        if detects:
            boxes = {name: every if one else none for name, one in names.items()}
            return DetectionPanel(title="a", image=image, mpp=0.5, predictions=boxes, truth=box)
        maps = {name: mask * one for name, one in names.items()}
        return Panel(title="a", image=image, predictions=maps, truth=mask > 0)

    texts = [text.split(":")[0].split(",")[0] for _, text in examples._legend(panel(1, 0))]
    hit, miss = ("hit", "miss") if detects else ("predicted", "true object that no prediction matches")
    assert texts == ["true object", hit, miss]
    assert len(examples._legend(panel(1))) == 2
    examples._sheet(panel(1, 0, 1, 1), "toy", "a", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < picture.height  # three rows: four methods, three to a row


def test_sections_replace_what_stands_between_their_marks(tmp_path):
    from reproduction.sections import write

    page = tmp_path / "results.md"
    page.write_text("# Results\n\n<!-- table 1 -->\nold\n<!-- end table 1 -->\n\nWords by hand.\n")
    write({"table 1": "new", "table 2": "more"}, page)
    text = page.read_text()
    assert "old" not in text
    assert text.index("new") < text.index("Words by hand.") < text.index("more")
    write({"table 1": "newer"}, page)
    assert page.read_text().count("<!-- table 1 -->") == 1


def _write_images(root, names, side, points=False):
    rng = np.random.default_rng(0)
    kind = "points" if points else "instances"
    for folder in ("images", kind):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        ids = np.zeros((side, side), np.uint16)
        centres = rng.permutation([(y, x) for y in range(16, side, 32) for x in range(16, side, 32)])
        for k, (y, x) in enumerate(centres):
            ids[y - 8 : y + 8, x - 8 : x + 8] = k + 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-20, 20, (side, side, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        if points:
            xy = [[float(x), float(y)] for y, x in centres]
            classes = {
                c: xy[k::4] for k, c in enumerate(("epithelial", "fibroblast", "inflammatory", "others"))
            }
            (root / kind / f"{name}.json").write_text(json.dumps({"detection": xy, **classes}))
        else:
            Image.fromarray(ids).save(root / kind / f"{name}.png")


@pytest.mark.slow
@pytest.mark.timeout(2500)  # every loss of both tasks is compiled
def test_all_tables_and_figures_at_budget_smoke(tmp_path):
    """Toy images in the layouts of the data sets, the very command of the documentation, twice."""
    root = tmp_path / "data"
    _write_images(root / "tnbc", [f"0{patient}_1" for patient in range(1, 9)], 128)
    organs = {"train": ["a"], "validation": ["b"], "test_same_organ": ["c"], "test_other_organ": ["d"]}
    _write_images(root / "kumar", "abcd", 128)
    (root / "kumar" / "split.json").write_text(json.dumps(organs))
    _write_images(root / "crchisto", CRCHISTO, 128, points=True)
    command = [sys.executable, str(SCRIPTS / "reproduce_tables.py"), "--root", str(root)]
    command += ["--runs", str(tmp_path / "runs"), "--budget", "smoke", "--rivals"]
    command += ["--table", "1", "2", "3", "--figure", "3", "4", "5"]
    command += ["--together", "2"]
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for _ in range(2):
        subprocess.run(command, check=True, timeout=1200, env=own)
    page = (tmp_path / "runs" / "smoke" / "results.md").read_text()
    for part in ("table 1", "table 2", "table 3", "figure 3", "figure 4", "figure 5", "rivals", "all labels"):
        assert f"<!-- {part} -->" in page
    for picture in ("figure_4.png", "figure_5.png", "figure_3_tnbc_detection.png"):
        assert (tmp_path / "runs" / "smoke" / picture).stat().st_size > 10_000
