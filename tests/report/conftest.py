"""Two small evaluations, one clearly better than the other."""

import numpy as np
import pytest

from sparseshot_jax.metrics import histograms, operating_thresholds, summarise


@pytest.fixture(scope="session")
def evaluations() -> dict:
    found = {}
    for name, noise in (("sharp", 0.1), ("dull <&>", 0.5)):
        generator = np.random.default_rng(0)
        truth = generator.random((5, 20, 20)) < 0.3
        p = np.clip(0.25 + 0.4 * truth + noise * generator.normal(size=truth.shape), 0, 1)
        counts = np.stack([histograms(a, b) for a, b in zip(p, truth)])
        objects = {
            t: np.array([[k, 1, 2] for k in range(5)]) for t in operating_thresholds(counts, 0.4).values()
        }
        found[name] = summarise(
            counts, objects, split="test", names=list("abcde"), threshold_carried=0.4, seed=0
        )
    return found


@pytest.fixture(scope="session")
def log() -> list[dict]:
    rows = []
    for step in range(1000):
        rows.append(
            {
                "event": "train",
                "step": step,
                "loss": 1 / (1 + step),
                "capped_loss": 2 / (1 + step),
                "keep_rate": 1.0,
                "p_annotated": 0.5,
                "p_unannotated": 0.1,
                "rho": 0.6,
                "learning_rate": 1e-3,
                "images_per_second": 10.0,
                "wait_share": 0.25,
            }
        )
        if step % 100 == 99:
            rows.append({"event": "validation", "step": step, "dice_pooled": 0.7, "threshold": 0.4})
    return rows
