"""A trace and a program's text to kinds of operations with their share of the time."""

import gzip
import json

import pytest

from sparseshot_jax.operations import Event, operations_of, read_trace

TEXT = """
HloModule jit_step
  %fused (p: f32[4]) -> f32[4] {
    ROOT %tanh.9 = f32[4]{0} tanh(%p), metadata={op_name="jit(step)/jvp()/tanh"}
  }
  %conv.1 = f32[4]{0} conv(%a), metadata={op_type="x" op_name="jit(step)/jvp(UNet)/conv_general_dilated"}
  %conv.2 = f32[4]{0} conv(%a), metadata={op_name="jit(step)/transpose(jvp(UNet))/conv_general_dilated"}
  %again.1 = f32[4]{0} add(%a), metadata={op_name="jit(step)/transpose(jvp())/rematted_computation/add"}
  %copy.3 = f32[4]{0} copy(%a)
  while.4 = f32[4]{0} while(%a), metadata={op_name="jit(step)/while"}
"""


def event(name, start, duration, thread=1):
    return Event(name=name, thread=(0, thread), start_us=start, duration_us=duration)


def test_instructions_of_one_kind_are_one_row_and_passes_are_told_apart():
    rows = operations_of(
        [
            event("conv.1", 0, 30),
            event("conv.2", 30, 20),
            event("conv.1", 50, 30),
            event("again.1", 80, 10),
            event("copy.3", 0, 10, thread=2),
        ],
        TEXT,
    )
    assert [(row["instruction"], row["origin"], row["part"], row["calls"]) for row in rows] == [
        ("conv", "conv_general_dilated", "forward", 2),
        ("conv", "conv_general_dilated", "backward", 1),
        ("again", "add", "again", 1),
        ("copy", "", "untold", 1),
    ]
    assert [row["share"] for row in rows] == pytest.approx([0.6, 0.2, 0.1, 0.1])


def test_what_runs_inside_a_loop_is_not_counted_twice():
    rows = operations_of(
        [
            event("while.4", 0, 100),
            event("conv.1", 0, 60),
            event("conv.2", 60, 30),
            event("while.4", 200, 10),
            event("conv.1", 5, 40, thread=2),  # beside it, not in it
        ],
        TEXT,
    )
    shares = {(row["instruction"], row["part"]): row["share"] for row in rows}
    assert shares == pytest.approx(
        {("conv", "forward"): 100 / 150, ("conv", "backward"): 30 / 150, ("while", "rest"): 20 / 150}
    )


def test_no_events_are_no_rows():
    assert operations_of([], TEXT) == []


def write(folder, events):
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)


def test_a_trace_of_a_cpu_has_operations_on_its_threads(tmp_path):
    write(
        tmp_path / "old",
        [{"ph": "X", "pid": 1, "tid": 5, "ts": 0, "dur": 1, "name": "x", "args": {"hlo_op": "x"}}],
    )
    write(
        tmp_path / "plugins" / "new",
        [
            {"ph": "M", "pid": 1, "tid": 5, "name": "thread_name", "args": {"name": "tf_XLAEigen"}},
            {"ph": "X", "pid": 1, "tid": 5, "ts": 3, "dur": 2, "name": "a", "args": {"hlo_op": "conv.1"}},
            {"ph": "X", "pid": 1, "tid": 5, "ts": 0, "dur": 9, "name": "Execute"},
        ],
    )
    assert read_trace(tmp_path) == [
        Event(name="conv.1", thread=(1, 5), start_us=3.0, duration_us=2.0),
    ]


def test_a_line_of_operations_stands_for_the_streams_beside_it(tmp_path):
    write(
        tmp_path / "tpu",
        [
            {"ph": "M", "pid": 1, "tid": 5, "name": "thread_name", "args": {"name": "XLA Ops"}},
            {"ph": "X", "pid": 1, "tid": 5, "ts": 3, "dur": 2, "name": "conv.1", "args": {}},
            {"ph": "X", "pid": 1, "tid": 6, "ts": 3, "dur": 2, "name": "k", "args": {"hlo_op": "conv.1"}},
        ],
    )
    assert [one.thread for one in read_trace(tmp_path)] == [(1, 5)]


def test_no_trace_is_no_events(tmp_path):
    assert read_trace(tmp_path) == []
