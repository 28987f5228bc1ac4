"""What a file format is to the rest of the package: a reader, a writer where one makes sense."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from sparseshot_jax.data.annotations import Annotations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """What some formats say of the image that was annotated."""

    name: str = ""  # file name, with its suffix where it is known
    width: int | None = None  # level-0 pixels; None = unknown
    height: int | None = None


@runtime_checkable
class Read(Protocol):
    """path -> the objects of one image. A file of several images is refused with their names."""

    def __call__(self, path: Path) -> Annotations:
        """See the class."""
        ...


@runtime_checkable
class ReadMany(Protocol):
    """path -> the objects of each image of a file that holds several, by file name."""

    def __call__(self, path: Path) -> dict[str, tuple[Picture, Annotations]]:
        """See the class."""
        ...


@runtime_checkable
class Write(Protocol):
    """Write the objects of one image, under a temporary name first, then renamed."""

    def __call__(self, path: Path, annotations: Annotations, picture: Picture) -> None:
        """See the class."""
        ...


@runtime_checkable
class WriteMany(Protocol):
    """Write the objects of several images into one file."""

    def __call__(self, path: Path, images: Mapping[str, tuple[Picture, Annotations]]) -> None:
        """See the class."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One file format; FORMATS lists them all."""

    title: str  # as its users call it
    suffixes: tuple[str, ...]  # of its files, lower case; a suffix shared by several is told by `marks`
    read: Read
    write: Write | None = None  # None = read only
    read_many: ReadMany | None = None  # where one file may hold several images
    write_many: WriteMany | None = None
    marks: tuple[bytes, ...] = ()  # one of these is near the head of a file whose suffix is shared
    keeps: str = ""  # what a round trip keeps: kinds, classes, precision. Clauses end at ";"; one that says
    # refused, become, hides, no or numbers promises nothing. The tests of round trips read it
    origin: str = ""  # where its coordinates count from, in the files
