"""Trials on devices of their own, from config to folder; the sweep goes on where it was stopped."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from sparseshot_jax import experiment, programs, sweep
from sparseshot_jax.ablate import grid, run_trials
from sparseshot_jax.choice import MEASURES
from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.sources import FolderSource, SlideSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter
from sparseshot_jax.losses import EarlyLearning, Focal, FocalExclusive
from sparseshot_jax.models import UNetSpec
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.training.sharding import MeshSpec


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "instances"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        ids = np.zeros((32, 32), np.uint16)
        ids[6:16, 8:18] = 1
        image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / "instances" / f"{name}.png")
    return ExperimentConfig(
        name="sweep",
        data=FolderSource(root=str(root), train=("a",), validation=("b",), test=("c",), mpp=0.5),
        tiles=TileSpec(tile_px=16, mpp=0.5, min_tissue=0.0),
        model=UNetSpec(base=2, depth=1),
        loss=FocalExclusive(),
        train=TrainSpec(
            steps=5,
            batch_size=4,
            ema_decay=0.9,
            log_every=2,
            validate_every=3,
            checkpoint_every=2,
            threads=1,
            mesh=MeshSpec(data=1),
        ),
        predict=PredictSpec(core_px=32, min_area_um2=0.5, tissue_only=False),
    )


TRIALS = grid(["loss.alpha=0.1,0.4"], [0])


def run_all(config, trials, folder, devices, **options):
    """The rows of a sweep of one group."""
    (group,) = sweep.grouped(config, trials, devices)
    assert len(group.devices) == len(devices)
    return list(sweep.run_group(config, group, folder, **options))


def state_of(folder, config):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(programs.fresh_state(config))


def rows_of(folder):
    """The log without its clock."""
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "wait_share")}
        for row in read_rows(folder / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return folder, run_all(config, TRIALS, folder, jax.devices()[:2])


def test_a_folder_is_that_of_a_run_trained_alone(config, together, tmp_path):
    """Parameters, moments and averages within 1e-5 of a leaf's largest entry (another program sums in
    another order); everything else to the digit."""
    folder, rows = together
    for trial, row in zip(TRIALS, rows):
        assert sweep.run_trial(config, trial, tmp_path) == pytest.approx(row, rel=1e-4)
        own = sweep.trial_config(config, trial)
        ours, alone = (state_of(place / trial.name, own) for place in (folder, tmp_path))
        assert ours[1] == alone[1]
        jax.tree.map(assert_near, ours[0], alone[0])
        names = [sorted(path.name for path in (place / trial.name).iterdir()) for place in (folder, tmp_path)]
        assert names[0] == names[1]
        assert experiment.load(folder / trial.name).config == own
        for row, like in zip(rows_of(folder / trial.name), rows_of(tmp_path / trial.name), strict=True):
            assert row.pop("event") == like.pop("event")
            assert row == pytest.approx(like, rel=1e-4)


def assert_near(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert np.abs(ours - theirs).max(initial=0) <= 1e-5 * max(np.abs(theirs).max(initial=0), 1e-3)


class Stopped(Exception):
    pass


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(config, together, tmp_path):
    """The trials stand at steps 4 and 2 when it goes on."""

    def reporter_of(name):
        def on_log(step, row):
            if name == TRIALS[1].name and step == 4:
                raise Stopped

        return Reporter(on_log=on_log)

    with pytest.raises(Stopped):
        run_all(config, TRIALS, tmp_path, jax.devices()[:2], reporter_of=reporter_of)
    started = {}
    rows = run_all(
        config,
        TRIALS,
        tmp_path,
        jax.devices()[:2],
        reporter_of=lambda name: Reporter(on_start=lambda step, total: started.update({name: step})),
    )
    assert list(started.values()) == [4, 2]
    folder, expected = together
    assert rows == expected
    for trial in TRIALS:
        own = sweep.trial_config(config, trial)
        ours, theirs = state_of(tmp_path / trial.name, own), state_of(folder / trial.name, own)
        jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
        assert ours[1] == theirs[1]
        assert rows_of(tmp_path / trial.name) == rows_of(folder / trial.name)
    assert run_all(config, TRIALS, tmp_path, jax.devices()[:2]) == expected  # finished: only read


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_trial_that_diverges_is_a_row_with_its_error(config, together, tmp_path, monkeypatch, at_once):
    schedule = programs.hyper_schedule

    def broken(config):
        at = schedule(config)
        if config.name != TRIALS[0].name:
            return at
        return lambda step: dataclasses.replace(at(step), learning_rate=np.float32(np.nan))

    monkeypatch.setattr(experiment, "hyper_schedule", broken)
    if at_once == 1:
        rows = [sweep.run_trial(config, trial, tmp_path) for trial in TRIALS]
    else:
        rows = run_all(config, TRIALS, tmp_path, jax.devices()[:2])
    assert list(rows[0]) == ["error"]
    assert "not finite at step 2" in rows[0]["error"]
    assert rows[1] == pytest.approx(together[1][1], rel=1e-4)


def test_the_measures_to_choose_by_are_those_of_a_validation_row(together):
    for row in together[1]:
        assert set(MEASURES["segmentation"]) <= set(row)


def test_a_memory_is_as_large_however_few_are_marked(config):
    data = SlideSource(slides=("a",), mpp=0.5)
    config = dataclasses.replace(config, data=data, loss=EarlyLearning())
    (group,) = sweep.grouped(config, grid(["data.keep=0.5,1", "data.train_keep=0.5,1"], [0]), jax.devices())
    assert len(group.trials) == 4


def test_groups_share_a_form_and_are_about_equal(config):
    trials = grid(["loss.alpha=0.1,0.2,0.3", "model.base=2,3"], [0, 1, 2])
    groups = sweep.grouped(config, trials, jax.devices()[:8])
    assert [(group.trials[0].values["model.base"], len(group.trials)) for group in groups] == [
        *(("2", 5), ("2", 4)),
        *(("3", 5), ("3", 4)),
    ]
    assert {len(group.devices) for group in groups} == {5}
    assert sorted(trial.name for group in groups for trial in group.trials) == sorted(
        trial.name for trial in trials
    )
    for axes in (["train.batch_size=4,8"], ["tiles.tile_px=16,32"], ["train.ema_decay=0,0.9"]):
        alone = sweep.grouped(config, grid(axes, [0]), jax.devices())
        assert [(len(group.trials), group.devices) for group in alone] == [(1, ()), (1, ())]
    (long_and_short,) = sweep.grouped(config, grid(["train.steps=5,9"], [0]), jax.devices())
    assert len(long_and_short.trials) == 2


def test_what_is_left_keeps_its_devices(config):
    trials = grid(["loss.alpha=0.1,0.2,0.3,0.4"], [0])
    groups = sweep.grouped(config, trials, jax.devices()[:2])
    left = sweep.left_of(groups, trials[1:2])
    assert [(group.trials, group.devices) for group in left] == [((trials[1],), groups[0].devices)]
    assert sweep.left_of(groups, []) == []
    # A kind comes before its fields, in whatever order they were named.
    (trial,) = grid(["loss.alpha=0.4", "loss=focal"], [0])
    assert sweep.trial_config(config, trial).loss == Focal(alpha=0.4)


def test_trials_of_several_rounds_run_alone(config, monkeypatch):
    from sparseshot_jax import rounds

    trials = grid(["relabel.rounds=0,1"], [0, 1])
    groups = sweep.grouped(config, trials, jax.devices()[:2])
    sizes = [(group.trials[0].values["relabel.rounds"], len(group.trials)) for group in groups]
    assert sizes == [("0", 2), ("1", 1), ("1", 1)]
    assert sweep.programs_expected(config, groups) == 2
    asked = []

    def train(config, *_, **__):
        asked.append(config.relabel.rounds)
        raise Stopped

    monkeypatch.setattr(rounds, "train", train)
    with pytest.raises(Stopped):
        next(iter(sweep.run_group(config, groups[1], "unused")))
    assert asked == [1]


def swept(config, trials, folder, devices, **options):
    """A whole sweep as the command line runs it; its rows."""
    groups = sweep.grouped(config, trials, devices)
    return run_trials(
        trials,
        lambda rest: (
            (group.trials, sweep.run_group(config, group, folder, **options))
            for group in sweep.left_of(groups, rest)
        ),
        folder / "results.jsonl",
    )


def test_whatever_is_traced_shares_one_compilation(config, tmp_path):
    """The share of the labels, the loss's numbers and schedule, the rates, the steps and the seed."""
    axes = [
        *("data.keep=0.5,1", "loss.schedule=fixed,sigmoid", "loss.rho=0.6,0.75", "loss.alpha=0.1"),
        *("optimizer.learning_rate=1e-3,3e-3", "optimizer.warmup=0.5", "train.steps=2"),
    ]
    trials = grid(axes, [0, 5])
    groups = sweep.grouped(config, trials, jax.devices()[:1])
    assert sweep.programs_expected(config, groups) == 1
    before = experiment.compilations()
    some = trials[:: len(trials) // 4]  # unlike each other in every axis between them
    assert len(swept(config, some, tmp_path, jax.devices()[:1])) == 4
    assert experiment.compilations() - before <= 1  # 0 where an earlier test compiled it


@pytest.mark.slow
def test_a_sweep_stopped_three_times_ends_with_the_same_results(config, together, tmp_path):
    """Stopped while it trains, while it validates and while it scores; its rows are the same to the digit."""
    for event, at, step in (("log", 0, 4), ("validation", 1, 3), ("score", 1, None)):
        with pytest.raises(Stopped), stopping(event, TRIALS[at].name, step) as reporter_of:
            swept(config, TRIALS, tmp_path, jax.devices()[:2], reporter_of=reporter_of)
    rows = swept(config, TRIALS, tmp_path, jax.devices()[:2])
    assert rows == read_rows(tmp_path / "results.jsonl")
    expected = zip(TRIALS, together[1])
    assert rows == [{"trial": t.name, **t.values, "seed": t.seed, **row} for t, row in expected]


@contextlib.contextmanager
def stopping(event, trial, step):
    """A reporter, or a scoring, that stops the sweep at one place."""

    def stop(name, now):
        if (name, now) == (trial, step):
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        if event == "score":
            real = sweep.score
            patch.setattr(sweep, "score", lambda run, *rest: stop(run.folder.name, None) or real(run, *rest))
        yield lambda name: Reporter(
            **{
                "log": {"on_log": lambda now, row: stop(name, now)},
                "validation": {"on_validation": lambda now, row: stop(name, now)},
            }.get(event, {})
        )


def test_devices_of_the_trials(config):
    def devices(together, **mesh):
        train = dataclasses.replace(config.train, mesh=MeshSpec(**mesh))
        return sweep.trial_devices(dataclasses.replace(config, train=train), together)

    assert len(devices(0)) == len(devices(0, data=1)) == 8
    assert devices(3) == jax.local_devices()[:3]
    assert len(devices(1)) == len(devices(0, fsdp=2)) == len(devices(0, data=4)) == 1
    with pytest.raises(InputError, match=r"at most 8.*got 9"):
        devices(9)
    with pytest.raises(InputError, match=r"--together 2.*train\.mesh"):
        devices(2, space=2)


def test_a_job_of_many_processes_is_refused(config, monkeypatch):
    monkeypatch.setattr(jax, "process_count", functools.partial(int, 4))
    with pytest.raises(InputError, match=r"a sweep runs in one process.*has 4"):
        sweep.trial_devices(config, 0)
