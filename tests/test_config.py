import dataclasses
import json
import textwrap
from pathlib import Path

import pytest

from sparseshot_jax.config import (
    REGISTRIES,
    ExperimentConfig,
    PredictSpec,
    TrainSpec,
    changed_mathematics,
    from_json,
    load_config,
    override,
    to_json,
)
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import GEKL, NNPU, CrossEntropy, FocalExclusive
from sparseshot_jax.models import UNetSpec

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def make(**changes):
    base = {
        "name": "example",
        "data": FolderSource(root="here", train=("a*",), test=("b",), keep=0.3),
        "model": UNetSpec(base=4, depth=2),
        "loss": FocalExclusive(alpha=0.1, rho=0.75, schedule="fixed"),
        "labels": LabelSpec(classes=("tumour", "stroma")),
    }
    return ExperimentConfig(**(base | changes))


def through_json(config):
    return from_json(json.loads(json.dumps(to_json(config))))


@pytest.mark.parametrize(("field", "kind"), [(f, kind) for f, r in REGISTRIES.items() for kind in r])
def test_every_registered_kind_goes_through_json(field, kind):
    config = make(**{field: REGISTRIES[field][kind]()})
    assert to_json(config)[field]["kind"] == kind
    assert through_json(config) == config
    assert type(getattr(through_json(config), field)) is REGISTRIES[field][kind]


def test_values_that_differ_from_every_default_survive():
    config = make(
        seed=5,
        tiles=TileSpec(tile_px=64, mpp=0.25, annotated_share=0.0),
        train=TrainSpec(steps=7, batch_size=3, ema_decay=0.99, workers=2),
        predict=PredictSpec(threshold=0.25, tissue_only=False),
    )
    assert through_json(config) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path):
    config = load_config(path)
    assert isinstance(config, ExperimentConfig)
    assert config.name == path.stem
    assert through_json(config) == config
    assert changed_mathematics(config, through_json(config)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("model"), r"model is missing"),
        (lambda v: v["tiles"].update(tile_pix=3), r"tiles has no field tile_pix; it has tile_px, mpp"),
        (lambda v: v["tiles"].update(tile_px="wide"), r"tiles\.tile_px must be a whole number; got 'wide'"),
        (lambda v: v["loss"].update(kind="focol"), "no loss of kind 'focol'. Did you mean focal?"),
        (lambda v: v["loss"].pop("kind"), "no loss of kind None"),
        (lambda v: v.update(loss=3), r"loss must be a JSON object of fields; got 3"),
        (
            lambda v: v["labels"].update(ring_um=[1]),
            r"ring_um must be a list of 2 numbers or None; got \[1\]",
        ),
        (lambda v: v["loss"].update(alpha=-1), r"alpha must be >= 0\.0; got -1\.0"),
        (lambda v: v["data"].update(train="abc"), r"data\.train must be a list of texts; got 'abc'"),
        (
            lambda v: v["augment"].update(dihedral="False"),
            r"augment\.dihedral must be True or False; got 'False'",
        ),
        (lambda v: v["train"].update(steps=2.5), r"train\.steps must be a whole number; got 2\.5"),
        (lambda v: v["train"].update(steps=True), r"train\.steps must be a whole number; got True"),
    ],
)
def test_a_wrong_config_json_says_what_and_where(change, message):
    values = json.loads(json.dumps(to_json(make())))
    change(values)
    with pytest.raises(InputError, match=message) as caught:
        from_json(values, source="runs/x/config.json")
    assert str(caught.value).startswith("runs/x/config.json: ")


def test_a_config_json_that_is_none(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"name": ')
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        load_config(path)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"config\.json"):
        load_config(path)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("loss.alpha", "0.3", 0.3),
        ("loss.alpha", "1", 1.0),
        ("loss.rho", "None", None),
        ("loss.rho", "null", None),
        ("loss.schedule", "linear", "linear"),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("train.steps", "400", 400),
        ("train.steps", "4e2", 400),
        ("augment.dihedral", "False", False),
        ("augment.dihedral", "false", False),
        ("predict.tissue_only", "True", True),
        ("name", "12", "12"),
        ("data.root", "True", "True"),
        ("data.train", "x*", ("x*",)),
        ("data.train", '["x", "y"]', ("x", "y")),
        ("seed", "3", 3),
    ],
)
def test_an_override_sets_one_field(field, text, value):
    before, after = make(), override(make(), field, text)
    found = after
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    old, new = to_json(before), to_json(after)
    *path, last = field.split(".")
    for name in path:
        old, new = old[name], new[name]
    old[last] = new[last]
    assert override(before, field, text) == after


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "loss.rho",
            r"no field loss\.rho: loss is cross_entropy, which has background_weight, decision; exclusive, "
            r"focal_exclusive, official have it: add --set loss=exclusive\.",
        ),
        (
            "loss.alpah",
            r"decision\. Did you mean loss\.alpha\? focal_exclusive, .*: add --set loss=focal_excl",
        ),
        (
            "loss.decisoin",
            r"Did you mean loss\.decision\? loss is cross_entropy, which has background_weight",
        ),
        ("los.rho", r"there is no los\. Did you mean loss\? loss is cross_entropy, which has"),
        ("loss.zzz", r"no field loss\.zzz: loss is cross_entropy, which has background_weight, decision\.$"),
        ("loss.kind", r"another kind is given by loss=NAME, cross_entropy, exclusive"),
        ("model.width", r"model is unet, which has base, .*; yollo has it: add --set model=yollo\."),
    ],
)
def test_a_field_of_another_kind_names_the_kinds_that_have_it(field, message):
    with pytest.raises(InputError, match=message):
        override(make(loss=CrossEntropy()), field, "1")


def test_switching_a_kind_starts_from_its_defaults():
    assert override(make(), "loss", "cross_entropy") == make(loss=CrossEntropy())
    assert override(make(), "model", "unet") == make(model=UNetSpec())


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("loss.alhpa", "1", r"no field loss\.alhpa\. Did you mean loss\.alpha\?"),
        ("los.alpha", "1", r"Did you mean loss\.alpha\?"),
        ("loss.alpha.x", "1", r"no field loss\.alpha\.x"),
        ("loss.kind", "focal", r"no field loss\.kind"),
        ("train", "3", r"no field train: it holds train\.steps, .* Give one of these"),
        ("los", "focal", r"no field los\. Did you mean loss\? CONFIG has name, data, model, loss"),
        ("trian.steps", "3", r"no field trian\.steps\. Did you mean train\.steps\?"),
        ("train.mesh.dat", "1", r"Did you mean train\.mesh\.data\? train\.mesh has data, fsdp"),
        ("base", "8", r"no field base: CONFIG has .* Did you mean model\.base\?"),
        ("loss", "focl", "Did you mean focal?"),
        ("loss", "", "There are: cross_entropy"),
        ("loss.alpha", "much", r"loss\.alpha must be a number or None; got 'much'\."),
        ("train.steps", "2.5", r"train\.steps must be a whole number; got 2\.5\."),
        ("labels.share", "[1]", r"labels\.share must be a number or None; got \[1\]\."),
        ("train.steps", "0", r"train\.steps must be at least 1; got 0"),
        ("augment.dihedral", "no", r"augment\.dihedral must be True or False; got 'no'"),
        ("tiles.tile_px", "250", r"divisible by 4.*Try 248 or 252"),
    ],
)
def test_a_wrong_override_is_one_clear_error(field, text, message):
    with pytest.raises(InputError, match=message):
        override(make(), field, text)


CHANGES = {
    "seed": 1,
    "loss": dataclasses.replace(make().loss, alpha=0.2),
    "tiles": TileSpec(tile_px=128),
    "train": TrainSpec(steps=5, log_every=1, workers=3, batch_size=16),
    "name": "another",
    "predict": PredictSpec(threshold=0.1),
    "data": FolderSource(root="there", train=("a*",), test=("b",), keep=0.5),
}


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("seed", ["seed"]),
        ("loss", ["loss.alpha"]),
        ("tiles", ["tiles.tile_px"]),
        ("train", ["train.batch_size", "train.steps"]),
        ("name", []),
        ("predict", []),
        ("data", ["data.keep"]),
    ],
)
def test_exactly_the_fields_that_change_the_mathematics_are_named(field, names):
    found = changed_mathematics(make(), make(**{field: CHANGES[field]}))
    assert [change.split(":")[0] for change in found] == names


def test_a_change_shows_the_old_and_the_new_value():
    assert changed_mathematics(make(), make(seed=1)) == ["seed: 0 -> 1"]
    switched = changed_mathematics(make(), make(loss=CrossEntropy()))
    assert "loss.kind: focal_exclusive -> cross_entropy" in switched
    assert "loss.alpha: 0.1 -> (absent)" in switched


def test_loops_that_cannot_be():
    for wrong in ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every"):
        with pytest.raises(InputError, match=wrong):
            TrainSpec(**{wrong: 0})
    for name, value in (("ema_decay", 1.0), ("workers", -1)):
        with pytest.raises(InputError, match=name):
            TrainSpec(**{name: value})
    for name, value in (("threshold", 0.0), ("core_px", 0), ("batch_size", 0)):
        with pytest.raises(InputError, match=name):
            PredictSpec(**{name: value})


@pytest.mark.parametrize("loss", [NNPU(), GEKL(prior=0.1)])
def test_a_loss_of_the_whole_batch_has_no_micro_batches(loss):
    assert make(loss=loss).train.micro_batches == 1
    with pytest.raises(InputError, match=r"micro_batches must be 1 with the loss .* got 4\. Try"):
        make(loss=loss, train=TrainSpec(micro_batches=4))
    with pytest.raises(InputError, match="micro_batches"):
        override(make(train=TrainSpec(micro_batches=4)), "loss", "nnpu")


HEAD = """\
from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import UNetSpec
"""
GOOD = """
def get_config():
    return ExperimentConfig(
        name="x", data=FolderSource(train=("a",)), model=UNetSpec(), loss=CrossEntropy()
    )
"""


def write(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(HEAD + textwrap.dedent(text))
    return path


def test_a_python_config(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.data.train == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 5: SyntaxError: "),
        ("import nonexistent_module\n", "line 5: ModuleNotFoundError: No module named"),
        ("\n\ndef get_config():\n    return 1 / 0\n", "line 8: ZeroDivisionError: division by zero"),
        (GOOD.replace("UNetSpec()", "UNetSpec(dept=3)"), "line 8: (?s:.*)'dept'"),
        (GOOD.replace("UNetSpec()", "UNetSpec(depth=99)"), r"line 8: depth must be between 1 and 8"),
        (GOOD.replace('"x"', "3"), r"name"),
        (GOOD.replace("CrossEntropy()", "7"), r"loss"),
        ("def get_config():\n    return {}\n", "must define get_config.* got dict"),
        ("x = 1\n", "must define get_config.* got NoneType"),
    ],
)
def test_an_error_in_a_python_config_names_file_and_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_config_names_the_nearest(tmp_path):
    write(tmp_path, GOOD, "unet_mine.py")
    with pytest.raises(InputError, match=r"Did you mean .*unet_mine\.py\?"):
        load_config(tmp_path / "unet_mien.py")
    with pytest.raises(InputError, match="no config file"):
        load_config(tmp_path)
