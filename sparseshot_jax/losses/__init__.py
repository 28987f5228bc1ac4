"""Losses for images in which most objects are not annotated.

Functions take logits and what is known of each element, and return one value an element:
`exclusive_cross_entropy(logits, annotated, threshold=0.75)`. Specs, in `LOSSES`, are what the framework
trains with: `hyper(t)` gives a loss's numbers at time t on the host, `terms(...)` its terms in the step.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from sparseshot_jax.losses import reduce, schedules
from sparseshot_jax.losses.baselines import (
    CrossEntropy,
    Focal,
    Huber,
    cross_entropy,
    focal,
    huber,
)
from sparseshot_jax.losses.evidence import Scalar, evidence, form, log_odds
from sparseshot_jax.losses.exclusive import (
    Exclusive,
    FocalExclusive,
    exclusive_cross_entropy,
    exclusive_cross_entropy_multiclass,
    focal_exclusive_cross_entropy,
    focal_exclusive_cross_entropy_multiclass,
    keep_mask,
)
from sparseshot_jax.losses.official import (
    Official,
    official_binary_exclusive_cross_entropy,
    official_exclusive_cross_entropy,
    two_logits,
)
from sparseshot_jax.losses.schedules import SCHEDULES
from sparseshot_jax.types import Targets, Terms


@runtime_checkable
class Loss(Protocol):
    """What the training step asks of a loss. A frozen dataclass with these two methods will do."""

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss at t = step / total_steps; the step takes them traced."""
        ...

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms; k = 1 logit for one class, C + 1 (0 = background) for more."""
        ...


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "exclusive": Exclusive,
    "focal_exclusive": FocalExclusive,
    "official": Official,
    "focal": Focal,
    "huber": Huber,
}

__all__ = [
    "LOSSES",
    "SCHEDULES",
    "CrossEntropy",
    "Exclusive",
    "Focal",
    "FocalExclusive",
    "Huber",
    "Loss",
    "Official",
    "cross_entropy",
    "evidence",
    "exclusive_cross_entropy",
    "exclusive_cross_entropy_multiclass",
    "focal",
    "focal_exclusive_cross_entropy",
    "focal_exclusive_cross_entropy_multiclass",
    "form",
    "huber",
    "keep_mask",
    "log_odds",
    "official_binary_exclusive_cross_entropy",
    "official_exclusive_cross_entropy",
    "reduce",
    "schedules",
    "two_logits",
]
