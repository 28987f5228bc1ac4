"""XML read as a stream of elements: no tree, no document types, no entities, nothing fetched.

A document type is what every known attack on XML parsers needs (entities that unfold to gigabytes,
entities that name files or addresses), and no annotation format needs one. So one is refused.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from sparseshot_jax.data.formats.json_stream import MAX_BYTES
from sparseshot_jax.errors import InputError

MAX_DEPTH = 64  # elements inside each other; annotation formats have 6
MAX_TOKEN = 4 << 20  # bytes of one tag or comment, which the parser must hold at once
MAX_PROLOG = 64 << 10  # bytes before the first element
MAX_TEXT = 1 << 16  # characters inside one element that are kept
PIECE = 1 << 20  # bytes that are parsed at once
PROLOG_PIECE = 64  # the same before the first element: see `_pieces`

REMEDY = "Correct the place, or export the file again."
_ENCODING = re.compile(
    r"utf-?8|utf-16(le|be)?|(us-)?ascii|iso[-_]?8859-\d{1,2}|latin-?\d|(windows-|cp)125\d|koi8-[ru]",
    re.IGNORECASE,
)
_ENDED = (
    expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS],
    expat.errors.codes[expat.errors.XML_ERROR_UNCLOSED_TOKEN],
    expat.errors.codes[expat.errors.XML_ERROR_PARTIAL_CHAR],
    expat.errors.codes[expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION],
)

Attributes = Mapping[str, str]


class XmlFault(Exception):
    """What is wrong with the element at hand; `parse` adds file, line, column and remedy."""


def _nothing(*_: object) -> None:
    """For events that a reader does not look at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Handlers:
    """What to call for each element. Any of them may raise XmlFault.

    An element is told by its path from the root, `("Annotations", "Annotation")`.
    """

    start: Mapping[tuple[str, ...], Callable[[Attributes], None]] = dataclasses.field(default_factory=dict)
    end: Mapping[tuple[str, ...], Callable[[], None]] = dataclasses.field(default_factory=dict)
    text: Mapping[tuple[str, ...], Callable[[str], None]] = dataclasses.field(default_factory=dict)
    roots: tuple[str, ...]  # names that the root element may have
    title: str  # the format, for messages


def parse(path: Path, handlers: Handlers, *, max_bytes: int = MAX_BYTES) -> None:
    """Call the handlers for the elements of a file, in its order, in constant memory.

    Args:
        path: the file.
        handlers: what to call.
        max_bytes: limit on the file's size.

    Raises:
        InputError: the file cannot be read, is not XML or not of the format, has a document type,
            passes a limit, or a handler found fault; the message names file, line, column and remedy.
    """
    stream = _Stream(path, handlers)
    try:
        with path.open("rb") as source:
            total = 0
            for piece in _pieces(source, stream):
                total += len(piece)
                if total > max_bytes:
                    raise InputError(
                        f"{path}: must be at most {max_bytes:,} bytes; it is larger. Split it, or read it "
                        "with a larger max_bytes."
                    )
                stream.feed(piece, total)
            if not total:
                raise InputError(f"{path}: is empty. {handlers.title} was expected; export the file again.")
            stream.feed(b"", total, last=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}. Check the path.") from error


def number(attributes: Attributes, name: str) -> float:
    """A coordinate from an attribute, NaN and infinity as they are: `polygon_repair.clean` rejects them.

    A decimal comma, as programs write it under some languages, is read as a point.

    Raises:
        XmlFault: the attribute is missing or is not a number at all.
    """
    try:
        return float(attributes[name])
    except KeyError:
        raise XmlFault(f"attribute {name} is missing") from None
    except ValueError:
        return number_of(attributes[name], f"attribute {name}")


def number_of(text: str, what: str) -> float:
    """A number from text, decimal comma allowed; `what` names it in the message.

    >>> number_of(" 12,5 ", "X")
    12.5
    """
    try:
        return float(text.replace(",", ".", 1))
    except ValueError:
        raise XmlFault(f"{what} must be a number; it is {text[:40]!r}") from None


class _Stream:
    """The parser, and where it is."""

    def __init__(self, path: Path, handlers: Handlers):
        self.path = path
        self.handlers = handlers
        self.tags: list[str] = []
        self.rooted = False
        self.wanted: tuple[str, ...] | None = None  # the path whose text is being gathered
        self.pieces: list[str] = []
        self.length = 0
        self.parser = expat.ParserCreate()
        self.parser.XmlDeclHandler = self._declaration
        self.parser.StartDoctypeDeclHandler = self._document_type
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        if handlers.text:
            self.parser.CharacterDataHandler = self._characters

    def feed(self, piece: bytes, total: int, *, last: bool = False) -> None:
        """Parse the next piece; `total` counts the bytes fed, this piece included."""
        try:
            self.parser.Parse(piece, last)
        except expat.ExpatError as error:
            raise self._not_xml(error) from None
        except (LookupError, ValueError) as error:  # of the encoding's decoder
            raise self.fault(f"the text cannot be decoded ({error})") from None
        if total - max(self.parser.CurrentByteIndex, 0) > MAX_TOKEN + PIECE:
            raise self.fault(f"a tag or comment is longer than {MAX_TOKEN:,} bytes")
        if not self.rooted and total >= MAX_PROLOG:
            raise self.fault(f"no element begins in the first {MAX_PROLOG:,} bytes")

    def fault(self, what: str) -> InputError:
        """The error for something wrong at the place where the parser is."""
        line, column = self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber + 1
        return InputError(f"{self.path}: line {line}, column {column}: {what}. {REMEDY}")

    def _not_xml(self, error: expat.ExpatError) -> InputError:
        reason = expat.errors.messages.get(error.code, "unknown fault")
        place = f"line {error.lineno}, column {error.offset + 1}"
        if error.code in _ENDED:
            inside = f" inside <{self.tags[-1]}>" if self.tags else ""
            return InputError(
                f"{self.path}: the file ends too early, at {place}{inside} ({reason}). It was cut off: "
                "copy or export it again."
            )
        return InputError(
            f"{self.path}: is not valid XML: {reason}, {place}. {self.handlers.title} was expected; "
            "export the file again, and if it is another format give it that format's suffix."
        )

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and not _ENCODING.fullmatch(encoding):
            raise self.fault(f"encoding {encoding[:40]!r} is not supported; it should be UTF-8")

    def _document_type(self, name: str, system: str | None, public: str | None, internal: int) -> None:
        raise InputError(
            f"{self.path}: line {self.parser.CurrentLineNumber}: has a document type (<!DOCTYPE ...>). None "
            "is read, since entities declared in it can fill the memory or name other files. Delete it."
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        tags = self.tags
        if not tags:
            self.rooted = True
            if tag not in self.handlers.roots:
                wanted = " or ".join(f"<{name}>" for name in self.handlers.roots)
                raise self.fault(
                    f"the first element must be {wanted} ({self.handlers.title}); it is <{tag[:40]}>"
                )
        tags.append(tag)
        if len(tags) > MAX_DEPTH:
            raise self.fault(f"more than {MAX_DEPTH} elements inside each other")
        path = tuple(tags)
        call = self.handlers.start.get(path)
        if call is not None:
            try:
                call(attributes)
            except XmlFault as fault:
                raise self.fault(f"<{tag}>: {fault}") from None
        if path in self.handlers.text:
            self.wanted = path

    def _end(self, tag: str) -> None:
        path = tuple(self.tags)
        try:
            if self.wanted == path:
                text = "".join(self.pieces)
                self.wanted, self.pieces, self.length = None, [], 0
                self.handlers.text[path](text)
            call = self.handlers.end.get(path)
            if call is not None:
                call()
        except XmlFault as fault:
            raise self.fault(f"<{tag}>: {fault}") from None
        self.tags.pop()

    def _characters(self, text: str) -> None:
        if self.wanted is None or len(self.tags) != len(self.wanted):
            return
        self.length += len(text)
        if self.length > MAX_TEXT:
            raise self.fault(f"<{self.tags[-1]}> holds more than {MAX_TEXT:,} characters")
        self.pieces.append(text)


def _pieces(source: BinaryIO, stream: _Stream) -> Iterator[bytes]:
    """The file in pieces, tiny ones until the first element.

    The parser goes on to the end of a piece after a handler has raised. A document type that is refused
    must not have the entities that make it dangerous in the same piece.
    """
    while piece := source.read(PIECE if stream.rooted else PROLOG_PIECE):
        yield piece
