"""Rivals of exclusive cross-entropy that treat each element by itself, with the same keywords.

Known background is softplus(z) in each of them, as everywhere: never weighted. For more classes call
one on `evidence(logits, labels)` and `labels > 0`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sparseshot_jax.losses.evidence import Scalar, by_ground, focal_weight, numbers, whole_terms
from sparseshot_jax.losses.schedules import check_range
from sparseshot_jax.losses.share import weight_by_share
from sparseshot_jax.types import LabelFacts, Targets, Terms


def cross_entropy(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    background_weight: Scalar = 1.0,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """-log p on annotated ground, -w log(1 - p) on unannotated ground (eq. 3).

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        background_weight: w, >= 0; the fair rival of focal exclusive cross-entropy has w = its alpha.
        known_background: elements known to be background: -log(1 - p), never weighted.
        valid: False where an element is ignored: 0.

    >>> loss = cross_entropy(jnp.zeros(2), jnp.array([True, False]), background_weight=0.5)
    >>> [f"{x:.3f}" for x in loss]
    ['0.693', '0.347']
    """
    z = logits.astype(jnp.float32)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=jax.nn.softplus(-z),
        unannotated=background_weight * jax.nn.softplus(z),
    )


def focal(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    alpha: Scalar = 0.25,
    gamma: Scalar = 2.0,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Focal loss: -alpha (1 - p)^gamma log p, and -(1 - alpha) p^gamma log(1 - p).

    Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017, eq. 5. Both
    sides are weighted, where `focal_exclusive_cross_entropy` weights unannotated ground alone.

    Args:
        logits: as in `cross_entropy`, and all that is not named here.
        annotated: set F.
        alpha: weight of annotated ground, 0 to 1.
        gamma: focal exponent, >= 0.
        known_background: never weighted.
        valid: False where ignored.

    >>> [f"{x:.3f}" for x in focal(jnp.zeros(2), jnp.array([True, False]))]
    ['0.043', '0.130']
    """
    z = logits.astype(jnp.float32)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=focal_weight(-z, alpha=alpha, gamma=gamma) * jax.nn.softplus(-z),
        unannotated=focal_weight(z, alpha=1.0 - alpha, gamma=gamma) * jax.nn.softplus(z),
    )


def huber(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    delta: Scalar = 0.5,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Huber loss of the error e in probability: e^2 / 2 up to delta, delta (e - delta / 2) beyond.

    e = 1 - p on annotated ground, p on unannotated ground. Known background stays softplus(z).

    Args:
        logits: as in `cross_entropy`, and all that is not named here.
        annotated: set F.
        delta: where the parabola turns into a line, a probability, (0, 1].
        known_background: -log(1 - p).
        valid: False where ignored.

    >>> huber(jnp.zeros(1), jnp.array([False])).tolist()
    [0.125]
    """
    z = logits.astype(jnp.float32)
    error = jax.nn.sigmoid(jnp.where(annotated, -z, z))
    loss = jnp.where(error <= delta, error**2 / 2, delta * (error - delta / 2))
    return by_ground(z, annotated, known_background, valid, positive=loss, unannotated=loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy: what is not annotated is background."""

    background_weight: float | None = 1.0  # weight of unannotated ground, >= 0; None: by the share of the
    decision: float = 0.5  # labels, so that p > 0.5 means P(object) > decision, (0, 1); see `losses.share`

    def __post_init__(self) -> None:
        if self.background_weight is not None:
            check_range("background_weight", self.background_weight, low=0.0, example=1.0)
        check_range("decision", self.decision, above=0.0, high=0.999, example=0.5)

    def fitted(self, facts: LabelFacts) -> "CrossEntropy":
        """The spec with an open `background_weight` filled in.

        Raises:
            InputError: the share of the labels is not known.
        """
        if self.background_weight is not None:
            return self
        weight = weight_by_share("background_weight", facts, self.decision)
        return dataclasses.replace(self, background_weight=weight)

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss; none changes with time t."""
        return numbers(self, "background_weight")

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms; k = 1 logit for one class, C + 1 for more."""
        return whole_terms(cross_entropy, logits, targets, hyper)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Focal:
    """Focal loss (Lin 2017)."""

    alpha: float = 0.25  # weight of annotated ground, [0, 1]; unannotated ground has 1 - alpha
    gamma: float = 2.0  # focal exponent, >= 0

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=0.0, high=1.0, example=0.25)
        check_range("gamma", self.gamma, low=0.0, example=2.0)

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
        """Element-wise terms; k = 1 logit for one class, C + 1 for more."""
        return whole_terms(focal, logits, targets, hyper)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Huber:
    """Huber loss of the error in probability."""

    delta: float = 0.5  # where the parabola turns into a line, a probability, (0, 1]

    def __post_init__(self) -> None:
        check_range("delta", self.delta, above=0.0, high=1.0, example=0.5)

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
        """Element-wise terms; k = 1 logit for one class, C + 1 for more."""
        return whole_terms(huber, logits, targets, hyper)
