import json

import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training import log as log_module
from sparseshot_jax.training.log import JsonlLog, read_rows


def lines(path):
    return path.read_text().splitlines()


def test_rows_are_on_disk_as_soon_as_written(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl", resume_step=0)
    log.write("train", 1, loss=0.5)
    assert read_rows(log.path) == [{"event": "train", "step": 1, "loss": 0.5}]
    log.write("validation", 2, recall=None)
    assert [row["event"] for row in read_rows(log.path)] == ["train", "validation"]
    log.close()


def test_a_resumed_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, resume_step=0)
    for step in range(1, 8):
        log.write("train", step, loss=1.0)
    log.close()
    log = JsonlLog(path, resume_step=4)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    log.write("train", 5, loss=2.0)
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    assert read_rows(path)[-1]["loss"] == 2.0


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "train", "st')
    assert [row["step"] for row in read_rows(path)] == [1]
    log = JsonlLog(path, resume_step=10)
    log.write("train", 2)
    log.close()
    assert [json.loads(line)["step"] for line in lines(path)] == [1, 2]


@pytest.mark.parametrize(
    ("middle", "part"),
    [
        ('{"event": "train", "st', r"line 2: must be JSON; got '\{\"event\": \"train\", \"st'"),
        ("\0\0\0", "line 2: must be JSON"),
        ("\xff", "line 2: must be JSON"),
        ("[1]", r"line 2: must be a JSON object with 'event' \(a text\) and 'step' \(a whole number\)"),
        ('{"a": 1}', r"line 2: must be a JSON object with .*; got '\{\"a\": 1\}'"),
        ('{"event": "train", "step": "2"}', "line 2: must be a JSON object"),
        ('{"event": "train", "step": true}', "line 2: must be a JSON object"),
    ],
)
def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path, middle, part):
    path = tmp_path / "log.jsonl"
    rows = [json.dumps({"event": "train", "step": step}) for step in (1, 3)]
    path.write_bytes("\n".join([rows[0], middle, rows[1], ""]).encode("latin-1"))
    before = path.read_bytes()
    for read in (read_rows, lambda path: JsonlLog(path, resume_step=3)):
        with pytest.raises(InputError, match=rf"log\.jsonl, {part}.* Correct that line, or remove it"):
            read(path)
    assert path.read_bytes() == before
    path.write_text(f"{rows[0]}\n\n{rows[1]}\n")
    assert [row["step"] for row in read_rows(path)] == [1, 3]  # as the message says


@pytest.mark.parametrize("last", ["[1]\n", '{"event": "tr\n', '{"a": 1}'])
def test_only_a_line_cut_off_is_taken_for_what_a_kill_left(tmp_path, last):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "train", "step": 1}\n' + last)
    with pytest.raises(InputError, match="line 2"):
        read_rows(path)


def test_no_file_no_rows(tmp_path):
    assert read_rows(tmp_path / "nothing.jsonl") == []


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl"):
        JsonlLog(tmp_path / "log.jsonl", resume_step=0)


def test_a_full_disk_is_one_clear_error_and_older_rows_stay(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, resume_step=0)
    log.write("train", 1)
    real = log._file
    log._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - every write fails with ENOSPC
    with pytest.raises(InputError, match=r"No space left.*same command"):
        log.write("train", 2)
    log.close()  # must not raise again in place of the error above
    real.close()
    assert [row["step"] for row in read_rows(path)] == [1]


def test_on_an_object_store_rows_are_put_together(object_store, monkeypatch):
    url, clock = "s3://bucket/run/log.jsonl", [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    log = JsonlLog(url, resume_step=0)
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0)
    assert read_rows(url) == []  # not a put for each row
    clock[0] = 31.0
    log.write("train", 4, loss=1.0)
    assert [row["step"] for row in read_rows(url)] == [1, 2, 3, 4]
    log.write("train", 5, loss=1.0)
    log.flush()  # as before a checkpoint
    assert [row["step"] for row in read_rows(url)] == [1, 2, 3, 4, 5]
    log.write("train", 6, loss=1.0)
    log.close()
    assert [row["step"] for row in read_rows(url)] == [1, 2, 3, 4, 5, 6]
    JsonlLog(url, resume_step=2).close()
    assert [row["step"] for row in read_rows(url)] == [1, 2]


def test_an_object_store_that_stops_taking_rows(object_store, monkeypatch):
    log = JsonlLog("s3://bucket/run/log.jsonl", resume_step=0)
    log.write("train", 1)

    def deny(*_, **__):
        raise PermissionError(13, "Forbidden")

    monkeypatch.setattr(type(object_store), "pipe_file", deny)
    with pytest.raises(InputError, match=r"cannot write the log s3://bucket.*Forbidden.*same command"):
        log.flush()
    log.close()
