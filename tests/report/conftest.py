"""Two small evaluations, one clearly better than the other."""

import copy

import numpy as np
import pytest

from sparseshot_jax.metrics import (
    ImageObjects,
    histograms,
    operating_thresholds,
    summarise,
    summarise_detections,
)


@pytest.fixture(scope="session")
def evaluations() -> dict:
    found = {}
    for name, noise in (("sharp", 0.1), ("dull <&>", 0.5)):
        generator = np.random.default_rng(0)
        truth = generator.random((5, 20, 20)) < 0.3
        p = np.clip(0.25 + 0.4 * truth + noise * generator.normal(size=truth.shape), 0, 1)
        counts = np.stack([histograms(a, b) for a, b in zip(p, truth)])
        objects = {
            t: np.array([[k, 1, 2] for k in range(5)])
            for t in operating_thresholds(counts, 0.4, 0.614).values()
        }
        about = {"threshold_carried": 0.4, "elkan_noto_c": 0.614}
        found[name] = summarise(counts, objects, split="test", names=list("abcde"), seed=0, **about)
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


@pytest.fixture(scope="session")
def detections() -> dict:
    """Two evaluations of detections with two classes, one clearly better than the other."""
    found = {}
    for name, noise in (("sharp", 0.5), ("dull <&>", 2.5)):
        generator = np.random.default_rng(0)
        truths, predictions = [], []
        for _ in range(4):
            xy = generator.uniform(0, 200, (40, 2))
            label = generator.integers(1, 3, 40)
            truths.append(objects(xy, label, np.ones(40)))
            extra = generator.uniform(0, 200, (10, 2))
            moved = np.concatenate([xy + noise * generator.normal(size=xy.shape), extra])
            score = np.concatenate([generator.beta(5, 2, 40), generator.beta(2, 5, 10)])
            predictions.append(objects(moved, np.append(label, np.ones(10, int)), score))
        found[name] = summarise_detections(
            truths,
            predictions,
            names=list("abcd"),
            class_names=["round", "long"],
            split="test",
            threshold_carried=0.4,
            elkan_noto_c=0.614,
            seed=0,
            exclusive_class="round",
        )
    return found


def objects(xy: np.ndarray, label: np.ndarray, score: np.ndarray) -> ImageObjects:
    boxes = np.concatenate([xy - 4, xy + 4], axis=1)
    return ImageObjects(xy_um=xy, boxes_um=boxes, label=label, score=score)


@pytest.fixture(scope="session")
def one_class(detections) -> dict:
    """The same with one class."""
    bare = copy.deepcopy(detections["sharp"])
    bare["class_names"], bare["exclusive_class"] = ["round"], None
    del bare["ap_per_class"]["long"]
    for point in bare["operating_points"].values():
        del point["per_class"]["long"]
        point["exclusive_recall"] = {}
    return bare
