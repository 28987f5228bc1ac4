"""Segment the tumour nuclei of a synthetic slide of which 30 % are marked: the embedded example.

    sparseshot train configs/unet_demo.py

2 CPU cores, about a minute. Expected on the test slide: Dice 0.9 at p > 0.5. `sparseshot demo` trains it
beside cross-entropy and compares.
"""

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.demo import demo_config


def get_config() -> ExperimentConfig:
    return demo_config()
