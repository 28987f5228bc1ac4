"""Which annotation file belongs to an image: NAME with the suffix of any known format."""

from pathlib import Path

from sparseshot_jax.data import storage
from sparseshot_jax.data.formats import FORMATS
from sparseshot_jax.errors import InputError

_LABEL_MAPS = FORMATS["label_map"].suffixes
# Longest first: of a.points.json the stem is a.
SUFFIXES = tuple(
    sorted({suffix for one in FORMATS.values() for suffix in one.suffixes}, key=lambda s: (-len(s), s))
)
# What no image is called.
MARK_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in _LABEL_MAPS)


def annotation_file(stem: str, folder: str | Path, *, label_maps: bool) -> Path | None:
    """The annotation file of an image; None = there is none.

    Args:
        stem: the image's name without its suffix.
        folder: where to look; of a URL the file is fetched.
        label_maps: also for images of labels, where there is no other file. Beside slides they would be taken
            for one another.

    Raises:
        InputError: there are several.
    """
    names = None if storage.is_local(folder) else set(storage.list_names(str(folder)))
    for suffixes in (MARK_SUFFIXES, _LABEL_MAPS if label_maps else ()):
        wanted = [stem + suffix for suffix in suffixes]
        found = [
            name for name in wanted if (Path(folder, name).is_file() if names is None else name in names)
        ]
        if len(found) > 1:
            raise InputError(
                f"{folder}: an image must have one annotation file; {stem} has {', '.join(sorted(found))}. "
                "Move all but one away."
            )
        if found:
            return Path(folder, found[0]) if names is None else storage.fetch(storage.join(folder, found[0]))
    return None
