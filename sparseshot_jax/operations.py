"""The operations of a traced program by kind, from `jax.profiler`'s trace and the program's text."""

import dataclasses
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.M)
_NUMBER = re.compile(r"(\.\d+)+(\.clone|\.remat\d*)*$")
FORWARD, BACKWARD, AGAIN, REST = "forward", "backward", "again", "rest"
UNTOLD = "untold"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One run of one operation on one thread or stream."""

    name: str  # of the instruction in the compiled program
    thread: tuple[Any, Any]
    start_us: float
    duration_us: float


def read_trace(folder: Path) -> list[Event]:
    """The operations in the newest trace under `folder`; none where the back end records none."""
    files = sorted(Path(folder).rglob("*.trace.json.gz"))
    if not files:
        return []
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    named = {
        (event["pid"], event.get("tid")): event["args"].get("name", "")
        for event in events
        if event.get("ph") == "M" and event.get("name") == "thread_name"
    }
    # TPUs, and some GPU traces, have a line of operations beside the streams that ran them: not both.
    lines = {thread for thread, name in named.items() if name == "XLA Ops"}
    return [one for event in events if (one := _event(event, lines)) is not None]


def _event(event: dict[str, Any], lines: set[tuple[Any, Any]]) -> Event | None:
    if event.get("ph") != "X":
        return None
    thread = (event["pid"], event.get("tid"))
    name = event.get("args", {}).get("hlo_op") or (event["name"] if thread in lines else None)
    if name is None or (lines and thread not in lines):
        return None
    return Event(name=name, thread=thread, start_us=float(event["ts"]), duration_us=float(event["dur"]))


def operations_of(events: Iterable[Event], text: str) -> list[dict[str, Any]]:
    """Time of each kind of operation, the longest first.

    Args:
        events: of one program.
        text: of the compiled program (`compiled.as_text()`), which tells what an instruction is for.

    Returns:
        Rows of instruction (its name without a number), origin (the JAX operation it stands for), part
        (forward, backward, again: computed anew in the backward pass, rest, or untold: the compiler's
        own, as a change of layout), share of the time of all operations, and calls. What an operation
        spends in others inside it is theirs.
    """
    origins = dict(_INSTRUCTION.findall(text))
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event, own_us in _own(events):
        origin = origins.get(event.name, "")
        kind = (_NUMBER.sub("", event.name), _primitive(origin), _part(origin))
        sums[kind][0] += own_us
        sums[kind][1] += 1
    total = sum(own for own, _ in sums.values()) or 1.0
    rows = [
        {"instruction": i, "origin": o, "part": p, "share": own / total, "calls": int(calls)}
        for (i, o, p), (own, calls) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def _own(events: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Each event with its own microseconds: without those of events inside it on the same thread."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        threads[event.thread].append(event)
    for line in threads.values():
        open_: list[list[Any]] = []  # [event, own], each inside the one before it
        for event in sorted(line, key=lambda one: (one.start_us, -one.duration_us)):
            while open_ and event.start_us >= open_[-1][0].start_us + open_[-1][0].duration_us:
                yield tuple(open_.pop())
            if open_:
                open_[-1][1] -= event.duration_us
            open_.append([event, event.duration_us])
        for event, own in open_:
            yield event, max(own, 0.0)


def _primitive(origin: str) -> str:
    """`jit(step)/transpose(jvp())/conv_general_dilated` -> `conv_general_dilated`."""
    last = origin.rsplit("/", 1)[-1]
    return last if re.fullmatch(r"[\w-]+", last) else ""


def _part(origin: str) -> str:
    if not origin:
        return UNTOLD
    if "rematted_computation" in origin:
        return AGAIN
    if "transpose(" in origin:
        return BACKWARD
    return FORWARD if "jvp(" in origin else REST
