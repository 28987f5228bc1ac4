"""Memory that was given back is there again without the kernel's help."""

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
import numpy as np
from sparseshot_jax.training.allocator import keep_freed_memory

print(keep_freed_memory() if {asked} else None)
np.ones(1 << 23)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of(*, asked, **environment):
    """What `keep_freed_memory` answered, and the page faults of taking 64 MiB eight times."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(asked=asked)],
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_is_kept():
    answer, faults = faults_of(asked=True)
    assert answer == "True"
    assert faults < 64
    assert faults_of(asked=False)[1] >= 8 * 32  # pages are of 2 MiB at most


def test_a_users_own_setting_stands():
    assert faults_of(asked=True, MALLOC_ARENA_MAX="2")[0] == "False"
