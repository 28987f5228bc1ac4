"""The weight of unannotated ground that follows the share of the objects that is annotated.

If every object had the same chance c to be annotated, P(annotated | x) = c P(object | x). Under a weight w on
unannotated ground p settles where p / (1 - p) = P(annotated) / (w P(not annotated)). So p > 1/2 means
P(object | x) > tau just where w = c tau / (1 - c tau): with tau = 1/2 the decision of Elkan and Noto (KDD
2008), p / c > 1/2; with all objects annotated (c = 1) and tau = 1/2 plain cross-entropy, w = 1.
"""

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses.schedules import check_range
from sparseshot_jax.types import LabelFacts


def share_weight(share: float, decision: float = 0.5) -> float:
    """w = c tau / (1 - c tau): with it p > 1/2 means that an object is there with a chance above tau.

    Args:
        share: c, of the objects, those annotated, (0, 1].
        decision: tau, (0, 1). F1 and Dice are best at half of the best F that can be reached (Lipton, Elkan
            and Naryanaswamy, ECML 2014), and so below 1/2.

    >>> share_weight(1.0), round(share_weight(0.3), 3)
    (1.0, 0.176)
    """
    check_range("share", share, above=0.0, high=1.0, example=0.3)
    check_range("decision", decision, above=0.0, high=0.999, example=0.5)
    return share * decision / (1.0 - share * decision)


def weight_by_share(name: str, facts: LabelFacts, decision: float) -> float:
    """The weight for data of which these facts are known.

    Args:
        name: of the loss's field, for the error.
        facts: of the training data.
        decision: tau.

    Raises:
        InputError: the share is not known.
    """
    if facts.shown is None:
        raise InputError(
            f"loss.{name} None follows the share of the objects that is annotated, and these data do not "
            f"tell it. Say how many of ten objects round your marks are marked, labels.share 0.3, or give "
            f"loss.{name} a number such as 0.1."
        )
    return share_weight(facts.shown, decision)
