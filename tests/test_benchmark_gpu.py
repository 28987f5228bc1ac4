"""The benchmark of an accelerator runs where there is none, so that it is known to work."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_gpu.py"


@pytest.fixture
def script():
    before = dict(os.environ)
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_gpu"]
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
def test_it_measures_a_step_alone_and_one_fed_from_shards(script, tmp_path, capsys):
    options = script.Options(
        base=8, depth=2, tile_px=64, batch=4, rounds=1, steps=2, threads=2, json=tmp_path / "numbers.json"
    )
    script.main(options)
    result = json.loads((tmp_path / "numbers.json").read_text())
    ((name, seconds),) = result["step_s"].items()
    assert name.startswith("JAX")
    assert seconds > 0
    assert result["from_shards"]["images"] == 4
    assert 0 <= result["from_shards"]["wait_share"] <= 1
    assert result["flops"] == pytest.approx(result["from_shards"]["flops"]["asked"], rel=0.05)
    printed = capsys.readouterr().out
    assert "fed from shards" in printed
    assert "utilisation" in printed
