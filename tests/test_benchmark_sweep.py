"""The benchmark of a sweep at toy size: table 2's grid from one compilation, and what it prints."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_sweep.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_sweep", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_sweep"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_sweep"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tnbc")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in ("01_1", "02_1"):
        ids = np.zeros((32, 32), np.uint16)
        ids[6:16, 8:18], ids[20:28, 4:12] = 1, 2
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return root


def options_of(benchmark, root, **changed):
    toy = {"steps": 1, "base": 2, "depth": 1, "tile_px": 16, "batch": 2}
    return benchmark.Options(root=root, **toy | changed)


def test_the_grid_is_table_2(benchmark, root):
    options = options_of(benchmark, root)
    trials = benchmark.table_2(options)
    assert len(trials) == len({trial.name for trial in trials}) == 4 * 2 * 3
    configs = [benchmark.sweep.trial_config(benchmark.config_of(options), trial) for trial in trials]
    assert {(c.loss.schedule, c.loss.rho) for c in configs} == {
        *(("fixed", 0.75), ("fixed", 0.5), ("linear", None), ("sigmoid", None))
    }
    assert {c.data.keep for c in configs} == {0.3, 0.6}


@pytest.mark.parametrize("together", [1, 2])
def test_few_steps_of_it_from_one_compilation(benchmark, root, tmp_path, together, capsys):
    few = {"shares": (0.6,), "seeds": (0,), "together": together, "out": tmp_path}
    benchmark.main(options_of(benchmark, root, **few))
    output = capsys.readouterr().out
    assert f"4 trials of 1 steps on {together} x " in output
    assert "1 training step(s) compiled, 1 expected" in output
    assert "overhead " in output
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_all_of_it_from_one_compilation(benchmark, root, tmp_path):
    found = benchmark.measure(options_of(benchmark, root, batch=4), tmp_path)
    assert (found["trials"], found["failed"]) == (24, 0)
    assert found["compilations"] == found["expected"] == 1
    assert found["sweep_s"] > 0 < found["bare_s"]
