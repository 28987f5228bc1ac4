"""The weight that follows the share of the labels."""

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.losses.share import share_weight
from sparseshot_jax.types import LabelFacts


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("decision", [0.25, 0.5])
def test_the_weighted_fixed_point_crosses_one_half_at_the_decision(share, decision):
    """p settles where sum_F (1 - p) = w sum_U p over look-alikes of which c P(object) are annotated."""
    w = share_weight(share, decision)
    chance = np.linspace(0.01, 0.99, 99)  # P(object | x)
    annotated = share * chance
    settled = annotated / (annotated + w * (1 - annotated))
    away = np.abs(chance - decision) > 1e-9  # at the decision itself p = 1/2 up to rounding
    np.testing.assert_array_equal((settled > 0.5)[away], (chance > decision)[away])


def test_one_half_is_elkan_and_noto():
    """p / c > 1/2 of an unweighted model, in closed form c / (2 - c)."""
    assert share_weight(0.3, 0.5) == pytest.approx(0.3 / 1.7)
    assert share_weight(1.0, 0.5) == 1.0


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(bad):
    with pytest.raises(InputError, match="share must be"):
        share_weight(bad)


def test_cross_entropy_takes_the_weight_from_the_data():
    spec = CrossEntropy(background_weight=None, decision=0.4)
    assert spec.fitted(LabelFacts(share=0.5, annotated_fraction=0.1)).hyper(0.0)[
        "background_weight"
    ] == pytest.approx(0.25)
    with pytest.raises(InputError, match="background_weight was left open"):
        spec.hyper(0.0)


def test_what_the_tiles_show_goes_before_what_the_images_hold():
    facts = LabelFacts(share=0.1, share_in_tiles=0.25, annotated_fraction=0.1)
    spec = CrossEntropy(background_weight=None, decision=0.4).fitted(facts)
    assert spec.hyper(0.0)["background_weight"] == pytest.approx(share_weight(0.25, 0.4))
    assert facts.prior == pytest.approx(30 / 90)


def test_the_prior_counts_the_objects_that_are_not_annotated():
    """100 elements, 10 annotated of 40 object elements: 30 of the other 90."""
    assert LabelFacts(share=0.25, annotated_fraction=0.1).prior == pytest.approx(30 / 90)
    assert LabelFacts(share=1.0, annotated_fraction=0.1).prior == 0.0
    with pytest.raises(InputError, match="nobody knows"):
        _ = LabelFacts(share=None, annotated_fraction=0.1).prior
    with pytest.raises(InputError, match="needs_prior = True"):
        _ = LabelFacts(share=0.25).prior


def test_a_share_that_leaves_more_objects_than_ground_is_refused():
    """A share of 0.02 says that there are 49 elements of unmarked objects for each marked one, of 19."""
    said = r"labels\.share c = 0\.02 with 5 % of the ground annotated.*larger labels\.share, or loss\.prior"
    with pytest.raises(InputError, match=said):
        _ = LabelFacts(share=0.02, annotated_fraction=0.05).prior
    assert LabelFacts(share=0.06, annotated_fraction=0.05).prior == pytest.approx(0.94 / 0.06 / 19)
