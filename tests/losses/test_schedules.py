import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseshot_jax.errors import InputError
from sparseshot_jax.losses import SCHEDULES, schedules

TIMES = st.floats(0.0, 1.0)


def test_hand_constants_of_table_2():
    assert [schedules.fixed(t) for t in (0.0, 0.4, 1.0)] == [0.75, 0.75, 0.75]
    assert [schedules.linear(t) for t in (0.0, 0.4, 1.0)] == pytest.approx([0.0, 0.3, 0.75])
    assert schedules.sigmoid(0.0) == 0.5
    assert schedules.sigmoid(1.0) == pytest.approx(0.679178699)


def test_hand_constants_of_the_authors_code():
    assert schedules.official(50 / 300) == pytest.approx(0.25)
    assert schedules.official(0.0) == pytest.approx(0.5 / (1 + math.exp(5)))
    assert schedules.official(60 / 300) == pytest.approx(0.5 / (1 + math.exp(-1)))
    assert schedules.sampling_rate(0.5) == 0.25
    assert schedules.sampling_rate(140 / 300) == pytest.approx(0.5 / (1 + math.exp(1)))
    assert schedules.sampling_rate(1.0, 1.0) == pytest.approx(1 / (1 + math.exp(-15)))


def test_power_runs_from_rho_to_one_and_takes_any_beta():
    assert schedules.power(0.0) == 0.5
    assert schedules.power(0.5, 0.25) == 0.5
    assert schedules.power(1.0, 0.1) == 1.0
    assert schedules.power(0.7, 0.25, beta=lambda t: 0.5) == 0.5


@given(t=TIMES, name=st.sampled_from(sorted(SCHEDULES)), rho=st.floats(0.01, 1.0))
def test_every_schedule_is_a_probability_and_never_falls(t, name, rho):
    value = schedules.effective_threshold(name, t, rho)
    assert type(value) is float
    assert 0.0 <= value <= 1.0
    assert schedules.effective_threshold(name, 1.0, rho) >= value


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_floats_numpy_and_traced_arrays_agree(name):
    times = np.linspace(0.0, 1.0, 7)
    one_by_one = [SCHEDULES[name](float(t)) for t in times]
    assert all(type(value) is float for value in one_by_one)
    np.testing.assert_allclose(SCHEDULES[name](times), one_by_one, rtol=1e-12)
    traced = jax.jit(SCHEDULES[name])(jnp.asarray(times, jnp.float32))
    # float32 through an exponential of up to 25: a few units in the seventh digit.
    np.testing.assert_allclose(traced, one_by_one, rtol=1e-5)


def test_none_stands_for_the_schedules_own_default():
    assert schedules.effective_threshold("linear", 1.0) == 0.75
    assert schedules.effective_threshold("power", 0.0) == 0.5


def test_a_schedule_is_added_by_one_registry_line(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "cosine", lambda t, rho=0.5: rho * (1 - math.cos(math.pi * t)))
    schedules.check_schedule("cosine", None)
    assert schedules.effective_threshold("cosine", 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_time_outside_its_range_is_refused(t):
    with pytest.raises(InputError, match=r"in \[0, 1\]; got"):
        schedules.effective_threshold("fixed", t)


def test_an_unknown_schedule_gets_a_suggestion():
    with pytest.raises(InputError, match=r"got 'sigmiod'. Try 'sigmoid'"):
        schedules.check_schedule("sigmiod", None)


@pytest.mark.parametrize("rho", [0.0, -0.5, math.nan, math.inf])
def test_rho_must_be_positive(rho):
    with pytest.raises(InputError, match=r"rho must be > 0.0; got .* Try 0.5"):
        schedules.check_schedule("fixed", rho)


def test_a_percentage_is_no_threshold():
    with pytest.raises(InputError, match=r"gives 75.* at t = 0.*rho=None"):
        schedules.check_schedule("fixed", 75.0)
    schedules.check_schedule("fixed", 75.0, highest=math.inf)  # a margin between logits may be


def test_a_range_names_both_its_ends():
    with pytest.raises(InputError, match=r"delta must be > 0.0 and <= 1.0; got 2.0. Try 0.5."):
        schedules.check_range("delta", 2.0, above=0.0, high=1.0, example=0.5)
