"""Compiled programs kept for the next process: the second `train` of a config starts without compiling.

They lie in the folder of everything that can be made anew (`data.storage.cache_folder`), under xla/. It may
be deleted at any time; processes may share it. SPARSESHOT_NO_CACHE=1 switches it off, and JAX's own
JAX_COMPILATION_CACHE_DIR names another one.
"""

import hashlib
import os
import platform
import tempfile
import warnings
from pathlib import Path

import jax

from sparseshot_jax.data.storage import cache_folder

SWITCH = "SPARSESHOT_NO_CACHE"
_SINCE = (0, 10, 2)  # jax that loads what it compiled for a CPU with AVX-512 without complaint
_LEAST_S = 0.05  # seconds; many small programs make up a tenth of a start


def enable() -> Path | None:
    """Let JAX keep what it compiles; the folder, or None where it stays without one.

    No error: where the folder cannot be written, every process compiles for itself, as without it.
    """
    if os.environ.get(SWITCH, "").lower() not in ("", "0", "false", "no") or jax.__version_info__ < _SINCE:
        return None
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(chosen)
    folder = cache_folder() / "xla" / _cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    # An entry that another process is still writing, a full disk: the program is compiled, that is all.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_S)
    return folder


def _cpu() -> str:
    """A name for this processor's instructions.

    JAX's key of a program does not hold them: loaded on another model of processor, it would complain at
    length, and may die of an instruction that is not there (XLA says so itself).
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    # x86: "flags"; Arm: "Features". The first core stands for all.
    told = [next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")]
    told += [next((line for line in lines if line.startswith("Features")), "")]
    text = "\0".join((platform.machine(), platform.processor(), *told))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
