"""Strict surroundings for every test: 8 CPU devices, checked shapes, no silent broadcasting."""

import importlib.util
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

os.environ["SPARSESHOT_CACHE"] = tempfile.mkdtemp(
    prefix="sparseshot_cache_"
)  # nothing goes to the home folder
os.environ["SPARSESHOT_NO_CACHE"] = "1"  # every test compiles what it tests

from jaxtyping import install_import_hook

# Everything but types.py: a pytree is rebuilt with leaves of any kind (shardings, floats, None).
install_import_hook(
    [
        f"sparseshot_jax.{room}"
        for room in (
            *("losses", "models", "metrics", "data", "training", "predict", "evaluate", "efficiency"),
            *("report", "ablate", "search", "choice", "config", "experiment", "rounds", "trial_scores"),
            *("sweep", "profile", "curve", "cli"),
        )
    ],
    "beartype.beartype",
)

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout (`../shared/data`), where it exists."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Most programs here run for milliseconds, and most of their time is the optimising compiler's.

    The losses are tested as they are used: fused and reordered.
    """
    jax.config.update("jax_disable_most_optimizations", "losses" not in request.path.parts)


def _beside(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def object_store(monkeypatch):
    """s3:// in memory, and over HTTP where AWS_ENDPOINT_URL says; its file system."""
    with _beside("object_store").serving(monkeypatch) as files:
        yield files


@pytest.fixture(scope="session")
def make_workplace():
    """`Workplace` of workplace.py."""
    return _beside("workplace").Workplace


@pytest.fixture
def columns():
    """Width of the terminal that `call` pretends."""
    return 100


@pytest.fixture
def call(capsys, monkeypatch, columns):
    """Exit status and output of one command."""
    from sparseshot_jax import cli

    monkeypatch.setenv("COLUMNS", str(columns))

    def run(*arguments):
        capsys.readouterr()
        try:
            cli.main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run
