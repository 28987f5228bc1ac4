import threading

import numpy as np

from sparseshot_jax.data.slides.backends import Opened
from sparseshot_jax.data.slides.handles import Handles
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.slides.slide import HANDLES, open_slide
from sparseshot_jax.types import Window


def opened(nbytes=0):
    return Opened(
        level_sizes=((1, 1),), mpp=None, read=lambda *a: np.zeros((1, 1, 3), np.uint8), nbytes=nbytes
    )


def test_the_least_recently_used_goes_first():
    handles = Handles(2, 1000)
    a, b, c = opened(), opened(), opened()
    handles.put(("a", ""), a)
    handles.put(("b", ""), b)
    assert handles.get(("a", "")) is a
    handles.put(("c", ""), c)
    assert handles.get(("b", "")) is None
    assert handles.get(("a", "")) is a
    assert handles.get(("c", "")) is c
    handles.drop(("a", ""))
    handles.drop(("nothing", ""))
    assert len(handles) == 1
    handles.clear()
    assert len(handles) == 0


def test_decoded_images_are_bounded_by_their_bytes():
    handles = Handles(10, 1000)
    for name in "abc":
        handles.put((name, ""), opened(400))
    assert [handles.get((name, "")) is None for name in "abc"] == [True, False, False]
    handles.put(("c", ""), opened(400))  # the same again counts once
    assert len(handles) == 2
    handles.put(("huge", ""), opened(5000))  # one is kept, however large: it is being read
    assert len(handles) == 1


def test_a_child_begins_with_none_and_with_a_free_lock():
    handles = Handles(2, 1000)
    kept = opened()
    handles.put(("a", ""), kept)
    held = threading.Lock()
    handles._lock = held
    held.acquire()
    handles._forked()
    assert handles.get(("a", "")) is None
    assert kept in handles._left[0].values()


def test_more_slides_than_a_process_keeps_open(tmp_path, monkeypatch):
    monkeypatch.setattr(HANDLES, "_most", 3)
    slides = []
    for k in range(8):
        path = tmp_path / f"{k}.tiff"
        shade = np.full((64, 64, 3), 20 * k, np.uint8)
        write_pyramid(path, lambda x, y, w, h, shade=shade: shade[y : y + h, x : x + w], 64, 64, mpp=0.5)
        slides.append(open_slide(path))
    window = Window(x_px=0, y_px=0, width=9, height=9)
    for _ in range(2):
        for k, slide in enumerate(slides):
            assert abs(int(slide.read(window).mean()) - 20 * k) <= 2
            assert len(HANDLES) <= 3
