"""Every place that training may look at, in flat arrays: in memory, or mapped from a folder."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64, Shaped, UInt8

from sparseshot_jax.data.tile_grid import CaseGrid, FileBytes, TissueBits
from sparseshot_jax.errors import InputError

VERSION = 1
HEADER = "index.json"

# One row a case.
CASE = np.dtype(
    [
        ("height", "<i4"),  # output pixels
        ("width", "<i4"),
        ("rows", "<i4"),  # of cells
        ("columns", "<i4"),
        ("slide_height", "<i4"),  # level-0 pixels
        ("slide_width", "<i4"),
        ("mpp", "<f8"),  # micrometres a level-0 pixel
        ("scale", "<f8"),  # level-0 pixels per output pixel
        ("mask_scale", "<f8"),  # output pixels per mask pixel
        ("mask_height", "<i4"),  # mask pixels; 0 = all tissue
        ("mask_width", "<i4"),
        ("mask_start", "<i8"),  # of its rows in mask_bytes
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TileIndex:
    """Every place that training may look at."""

    tile_px: int
    min_tissue: float  # least share of tissue in a tile that is not drawn round an object
    cells: Int32[np.ndarray, "n 3"]  # case, row, column of the tissue's cells: one epoch
    objects_yx: Float64[np.ndarray, "m 2"]  # annotated objects in the order of the cases, output pixels
    object_offsets: Int64[np.ndarray, "k_plus_1"]  # case i has objects offsets[i]..offsets[i + 1]
    object_classes: UInt8[np.ndarray, "m"]  # ids 1..C; 0 = unknown
    by_class: Int32[np.ndarray, "m"]  # the objects again, sorted by class
    class_offsets: Int64[np.ndarray, "c_plus_1"]  # into by_class: class i + 1 is offsets[i]..offsets[i + 1]
    cases: Shaped[np.ndarray, "k"]  # rows of `CASE`
    mask_bytes: UInt8[np.ndarray, "b"] | FileBytes  # tissue masks of all cases, one bit a pixel
    text: UInt8[np.ndarray, "t"]  # name and path of each case, UTF-8
    text_offsets: Int64[np.ndarray, "two_k_plus_1"]
    folder: str = ""  # where it is mapped from; "" = in memory

    def __reduce__(self) -> Any:
        if self.folder:  # a worker maps the files again; pickling their contents would copy them
            return open_index, (self.folder,)
        return super().__reduce__()

    @property
    def grids(self) -> "Grids":
        """The grid of each case."""
        return Grids(self)

    @functools.cached_property
    def annotated(self) -> Int64[np.ndarray, "a"]:
        """Cases with an annotated object."""
        return np.flatnonzero(np.diff(self.object_offsets))

    @functools.cached_property
    def classes(self) -> Int64[np.ndarray, "a"]:
        """Class ids that an annotated object has."""
        return np.flatnonzero(np.diff(self.class_offsets)) + 1

    def name(self, case: int) -> str:
        """The case's name."""
        return self._text(2 * case)

    def path(self, case: int) -> str:
        """The slide's file; "" for an image in memory."""
        return self._text(2 * case + 1)

    def _text(self, k: int) -> str:
        return bytes(self.text[self.text_offsets[k] : self.text_offsets[k + 1]]).decode()


class Grids(Sequence[CaseGrid]):
    """The grids of an index, each made when it is asked for."""

    def __init__(self, index: TileIndex):
        self._index = index

    def __len__(self) -> int:
        return len(self._index.cases)

    def __getitem__(self, case: Any) -> Any:
        row = self._index.cases[case]
        tissue = None
        if row["mask_height"]:
            tissue = TissueBits(
                source=self._index.mask_bytes,
                start=int(row["mask_start"]),
                height=int(row["mask_height"]),
                width=int(row["mask_width"]),
                scale=float(row["mask_scale"]),
            )
        return CaseGrid(
            height=int(row["height"]),
            width=int(row["width"]),
            tile_px=self._index.tile_px,
            scale=float(row["scale"]),
            tissue=tissue,
            min_tissue=self._index.min_tissue,
        )

    def __iter__(self) -> Iterator[CaseGrid]:
        return (self[k] for k in range(len(self)))


_SCALARS = ("tile_px", "min_tissue")
_ARRAYS = tuple(
    field.name for field in dataclasses.fields(TileIndex) if field.name not in (*_SCALARS, "folder")
)


def save_index(index: TileIndex, folder: str | os.PathLike[str]) -> None:
    """Write the index as a folder of arrays with a JSON header; all of it or nothing.

    Raises:
        InputError: the folder exists already, or cannot be written.
    """
    target = Path(folder)
    if target.exists():
        raise InputError(f"{target}: exists already. Choose another folder, or remove it.")
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name in _ARRAYS:
            np.save(scratch / f"{name}.npy", getattr(index, name)[:])
        sizes = {name: (scratch / f"{name}.npy").stat().st_size for name in _ARRAYS}
        header = {name: getattr(index, name) for name in _SCALARS}
        header |= {"version": VERSION, "bytes": sizes, "checksum": _checksum(header, sizes)}
        (scratch / HEADER).write_text(json.dumps(header, indent=1))
        scratch.chmod(0o755)  # mkdtemp's is private
        os.rename(scratch, target)
    except OSError as error:
        raise InputError(f"{target}: the index cannot be written: {error.strerror or error}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def open_index(folder: str | os.PathLike[str]) -> TileIndex:
    """Map an index that `save_index` wrote. Memory is used for what is looked at, a page at a time.

    Raises:
        InputError: not an index, of another version, incomplete, or changed.
    """
    folder = Path(folder)
    header = _header(folder)
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        path = folder / f"{name}.npy"
        stored = path.stat().st_size if path.is_file() else None
        if stored != header["bytes"][name]:
            found = "is missing" if stored is None else f"has {stored} bytes"
            raise InputError(
                f"{path}: {found}; the index was written with {header['bytes'][name]}. Copy the folder "
                "again, or write the index again."
            )
        try:
            arrays[name] = _mapped(path)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path}: not an array ({error}). Write the index again.") from error
    try:
        return TileIndex(**{name: header[name] for name in _SCALARS}, **arrays, folder=str(folder))
    except TypeError as error:
        raise InputError(f"{folder}: arrays of other types. Write the index again.") from error


def _header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = json.loads(path.read_bytes())
        version = header["version"]
    except OSError as error:
        raise InputError(f"{path}: no index there. Check the folder, or write an index.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not the header of an index. Write the index again.") from error
    if version != VERSION:
        raise InputError(
            f"{path}: version {version}; this program reads version {VERSION}. Write the index again."
        )
    scalars = {name: header.get(name) for name in _SCALARS}
    sizes = header.get("bytes")
    if (
        not isinstance(sizes, dict)
        or set(sizes) != set(_ARRAYS)
        or header.get("checksum") != _checksum(scalars, sizes)
    ):
        raise InputError(f"{path}: the header was changed or is damaged. Write the index again.")
    return header


def _checksum(scalars: dict[str, Any], sizes: dict[str, int]) -> str:
    text = json.dumps([VERSION, scalars, sizes, CASE.descr], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _mapped(path: Path) -> np.ndarray | FileBytes:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if path.stem == "mask_bytes" and isinstance(array, np.memmap):
        return FileBytes(str(path), array.offset, len(array))
    return array.view(np.ndarray)
