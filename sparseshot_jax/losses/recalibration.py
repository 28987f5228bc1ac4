"""Background recalibration: unannotated elements that look like objects are trained as objects."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sparseshot_jax.losses.evidence import (
    Scalar,
    by_ground,
    focal_weight,
    numbers,
    threshold_logit,
    whole_terms,
)
from sparseshot_jax.losses.schedules import check_range
from sparseshot_jax.types import Targets, Terms


def brl(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    threshold: Scalar = 0.5,
    alpha: Scalar = 0.25,
    gamma: Scalar = 2.0,
    beta: Scalar = 1.0,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Focal loss whose unannotated side turns round where the model is sure of an object.

    On annotated ground -alpha (1 - p)^gamma log p. On unannotated ground -(1 - alpha) p^gamma log(1 - p)
    while 1 - p >= t, and beyond, mirrored, -beta (1 - alpha) (1 - p)^gamma log p. With t = 0.5 and beta = 1
    it is continuous.

    Zhang, Chen, Shen, Hao, Zhu, Savvides: Solving Missing-Annotation Object Detection with Background
    Recalibration Loss, ICASSP 2020. Which side counts is asked of z itself: no gradient runs through it.

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        threshold: t, the least probability of background that is still taken for background; 0 is plain
            focal loss, 1 trains all unannotated ground as objects.
        alpha: weight of annotated ground, 0 to 1; unannotated ground has 1 - alpha on both sides.
        gamma: focal exponent, >= 0.
        beta: weight of the mirrored side, >= 0; 0 drops what looks like an object.
        known_background: -log(1 - p), never weighted or mirrored.
        valid: False where an element is ignored: 0.

    >>> loss = brl(jnp.array([0.0, -2.0, 2.0]), jnp.array([True, False, False]))
    >>> [f"{x:.4f}" for x in loss]
    ['0.0433', '0.0014', '0.0014']
    """
    z = logits.astype(jnp.float32)
    background = focal_weight(z, alpha=1.0 - alpha, gamma=gamma) * jax.nn.softplus(z)
    mirrored = beta * focal_weight(-z, alpha=1.0 - alpha, gamma=gamma) * jax.nn.softplus(-z)
    # 1 - p >= t, as logits: in bfloat16 probabilities near the threshold cannot be told apart.
    looks_empty = -jax.lax.stop_gradient(z) >= threshold_logit(threshold)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=focal_weight(-z, alpha=alpha, gamma=gamma) * jax.nn.softplus(-z),
        unannotated=jnp.where(looks_empty, background, mirrored),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BRL:
    """Background recalibration loss (Zhang 2020)."""

    threshold: float = 0.5  # least probability of background that counts as background, [0, 1]
    alpha: float = 0.25  # weight of annotated ground, [0, 1]; unannotated ground has 1 - alpha
    gamma: float = 2.0  # focal exponent, >= 0
    beta: float = 1.0  # weight of unannotated ground that is trained as objects, >= 0

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, low=0.0, high=1.0, example=0.5)
        check_range("alpha", self.alpha, low=0.0, high=1.0, example=0.25)
        check_range("gamma", self.gamma, low=0.0, example=2.0)
        check_range("beta", self.beta, low=0.0, example=1.0)

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
        """Element-wise terms; k = 1 logit for one class, C + 1 for more. Nothing is dropped."""
        return whole_terms(brl, logits, targets, hyper)
