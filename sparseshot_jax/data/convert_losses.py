"""What a file holds less, or otherwise, than the annotations it was written from."""

import collections

import numpy as np

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.hovernet_mat import type_numbers
from sparseshot_jax.data.formats.label_map import hidden

PLURAL = {Kind.POLYGON: "polygons", Kind.POINT: "points", Kind.BOX: "boxes"}
DRAWN = ("label_map", "hovernet")  # keys in FORMATS of those that hold pixels: one object each


def losses(
    format_name: str, given: Annotations, written: Annotations, picture: Picture
) -> collections.Counter[str]:
    """Sentences with a place for a number, and the numbers: how `written` differs from `given`.

    Args:
        format_name: the key in FORMATS of the file's format.
        given: what was to be written.
        written: the same file read again.
        picture: the size of the image, where it is known.
    """
    counts: collections.Counter[str] = collections.Counter()
    before, after = (np.bincount(one.kind, minlength=len(Kind)) for one in (given, written))
    gained = " and ".join(PLURAL[kind] for kind in Kind if after[kind] > before[kind])
    fewer = len(given) - len(written)
    for kind in Kind:
        lost = int(before[kind] - after[kind])
        if lost > 0 and gained:
            counts[f"{{}} {PLURAL[kind]} became {gained}{' or are missing' if fewer > 0 else ''}."] += lost
        elif lost > 0:
            counts[f"{{}} {PLURAL[kind]} are missing in the file."] += lost
    if before[Kind.POLYGON] and after[Kind.POLYGON]:
        counts += _outlines(given, written)
    counts += _classes(format_name, given, written)
    if format_name in DRAWN:
        counts["{} objects are hidden in part or whole by later ones that overlap them."] += hidden(
            given, picture
        )
    return +counts


def _outlines(given: Annotations, written: Annotations) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    holes = [int((one.nesting[0] % 2 == 1).sum()) for one in (given, written)]
    counts["{} holes were lost."] += max(0, holes[0] - holes[1])
    areas = [float(one.areas_px[one.kind == Kind.POLYGON].sum()) for one in (given, written)]
    # 0.001 px along every outline is what writing three decimals may cost.
    same = (given.kind == Kind.POLYGON).sum() == (written.kind == Kind.POLYGON).sum()
    if same and abs(areas[0] - areas[1]) > 1e-3 * _length(given):
        change = 100 * (areas[1] / areas[0] - 1)
        counts[f"Outlines of {{}} polygons moved (to whole pixels): area {change:+.2g} %."] += len(written)
    return counts


def _length(one: Annotations) -> float:
    """Twice the sum of the sides of all bounding boxes: about the length of all outlines."""
    bounds = one.bounds_px
    return 2 * float((bounds[:, 2:] - bounds[:, :2]).sum())


def _classes(format_name: str, given: Annotations, written: Annotations) -> collections.Counter[str]:
    before, after = (
        {one.class_names[k] for k in np.unique(one.class_ids).tolist()} for one in (given, written)
    )
    gone = sorted(before - after)
    if not gone or not len(written):
        return collections.Counter()
    concerned = int(given.of_classes(gone).sum())
    if format_name == "hovernet":
        numbers = type_numbers(given.class_names)
        named = ", ".join(f"{_shown(name)} = {numbers[name]}" for name in gone)
        return collections.Counter({f"Classes of {{}} objects became numbers: {named}.": concerned})
    became = ", ".join(map(_shown, sorted(after - before)))
    text = f"Classes of {{}} objects were lost: {', '.join(map(_shown, gone))}"
    return collections.Counter({f"{text}{f' became {became}' if became else ''}.": concerned})


def _shown(name: str) -> str:
    # Doubled braces: a name from a file must not act as a place for the count.
    return (name or "no class").replace("{", "{{").replace("}", "}}")
