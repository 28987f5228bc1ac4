"""Exclusive cross-entropy, the paper's loss: eq. 7, and eq. 8 with its focal weight.

Panteli, Teuwen, Horlings, Gavves: Sparse-shot Learning with Exclusive Cross-Entropy for Extremely Many
Localisations, ICCV 2021. Its gradient is that of cross-entropy with the unannotated logits capped at
the threshold: softplus(min(z, z_rho)).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.evidence import (
    OPTION,
    MaskBy,
    Scalar,
    by_ground,
    evidence,
    evidence_of,
    focal_weight,
    gate_of,
    keep_mask,
    make_terms,
    numbers,
    threshold_logit,
)
from sparseshot_jax.losses.schedules import (
    check_choice,
    check_range,
    check_schedule,
    effective_threshold,
)
from sparseshot_jax.losses.share import weight_by_share
from sparseshot_jax.types import LabelFacts, Targets, Terms


def exclusive_cross_entropy(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    threshold: Scalar,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
    two_sided: bool = False,
    gate: Float[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Eq. 7: -log p on annotated ground; -log(1 - p) on unannotated ground while p < `threshold`.

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        threshold: rho_eff, a probability; 1 or more is plain cross-entropy. May be traced.
        known_background: elements known to be background: -log(1 - p), never dropped.
        valid: False where an element is ignored: 0.
        two_sided: drop confident background too: keep iff max(p, 1 - p) < `threshold`.
        gate: see `keep_mask`.

    Returns:
        One value an element, not divided by anything. `losses.reduce` divides.

    >>> logits, annotated = jnp.array([0.0, 0.0, 3.0]), jnp.array([True, False, False])
    >>> print(exclusive_cross_entropy(logits, annotated, threshold=0.75).round(3))
    [0.693 0.693 0.   ]
    """
    z = logits.astype(jnp.float32)
    kept = keep_mask(z, threshold=threshold, two_sided=two_sided, gate=gate)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=jax.nn.softplus(-z),
        unannotated=jnp.where(kept, jax.nn.softplus(z), 0.0),
    )


def focal_exclusive_cross_entropy(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    threshold: Scalar,
    alpha: Scalar = 0.2,
    gamma: Scalar = 0.1,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
    two_sided: bool = False,
    gate: Float[Array, "*b"] | None = None,
) -> Float[Array, "*b"]:
    """Eq. 8: eq. 7 with each unannotated term weighted by alpha p^gamma, its sign put right.

    The paper prints u(1 - p) with a sign lost; the weight grows with the error p, as in focal loss.
    It is differentiated like the rest. Annotated ground is never weighted.

    Args:
        logits: as in `exclusive_cross_entropy`, and all that is not named here.
        annotated: set F.
        threshold: rho_eff, a probability.
        alpha: weight of unannotated ground, >= 0. It should follow the share c of objects that are
            annotated: c tau / (1 - c tau), with which p > 1/2 means a chance of an object above tau
            (`losses.share.share_weight`).
        gamma: focal exponent, >= 0; 0 weights all alike. Both may be traced.
        known_background: never dropped or weighted.
        valid: False where ignored.
        two_sided: drop confident background too.
        gate: see `keep_mask`.

    >>> logits, annotated = jnp.array([0.0, 0.0]), jnp.array([True, False])
    >>> numbers = {"threshold": 0.75, "alpha": 0.5, "gamma": 1.0}
    >>> [f"{x:.3f}" for x in focal_exclusive_cross_entropy(logits, annotated, **numbers)]
    ['0.693', '0.173']
    """
    z = logits.astype(jnp.float32)
    kept = keep_mask(z, threshold=threshold, two_sided=two_sided, gate=gate)
    weighted = focal_weight(z, alpha=alpha, gamma=gamma) * jax.nn.softplus(z)
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=jax.nn.softplus(-z),
        unannotated=jnp.where(kept, weighted, 0.0),
    )


def exclusive_cross_entropy_multiclass(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    *,
    threshold: Scalar,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
    two_sided: bool = False,
    mask_by: MaskBy = "foreground",
) -> Float[Array, "*b"]:
    """Eq. 7 for C classes: -log p_y where annotated; -log p_0 elsewhere while below `threshold`.

    Args:
        logits: C + 1 an element; class 0 is background.
        labels: y = 1 to C where annotated, 0 elsewhere; anything where not `valid`.
        threshold: rho_eff, a probability.
        known_background: -log p_0, never dropped.
        valid: False where ignored.
        two_sided: keep only while p_0 < `threshold` as well.
        mask_by: what must stay below `threshold`: "foreground" 1 - p_0, "max" the largest p_k, k >= 1.

    >>> logits, labels = jnp.log(jnp.array([[0.4, 0.3, 0.3]])), jnp.array([0])
    >>> print(exclusive_cross_entropy_multiclass(logits, labels, threshold=0.5))
    [0.]
    >>> loss = exclusive_cross_entropy_multiclass(logits, labels, threshold=0.5, mask_by="max")
    >>> print(f"{loss.item():.3f}")
    0.916
    """
    labels = labels if valid is None else jnp.where(valid, labels, 0)
    return exclusive_cross_entropy(
        evidence(logits, labels),
        labels > 0,
        threshold=threshold,
        known_background=known_background,
        valid=valid,
        two_sided=two_sided,
        gate=gate_of(logits, mask_by),
    )


def focal_exclusive_cross_entropy_multiclass(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    *,
    threshold: Scalar,
    alpha: Scalar = 0.2,
    gamma: Scalar = 0.1,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
    two_sided: bool = False,
    mask_by: MaskBy = "foreground",
) -> Float[Array, "*b"]:
    """Eq. 8 for C classes: the unannotated term is weighted by alpha (1 - p_0)^gamma.

    Arguments are those of `exclusive_cross_entropy_multiclass` and `focal_exclusive_cross_entropy`.
    """
    labels = labels if valid is None else jnp.where(valid, labels, 0)
    return focal_exclusive_cross_entropy(
        evidence(logits, labels),
        labels > 0,
        threshold=threshold,
        alpha=alpha,
        gamma=gamma,
        known_background=known_background,
        valid=valid,
        two_sided=two_sided,
        gate=gate_of(logits, mask_by),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exclusive:
    """Exclusive cross-entropy (eq. 7)."""

    schedule: str = "sigmoid"  # a name of SCHEDULES: the threshold over time
    rho: float | None = None  # its parameter, > 0; None: the schedule's own default
    two_sided: bool = dataclasses.field(default=False, metadata=OPTION)  # see `keep_mask`
    mask_by: MaskBy = dataclasses.field(default="foreground", metadata=OPTION)  # or "max"

    def __post_init__(self) -> None:
        check_choice("mask_by", self.mask_by, get_args(MaskBy))
        check_schedule(self.schedule, self.rho)
        last = effective_threshold(self.schedule, 1.0, self.rho)
        if self.two_sided and last <= 0.5:
            raise InputError(
                "two_sided needs a threshold that ends above 0.5, or it drops every unannotated term; "
                f"schedule {self.schedule!r} with rho {self.rho} ends at {last:.3g}. "
                "Try schedule='fixed' with rho=0.75."
            )

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss at time t, 0 to 1; `rho` is the threshold, a probability."""
        return {"rho": effective_threshold(self.schedule, t, self.rho)}

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms; k = 1 logit for one class, C + 1 for more."""
        return _masked_terms(self, exclusive_cross_entropy, logits, targets, hyper["rho"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalExclusive(Exclusive):
    """Focal exclusive cross-entropy (eq. 8)."""

    alpha: float | None = 0.2  # weight of unannotated ground, >= 0; None: by the share of the labels,
    decision: float = 0.5  # so that p > 0.5 means P(object) > decision, (0, 1); see `losses.share`
    gamma: float = 0.1  # focal exponent, >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_range("alpha", self.alpha, low=0.0, example=0.2)
        check_range("gamma", self.gamma, low=0.0, example=0.1)
        check_range("decision", self.decision, above=0.0, high=0.999, example=0.5)

    def fitted(self, facts: LabelFacts) -> "FocalExclusive":
        """The spec with an open `alpha` filled in.

        So look-alikes of the annotated objects settle above rho at any share c of labels: unweighted, their
        p settles near c, and the mask would never act.

        Raises:
            InputError: the share of the labels is not known.
        """
        if self.alpha is not None:
            return self
        return dataclasses.replace(self, alpha=weight_by_share("alpha", facts, self.decision))

    def hyper(self, t: float) -> dict[str, float]:
        """Every number of the loss at time t, 0 to 1; `rho` is the threshold, a probability."""
        return {**super().hyper(t), **numbers(self, "alpha", "gamma")}

    def terms(
        self,
        logits: Float[Array, "*b k"],
        targets: Targets,
        hyper: Mapping[str, Scalar],
        key: Key[Array, ""] | None = None,
    ) -> Terms:
        """Element-wise terms; k = 1 logit for one class, C + 1 for more."""
        weight = {"alpha": hyper["alpha"], "gamma": hyper["gamma"]}
        loss = functools.partial(focal_exclusive_cross_entropy, **weight)
        return _masked_terms(self, loss, logits, targets, hyper["rho"])


def _masked_terms(
    spec: Exclusive,
    loss: Callable[..., Float[Array, "..."]],
    logits: Float[Array, "*b k"],
    targets: Targets,
    threshold: Scalar,
) -> Terms:
    """`loss` with its mask; as `capped`, `loss` without it at logits held at the threshold."""
    z = evidence_of(logits, targets)
    gate = gate_of(logits, spec.mask_by)
    known, valid = targets.known_background, targets.valid
    kept = keep_mask(z, threshold=threshold, two_sided=spec.two_sided, gate=gate)
    edge = threshold_logit(threshold)
    held = jnp.maximum(jnp.minimum(z, edge), -edge) if spec.two_sided else jnp.minimum(z, edge)
    capped_z = jnp.where(kept | targets.annotated | known, z, jax.lax.stop_gradient(held))
    values = loss(
        z,
        targets.annotated,
        threshold=threshold,
        known_background=known,
        valid=valid,
        two_sided=spec.two_sided,
        gate=gate,
    )
    capped = loss(capped_z, targets.annotated, threshold=1.0, known_background=known, valid=valid)
    return make_terms(values, targets, kept=kept, capped=capped)
