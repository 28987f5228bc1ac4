import threading

import pytest

from sparseshot_jax.data.watchdog import Watchdog


def test_results_and_errors_come_through():
    watchdog = Watchdog()
    assert watchdog.call(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.call(lambda: 1 / 0, 5.0)
    with pytest.raises(StopIteration):
        watchdog.call(iter([]).__next__, 5.0)
    names = {watchdog.call(lambda: threading.current_thread().name, 5.0) for _ in range(3)}
    assert names == {"watchdog"}
    watchdog.close()
    assert watchdog.call(lambda: 8, 5.0) == 8
    watchdog.close()


def test_what_hangs_is_left_behind():
    watchdog, hung = Watchdog(), threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        watchdog.call(hung.wait, 0.05)
    assert watchdog.call(lambda: 9, 5.0) == 9  # in another thread
    hung.set()
    watchdog.close()
