import io

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.efficiency import fit_curve
from sparseshot_jax.report.efficiency_figure import efficiency_png


def picture(scores, fractions, today=500, **options):
    n = np.array(fractions) * 500
    curve = fit_curve(n, scores, fractions, draws=60)
    png = efficiency_png({"Dice": curve, "Dice at best": curve}, today=today, title="tiny", **options)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


LAW = (0.4, 0.52, 0.6, 0.66)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
SAND = (245, 240, 230)  # behind what is extrapolated


def test_a_law_is_drawn_beyond_what_was_measured_and_steps_are_not():
    assert (picture(LAW, FRACTIONS) == SAND).all(-1).mean() > 0.1
    assert not (picture(LAW[:3], FRACTIONS[:3]) == SAND).all(-1).any()


def test_what_stands_beside_has_a_row_of_its_own():
    plain = picture(LAW, FRACTIONS)
    both = picture(LAW, FRACTIONS, beside={"share of tissue called foreground": [(62.5, 0.1), (500.0, 0.2)]})
    assert both.shape[0] > plain.shape[0] + 100


@pytest.mark.parametrize(
    ("scores", "fractions"),
    [((0.5,), (1.0,)), ((0.6,) * 4, FRACTIONS), ((0.0,) * 4, FRACTIONS), ((0.8, 0.7, 0.6, 0.5), FRACTIONS)],
)
def test_degenerate_curves_are_drawn(scores, fractions):
    assert picture(scores, fractions).std() > 5


def test_today_may_lie_far_beyond_what_was_measured():
    assert picture(LAW, FRACTIONS, today=9000).shape == picture(LAW, FRACTIONS).shape
