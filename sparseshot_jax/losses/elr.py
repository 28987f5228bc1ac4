"""Early-learning regularisation: a network that is told wrong labels is held to what it first believed.

Liu, Niles-Weed, Razavian, Fernandez-Granda: Early-Learning Regularization Prevents Memorization of Noisy
Labels, NeurIPS 2020, section 4. Its state is one number an element: the target of the paper is
(1 - t, t), since p = (1 - p, p). As in the authors' code t moves before it is used, and every p is held
within [1e-4, 1 - 1e-4], so that log(1 - <t, p>) has a floor.

One thing differs: their target starts at (0, 0), and its sum is 1 - beta^n after n visits, which would be a
second number to keep. Here it starts at (1/2, 1/2), no opinion either way. The difference t_1 - t_0 that
decides where the gradient points is theirs; the divisor 1 - <t, p> is smaller by beta^n / 2, at most half of
theirs, which for the first visits makes the regulariser up to twice as strong. One annotated element alone
that begins at p = 0.05 with lambda 3 leaves the background where a visit moves its logit by 1 with theirs, by
2 with this; from p = 0.25 on at any speed with both. Starting at the first prediction would not do: below
p = 0.25 lambda 3 is then stronger than the label from the first step.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.evidence import Scalar, by_ground, evidence_of, numbers, whole_terms
from sparseshot_jax.losses.schedules import check_range
from sparseshot_jax.types import Targets, Terms

_LOW = 1e-4  # least probability that is told apart from 0


def early_learning_cross_entropy(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    average: Float[Array, "*b"],
    strength: Scalar = 3.0,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Cross-entropy + lambda log(1 - <t, p>), p = (1 - p, p), on annotated and unannotated ground.

    The second term is least where p is sure of what t says. Its gradient,
    lambda (1 - 2t) p (1 - p) / (1 - <t, p>), cancels that of a label which t contradicts.

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        average: t of `next_average`, [0, 1]; no gradient flows into it.
        strength: lambda, >= 0; 0 is cross-entropy. May be traced.
        known_background: elements known to be background: -log(1 - p), never regularised.
        valid: False where an element is ignored: 0.

    >>> logits, annotated = jnp.zeros(2), jnp.array([True, False])
    >>> loss = early_learning_cross_entropy(logits, annotated, average=jnp.array([0.0, 1.0]), strength=1.0)
    >>> print(loss.round(3))
    [0. 0.]
    """
    z = logits.astype(jnp.float32)
    t = jax.lax.stop_gradient(average)
    # 1 - <t, p> without a difference of near numbers.
    regulariser = strength * jnp.log(t * _probability(-z) + (1.0 - t) * _probability(z))
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=jax.nn.softplus(-z) + regulariser,
        unannotated=jax.nn.softplus(z) + regulariser,
    )


def next_average(
    logits: Float[Array, "*b"], average: Float[Array, "*b"], *, beta: Scalar = 0.7
) -> Float[Array, "*b"]:
    """beta t + (1 - beta) p: what is remembered of an element after this prediction. Detached.

    Args:
        logits: z, p = sigmoid(z).
        average: t, what was remembered before.
        beta: share of it that stays, [0, 1). May be traced.

    >>> print(next_average(jnp.zeros(1), jnp.ones(1), beta=0.5))
    [0.75]
    """
    p = _probability(logits.astype(jnp.float32))
    return jax.lax.stop_gradient(beta * average + (1.0 - beta) * p)


def _probability(z: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jnp.clip(jax.nn.sigmoid(z), _LOW, 1.0 - _LOW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyLearning:
    """Early-learning regularisation (Liu 2020): cross-entropy, held to the average of earlier predictions.

    With more classes p is that of the evidence: of the annotated class on F, of any foreground elsewhere.

    The label of an annotated element is outweighed once t and p are both below (lambda - 2) / (2 lambda - 2),
    1/4 at lambda 3. A model whose output starts far below that (model.prior) must leave it within the few
    visits of each pixel that t takes to follow, or all becomes background: start it at a prior of 0.25 or
    more.
    """

    beta: float = 0.7  # share of the old average that stays at each visit, [0, 1)
    strength: float = 3.0  # lambda, weight of the regulariser, >= 0

    first_average: ClassVar[float] = 0.5  # see `losses.Remembers`

    def __post_init__(self) -> None:
        check_range("beta", self.beta, low=0.0, high=1.0, example=0.7)
        check_range("strength", self.strength, low=0.0, example=3.0)
        if self.beta == 1.0:
            raise InputError("beta must be below 1, or nothing is ever remembered; got 1. Try 0.7.")

    def cautions(self, prior: float) -> list[str]:
        """What there is to say before training a model whose output starts at p = `prior`."""
        least = (self.strength - 2.0) / (2.0 * self.strength - 2.0) if self.strength > 2.0 else 0.0
        if prior >= least:
            return []
        return [
            f"loss elr at strength {self.strength:g} outweighs the labels where p is below {least:.3g}, and "
            f"model.prior {prior:g} starts there: all may become background. Try --model.prior {least:.2g}."
        ]

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss; none changes with time t."""
        return numbers(self)

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms, and the next average; k = 1 logit for one class, C + 1 for more.

        Raises:
            InputError: the targets have no average.
        """
        if targets.average is None:
            raise InputError(
                "loss elr needs Targets.average, what it gave for these elements before. In training it "
                "comes from TrainState.memory (`programs.fresh_state`). Begin a loop of your own with "
                "EarlyLearning.first_average, and keep Terms.average for the next visit."
            )
        average = next_average(evidence_of(logits, targets), targets.average, beta=hyper["beta"])
        loss = functools.partial(early_learning_cross_entropy, average=average)
        terms = whole_terms(loss, logits, targets, {"strength": hyper["strength"]})
        return dataclasses.replace(terms, average=average)
