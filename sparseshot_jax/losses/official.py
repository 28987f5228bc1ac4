"""The authors' published loss (`ece-loss`, Apache-2.0), kept apart from the paper's.

It differs from eq. 7 and 8 in its mask, which compares raw logits and drops confident background too,
and in that it samples unannotated ground. Written anew from its definition. Theirs takes the mean over
all elements (`reduce.mean`), 300 epochs of Adam at 3e-4.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.evidence import (
    OPTION,
    Scalar,
    by_ground,
    evidence,
    focal_weight,
    labels_of,
    make_terms,
)
from sparseshot_jax.losses.schedules import (
    check_range,
    check_schedule,
    effective_threshold,
    sampling_rate,
)
from sparseshot_jax.types import Targets, Terms


def confidence(logits: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """The largest logit minus the second largest: how sure the model is, of background or of a class.

    >>> confidence(jnp.array([[1.0, 4.0, 2.5]])).tolist()
    [1.5]
    """
    z = jax.lax.stop_gradient(logits.astype(jnp.float32))
    first = jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=bool)
    return jnp.max(z, axis=-1) - jnp.max(jnp.where(first, -jnp.inf, z), axis=-1)


def two_logits(logits: Float[Array, "*b"]) -> Float[Array, "*b 2"]:
    """A one-logit model as two classes, [0, z]: the same p, and |z| as its confidence."""
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def official_exclusive_cross_entropy(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    *,
    threshold: Scalar,
    alpha: Scalar = 0.2,
    gamma: Scalar = 0.1,
    keep_rate: Scalar = 1.0,
    key: Key[Array, ""] | None = None,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """The authors' ExclusiveCrossEntropyLoss: -log p_y, or alpha (1 - p_0)^gamma -log p_0 if kept.

    An unannotated element is kept while the margin between its two largest logits is at most
    `threshold` and the draw of a uniform number falls below `keep_rate`.

    Args:
        logits: one a class, at least two; class 0 is unannotated. A one-logit model: `two_logits(z)`.
        labels: 1 and up where annotated, 0 elsewhere; anything where not `valid`.
        threshold: largest margin kept, in logits, >= 0. Theirs is `schedules.official`.
        alpha: weight of unannotated ground, >= 0.
        gamma: focal exponent, >= 0.
        keep_rate: chance of an unannotated element to survive, 0 to 1. Theirs: `sampling_rate`.
        key: for that draw; not needed at a `keep_rate` of 1.
        known_background: -log p_0, never dropped, weighted or sampled. (Theirs has none.)
        valid: False where ignored. (Theirs has none.)

    Raises:
        InputError: no key, and a keep_rate that is traced or below 1.

    >>> logits, labels = jnp.array([[0.0, 0.0], [3.0, 0.0]]), jnp.array([0, 0])
    >>> loss = official_exclusive_cross_entropy(logits, labels, threshold=0.5, gamma=0.0)
    >>> [f"{x:.3f}" for x in loss]
    ['0.139', '0.000']
    """
    labels = labels if valid is None else jnp.where(valid, labels, 0)
    z = evidence(logits, labels)
    kept = (confidence(logits) <= threshold) & _survives(key, keep_rate, z.shape)
    return _by_ground(z, labels > 0, kept, alpha, gamma, known_background, valid)


def official_binary_exclusive_cross_entropy(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    threshold: Scalar,
    alpha: Scalar = 0.2,
    gamma: Scalar = 0.1,
    keep_rate: Scalar = 1.0,
    key: Key[Array, ""] | None = None,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """The authors' BECEWithLogitsLoss: as above for one logit, kept while the raw z <= `threshold`.

    One-sided, unlike `official_exclusive_cross_entropy(two_logits(z), ...)`. Theirs takes every element
    for unannotated unless told otherwise; here `annotated` tells.
    """
    z = logits.astype(jnp.float32)
    kept = (jax.lax.stop_gradient(z) <= threshold) & _survives(key, keep_rate, z.shape)
    return _by_ground(z, annotated, kept, alpha, gamma, known_background, valid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Official:
    """The authors' loss with its two schedules."""

    schedule: str = "official"  # a name of SCHEDULES: the margin over time, in logits
    rho: float | None = None  # its parameter, > 0; None: the schedule's own default
    alpha: float = 0.2  # weight of unannotated ground, >= 0
    gamma: float = 0.1  # focal exponent, >= 0
    keep_rate: float = 0.5  # where background sampling ends, (0, 1]
    sampling: bool = dataclasses.field(
        default=True, metadata=OPTION
    )  # False: every unannotated element takes part

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.rho, highest=float("inf"))
        check_range("alpha", self.alpha, low=0.0, example=0.2)
        check_range("gamma", self.gamma, low=0.0, example=0.1)
        check_range("keep_rate", self.keep_rate, above=0.0, high=1.0, example=0.5)

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss at time t, 0 to 1; `rho` is the margin, in logits."""
        return {
            "rho": effective_threshold(self.schedule, t, self.rho),
            "alpha": float(self.alpha),
            "gamma": float(self.gamma),
            "keep_rate": float(sampling_rate(t, self.keep_rate)),
        }

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms; k = 1 logit for one class, C + 1 for more.

        `capped` has the terms outside the margin at |z_eff| = margin and those that only the draw
        dropped at their value: a curve free of the draw's noise.
        """
        logits = two_logits(logits[..., 0]) if logits.shape[-1] == 1 else logits
        z = evidence(logits, labels_of(targets))
        rho, alpha, gamma = hyper["rho"], hyper["alpha"], hyper["gamma"]
        inside = confidence(logits) <= rho
        kept = inside
        if self.sampling:
            kept = inside & _survives(key, hyper["keep_rate"], z.shape)
        ground = (targets.known_background, targets.valid)
        on_unannotated = ~(targets.annotated | targets.known_background)
        held = jax.lax.stop_gradient(jnp.clip(z, -rho, rho))
        capped_z = jnp.where(inside | ~on_unannotated, z, held)
        everything = jnp.ones_like(kept)
        return make_terms(
            _by_ground(z, targets.annotated, kept, alpha, gamma, *ground),
            targets,
            kept=kept,
            capped=_by_ground(capped_z, targets.annotated, everything, alpha, gamma, *ground),
        )


def _survives(key: Key[Array, ""] | None, keep_rate: Scalar, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Background sampling: a draw for every element."""
    if key is not None:
        return jax.random.uniform(key, shape) < keep_rate
    if isinstance(keep_rate, int | float) and keep_rate >= 1.0:
        return jnp.ones(shape, bool)
    raise InputError(
        "Sampling the background needs a random key; got key=None with a keep_rate that is traced or "
        "below 1. Try key=jax.random.key(0), or keep_rate=1.0."
    )


def _by_ground(
    z: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    kept: Bool[Array, "*b"],
    alpha: Scalar,
    gamma: Scalar,
    known_background: Bool[Array, "*b"] | None,
    valid: Bool[Array, "*b"] | None,
) -> Float[Array, "*b"]:
    weighted = focal_weight(z, alpha=alpha, gamma=gamma) * jax.nn.softplus(z)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=jax.nn.softplus(-z),
        unannotated=jnp.where(kept, weighted, 0.0),
    )
