"""Detect the tumour nuclei of a synthetic slide of which 30 % are marked: the embedded example for boxes.

    sparseshot train configs/yollo_demo.py

2 CPU cores, about a minute. Expected on the test slide (`sparseshot evaluate runs/yollo_demo`): F1 within
3 um 0.84 at p > 0.5; with plain cross-entropy (`--loss cross_entropy`) 0.06. `sparseshot demo` trains both.
"""

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.demo import detector_config


def get_config() -> ExperimentConfig:
    return detector_config()
