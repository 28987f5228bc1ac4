"""What one process compiled another finds, quietly; and no cache is no harm."""

import os
import subprocess
import sys

import jax
import pytest

from sparseshot_jax import cli, compile_cache

PROGRAM = """
import jax, jax.numpy as jnp
from jax._src import monitoring
from sparseshot_jax import compile_cache
print(compile_cache.enable())
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
def f(x):
    for _ in range(30):
        x = jnp.tanh(x @ x) + jnp.fft.fft(x).real
    return x.sum()
print(float(jax.jit(jax.grad(f))(jnp.ones((8, 8)))[0, 0]), sum(hits))
"""


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """A cache that may be used, and JAX's settings as they were afterwards."""
    monkeypatch.delenv("SPARSESHOT_NO_CACHE", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("SPARSESHOT_CACHE", str(tmp_path / "cache"))
    yield monkeypatch
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def folder_of_jax():
    return jax.config.values["jax_compilation_cache_dir"]


def test_the_folder_lies_in_the_cache_of_the_project(settings, tmp_path):
    folder = compile_cache.enable()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "cache" / "xla"
    assert folder_of_jax() == str(folder)
    assert compile_cache.enable() == folder
    assert list(folder.iterdir()) == []  # the trial left nothing


def test_another_processor_has_another_folder(settings):
    here = compile_cache._cpu()
    settings.setattr(compile_cache.platform, "machine", lambda: "riscv64")
    assert compile_cache._cpu() != here


@pytest.mark.parametrize("value", ["1", "true"])
def test_a_variable_switches_it_off(settings, value):
    settings.setenv("SPARSESHOT_NO_CACHE", value)
    assert compile_cache.enable() is None
    assert folder_of_jax() is None


def test_a_version_of_jax_that_complains_goes_without(settings):
    settings.setattr(jax, "__version_info__", (0, 10, 1))
    assert compile_cache.enable() is None


def test_the_users_own_folder_is_left_to_jax(settings, tmp_path):
    settings.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert compile_cache.enable() == tmp_path / "mine"
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_no_cache(settings, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert compile_cache.enable() is None
    assert folder_of_jax() is None


def test_verbs_that_train_have_it_and_the_one_that_times_the_compiler_has_not(settings):
    enabled = []
    settings.setattr(compile_cache, "enable", lambda: enabled.append(True))
    for verb in cli.VERBS:
        enabled.clear()
        settings.setitem(cli.VERBS, verb, (lambda arguments: None, ""))
        cli.main([verb])
        assert bool(enabled) == (verb not in ("profile", "data", "doctor")), verb


def run(folder):
    environment = {k: v for k, v in os.environ.items() if k not in ("SPARSESHOT_NO_CACHE", "XLA_FLAGS")}
    environment["SPARSESHOT_CACHE"] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors == ""  # loading makes no noise
    folder, numbers = output.splitlines()
    value, hits = numbers.split()
    return folder, float(value), int(hits)


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_says_nothing(tmp_path):
    """Two write at one time; a third reads; a fourth finds one entry cut short, as by a full disk."""
    first, second = run(tmp_path), run(tmp_path)
    (folder, value, hits), (_, other, _) = ended(first), ended(second)
    assert (value, hits) == (other, 0)
    entries = sorted(path for path in (tmp_path / "xla").rglob("*-cache"))
    assert entries
    assert str(entries[0].parent) == folder
    _, value, hits = ended(run(tmp_path))
    assert (value, hits >= 1) == (other, True)
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    _, value, hits = ended(run(tmp_path))
    assert (value, hits) == (other, 0)
