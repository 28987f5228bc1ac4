import sys

import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.log import JsonlLog, read_rows
from sparseshot_jax.training.tensorboard import TensorBoard


def test_every_row_of_the_log_is_mirrored(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is an extra")
    log = JsonlLog(tmp_path / "log.jsonl", resume_step=0, mirror=TensorBoard(tmp_path / "tb", resume_step=0))
    log.write("train", 20, loss=0.25, note="text is left out")
    log.close()
    assert read_rows(tmp_path / "log.jsonl")[0]["loss"] == 0.25
    (events,) = (tmp_path / "tb").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"train/note" not in events.read_bytes()


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install \"sparseshot-jax\[tensorboard\]\""):
        TensorBoard(tmp_path, resume_step=0)


def test_an_object_store_is_refused():
    with pytest.raises(InputError, match=r"needs a local run folder; got s3://bucket/tb\. Leave it off"):
        TensorBoard("s3://bucket/tb", resume_step=0)
