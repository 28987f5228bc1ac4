"""Who may import whom. The order is the package's: change both together, and say why."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparseshot_jax

PACKAGE = Path(sparseshot_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAME = "sparseshot_jax"

# Upward: a room imports rooms of earlier lines, and files of its own. Rooms of one line do not meet.
ORDER = [
    {"errors", "types", "fields", "hardware", "collectives", "flops", "operations"},
    {"codec", "losses", "models", "metrics", "data"},
    {"training"},
    {"predict"},
    {"evaluate", "efficiency"},
    {"report", "ablate"},
    {"specs", "search", "choice"},
    {"config"},
    {"programs", "find", "compile_cache", "label_facts"},
    {"run_folder"},
    {"run"},
    {"pictures", "trial_scores"},
    {"experiment"},
    {"rounds"},
    {"sweep", "profile"},
    {"curve"},
    {"console"},
    {"demo"},
    {"doctor"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, wherever in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
            if node.module == NAME:
                found |= {f"{NAME}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith(NAME + ".")}


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    room = room_of(path)
    if room == "__init__":
        return
    for other in rooms_imported(path) - {room}:
        if room == other == "errors":
            continue
        below = LEVEL[other] < LEVEL[room] or (room, other) == ("types", "errors")
        assert below, f"{path.relative_to(PACKAGE)} imports {other}, which is not below {room}"


def importers(*names):
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for name in imports(path)
        if any(name == wanted or name.startswith(wanted + ".") for wanted in names)
    }


def test_one_door_to_each_library_whose_interface_moves():
    assert importers("orbax") == {"training/checkpoint.py"}  # and checkpoint_s3, which mends it
    assert importers("jax.sharding") == MESHED
    assert importers("optax") <= {"training/optimizer.py", "training/step.py"}
    assert importers("grain") == {"data/pipeline.py"}
    assert {name.split("/")[0] for name in importers("tyro")} == {"cli"}
    assert importers("fastslide", "openslide") <= {"data/slides/backends.py", "doctor.py"}
    assert {name.split("/")[0] for name in importers("matplotlib")} <= {"report", "predict"}
    assert importers("tensorflow", "torch", "tensorboardX") <= {"training/tensorboard.py"}


MESHED = {"training/mesh.py", "training/sharding.py", "training/trials.py"}


def test_only_sharding_knows_of_a_mesh():
    """Others hand round what it makes; none of its terms is theirs."""
    terms = {"Mesh", "NamedSharding", "PartitionSpec", "AxisType", "shard_map", "pmap"}
    for path in FILES:
        tree = ast.walk(ast.parse(path.read_text()))
        used = {node.id for node in tree if isinstance(node, ast.Name)}
        tree = ast.walk(ast.parse(path.read_text()))
        used |= {node.attr for node in tree if isinstance(node, ast.Attribute)}
        if path.relative_to(PACKAGE).as_posix() not in MESHED:
            assert not used & terms, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short_and_have_no_catch_all_name(path):
    assert len(path.read_text().splitlines()) <= 320
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


HEAVY = ("tensorflow", "torch", "openslide", "fastslide", "matplotlib")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sparseshot_jax", (*HEAVY, "jax", "numpy")),
        ("import sparseshot_jax.losses", (*HEAVY, "grain", "orbax", "tensorflow_datasets", "flax", "optax")),
        ("from sparseshot_jax import losses", (*HEAVY, "grain", "orbax", "tensorflow_datasets")),
        ("import sparseshot_jax.cli", (*HEAVY[:2], "tensorflow_datasets")),
        ("import sparseshot_jax.experiment", (*HEAVY[:2], "tensorflow_datasets")),
    ],
)
def test_an_import_brings_no_more_than_it_must(statement, absent):
    code = f"{statement}\nimport sys\nprint(*[name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_public_names_are_there():
    for name in sparseshot_jax.__all__:
        assert getattr(sparseshot_jax, name) is not None
    assert dir(sparseshot_jax) == sparseshot_jax.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = sparseshot_jax.nothing
