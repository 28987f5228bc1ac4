"""What chips tell one another in a compiled program, read from its text: kind, bytes, group, origin.

for one in collectives(compiled.as_text()):
    print(one.kind, one.bytes, one.axes, one.source)
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_CALL = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One exchange of a program, an asynchronous one (start and done) too."""

    kind: str  # of `KINDS`
    shapes: tuple[tuple[int, ...], ...]  # of the arrays that come out on one chip
    bytes: int  # a chip: of these arrays; of those that go in where they are larger (reduce-scatter)
    group: int  # chips that take part together; 0: all, or not said
    axes: str  # of the mesh, where the text names them
    times: int  # a run of the program: above 1 inside a loop of known length
    operation: str  # what it was made for, as JAX names it
    source: str  # file and line, "" where the text does not tell

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a run, by the best known algorithm (rings)."""
        rest = 1.0 - 1.0 / self.group if self.group else 1.0
        return (
            self.times
            * self.bytes
            * {"all-reduce": 2.0 * rest, "collective-permute": 1.0}.get(self.kind, rest)
        )


def collectives(text: str) -> list[Collective]:
    """All exchanges of a compiled program (`compiled.as_text()`), in its order."""
    found = []
    times = _times(text)
    sources = _sources(text)
    for computation, line in _lines(text):
        call = _CALL.search(line)
        if call is None or " = " not in line[: call.start() + 1]:
            continue
        kind = call[1]
        arrays = _arrays(_results(line[line.index(" = ") + 3 : call.start()], bool(call[2]), kind))
        group, axes = _group(line)
        size = sum(math.prod(shape) * _bits(dtype) // 8 for dtype, shape in arrays)
        if kind == "reduce-scatter":
            size *= max(group, 1)
        elif computation.startswith("all-reduce-scatter"):  # the TPU compiler's: a reduction, then a cut
            kind = "reduce-scatter"
        frame = re.search(r"stack_frame_id=(\d+)", line)
        name = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                kind=kind,
                shapes=tuple(shape for _, shape in arrays),
                bytes=size,
                group=group,
                axes=axes,
                times=times[computation],
                operation=name[1] if name else "",
                source=sources.get(int(frame[1]), "") if frame else "",
            )
        )
    return found


def gathered_activations(
    found: Iterable[Collective], parameters: Iterable[tuple[int, ...]], *, smallest: int = 65536
) -> list[Collective]:
    """All-gathers of something else than parameters: a map that every chip would have to hold whole.

    Args:
        found: of `collectives`.
        parameters: shapes of the arrays of the training state; the compiler may reorder their axes.
        smallest: elements below which an array is no matter.
    """
    known = {math.prod(shape) for shape in parameters}
    return [
        one
        for one in found
        if one.kind == "all-gather"
        and any(math.prod(shape) >= smallest and math.prod(shape) not in known for shape in one.shapes)
    ]


def _lines(text: str) -> Iterable[tuple[str, str]]:
    """Every instruction with the name of its computation."""
    computation = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            head = re.match(r"(?:ENTRY )?%?([^\s(]+)", line)
            computation = head[1] if head else ""
        elif line.startswith(" "):
            yield computation, line


def _times(text: str) -> dict[str, int]:
    """How often each computation runs: bodies of loops as often as the compiler knows them to."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, line in _lines(text):
        body = re.search(r"\bbody=%?([\w.-]+)", line)
        if body:
            count = re.search(r'"known_trip_count":\{"n":"?(\d+)', line)
            callers[body[1]].append((computation, int(count[1]) if count else 1))
        for called in re.findall(r"\b(?:calls|to_apply)=%?([\w.-]+)", line):
            callers[called].append((computation, 1))

    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = sum(of(caller) * count for caller, count in callers[name]) or 1
        return known[name]

    return defaultdict(lambda: 1, {name: of(name) for name in list(callers)})


def _results(kinds: str, started: bool, kind: str) -> str:
    """The part of an instruction's type that it leaves: a start also names what went in, first."""
    if not (started and kinds.startswith("(") and kind != "all-reduce"):
        return kinds
    depth, parts, begin = 0, [], 1
    for place, letter in enumerate(kinds):
        depth += (letter in "([{") - (letter in ")]}")
        if (depth == 1 and letter == ",") or depth == 0:
            parts.append(kinds[begin:place])
            begin = place + 1
    return parts[1]


def _arrays(kinds: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(kinds)]


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return _BITS.get(dtype) or (int(digits[0]) if digits else 0)


def _group(line: str) -> tuple[int, str]:
    """Chips of a group and axes of the mesh, from any of the ways in which groups are written."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes), ",".join(
            name for name, _ in axes
        )
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if counted:
        return int(counted[2]), ""
    listed = re.search(r"replica_groups=\{\{([\d, ]*)\}", line)
    return (len(listed[1].split(",")) if listed and listed[1] else 0), ""


def _sources(text: str) -> dict[int, str]:
    """File and line of each stack frame, from the tables at the head of the text."""
    names = {int(k): v for k, v in re.findall(r'^(\d+) "([^"]*)"$', _table(text, "FileNames"), re.M)}
    places = {}
    for row in _table(text, "FileLocations").splitlines():
        number = re.match(r"\d+", row)
        file, at = re.search(r"file_name_id=(\d+)", row), re.search(r"\bline=(\d+)", row)
        if number and file and at:
            places[int(number[0])] = f"{names.get(int(file[1]), '?').rsplit('/', 1)[-1]}:{at[1]}"
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _table(text, "StackFrames"), re.M)
    return {int(frame): places.get(int(place), "") for frame, place in frames}


def _table(text: str, name: str) -> str:
    begin = text.find(f"\n{name}\n")
    return text[begin : text.find("\n\n", begin + 1)] if begin >= 0 else ""
