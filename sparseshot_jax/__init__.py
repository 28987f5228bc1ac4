"""Train cell detectors and segmenters in JAX when most objects are not annotated.

The names below load their modules on first use: `import sparseshot_jax` is quick, and
`sparseshot_jax.losses` needs jax alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparseshot_jax import losses, metrics, models
    from sparseshot_jax.config import ExperimentConfig
    from sparseshot_jax.errors import InputError
    from sparseshot_jax.experiment import Run, load
    from sparseshot_jax.rounds import train

_HOME = {
    "ExperimentConfig": "sparseshot_jax.config",
    "InputError": "sparseshot_jax.errors",
    "Run": "sparseshot_jax.experiment",
    "load": "sparseshot_jax.experiment",
    "train": "sparseshot_jax.rounds",
}
_MODULES = ("losses", "metrics", "models")

__all__ = [
    "ExperimentConfig",
    "InputError",
    "Run",
    "load",
    "losses",
    "metrics",
    "models",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sparseshot_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sparseshot_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
