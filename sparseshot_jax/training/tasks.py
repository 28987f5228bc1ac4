"""What a model can be trained for, by the name that its spec gives."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sparseshot_jax.training.detection import detection
from sparseshot_jax.training.objective import Objective, TermsFn
from sparseshot_jax.training.segmentation import probabilities, segmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What training minimises, and what inference gives."""

    objective: Callable[[Any, TermsFn], Objective]  # of a model's spec and a loss's terms
    infer: Callable[[Any], Callable[[Any], Any]]  # of a spec: the model's output -> what `predict` takes
    elements: Callable[[Any], int]  # of a spec: elements of the loss in one place


TASKS = {
    "segmentation": Task(objective=segmentation, infer=probabilities, elements=lambda spec: 1),
    "detection": Task(
        objective=detection, infer=lambda spec: lambda output: output, elements=lambda spec: spec.anchors
    ),
}
