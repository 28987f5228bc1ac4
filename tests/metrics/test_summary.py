"""The evaluation: its points, its survival of JSON, and paired comparison from what is stored."""

import json

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import (
    best_threshold,
    dice,
    dice_of,
    difference,
    histograms,
    operating_thresholds,
    summarise,
)

NAMES = [f"image {k}" for k in range(6)]


def counted(noise: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    truth = generator.random((6, 30, 30)) < 0.3
    p = np.clip(0.25 + 0.4 * truth + noise * generator.normal(size=truth.shape), 0, 1)
    return np.stack([histograms(a, b) for a, b in zip(p, truth)])


def objects_at(thresholds: dict[str, float]) -> dict[float, np.ndarray]:
    return {t: np.array([[k, 1, 2] for k in range(6)]) for t in thresholds.values()}


def test_operating_points_with_their_sources():
    counts = counted(0.2)
    objects = objects_at(operating_thresholds(counts, 0.4, 0.6472))
    carried = {"threshold_carried": 0.4, "elkan_noto_c": 0.6472}
    found = summarise(counts, objects, split="test", names=NAMES, seed=0, **carried)
    assert found["task"] == "segmentation"
    points = found["operating_points"]
    assert {name: (p["threshold"], p["source"]) for name, p in points.items()} == {
        "fixed": (0.5, "fixed"),
        "carried_over": (0.4, "validation"),
        "elkan_noto": (0.324, "validation positives"),
        "oracle": (best_threshold(counts), "this split"),
    }
    assert points["carried_over"]["dice_image"]["mean"] == pytest.approx(dice(counts, 0.4).mean(), abs=1e-12)
    assert points["carried_over"]["dice_pooled"]["mean"] == dice(counts.sum(0), 0.4)
    assert {name: p["c"] for name, p in points.items() if "c" in p} == {"elkan_noto": 0.6472}
    assert points["elkan_noto"]["dice_pooled"]["mean"] == dice(counts.sum(0), 0.324)
    assert points["oracle"]["dice_pooled"]["mean"] >= points["fixed"]["dice_pooled"]["mean"]
    assert points["fixed"]["object_f1"]["mean"] == dice_of(np.array([15, 6, 12]))
    curve = dict(zip(found["dice_by_threshold"]["threshold"], found["dice_by_threshold"]["dice"]))
    assert curve[0.4] == dice(counts.sum(0), 0.4)
    for point in points.values():
        for measure in ("dice_image", "dice_pooled", "iou_image", "iou_pooled", "object_f1"):
            assert point[measure]["low"] <= point[measure]["mean"] <= point[measure]["high"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_validation_or_objects_the_entries_are_absent():
    found = summarise(counted(0.2), split="test", names=NAMES, seed=0)
    assert list(found["operating_points"]) == ["fixed", "oracle"]
    assert "object_f1" not in found["operating_points"]["fixed"]
    assert "objects" not in found["per_image"][0]["points"]["fixed"]


def test_difference_from_stored_counts():
    clean, noisy = (
        summarise(counted(noise), split="test", names=NAMES, threshold_carried=0.5, seed=0)
        for noise in (0.1, 0.5)
    )
    for measure in ("dice_pooled", "dice_image", "iou_pooled"):
        gain = difference(clean, noisy, measure=measure, seed=0)
        expected = (
            clean["operating_points"]["carried_over"][measure]["mean"]
            - noisy["operating_points"]["carried_over"][measure]["mean"]
        )
        assert gain["mean"] == pytest.approx(expected, abs=1e-12)
        assert 0 < gain["low"] < gain["mean"] < gain["high"]


def test_the_rows_of_images_are_enough_for_a_paired_bootstrap_at_the_elkan_noto_point():
    one, other = (
        json.loads(json.dumps(summarise(counted(noise), split="test", names=NAMES, elkan_noto_c=c, seed=0)))
        for noise, c in ((0.2, 0.66), (0.5, 0.5))
    )
    for measure in ("dice_pooled", "dice_image", "iou_image"):
        gain = difference(one, other, point="elkan_noto", measure=measure, seed=0)
        means = [e["operating_points"]["elkan_noto"][measure]["mean"] for e in (one, other)]
        assert gain["mean"] == pytest.approx(means[0] - means[1], abs=1e-12)
        assert gain["low"] < gain["mean"] < gain["high"]
    old = summarise(counted(0.2), split="test", names=NAMES, seed=0)
    with pytest.raises(InputError, match="elkan_noto"):
        difference(one, old, point="elkan_noto", seed=0)


def test_what_does_not_fit_is_refused():
    counts = counted(0.2)
    with pytest.raises(InputError, match=r"0\.5 is missing"):
        summarise(counts, {0.3: np.zeros((6, 3), int)}, split="test", names=NAMES, seed=0)
    with pytest.raises(InputError, match="at least one image"):
        summarise(counts[:0], split="test", names=[], seed=0)
    with pytest.raises(InputError, match=r"in \(0, 1\]; got 0"):
        summarise(counts, split="test", names=NAMES, elkan_noto_c=0.0, seed=0)
    with pytest.raises(InputError, match="6 images and 1 names"):
        summarise(counts, split="test", names=["one"], seed=0)
    full = summarise(counts, split="test", names=NAMES, seed=0)
    part = summarise(counts[1:], split="test", names=NAMES[1:], seed=0)
    with pytest.raises(InputError, match="image 0"):
        difference(full, part, seed=0)
    with pytest.raises(InputError, match="carried_over"):
        difference(full, full, seed=0)
