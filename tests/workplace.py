"""A small data set, a config and a driver in one folder, for tests that run the command line in processes."""

import textwrap

import numpy as np
from PIL import Image

from sparseshot_jax import programs
from sparseshot_jax.config import load_config
from sparseshot_jax.training.checkpoint import Checkpoints


class Workplace:
    """Three images of `side` pixels with two objects each; processes here share compilations."""

    def __init__(self, folder, *, side, config, driver):
        """`config`: text with {root!r}, the data's; `driver`: a program that calls the command line."""
        self.folder = folder
        rng = np.random.default_rng(0)
        for name in ("images", "instances"):
            (folder / "data" / name).mkdir(parents=True)
        for k in range(3):
            ids = np.zeros((side, side), np.uint16)
            ids[4 + k : 14 + k, 6:16] = 1
            ids[18:28, 15 + k : 25 + k] = 2
            image = np.where(ids[..., None] > 0, 110, 220) + rng.integers(-9, 9, (side, side, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / "data" / "images" / f"{k}.png")
            Image.fromarray(ids).save(folder / "data" / "instances" / f"{k}.png")
        self.config = folder / "config.py"
        self.config.write_text(config.format(root=str(folder / "data")))
        self.driver = folder / "driver.py"
        self.driver.write_text(textwrap.dedent(driver))
        self.shared = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }

    def state(self, run):
        """State and position of the newest checkpoint."""
        config = load_config(run / "config.json")
        with Checkpoints(run / "checkpoints") as checkpoints:
            return checkpoints.restore(programs.fresh_state(config))
