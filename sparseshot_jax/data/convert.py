"""One annotation format to another: a file to a file, a file of many images to a folder, and back."""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.convert_losses import losses
from sparseshot_jax.data.formats import FORMATS, format_of, formats_named, known_format
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.errors import InputError

# An image's name is its file's name without one of these; other dots belong to the name.
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ome.tif", ".ome.tiff"),
    *(".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".dcm", ".isyntax"),
)
_UNSAFE = str.maketrans({character: "_" for character in '<>:"|?*'})

Image = tuple[str, Picture, Annotations]  # name; what is known of the picture; its objects


def convert(
    source: str | Path,
    target: str | Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    images: str | Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Read annotations in one format, write them in another, and say what was lost.

    Every file is read again after it was written, and compared with what went in.

    Args:
        source: a file, or a folder of files of one format.
        target: a file, or a folder (one that exists, or a name without suffix) for one file an image.
        source_format: a key in FORMATS; None finds it out.
        target_format: likewise; needed for a folder, and where formats share the target's suffix.
        images: the picture, or the folder of pictures of the same names; gives a writer their sizes.
        overwrite: replace files that exist, if their suffix is one of the target format's.

    Returns:
        Sentences: what the reader repaired or left out, and what the target does not hold. Empty = all
        went over unchanged.

    Raises:
        InputError: a file cannot be read or written, exists already, or cannot hold what it must.
    """
    source, target = Path(source), Path(target)
    to_folder = target.is_dir() or (not target.suffix and not target.is_file())
    name = _target_format(target, target_format, to_folder)
    if FORMATS[name].write is None:
        raise InputError(
            f"{target}: {FORMATS[name].title} can be read and not written. Choose another format."
        )
    said = _Said()
    loaded = _with_sizes(_loaded(source, source_format, said), None if images is None else Path(images))
    if to_folder:
        _write_folder(target, name, loaded, overwrite, said)
    else:
        _write_file(target, name, list(loaded), overwrite, said)
    return said.sentences()


class _Said:
    """Sentences gathered on the way; those that count are added up over all images."""

    def __init__(self):
        self.plain: dict[str, None] = {}
        self.counts: collections.Counter[str] = collections.Counter()

    def sentences(self) -> list[str]:
        """All of them, each once."""
        return [*self.plain, *(text.format(f"{n:,}") for text, n in self.counts.items())]


def _target_format(target: Path, given: str | None, to_folder: bool) -> str:
    if given is not None:
        return known_format(given)
    if to_folder:
        raise InputError(f"{target}: is a folder; name the format of its files, one of {', '.join(FORMATS)}.")
    names = formats_named(target)
    if len(names) > 1:
        raise InputError(
            f"{target}: formats share the suffix {target.suffix!r}; name the target's format, one of "
            f"{', '.join(names)}."
        )
    return names[0]


def _loaded(source: Path, given: str | None, said: _Said) -> Iterator[Image]:
    """The images of the source, each read when it is asked for."""
    if given is not None:
        known_format(given)
    seen: dict[str, Path] = {}
    for path, name in _files(source, given, said):
        for image in _read(path, name):
            if image[0] in seen:
                raise InputError(
                    f"{path}: holds the image {image[0]!r}, which {seen[image[0]]} holds already. Keep one."
                )
            seen[image[0]] = path
            label = f"{path}: {image[0]}: " if path.name.split(".")[0] != image[0] else f"{path}: "
            said.plain.update(dict.fromkeys(label + note for note in image[2].notes))
            yield image


def _files(source: Path, given: str | None, said: _Said) -> list[tuple[Path, str]]:
    if not source.is_dir():
        return [(source, given or format_of(source))]
    files, others = [], []
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        try:
            names = formats_named(path)
        except InputError:
            names = []
        name = given if given in names else None if given or not names else format_of(path)
        if name is None:
            others.append(path.name)
        else:
            files.append((path, name))
    found = sorted({name for _, name in files})
    if not files:
        raise InputError(
            f"{source}: must hold annotation files{f' of the format {given}' if given else ''}; it holds "
            f"{', '.join(others[:8]) or 'no file'}. Check the folder."
        )
    if len(found) > 1:
        raise InputError(
            f"{source}: must hold files of one format; it holds {', '.join(found)}. Name the source's format."
        )
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        said.plain[f"{source}: {len(others)} files of other kinds were left out: {named}."] = None
    return files


def _read(path: Path, name: str) -> list[Image]:
    stem = _stem(path.name, FORMATS[name].suffixes)
    many = FORMATS[name].read_many
    if many is None:
        return [(stem, Picture(name=stem), FORMATS[name].read(path))]
    return [(picture.name or stem, picture, found) for picture, found in many(path).values()]


def _with_sizes(loaded: Iterator[Image], images: Path | None) -> Iterator[Image]:
    """The same images with name and size of their pictures."""
    if images is None:
        yield from loaded
        return
    if not images.exists():
        raise InputError(f"{images}: no such picture or folder of pictures. Check the path.")
    folder = images.is_dir()
    pictures: dict[str, Path] = {}
    used: dict[Path, str] = {}
    if folder:
        for path in sorted(images.iterdir()):
            if path.name.lower().endswith(IMAGE_SUFFIXES):
                pictures.setdefault(_stem(path.name), path)
    for number, (name, picture, found) in enumerate(loaded):
        if not folder and number:
            raise InputError(f"{images}: is one picture, and the source has more images. Name their folder.")
        path = pictures.get(_stem(name)) if folder else images
        if path is None:
            raise InputError(
                f"{images}: holds no picture named {_stem(name)!r}; it has "
                f"{', '.join([path.name for path in pictures.values()][:8]) or 'none'}."
            )
        if path in used:
            raise InputError(f"{path}: is the picture of {used[path]!r} and of {name!r}. Rename one of them.")
        used[path] = name
        slide = open_slide(path)
        if (slide.width, slide.height) != (picture.width or slide.width, picture.height or slide.height):
            raise InputError(
                f"{path}: must be {picture.width} x {picture.height}, as the annotations of {name} say; it "
                f"is {slide.width} x {slide.height}. Check that it is the picture that was annotated."
            )
        yield path.name, Picture(name=path.name, width=slide.width, height=slide.height), found


def _write_file(target: Path, name: str, loaded: list[Image], overwrite: bool, said: _Said) -> None:
    form = FORMATS[name]
    if len(loaded) == 1:
        _write_one(target, name, loaded[0], overwrite, said)
        return
    if form.write_many is None or form.read_many is None:
        raise InputError(
            f"{target}: a file of {form.title} holds one image, and the source has {len(loaded)}. Name a "
            "folder as the target, or one of "
            f"{', '.join(key for key, one in FORMATS.items() if one.write_many)} as its format."
        )
    _may_write(target, name, overwrite)
    write, names = form.write_many, [image for image, _, _ in loaded]
    pictures = [picture for _, picture, _ in loaded]
    given = _write_what_fits(
        name,
        [found for _, _, found in loaded],
        lambda found: write(target, dict(zip(names, zip(pictures, found)))),
        said,
    )
    again = form.read_many(target)
    for image, picture, found in zip(names, pictures, given):
        if image in again:
            said.counts += losses(name, found, again[image][1], picture)
        else:
            said.counts["{} images have no entry in the file, since they have no object."] += 1


def _write_folder(target: Path, name: str, loaded: Iterator[Image], overwrite: bool, said: _Said) -> None:
    written: dict[Path, str] = {}
    for image in loaded:
        stem = _stem(image[0]).translate(_UNSAFE)
        stem = "".join(c if c.isprintable() else "_" for c in stem)
        if stem in ("", ".", ".."):
            raise InputError(f"{target}: no file can be named after the image {image[0]!r}. Rename it.")
        path = target / (stem + FORMATS[name].suffixes[0])
        if path in written:
            raise InputError(
                f"{path}: the images {written[path]!r} and {image[0]!r} would both be written "
                "here. Rename one."
            )
        written[path] = image[0]
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{target}: cannot be made: {error.strerror}. Check the path.") from error
        _write_one(path, name, image, overwrite, said)


def _write_one(path: Path, name: str, image: Image, overwrite: bool, said: _Said) -> None:
    _, picture, found = image
    _may_write(path, name, overwrite)
    write = FORMATS[name].write
    assert write is not None  # checked before anything was read
    (given,) = _write_what_fits(name, [found], lambda one: write(path, one[0], picture), said)
    said.counts += losses(name, given, FORMATS[name].read(path), picture)


def _may_write(path: Path, name: str, overwrite: bool) -> None:
    if not path.exists():
        return
    form = FORMATS[name]
    if not path.name.lower().endswith(form.suffixes):  # a slide, most likely, and its only copy
        raise InputError(
            f"{path}: exists already, and a file is replaced only if its suffix is one of {form.title}: "
            f"{', '.join(form.suffixes)}. Choose another name."
        )
    if not overwrite:
        raise InputError(f"{path}: exists already. Choose another name, or ask to overwrite it.")


def _write_what_fits(
    name: str, found: list[Annotations], write: Callable[[list[Annotations]], None], said: _Said
) -> list[Annotations]:
    """Write all; where that is refused and there are points beside other objects, all but the points."""
    points = sum(int(one.is_point.sum()) for one in found)
    try:
        write(found)
        return found
    except InputError:
        if points in (0, sum(map(len, found))):
            raise
    rest = [one.take(~one.is_point) for one in found]
    write(rest)  # if the points were not what was refused, it is refused again
    said.counts[f"{{}} points were left out: {FORMATS[name].title} has none."] += points
    return rest


def _stem(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> str:
    """The last part of a path without its suffix."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    fitting = [suffix for suffix in suffixes if last.lower().endswith(suffix)]
    return last[: -len(max(fitting, key=len))] if fitting else last
