"""What every loss shares: the evidence of an element as one logit, and one term for each ground.

Every equation of this package is written once, for one logit z with p = sigmoid(z). More classes reach
it by the logit that binary code needs at each element: the log-odds of the annotated class where there
is one, and of "anything but background" elsewhere.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.schedules import check_choice
from sparseshot_jax.types import Ground, Scalar, Targets, Terms

MaskBy = Literal["foreground", "max"]
Spec = TypeVar("Spec")

# Metadata of a spec's field that Python code branches on; all others reach the step as numbers.
OPTION = {"option": True}


def log_odds(logits: Float[Array, "*b k"], classes: Integer[Array, "*b"]) -> Float[Array, "*b"]:
    """log p_y - log(1 - p_y) of class y under the softmax: z_y - logsumexp of all the others.

    Args:
        logits: one a class, at least two.
        classes: y, 0 to k - 1.

    Raises:
        InputError: fewer than two logits.

    >>> probabilities = jnp.array([0.5, 0.25, 0.25])
    >>> float(jax.nn.sigmoid(log_odds(jnp.log(probabilities), jnp.array(0))))
    0.5
    """
    if logits.shape[-1] < 2:
        raise InputError(
            f"A softmax needs the logits of two classes or more in the last axis; got shape "
            f"{logits.shape}. Try the binary function, or `two_logits`."
        )
    z = logits.astype(jnp.float32)
    own = jax.nn.one_hot(classes, z.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, z), axis=-1)
    # A maximum, not a sum: a class outside 0..k-1 gives an infinite loss, which nobody overlooks.
    return jnp.max(jnp.where(own, z, -jnp.inf), axis=-1) - others


def evidence(logits: Float[Array, "*b k"], labels: Integer[Array, "*b"]) -> Float[Array, "*b"]:
    """The one logit through which any binary loss becomes multi-class.

    With label y >= 1 it is the log-odds of class y, so that softplus(-z) = -log p_y. With label 0 it is
    z_eff = logsumexp(z[1:]) - z[0], the log-odds of any foreground, so that softplus(z) = -log p_0 and
    sigmoid(z) = 1 - p_0. For two classes both are z[1] - z[0].

    Args:
        logits: C + 1 a location; class 0 is background.
        labels: 1 to C where annotated, 0 elsewhere.

    >>> from sparseshot_jax.losses import cross_entropy
    >>> logits, labels = jnp.array([[0.0, 2.0, 1.0]]), jnp.array([2])
    >>> value = cross_entropy(evidence(logits, labels), labels > 0)
    >>> bool(jnp.allclose(value, -jax.nn.log_softmax(logits)[:, 2]))
    True
    """
    return jnp.where(labels > 0, 1.0, -1.0) * log_odds(logits, labels)


def threshold_logit(threshold: Scalar) -> Float[Array, ""]:
    """log(rho) - log1p(-rho), held within float32: rho 0 and 1 give its lowest and highest number."""
    rho = jnp.clip(jnp.asarray(threshold, jnp.float32), 0.0, 1.0)
    limits = jnp.finfo(jnp.float32)
    return jnp.clip(jnp.log(rho) - jnp.log1p(-rho), limits.min, limits.max)


def keep_mask(
    logits: Float[Array, "*b"],
    *,
    threshold: Scalar,
    two_sided: bool = False,
    gate: Float[Array, "*b"] | None = None,
) -> Bool[Array, "*b"]:
    """delta(p < rho) of eq. 7: which terms stay, if their element is unannotated.

    Compared as logits: in bfloat16 probabilities near the threshold cannot be told apart.

    Args:
        logits: z of each element.
        threshold: rho_eff, a probability; 1 or more keeps all, 0 keeps none.
        two_sided: keep iff max(p, 1 - p) < rho (section 3.2.2), for rho > 0.5.
        gate: the logit of the probability that must stay below rho; `logits` where None.
    """
    z = jax.lax.stop_gradient(logits.astype(jnp.float32))
    edge = threshold_logit(threshold)
    # "Not above" rather than "below": a NaN is kept, and shows in the loss.
    dropped = (z if gate is None else jax.lax.stop_gradient(gate.astype(jnp.float32))) >= edge
    if two_sided:
        dropped |= z <= -edge
    return ~(dropped & (jnp.asarray(threshold) < 1.0))


def gate_of(logits: Float[Array, "*b k"], mask_by: MaskBy) -> Float[Array, "*b"] | None:
    """The `gate` of `keep_mask` for more classes: what must stay below the threshold.

    "foreground" is 1 - p_0, the evidence itself (None); "max" is the largest p_k, k >= 1.
    """
    check_choice("mask_by", mask_by, get_args(MaskBy))
    if mask_by == "foreground" or logits.shape[-1] == 1:
        return None
    z = jax.lax.stop_gradient(logits)
    return log_odds(z, 1 + jnp.argmax(z[..., 1:], axis=-1))


def focal_weight(z: Float[Array, "*b"], *, alpha: Scalar, gamma: Scalar) -> Float[Array, "*b"]:
    """alpha * p^gamma, from log p: exact and differentiable at every z, and at gamma = 0.

    The power of p itself, (1 - exp(-ce))^0.1, has infinite gradients for z <= -18 in float32.
    """
    return alpha * jnp.exp(gamma * jax.nn.log_sigmoid(z))


def by_ground(
    z: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    known_background: Bool[Array, "*b"] | None,
    valid: Bool[Array, "*b"] | None,
    *,
    positive: Float[Array, "*b"],
    unannotated: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """Give every element the term of its ground; this is where a loss treats the four apart.

    A loss chooses its terms on annotated and unannotated ground. Known background is softplus(z) in
    every loss: never masked, weighted or sampled. Ignored elements are 0.
    """
    values = unannotated
    if known_background is not None:
        values = jnp.where(known_background, jax.nn.softplus(z), values)
    values = jnp.where(annotated, positive, values)
    if valid is not None:
        values = jnp.where(valid, values, 0.0)
    return values


def labels_of(targets: Targets) -> Integer[Array, "*b"]:
    """Class 1..C on annotated ground, 0 on all other: a held-out object keeps its label unseen."""
    return jnp.where(targets.annotated, targets.label, 0)


def evidence_of(logits: Float[Array, "*b k"], targets: Targets) -> Float[Array, "*b"]:
    """The evidence in a model's output, k = 1 logit for one class or C + 1 for more; float32."""
    if logits.shape[-1] == 1:
        return logits[..., 0].astype(jnp.float32)
    return evidence(logits, labels_of(targets))


def make_terms(
    values: Float[Array, "*b"],
    targets: Targets,
    *,
    kept: Bool[Array, "*b"] | None = None,
    capped: Float[Array, "*b"] | None = None,
) -> Terms:
    """Terms of a loss; `kept` and `capped` where it drops some, None where it drops none.

    `kept` is asked on unannotated ground only: on all other it is True.
    """
    unannotated = targets.ground == Ground.UNANNOTATED
    return Terms(
        values=values,
        weights=targets.valid.astype(jnp.float32),
        kept=jnp.ones_like(unannotated) if kept is None else kept | ~unannotated,
        capped=values if capped is None else capped,
    )


def whole_terms(
    loss: Callable[..., Float[Array, "..."]],
    logits: Float[Array, "*b k"],
    targets: Targets,
    numbers: Mapping[str, Scalar],
) -> Terms:
    """Terms of a loss that drops nothing and whose keywords are its numbers."""
    values = loss(
        evidence_of(logits, targets),
        targets.annotated,
        known_background=targets.known_background,
        valid=targets.valid,
        **numbers,
    )
    return make_terms(values, targets)


def numbers(spec: Any, *names: str) -> dict[str, float]:
    """Fields of a spec as the step takes them: those that are named, or all of them.

    Raises:
        InputError: one was left open, and no data have filled it in.

    >>> from sparseshot_jax.losses import Focal
    >>> numbers(Focal()), numbers(Focal(), "gamma")
    ({'alpha': 0.25, 'gamma': 2.0}, {'gamma': 2.0})
    """
    found = {name: getattr(spec, name) for name in names or [f.name for f in dataclasses.fields(spec)]}
    for name, value in found.items():
        if value is None:
            raise InputError(
                f"loss.{name} was left open, and only data can fill it in (spec.fitted(facts)). Give it a "
                "number."
            )
    return {name: float(value) for name, value in found.items()}


def form(spec: Spec) -> Spec:
    """The spec with all but its options at their defaults: equal forms share one compiled step.

    >>> from sparseshot_jax.losses import FocalExclusive
    >>> form(FocalExclusive(alpha=0.06, schedule="linear")) == form(FocalExclusive())
    True
    >>> form(FocalExclusive(two_sided=True)) == form(FocalExclusive())
    False
    """
    options = [f.name for f in dataclasses.fields(cast(Any, spec)) if f.metadata == OPTION]
    return type(spec)(**{name: getattr(spec, name) for name in options})
