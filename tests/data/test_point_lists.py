import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.point_lists import UNKNOWN, join_lists, used_points

LISTS = Annotations.from_points(
    [[10, 10], [20, 20], [30, 30], [10.5, 10], [30, 30.9], [50, 50], [70, 70]],
    ["detection"] * 3 + ["a", "b", "b", "other"],
)


def test_a_detection_takes_the_class_within_a_pixel():
    joined = join_lists(
        np.array([[10.0, 10.0], [20.0, 20.0]]), [np.array([[10.0, 11.0]]), np.array([[21.1, 20.0]])]
    )
    assert joined.class_ids.tolist() == [0, UNKNOWN, 1]
    assert joined.added == 1
    assert joined.xy_px.tolist() == [[10, 10], [20, 20], [21.1, 20]]


def test_all_lists_together_where_the_one_of_all_objects_has_no_class():
    labels = LabelSpec(classes=("a", "b"), unknown_class=("detection",), unused=("other",))
    used, added = used_points(LISTS, "detection", labels)
    names = [used.class_names[k] for k in used.class_ids]
    assert names == ["a", "detection", "b", "b", "other"]
    assert added == 1
    assert used.xy_px[:3].tolist() == [[10, 10], [20, 20], [30, 30]]  # where the detections are


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (LabelSpec(), 3),
        (LabelSpec(classes=("a", "b"), unused=("detection", "other")), 7),
        (LabelSpec(classes=("detection",), unknown_class=("a", "b"), unused=("other",)), 7),
    ],
)
def test_otherwise_one_list_or_every_list_as_it_is(labels, count):
    used, added = used_points(LISTS, "detection", labels)
    assert len(used) == count
    assert added == 0


def test_without_such_a_list_nothing_is_joined():
    labels = LabelSpec(classes=("a",), unknown_class=("detection",))
    assert used_points(LISTS, "cells", labels) == (LISTS, 0)
