"""Losses of the whole batch at once, from learning with positive and unlabelled examples: nnPU and GE-KL.

Both rest on the prior, the prevalence of objects among unannotated elements (pixels; cells of a detector),
and on means over the annotated and over the unannotated elements, E_F and E_U. Under `jax.jit` over a mesh
these are means over the global batch. They are not means of means: a batch cannot be taken in parts.

Known background stays softplus(z), as in every loss. With it a batch's value is the mean over its valid
elements, each annotated or unannotated one counting with the risk R of these.

A prior that is None is estimated from data, `fitted(facts)`, as a (1 - c) / (c (1 - a)): a is the part of the
elements that is annotated, c the share of the objects that is. It holds if annotated objects are a random
sample of all objects, in looks and in size; and c is known only where somebody counted, or says so.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Bool, Float, Key

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.evidence import Scalar, by_ground, evidence, numbers, whole_terms
from sparseshot_jax.losses.schedules import check_range
from sparseshot_jax.types import LabelFacts, Targets, Terms

Mask = Bool[Array, "*b"]


def nnpu(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    prior: Scalar,
    beta: Scalar = 0.0,
    gamma: Scalar = 1.0,
    foreground: Float[Array, "*b"] | None = None,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, ""]:
    """Non-negative PU risk: pi E_F[l(z)] + max(-beta, E_U[l(-z)] - pi E_F[l(-z)]), l(x) = softplus(-x).

    Kiryo, Niu, du Plessis, Sugiyama: Positive-Unlabeled Learning with Non-Negative Risk Estimator, NIPS
    2017, eq. 6 and algorithm 1. The bracket, E_U less its objects, is a risk on background and cannot be
    negative; where it falls below -beta the model fits the annotated objects too well, and a step goes up
    it: the gradient is then that of -gamma times the bracket alone, while the value stays the risk.

    A set without elements has the mean 0; without unannotated elements there is no bracket.

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        prior: pi, of the unannotated elements those that belong to objects, (0, 1). May be traced.
        beta: by how much the bracket may be negative, >= 0.
        gamma: of the step up, in place of 1, [0, 1].
        foreground: the logit of any object, whose l(-z) is -log p_0, where it is not `logits`: with more
            classes `evidence(logits, 0)`.
        known_background: -log(1 - p).
        valid: False where an element is ignored, here and in the means.

    Returns:
        The mean over the valid elements: R itself where no background is known.

    >>> z, annotated = jnp.array([2.0, 0.0, -2.0]), jnp.array([True, False, False])
    >>> [f"{nnpu(z, annotated, prior=prior):.4f}" for prior in (0.1, 0.5)]
    ['0.2100', '0.0635']
    """
    values = _nnpu_values(
        logits,
        annotated,
        prior=prior,
        beta=beta,
        gamma=gamma,
        foreground=foreground,
        known_background=known_background,
        valid=valid,
    )
    return _mean(values, valid)


def ge_kl(
    logits: Float[Array, "*b"],
    annotated: Bool[Array, "*b"],
    *,
    prior: Scalar,
    weight: Scalar = 10.0,
    known_background: Bool[Array, "*b"] | None = None,
    valid: Bool[Array, "*b"] | None = None,
) -> Float[Array, ""]:
    """Generalised expectation: E_F softplus(-z) + lambda KL(Bern(pi) || Bern(q)), q = E_U p.

    Bepler, Morin, Rapp, Brasch, Shapiro, Noble, Berger: Positive-unlabeled convolutional neural networks
    for particle picking in cryo-electron micrographs, Nature Methods 2019 (GE-KL of topaz). Unannotated
    ground is asked for its expected number of objects alone, not where they are. q and 1 - q are summed
    as logarithms: neither vanishes at extreme logits.

    Args:
        logits: z, p = sigmoid(z); computed in float32 whatever their type.
        annotated: set F.
        prior: pi, of the unannotated elements those that belong to objects, [0, 1). May be traced.
        weight: lambda, >= 0.
        known_background: -log(1 - p), and no part of q.
        valid: False where an element is ignored, here and in the means.

    Returns:
        The mean over the valid elements: the risk itself where no background is known.

    >>> z, annotated = jnp.array([2.0, 0.0, -2.0]), jnp.array([True, False, False])
    >>> [f"{ge_kl(z, annotated, prior=prior):.4f}" for prior in (0.1, 0.3096)]
    ['1.3829', '0.1269']
    """
    values = _ge_kl_values(
        logits,
        annotated,
        prior=prior,
        weight=weight,
        known_background=known_background,
        valid=valid,
    )
    return _mean(values, valid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNPU:
    """Non-negative PU risk (Kiryo 2017).

    Its sum over the elements is R times their number. Segmentation divides by that number again. Detection
    divides by the annotated objects, so that pi E_F[l(z)] counts about (1 - c) / c an object beside its box
    terms; background beside a centre keeps its lower weight, which the test of the bracket does not see.
    With all objects annotated pi is 0 and nothing is left to learn from: `fitted` refuses.
    """

    set_level: ClassVar[bool] = True  # of the whole batch: no micro-batches
    needs_prior: ClassVar[bool] = True  # `fitted` asks for `LabelFacts.prior`
    prior: float | None = None  # prevalence of objects among unannotated elements, (0, 1); None: estimated
    beta: float = 0.0  # by how much the risk on background may be negative, >= 0
    gamma: float = 1.0  # of the step where it is more negative, [0, 1]

    def __post_init__(self) -> None:
        if self.prior is not None and not 0.0 < self.prior < 1.0:
            raise InputError(
                f"prior must be inside (0, 1), the prevalence of objects among what is not annotated; got "
                f"{self.prior}. Try 0.1, or cross_entropy where all objects are annotated."
            )
        check_range("beta", self.beta, low=0.0, example=0.0)
        check_range("gamma", self.gamma, low=0.0, high=1.0, example=1.0)

    def fitted(self, facts: LabelFacts) -> "NNPU":
        """The spec with an open `prior` estimated from the data, see this module.

        Raises:
            InputError: the share of the labels is not known, or too small; all objects are annotated.
        """
        if self.prior is not None:
            return self
        prior = facts.prior
        if prior == 0.0:
            raise InputError(
                "loss nnpu asks how many objects are not annotated, and with a share of 1 (labels.share, or "
                "counted) there are none. Use cross_entropy where all objects are annotated."
            )
        return dataclasses.replace(self, prior=prior)

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
        """The risk dealt out to its elements; k = 1 logit for one class, C + 1 for more.

        `values` has the value of the risk and the gradient of the step, which differ where the bracket is
        below -beta.
        """
        none = jnp.zeros(targets.ground.shape, jnp.int32)
        foreground = None if logits.shape[-1] == 1 else evidence(logits, none)
        return whole_terms(functools.partial(_nnpu_values, foreground=foreground), logits, targets, hyper)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GEKL:
    """Generalised expectation with the KL divergence (Bepler 2019).

    Its sum over the elements is the risk times their number. Segmentation divides by that number again.
    Detection divides by the annotated objects instead: beside the box terms the risk counts as often as
    there are cells for each of them, hundreds, which a larger `box_weight` of the model makes up for.
    Lower weights of background beside a centre make the divergence as a whole a little lighter.
    """

    set_level: ClassVar[bool] = True  # of the whole batch: no micro-batches
    needs_prior: ClassVar[bool] = True  # `fitted` asks for `LabelFacts.prior`
    prior: float | None = None  # prevalence of objects among unannotated elements, [0, 1); None: estimated
    weight: float = 10.0  # lambda, of the divergence, >= 0

    def __post_init__(self) -> None:
        if self.prior is not None and not 0.0 <= self.prior < 1.0:
            raise InputError(
                f"prior must be in [0, 1), the prevalence of objects among what is not annotated; got "
                f"{self.prior}. Try 0.1."
            )
        check_range("weight", self.weight, low=0.0, example=10.0)

    def fitted(self, facts: LabelFacts) -> "GEKL":
        """The spec with an open `prior` estimated from the data, see this module.

        Raises:
            InputError: the share of the labels is not known, or too small.
        """
        return self if self.prior is not None else dataclasses.replace(self, prior=facts.prior)

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
        """The risk dealt out to its elements; k = 1 logit for one class, C + 1 for more."""
        return whole_terms(_ge_kl_values, logits, targets, hyper)


def _nnpu_values(
    logits: Float[Array, "*b"],
    annotated: Mask,
    *,
    prior: Scalar,
    beta: Scalar,
    gamma: Scalar,
    foreground: Float[Array, "*b"] | None,
    known_background: Mask | None,
    valid: Mask | None,
) -> Float[Array, "*b"]:
    """One value an element; those of F and U add up to their number times the risk."""
    z = logits.astype(jnp.float32)
    f, u = _sets(annotated, known_background, valid)
    for_f, for_u = _shares(f, u)
    as_object = jnp.where(f, prior * for_f * jax.nn.softplus(-z), 0.0)
    as_background = jax.nn.softplus(z if foreground is None else foreground.astype(jnp.float32))
    taken_off = jnp.where(jnp.any(u), prior * for_f, 0.0)
    bracket = jnp.where(f, -taken_off * as_background, jnp.where(u, for_u * as_background, 0.0))
    # Summed apart, so that two large sums are rounded before they are subtracted and not after.
    negative = jnp.sum(jnp.where(u, bracket, 0.0)) + jnp.sum(jnp.where(f, bracket, 0.0))
    uphill = negative < -beta * jnp.sum(f | u)
    fixed = jax.lax.stop_gradient
    # Its value is that of the risk, its gradient that of -gamma times the bracket.
    step_up = fixed(as_object) - beta - gamma * (bracket - fixed(bracket))
    values = jnp.where(uphill, step_up, as_object + bracket)
    return by_ground(z, annotated, known_background, valid, positive=values, unannotated=values)


def _ge_kl_values(
    logits: Float[Array, "*b"],
    annotated: Mask,
    *,
    prior: Scalar,
    weight: Scalar,
    known_background: Mask | None,
    valid: Mask | None,
) -> Float[Array, "*b"]:
    """One value an element; those of F and U add up to their number times the risk."""
    z = logits.astype(jnp.float32)
    f, u = _sets(annotated, known_background, valid)
    for_f, for_u = _shares(f, u)
    log_q, log_rest = (_log_mean_exp(jax.nn.log_sigmoid(sign), u) for sign in (z, -z))
    pi = jnp.asarray(prior, jnp.float32)
    divergence = xlogy(pi, pi) - pi * log_q + xlog1py(1.0 - pi, -pi) - (1.0 - pi) * log_rest
    return by_ground(
        z,
        annotated,
        known_background,
        valid,
        positive=for_f * jax.nn.softplus(-z),
        unannotated=jnp.full_like(z, weight * for_u * divergence),
    )


def _sets(annotated: Mask, known_background: Mask | None, valid: Mask | None) -> tuple[Mask, Mask]:
    """The annotated and the unannotated elements, less what is ignored."""
    unannotated = ~annotated if known_background is None else ~(annotated | known_background)
    return (annotated, unannotated) if valid is None else (annotated & valid, unannotated & valid)


def _shares(f: Mask, u: Mask) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What turns a sum over F, and one over U, into its mean times the number of both."""
    n_f, n_u = jnp.sum(f, dtype=jnp.float32), jnp.sum(u, dtype=jnp.float32)
    return (n_f + n_u) / jnp.maximum(n_f, 1.0), (n_f + n_u) / jnp.maximum(n_u, 1.0)


def _log_mean_exp(values: Float[Array, "*b"], members: Mask) -> Float[Array, ""]:
    """log of the mean of exp(values) over the members; over all where there are none, to be finite."""
    members = members | ~jnp.any(members)
    values = jnp.where(members, values, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(values))
    # Divided before the logarithm: log n taken off behind it would cost a digit of 1 - q near 1.
    return jnp.log(jnp.sum(jnp.exp(values - top)) / jnp.sum(members, dtype=jnp.float32)) + top


def _mean(values: Float[Array, "*b"], valid: Mask | None) -> Float[Array, ""]:
    count = values.size if valid is None else jnp.sum(valid, dtype=jnp.float32)
    return jnp.sum(values) / jnp.maximum(count, 1.0)
