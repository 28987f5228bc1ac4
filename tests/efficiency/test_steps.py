import numpy as np
import pytest

from sparseshot_jax.efficiency import Steps, fit_steps


def test_falling_means_are_pooled_and_rising_ones_stay():
    objects = np.array([10.0, 10.0, 40.0, 160.0])
    scores = np.array([[0.2, 0.4, 0.5, 0.45], [0.1, 0.1, 0.2, 0.3]])
    found = fit_steps(objects, scores, np.array([0.1, 0.1, 0.4, 1.0]))
    assert found.objects.tolist() == [10.0, 40.0, 160.0]
    assert found.levels == pytest.approx(np.array([[0.3, 0.475, 0.475], [0.1, 0.2, 0.3]]))


def test_two_fractions_of_as_many_objects_are_one_step():
    found = fit_steps(np.array([7.0, 7.0, 9.0]), np.array([[0.2, 0.4, 0.5]]), np.array([0.1, 0.2, 0.3]))
    assert found.objects.tolist() == [7.0, 9.0]
    assert found.levels == pytest.approx(np.array([[0.3, 0.5]]))


def test_lines_in_log_n_and_nothing_beyond():
    steps = Steps(objects=np.array([10.0, 40.0]), levels=np.array([[0.2, 0.4]]))
    assert steps.at(np.array([10.0, 20.0, 40.0]))[0] == pytest.approx([0.2, 0.3, 0.4])
    assert np.isnan(steps.at(np.array([9.0, 41.0]))).all()
    assert steps.needed(np.array([0.3])) == pytest.approx([20.0])
    assert steps.needed(np.array([0.1])) == pytest.approx([10.0])
    assert steps.needed(np.array([0.5]))[0] == np.inf
