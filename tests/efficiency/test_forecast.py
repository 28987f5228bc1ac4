import json

import numpy as np
import pytest

from sparseshot_jax.efficiency import answers, fit_curve, sentences
from sparseshot_jax.efficiency.forecast import rungs


def curve_of(scores, fractions=(0.125, 0.25, 0.5, 1.0), seeds=1, noise=0.0, today=800):
    f = np.repeat(fractions, seeds)
    n = f * today
    y = np.repeat(scores, seeds) if not callable(scores) else scores(n)
    return fit_curve(n, y + np.random.default_rng(0).normal(size=len(n)) * noise, f, draws=300)


def law(n):
    return 0.9 - 0.2 * (n / 800.0) ** -0.5


def test_the_answer_in_words():
    words = sentences(curve_of(law, seeds=3, noise=0.005), 800, 0.95, "Dice")
    assert words[0].startswith(("With 800 objects you have Dice 0.69", "With 800 objects you have Dice 0.70"))
    assert "doubling them is expected to give +0.0" in words[0]
    assert "(95 %: +0.0" in words[0]
    assert words[1].startswith("100 more objects are expected to give +0.01")
    assert words[2].startswith("95 % of the plateau of 0.")
    assert any(line.startswith("A score of 0.75 takes about 1") for line in words)
    assert "12 trainings (fraction, seed), not over images" in words[-1]
    assert not any("Warning" in line for line in words)


def test_beyond_four_times_what_was_measured_there_is_a_warning():
    fractions = (0.1, 0.2, 0.4, 0.8)
    curve = curve_of(law, fractions, seeds=3, noise=0.002)
    words = sentences(curve, 800, 0.95, "Dice")
    assert (
        "Warning: 4 times today's labels lies beyond 4 times the 640 objects measured, and is a guess."
        in words
    )
    assert "not measured but extrapolated" in words[0]
    assert "is a guess, beyond 4 times what was measured" in words[2]  # 15803 objects
    expected = {one["times"]: one for one in answers(curve, 800, 0.95)["expected"]}
    assert [one["beyond_4_times_measured"] for one in expected.values()] == [False, False, False, True]
    assert all(one["extrapolated"] for one in expected.values())
    assert expected[2.0]["gain"]["value"] == pytest.approx(law(1600) - law(800), abs=0.02)


def test_answers_are_json_whatever_was_found():
    curves = [
        curve_of(law),
        curve_of(law, (0.5, 1.0)),
        curve_of(law, (1.0,)),
        curve_of([0.6] * 4),
        curve_of([0.9, 0.8, 0.7, 0.6], seeds=2, noise=0.01),
        curve_of([0.2, 0.9, 0.9, 0.9]),
        curve_of([0.0] * 4),
        curve_of([1.0] * 4),
    ]
    for curve in curves:
        json.dumps(answers(curve, 800, 0.95), allow_nan=False)
        words = sentences(curve, 800, 0.95, "Dice")
        assert not any("nan" in line or "inf" in line for line in words), words


def test_degenerate_scores_are_put_in_words():
    def words_of(*given):
        return " ".join(sentences(curve_of(*given), 800, 0.95, "F1"))

    assert "One fraction says nothing of what more labels give." in words_of([0.5], (1.0,))
    assert "gave nothing so far" in words_of([0.6] * 4)
    falling = words_of([0.9, 0.8, 0.7, 0.6])
    assert "from 0.900 to 0.600" in falling
    assert "the scores do not rise with the labels" in falling
    assert "give --fractions at least 4 values" in words_of([0.5, 0.6], (0.5, 1.0))
    assert "All 800 objects were not tried" in words_of([0.5, 0.6], (0.25, 0.5))
    assert "between the two smallest fractions" in words_of([0.2, 0.9, 0.9, 0.9])


def test_a_gain_that_may_be_nothing_is_said_so():
    noisy = curve_of([0.60, 0.63, 0.61, 0.63], seeds=3, noise=0.03)
    assert "Whether it gives anything is not settled" in sentences(noisy, 800, 0.95, "F1")[0]


def test_round_scores_end_with_the_first_that_is_out_of_reach():
    assert rungs(curve_of(law, seeds=2), 800) == [0.75, 0.8, 0.85, 0.9]
    assert rungs(curve_of(lambda n: 0.78 - 0.1 * (n / 800) ** -0.5, seeds=2), 800) == [0.7, 0.75, 0.8]
