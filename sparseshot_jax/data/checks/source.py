"""The images of a source as they lie on disk, with whatever is wrong in them."""

import dataclasses
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Source
from sparseshot_jax.data.checks.validate import Subject, subjects_of
from sparseshot_jax.data.formats import FORMATS, format_of
from sparseshot_jax.data.formats.label_map import read_label_map
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.point_lists import used_points
from sparseshot_jax.data.slides.slide import FileSlide
from sparseshot_jax.data.sources.folder import FolderSource
from sparseshot_jax.data.sources.slides import SlideSource


def unchecked(source: Source, labels: LabelSpec, seed: int) -> list[Subject]:
    """Every image of a source with its annotations as read.

    Loading for training refuses an unknown class and leaves out objects outside the image; here both
    stay, to be found. Nothing is thinned or held out.

    Raises:
        InputError: what no check can look past: a file that is missing or broken, or no object of an
            image on it.
    """
    if isinstance(source, FolderSource):
        whole = dataclasses.replace(source, keep=1.0)
    elif isinstance(source, SlideSource):
        whole = dataclasses.replace(source, keep=1.0, hold_out=0.0, train_keep=1.0, truth="")
    else:
        return subjects_of(source.load(labels, seed), labels)
    # Without named classes no class is unknown. Radii of classes play no part in reading.
    lenient = LabelSpec(point_radius_um=labels.point_radius_um)
    found = subjects_of(whole.load(lenient, seed), labels)
    bounds = isinstance(source, SlideSource) and source.coords == "bounds"
    key = source.points_key if isinstance(source, FolderSource) else ""
    return [dataclasses.replace(one, annotations=_as_read(one, key, bounds)) for one in found]


def _as_read(subject: Subject, points_key: str, from_bounds: bool) -> Annotations:
    path = Path(subject.annotations.source)
    name = format_of(path)
    if name == "label_map":
        return read_label_map(path, class_name=subject.labels.names[0])
    read = FORMATS[name].read(path)
    if name == "points_json" and points_key:
        return used_points(read, points_key, subject.labels)[0]
    if from_bounds and isinstance(subject.slide, FileSlide) and subject.slide.bounds is not None:
        return read.transformed(dx=float(subject.slide.bounds[0]), dy=float(subject.slide.bounds[1]))
    return read
