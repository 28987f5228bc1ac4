import numpy as np

from sparseshot_jax.evaluate.windows import evenly, window_round, with_halo
from sparseshot_jax.types import Window


def test_evenly_spread_indices_are_distinct_and_reach_both_ends():
    assert evenly(0, 4).tolist() == []
    assert evenly(4, 4).tolist() == [0, 1, 2, 3]
    chosen = evenly(1000, 64)
    assert len(set(chosen.tolist())) == 64
    assert (chosen[0], chosen[-1]) == (0, 999)


def test_a_window_has_its_object_in_the_middle_and_begins_at_a_whole_pixel():
    window = window_round(np.array([101.0, 50.0]), side=32, scale=4.0)
    assert window.x_px % 4 == window.y_px % 4 == 0
    assert abs(window.x_px + 64 - 101.0) <= 2.0
    assert abs(window.y_px + 64 - 50.0) <= 2.0


def test_a_halo_surrounds_all_of_a_window_and_pleases_the_model():
    window = Window(x_px=40.0, y_px=80.0, width=30, height=17, scale=2.0)
    wide, halo = with_halo(window, multiple=16, halo_px=17)
    assert halo == 32
    assert (wide.x_px, wide.y_px, wide.scale) == (40.0 - 64.0, 80.0 - 64.0, 2.0)
    assert (wide.width, wide.height) == (32 + 64, 32 + 64)
    assert with_halo(wide, multiple=16, halo_px=0) == (wide, 0)
