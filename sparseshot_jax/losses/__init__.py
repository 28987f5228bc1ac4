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
from sparseshot_jax.losses.elr import EarlyLearning, early_learning_cross_entropy, next_average
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
from sparseshot_jax.losses.recalibration import BRL, brl
from sparseshot_jax.losses.schedules import SCHEDULES
from sparseshot_jax.losses.unlabeled import GEKL, NNPU, ge_kl, nnpu
from sparseshot_jax.types import Targets, Terms


@runtime_checkable
class Loss(Protocol):
    """What the training step asks of a loss. A frozen dataclass with these two methods will do.

    One that leaves numbers open, as None, has `fitted(facts: LabelFacts)` too: itself with them filled in,
    and `needs_prior = True` where it asks for `facts.prior`, for which tiles have to be read.
    One whose value is of the whole batch, and no sum over elements, has `set_level = True`.
    """

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


@runtime_checkable
class Remembers(Protocol):
    """A loss with a number for each training pixel that lasts from one visit to the next.

    It finds it in `Targets.average` and gives the next one in `Terms.average`; see `training.memory`.
    """

    first_average: float  # of a pixel that was never seen


@runtime_checkable
class Cautious(Protocol):
    """A loss with something to say before training."""

    def cautions(self, prior: float) -> list[str]:
        """Sentences for whoever trains a model whose output starts at p = `prior`."""
        ...


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "exclusive": Exclusive,
    "focal_exclusive": FocalExclusive,
    "official": Official,
    "focal": Focal,
    "huber": Huber,
    "brl": BRL,
    "nnpu": NNPU,
    "ge_kl": GEKL,
    "elr": EarlyLearning,
}

__all__ = [
    "BRL",
    "GEKL",
    "LOSSES",
    "NNPU",
    "SCHEDULES",
    "Cautious",
    "CrossEntropy",
    "EarlyLearning",
    "Exclusive",
    "Focal",
    "FocalExclusive",
    "Huber",
    "Loss",
    "Official",
    "Remembers",
    "brl",
    "cross_entropy",
    "early_learning_cross_entropy",
    "evidence",
    "exclusive_cross_entropy",
    "exclusive_cross_entropy_multiclass",
    "focal",
    "focal_exclusive_cross_entropy",
    "focal_exclusive_cross_entropy_multiclass",
    "form",
    "ge_kl",
    "huber",
    "keep_mask",
    "log_odds",
    "next_average",
    "nnpu",
    "official_binary_exclusive_cross_entropy",
    "official_exclusive_cross_entropy",
    "reduce",
    "schedules",
    "two_logits",
]
