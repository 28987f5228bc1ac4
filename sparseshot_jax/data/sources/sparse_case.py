"""The sparse share of a single image's objects, the same from whichever source the image comes."""

import dataclasses

import numpy as np

from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.labels import wanted
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
