"""What the sources of single images share: the sparse share of the objects, and what is told of them."""

import dataclasses

import numpy as np

from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.labels import label_ids, wanted
from sparseshot_jax.data.sparsify import nested_subset, without

# Of every source of single images, and not a name or a path: one image has one subset, wherever it lies.
_DATASET = "folder"


def sparse_case(case: Case, keep: float, *, seed: int, image: str) -> Case:
    """The case with the share `keep` of its wanted objects marked, by `nested_subset`."""
    is_object = wanted(case.given, case.labels)
    kept = nested_subset(int(is_object.sum()), keep, seed=seed, dataset=_DATASET, image=image)
    gone = np.zeros(len(is_object), bool)
    gone[is_object] = ~kept
    return dataclasses.replace(case, given=without(case.given, gone, case.labels))


def unknown_note(splits: Splits) -> list[str]:
    """How many objects have no known class: a sentence, or nothing where all have one."""
    cases = [*splits.train, *splits.validation, *splits.test]
    marks = [(case.given if case.truth is None else case.truth, case.labels) for case in cases]
    objects = sum(int(wanted(one, labels).sum()) for one, labels in marks)
    unknown = objects - sum(int((label_ids(one, labels) > 0).sum()) for one, labels in marks)
    if not unknown:
        return []
    return [
        f"{unknown} of {objects} objects are of unknown class: to be found, and left out of class measures."
    ]
