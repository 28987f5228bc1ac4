"""What the writers of XML formats share: names, numbers, colours, and objects as single outlines."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import Float64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.errors import InputError

HEAD = b'<?xml version="1.0" encoding="UTF-8"?>\n'
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_names(path: Path, annotations: Annotations, reserved: tuple[str, ...] = ()) -> None:
    """Refuse class names that cannot be written: XML has no way at all to hold control characters.

    Raises:
        InputError: a name of a class holds such a character, or means something else in the format.
    """
    for class_id in np.unique(annotations.class_ids).tolist():
        name = annotations.class_names[class_id]
        if found := _ILLEGAL.search(name):
            raise InputError(
                f"{path}: XML cannot hold the character {found.group()!r} of class {name[:40]!r}. "
                "Rename the class."
            )
        if name in reserved:
            raise InputError(
                f"{path}: class {name!r} would read as unclassified in this format. Rename the class."
            )


def quoted(text: str) -> str:
    """Text as an attribute's value, quotes included.

    >>> quoted('a<"b"&\\n')
    '\\'a&lt;"b"&amp;&#10;\\''
    """
    return quoteattr(text)


def escaped(text: str) -> str:
    """Text as an element's content.

    >>> escaped("a < b")
    'a &lt; b'
    """
    return escape(text, {"\r": "&#13;"})


def shown(value: float) -> str:
    """A coordinate to 0.001 px, without a point where it is whole.

    >>> shown(12.0), shown(0.12345), shown(-0.0001)
    ('12', '0.123', '0')
    """
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


class Outline:
    """Each object of some annotations as one closed line, of which files know no other kind.

    Further rings hang on the first by cuts without width, there and back. Holes run against the outer
    rings: whether a program fills by winding or by parity, it fills the same, and `polygon_repair.clean`
    finds the rings again.
    """

    def __init__(self, annotations: Annotations):
        self.annotations = annotations
        several = bool((np.diff(annotations.object_offsets) > 1).any())
        self.depth = annotations.nesting[0] if several else None

    def of(self, k: int) -> Float64[np.ndarray, "v 2"]:
        """The outline of object k, not closed."""
        first, last = self.annotations.object_offsets[k : k + 2].tolist()
        if last - first == 1:
            return self.ring(first)
        start = self._turned(first)[:1]
        pieces = [self._turned(first)]
        for ring in range(first + 1, last):
            vertices = self._turned(ring)
            pieces += [start, vertices, vertices[:1]]
        return np.concatenate(pieces)

    def with_holes(self, k: int) -> Iterator[tuple[Float64[np.ndarray, "v 2"], bool]]:
        """The outline of object k, then its holes (True), where it is of one part; else `of(k)` alone."""
        first, last = self.annotations.object_offsets[k : k + 2].tolist()
        depth = np.zeros(last - first) if self.depth is None else self.depth[first:last]
        if sorted(depth.tolist()) == [0, *[1] * (last - first - 1)]:
            for ring in np.argsort(depth, kind="stable").tolist():
                yield self.ring(first + ring), bool(depth[ring])
        else:
            yield self.of(k), False

    def ring(self, ring: int) -> Float64[np.ndarray, "v 2"]:
        """The vertices of one ring, as they are."""
        begin, end = self.annotations.ring_offsets[ring : ring + 2].tolist()
        return self.annotations.xy_px[begin:end]

    def _turned(self, ring: int) -> Float64[np.ndarray, "v 2"]:
        vertices = self.ring(ring)
        area = rings.signed_moments(vertices, np.array([0, len(vertices)]))[0][0]
        hole = self.depth is not None and self.depth[ring] % 2 == 1
        return vertices[::-1] if (area < 0) != hole else vertices
