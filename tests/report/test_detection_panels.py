"""The pictures of a detection report: which object is a hit, a miss, a false alarm."""

import numpy as np

from sparseshot_jax.report import COLOURS, DetectionPanel, Predicted
from sparseshot_jax.types import Ground

SIDE = 64


def boxes(*centres: tuple[float, float]) -> np.ndarray:
    at = np.array(centres, np.float64).reshape(-1, 2)
    return np.concatenate([at - 4, at + 4], axis=1)


TRUTH = boxes((10, 10), (30, 30))
FOUND = Predicted(
    boxes_yxyx_px=boxes((11, 10), (50, 50), (10, 11), (30, 30)), score=np.array([0.9, 0.8, 0.7, 0.2])
)


def panel(**changes) -> DetectionPanel:
    fields = {
        "title": "one",
        "image": np.full((SIDE, SIDE, 3), 200, np.uint8),
        "mpp": 0.5,
        "predictions": {"ours": FOUND},
        "given": TRUTH[:1],
        "truth": TRUTH,
    }
    return DetectionPanel(**(fields | changes))


def test_hits_misses_and_false_alarms_have_their_own_colours():
    layers = {layer.colour: layer for layer in panel().prediction_layers("ours")}
    # Two lie on the first object, of which one alone is a hit; below the threshold nothing is found.
    assert len(layers[COLOURS["found"]].boxes_yxyx_px) == 1
    assert len(layers[COLOURS["false"]].boxes_yxyx_px) == 2
    assert np.array_equal(layers[COLOURS["missed"]].boxes_yxyx_px, TRUTH[1:])
    assert layers[COLOURS["missed"]].dashed


def test_the_gate_is_in_micrometres():
    near = Predicted(boxes_yxyx_px=boxes((10, 15)), score=np.array([0.9]))  # 5 px off
    for mpp, hits in ((0.5, 1), (1.0, 0)):
        layers = panel(mpp=mpp, predictions={"ours": near}).prediction_layers("ours")
        assert len(layers[-1].boxes_yxyx_px) == hits


def test_columns_in_order():
    assert list(panel().pictures()) == ["Image", "Given labels", "ours", "Truth"]
    two = panel(predictions={"a": FOUND, "b": FOUND})
    assert list(two.pictures()) == ["Image", "Given labels", "Truth", "a", "b"]
    assert list(panel(given=None, truth=None).pictures()) == ["Image", "ours"]


def test_a_threshold_for_each_method():
    strict = panel(predictions={"a": FOUND, "b": FOUND}, threshold={"a": 0.5, "b": 0.95}, truth=None)
    drawn = strict.pictures()
    assert not np.array_equal(drawn["a"], drawn["Image"])
    assert np.array_equal(drawn["b"], drawn["Image"])


def test_ignored_ground_is_shown_under_the_given_labels():
    ground = np.full((SIDE, SIDE), Ground.UNANNOTATED, np.uint8)
    ground[40:] = Ground.IGNORED
    drawn = panel(ground=ground).pictures()
    assert (drawn["Given labels"][-20:] != drawn["Image"][-20:]).all()
    assert np.array_equal(drawn["ours"][-20:], panel().pictures()["ours"][-20:])


def test_the_legend_says_what_is_what_in_words():
    legend = dict(panel(distance_um=2.5).legend())
    assert "hit" in legend[COLOURS["found"]]
    assert "2.5 µm" in legend[COLOURS["found"]]
    assert "false alarm" in legend[COLOURS["false"]]
    assert "miss" in legend[COLOURS["missed"]]
    assert COLOURS["missed"] not in dict(panel(truth=None).legend())
