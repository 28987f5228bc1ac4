"""The script that compiles for a TPU which is not there.

What needs the TPU's compiler runs in an environment of its own, named by SPARSESHOT_TPU_PYTHON: a Python
that has jax[tpu] and the package's dependencies.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sparseshot_jax import programs
from sparseshot_jax.collectives import Collective
from sparseshot_jax.config import load_config, override
from sparseshot_jax.errors import InputError
from sparseshot_jax.hardware import CHIPS
from sparseshot_jax.training.sharding import Layout, MeshSpec, make_layout

ROOT = Path(__file__).parents[1]
TPU_PYTHON = os.environ.get("SPARSESHOT_TPU_PYTHON", "")
needs_compiler = pytest.mark.skipif(
    not TPU_PYTHON, reason="SPARSESHOT_TPU_PYTHON names no Python that has jax[tpu]"
)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    before = dict(os.environ)
    yield load("compile_for_tpu")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def model():
    return load("scaling_model")


def exchange(**changed):
    values = {"kind": "all-reduce", "shapes": ((8,),), "bytes": 32, "group": 4, "axes": "data", "times": 1}
    return Collective(**{**values, "operation": "sum", "source": "layers.py:44", **changed})


def test_a_config_changed_by_options(script):
    options = script.Options(
        config=ROOT / "configs/unet_tnbc.py", set=("model.base=24", "train.remat=blocks"), tile_px=512
    )
    config = script.configured(options)
    assert (config.model.base, config.model.form) == (24, "auto")
    assert (config.train.remat, config.tiles.tile_px) == ("blocks", 512)
    with pytest.raises(InputError, match="FIELD=VALUE"):
        script.configured(script.Options(config=options.config, set=("model.base",)))


def test_the_sizes_of_a_mesh(script):
    def mesh(text):
        return script.mesh_of(script.Options(config=ROOT / "configs/unet_tnbc.py", mesh=text))

    assert mesh("4, 1,-1") == MeshSpec(data=4, fsdp=1, space=-1)
    for wrong in ("a,1,1", "4,1", "1,1,1,1", ""):
        with pytest.raises(InputError, match="sizes of data, fsdp and space"):
            mesh(wrong)


@pytest.mark.parametrize(
    ("platform", "space", "asked", "taken"),
    [
        ("cpu", 1, "auto", "auto"),
        ("cpu", 2, "auto", "auto"),
        ("tpu", 1, "auto", "textbook"),
        ("tpu", 2, "auto", "split"),
        ("gpu", 2, "auto", "split"),
        ("tpu", 2, "cpu", "cpu"),
    ],
)
def test_a_step_takes_the_form_of_its_layouts_devices(platform, space, asked, taken, monkeypatch):
    layout = make_layout(MeshSpec(data=-1, space=space))
    monkeypatch.setattr(Layout, "platform", platform)  # the default back end stays this machine's CPU
    config = override(load_config(ROOT / "configs/unet_tnbc.py"), "model.form", asked)
    models = []
    monkeypatch.setattr(programs, "plain_step_of", lambda shape, **_: models.append(shape.model))
    programs.step_of(programs.form_of(config), layout)
    assert [model.form for model in models] == [taken]


def test_the_platform_of_a_layout_is_its_devices():
    assert make_layout(MeshSpec()).platform == "cpu"


def test_a_config_is_counted_as_a_tpu_would_run_it(script, model, monkeypatch):
    taken = []
    monkeypatch.setattr("sparseshot_jax.programs.step_of", lambda shape, _: taken.append(shape.model))
    monkeypatch.setattr("sparseshot_jax.flops.flops", lambda *_: 1)
    config = ROOT / "configs/unet_tnbc.py"
    wide = model.Options(figures=(config,), set=("model.dtype=float32",))
    (half,), (whole,) = model.works(model.Options(figures=(config,))), model.works(wide)
    assert [(spec.form, spec.dtype) for spec in taken] == [("textbook", "bfloat16"), ("textbook", "float32")]
    assert whole.gradient_bytes == 2 * half.gradient_bytes


def test_arguments_lie_as_the_layout_says(script):
    layout = make_layout(MeshSpec(data=2, fsdp=2, space=2, shard_from=1000))
    config = script.configured(
        script.Options(config=ROOT / "configs/yollo_tnbc.py", set=("model.max_objects=7",), tile_px=128)
    )
    state, batch, hyper = script.arguments(config, layout, 8)
    assert batch.image.shape == (8, 128, 128, 3)
    assert batch.image.sharding.shard_shape(batch.image.shape) == (2, 64, 128, 3)
    assert batch.objects.boxes_yxyx_px.sharding.shard_shape((8, 7, 4)) == (2, 7, 4)
    assert state.step.dtype == jnp.int32
    split = [leaf for leaf in jax.tree.leaves(state.opt_state) if not leaf.sharding.is_fully_replicated]
    assert split
    assert all(leaf.size >= 1000 for leaf in split)
    assert hyper.learning_rate.sharding.is_fully_replicated


def test_collectives_are_summed_by_kind_and_axes(script):
    chip = CHIPS["TPU v5e"]
    found = [
        exchange(),
        exchange(times=3),
        exchange(kind="collective-permute", axes="", group=0, bytes=1000),
        exchange(kind="all-gather", shapes=((1024, 1024),), bytes=4 * 1024**2),
        exchange(kind="all-gather", shapes=((512, 512),), bytes=1024**2),
        exchange(kind="all-to-all", shapes=((4, 8),)),
    ]
    told = script.told(found, [(512, 512), (3,)], chip, 65536)
    rows = {row["kind"]: row for row in told["collectives"]}
    assert rows["all-reduce"] == {
        "kind": "all-reduce",
        "axes": "data",
        "count": 4,
        "bytes": 128,
        "sent": 192.0,
    }
    (gathered,) = told["gathered_activations"]
    assert "1024, 1024" in gathered
    assert "layers.py:44" in gathered
    assert len(told["all_to_all"]) == 1
    # Permutations use one link, everything else a ring's two.
    others = sum(row["sent"] for row in told["collectives"] if row["kind"] != "collective-permute")
    assert told["collective_s"] == pytest.approx(1000 / 50e9 + others / 100e9)


def test_a_model_that_does_not_fit_says_what_it_needed(script):
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.\nUsed 20.1G of 15.7G hbm. Exceeded by 4G.\nx"
    )
    assert script._needed(message) == "Used 20.1G of 15.7G hbm. Exceeded by 4G."


def work(model, **changed):
    values = {"name": "unet", "tiles": 16, "flops": 1e12, "gradient_bytes": 1e8, "sums": 36, "traffic": {}}
    return model.Work(**{**values, **changed})


def test_one_chip_waits_for_nobody(model):
    options = model.Options(figures=())
    for name in options.chips:
        step = model.predict(work(model), CHIPS[name], 1, options)
        assert (step.small, step.gradients, step.efficiency) == (0, 0, 1)
        assert step.compute == pytest.approx(1e12 / (0.4 * CHIPS[name].bfloat16_flops_s))


def test_a_ring_of_a_torus(model):
    chip = CHIPS["TPU v5e"]
    # 16 x 16 chips are rings along both axes: four links of 50 GB/s; 4 x 4 are lines: two.
    assert model.sum_s(1e9, chip, 256) == pytest.approx(2 * 1e9 * 255 / 256 / 200e9)
    assert model.sum_s(1e9, chip, 16) == pytest.approx(2 * 1e9 * 15 / 16 / 100e9)
    # Two slices: each of 256 / 8 hosts sends its part over its network.
    assert model.sum_s(1e9, chip, 512) == pytest.approx(2e9 * 255 / 256 / 200e9 + 1e9 / (32 * 25e9))


def test_hosts_of_gpus_share_a_network(model):
    chip = CHIPS["H100 SXM"]
    assert model.sum_s(1e9, chip, 8) == pytest.approx(2e9 * 7 / 8 / 450e9)
    assert model.sum_s(1e9, chip, 32) == pytest.approx(2e9 * 7 / 8 / 450e9 + 2e9 * 3 / 4 / 400e9)


def test_efficiency_falls_with_chips_and_rises_with_overlap(model):
    options = model.Options(figures=())
    hidden = model.Options(figures=(), overlap=1.0)
    for name in options.chips:
        steps = [model.predict(work(model), CHIPS[name], n, options) for n in model.sizes(1024)]
        assert [s.chips for s in steps] == [2**k for k in range(11)]
        # Not at every doubling: an axis of a torus that closes to a ring has twice the bandwidth.
        shares = [s.efficiency for s in steps]
        assert shares[0] == 1 > max(shares[1:])
        assert shares[-1] < shares[3]
        better = model.predict(work(model), CHIPS[name], 1024, hidden)
        assert shares[-1] < better.efficiency < 1


def test_memory_bounds_a_step(model):
    chip = CHIPS["TPU v5e"]
    bound = work(model, traffic={"TPU v5e": 819e9})
    assert model.predict(bound, chip, 1, model.Options(figures=())).compute == pytest.approx(1.0)


def test_figures_of_a_compiled_step(model, tmp_path):
    figures = {
        "config": "configs/unet_tnbc.py", "chip": "TPU v5e", "chips": 4, "tiles": 64, "fits": True,
        "mesh": {"data": 4, "fsdp": 1, "space": 1}, "model_flops": 5.0, "parameters": 10,
        "memory_traffic": 7.0,
        "collectives": [
            {"kind": "all-reduce", "count": 36, "bytes": 4},
            {"kind": "all-reduce", "count": 1, "bytes": 36},
            {"kind": "all-to-all", "count": 1, "bytes": 5},
        ],
    }  # fmt: skip
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures))
    (found,) = model.works(model.Options(figures=(path,)))
    assert found == model.Work(
        name="unet", tiles=16, flops=5.0, gradient_bytes=40, sums=36, traffic={"TPU v5e": 7.0}
    )
    path.write_text(json.dumps({**figures, "mesh": {"data": 1, "fsdp": 1, "space": 4}}))
    assert model.works(model.Options(figures=(path,))) == []  # nothing that other numbers of chips tell of


def test_a_mesh_as_compiled(model):
    base = {"config": "configs/unet_tnbc.py", "chip": "TPU v5e", "chips": 4, "tiles": 64, "tile_px": 8}
    base |= {"mesh": {"data": 4, "fsdp": 1, "space": 1}, "model_flops": 0.4 * 197e12, "parameters": 10}
    rows = [{"kind": "all-reduce", "count": 10, "bytes": 4}, {"kind": "collective-permute", "count": 5}]
    base |= {"memory_traffic": 0.0, "collective_s": 0.5, "collectives": rows}
    slow = {**base, "memory_traffic": 2 * 819e9, "collective_s": 0.0, "collectives": []}
    (_, one, share), (_, two, half) = model.as_compiled([base, slow], model.Options(figures=()))
    # 4 chips are 2 x 2: two hops there and back along two axes, each of a microsecond.
    assert one == pytest.approx(1.5 + 10 * 4e-6 + 5e-6)
    assert share == pytest.approx(1 / one)
    assert (two, half) == (pytest.approx(2.0), pytest.approx(0.5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_compiler
@pytest.mark.parametrize(
    ("config", "size", "limit_gib"),
    [("unet_tnbc", "model.base=32", 4.0), ("yollo_tnbc", "model.width=32", 1.0)],
)
def test_a_step_compiled_for_v5e(config, size, limit_gib, tmp_path):
    """Data parallel, split state and split tiles at once, by the compiler that a pod uses."""
    command = [
        TPU_PYTHON, "scripts/compile_for_tpu.py", f"configs/{config}.py", "--topology", "v5e:4x4",
        "--mesh", "2,2,4", "--tile-px", "512", "--batch-a-chip", "4", "--set", size,
        "--set", "model.dtype=bfloat16", "--json", str(tmp_path / "figures.json"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, check=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["fits"]
    assert figures["memory"]["all"] < limit_gib * 2**30
    assert figures["flops"] == pytest.approx(figures["flops_counted"], rel=0.05)
    counts = {row["kind"]: row["count"] for row in figures["collectives"]}
    assert counts["all-reduce"] > 1  # statistics, gradients
    assert counts["all-gather"] > 1  # parameters
    assert counts["collective-permute"] > 1  # rows at the borders
    assert figures["gathered_activations"] == []
