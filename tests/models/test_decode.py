"""From a detector's output to objects."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.decode import DecodeSpec, candidates, detect
from sparseshot_jax.types import CellOutput

STRIDE = 8
SOFT = DecodeSpec(soft_sigma=0.5)
PEAKS = DecodeSpec(by="distance", distance_um=6.0, peaks=True)
traces = []


@functools.partial(jax.jit, static_argnames=("spec", "stride_px"))
def jitted(output, **keywords):
    traces.append(keywords)
    return detect(output, **keywords)


peaks = jax.jit(functools.partial(candidates, peaks=True))


def make_output(rng, *, images=2, height=9, width=11, anchors=1, classes=3, size_px=20.0):
    """Boxes round places in their cells, scores of every size."""
    shape = (images, height, width, anchors)
    row, column = np.mgrid[:height, :width]
    centre = (np.stack([row, column], -1)[:, :, None] + rng.random((*shape, 2))) * STRIDE
    sides = size_px * np.exp(rng.normal(0, 0.3, (*shape, 2)))
    boxes = np.round(4 * np.concatenate([centre - sides / 2, centre + sides / 2], -1)) / 4
    return CellOutput(
        objectness=jnp.asarray(rng.normal(-1, 2, shape), jnp.float32),
        boxes_yxyx_px=jnp.asarray(boxes, jnp.float32),
        classes=jnp.asarray(rng.normal(size=(*shape, classes)), jnp.float32),
        anchors_px=jnp.full((anchors, 2), size_px),
    )


def found(output, spec, *, threshold=0.02, mpp=0.25):
    limits = spec.limits(mpp=mpp)
    detections, left_out = jitted(output, spec=spec, stride_px=STRIDE, threshold=threshold, **limits)
    return jax.tree.map(np.asarray, detections), np.asarray(left_out)


def iou(one, other):
    inside = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0).prod()
    return inside / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inside)


def too_near(spec, one, other):
    if spec.by == "iou":
        return iou(one, other) > spec.iou
    return np.hypot(*(one[:2] + one[2:] - other[:2] - other[2:]) / 2) < spec.distance_um / 0.25


def greedy(output, spec, threshold):
    """Rows (place) of what is found in the first image, best first, by a plain loop."""
    score = 1 / (1 + np.exp(-np.asarray(output.objectness[0], float).ravel()))
    boxes = np.asarray(output.boxes_yxyx_px[0]).reshape(-1, 4)
    label = np.asarray(output.classes[0]).reshape(len(boxes), -1).argmax(-1)
    kept = []
    for i in np.argsort(-score, kind="stable"):
        rivals = [j for j in kept if not spec.class_aware or label[i] == label[j]]
        if score[i] > threshold and not any(too_near(spec, boxes[i], boxes[j]) for j in rivals):
            kept.append(i)
    return kept, score, boxes


@pytest.mark.parametrize(
    ("anchors", "spec"),
    [(1, DecodeSpec()), (3, DecodeSpec(by="distance")), (3, DecodeSpec(iou=0.3, class_aware=True))],
    ids=["iou", "distance", "class-aware"],
)
def test_objects_are_those_of_a_plain_loop(spec, anchors):
    output = make_output(np.random.default_rng(0), anchors=anchors)
    detections, left_out = found(output, spec, threshold=0.1)
    kept, score, boxes = greedy(output, spec, 0.1)
    count = detections.valid[0].sum()
    assert count == len(kept) > 5
    np.testing.assert_array_equal(detections.boxes_yxyx_px[0, :count], boxes[kept])
    np.testing.assert_allclose(detections.score[0, :count], score[kept], rtol=1e-6)  # float32
    logits = np.asarray(output.classes[0], float).reshape(len(boxes), -1)[kept]
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(detections.classes[0, :count], share, rtol=1e-5)  # float32's exp
    np.testing.assert_array_equal(left_out, 0)


@pytest.mark.parametrize("spec", [DecodeSpec(), SOFT, PEAKS], ids=["hard", "soft", "peaks"])
def test_a_higher_threshold_filters_by_score(spec):
    output = make_output(np.random.default_rng(1))
    low, _ = found(output, spec, threshold=0.02)
    high, _ = found(output, spec, threshold=0.8)
    assert 0 < high.valid.sum() < low.valid.sum()
    same = low.score > 0.8
    np.testing.assert_array_equal(same, high.valid)
    np.testing.assert_array_equal(low.boxes_yxyx_px[same], high.boxes_yxyx_px[same])
    np.testing.assert_array_equal(low.score[same], high.score[same])


@pytest.mark.parametrize("spec", [DecodeSpec(), SOFT], ids=["hard", "soft"])
def test_best_first_and_the_rest_empty(spec):
    detections, _ = found(make_output(np.random.default_rng(2)), spec, threshold=0.2)
    assert (np.diff(detections.score, axis=1) <= 0).all()
    assert (np.diff(detections.valid.astype(int), axis=1) <= 0).all()
    assert detections.valid.any()
    assert not detections.valid.all()
    for values in (detections.boxes_yxyx_px, detections.score, detections.classes):
        assert not values[~detections.valid].any()
    np.testing.assert_allclose(detections.classes[detections.valid].sum(-1), 1, rtol=1e-6)


def test_the_best_stay_where_there_are_too_many_and_the_others_are_counted():
    output = make_output(np.random.default_rng(3))
    every, _ = found(output, DecodeSpec())
    best, left_out = found(output, DecodeSpec(max_objects=7))
    assert best.score.shape == (2, 7)
    np.testing.assert_array_equal(best.score, every.score[:, :7])
    np.testing.assert_array_equal(left_out, every.valid.sum(1) - 7)


def test_nothing_above_the_threshold():
    output = make_output(np.random.default_rng(4))
    detections, left_out = found(output, DecodeSpec(), threshold=1.0)
    assert not detections.valid.any()
    assert not left_out.any()
    # No more places than cells.
    assert detections.boxes_yxyx_px.shape == (2, 99, 4)


def test_one_class_is_certain():
    _, _, classes, _ = peaks(make_output(np.random.default_rng(5), classes=1), threshold=0.5)
    np.testing.assert_array_equal(classes, np.ones((2, 99, 1)))


def test_broken_numbers_are_no_candidates():
    output = make_output(np.random.default_rng(6))
    broken = dataclasses.replace(
        output,
        objectness=output.objectness.at[0, 0, 0].set(jnp.nan),
        boxes_yxyx_px=output.boxes_yxyx_px.at[0, 0, 1, 0, 2].set(jnp.inf),
        classes=output.classes.at[0, 0, 2].set(jnp.nan),
    )
    *_, valid = jax.jit(candidates)(broken, threshold=0.0)
    np.testing.assert_array_equal(np.argwhere(~np.asarray(valid)), [[0, 0], [0, 1], [0, 2]])
    detections, _ = found(broken, DecodeSpec())
    assert np.isfinite(detections.boxes_yxyx_px).all()
    assert np.isfinite(detections.classes).all()


@pytest.mark.parametrize("anchors", [1, 2])
def test_peaks_are_the_highest_of_three_by_three(anchors):
    output = make_output(np.random.default_rng(7), anchors=anchors)
    z = np.asarray(output.objectness)
    *_, valid = peaks(output, threshold=0.1)
    valid = np.asarray(valid).reshape(z.shape)
    for b, y, x, a in np.ndindex(z.shape):
        highest = z[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
        assert valid[b, y, x, a] == (z[b, y, x, a] == highest and 1 / (1 + np.exp(-z[b, y, x, a])) > 0.1)


def test_peaks_that_tie_are_told_apart_by_suppression():
    """Two saturated cells side by side: both are peaks, the first is the object."""
    output = make_output(np.random.default_rng(8))
    z = jnp.full_like(output.objectness, -9.0).at[0, 4, 4:6].set(30.0)
    output = dataclasses.replace(output, objectness=z)
    assert peaks(output, threshold=0.1)[3].sum() == 2
    detections, _ = found(output, PEAKS, threshold=0.1)
    np.testing.assert_array_equal(detections.boxes_yxyx_px[0, 0], output.boxes_yxyx_px[0, 4, 4, 0])
    assert detections.valid.sum() == 1


def test_new_numbers_compile_nothing():
    output = make_output(np.random.default_rng(9))
    before = len(traces)
    for threshold, number in ((0.02, 0.5), (0.5, 0.3), (0.9, 0.1)):
        numbers = {"iou": number, "distance_px": 10 * number, "soft_sigma": number}
        jitted(output, spec=DecodeSpec(), stride_px=STRIDE, threshold=threshold, **numbers)
    assert len(traces) - before <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"by": "area"}, "by must be one of iou, distance; got 'area'"),
        ({"iou": 1.5}, "iou must lie between 0 and 1, both excluded; got 1.5"),
        ({"distance_um": 0.0}, "distance_um must be above 0"),
        ({"soft_sigma": -1.0}, "soft_sigma must be 0"),
        ({"soft_sigma": 0.5, "by": "distance"}, "needs by='iou'"),
        ({"max_objects": 0}, "max_objects must be at least 1"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        DecodeSpec(**wrong)


def test_limits_follow_the_resolution():
    spec = DecodeSpec(by="distance", distance_um=3.0)
    assert spec.limits(mpp=0.5)["distance_px"] == 6.0
    with pytest.raises(InputError, match="mpp must be above 0"):
        spec.limits(mpp=0.0)
