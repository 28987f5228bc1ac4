"""The pictures of one image: which columns, and which object in which colour."""

import numpy as np
import pytest

from sparseshot_jax.report import COLOURS, Panel
from sparseshot_jax.report.panels import given_layers, prediction_layers
from sparseshot_jax.types import Ground

SIDE = 64


def panel(**changes) -> Panel:
    truth = np.zeros((SIDE, SIDE), np.int32)
    truth[4:14, 4:14], truth[30:40, 30:40] = 1, 2
    p = np.zeros((SIDE, SIDE), np.float32)
    p[4:14, 4:14], p[50:60, 50:60] = 0.9, 0.8
    fields = {
        "title": "one",
        "image": np.full((SIDE, SIDE, 3), 200, np.uint8),
        "predictions": {"ours": p},
        "given": np.zeros((SIDE, SIDE), np.uint8),
        "truth": truth,
    }
    return Panel(**(fields | changes))


def places(layers) -> dict[tuple, set]:
    """Colour -> the corners of what is drawn in it."""
    return {layer.colour: set(map(tuple, np.argwhere(layer.labels > 0)[:1])) for layer in layers}


def test_found_false_and_missed_have_their_own_colours():
    one = panel()
    drawn = places(prediction_layers(one.predictions["ours"] > 0.5, one.truth))
    assert drawn[COLOURS["found"]] == {(4, 4)}
    assert drawn[COLOURS["false"]] == {(50, 50)}
    assert drawn[COLOURS["missed"]] == {(30, 30)}


def test_columns_in_order():
    p = panel().predictions["ours"]
    assert list(panel().pictures()) == ["Image", "Given labels", "ours", "Truth"]
    assert list(panel(predictions={"a": p, "b": p}).pictures()) == [
        "Image",
        "Given labels",
        "Truth",
        "a",
        "b",
    ]
    assert list(panel(given=None, truth=None).pictures()) == ["Image", "ours"]


def test_a_threshold_for_each_method():
    p = panel().predictions["ours"]
    strict = panel(predictions={"a": p, "b": p}, threshold={"a": 0.5, "b": 0.95}, truth=None)
    drawn = strict.pictures()
    assert not np.array_equal(drawn["a"], drawn["Image"])
    assert np.array_equal(drawn["b"], drawn["Image"])


@pytest.mark.parametrize(
    ("kind", "colour"),
    [
        (Ground.ANNOTATED, "truth"),
        (Ground.BACKGROUND, "background"),
        (Ground.IGNORED, "ignored"),
    ],
)
def test_each_kind_of_ground_is_drawn_in_its_colour(kind, colour):
    ground = np.full((4, 4), Ground.UNANNOTATED, np.uint8)
    assert all(not layer.labels.any() for layer in given_layers(ground))
    ground[1, 2] = kind
    (layer,) = [layer for layer in given_layers(ground) if layer.labels.any()]
    assert layer.colour == COLOURS[colour]
    assert np.argwhere(layer.labels).tolist() == [[1, 2]]


def test_a_mask_serves_as_truth():
    mask = panel().truth > 0
    assert np.array_equal(panel(truth=mask).pictures()["Truth"], panel().pictures()["Truth"])
