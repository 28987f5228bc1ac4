"""Whole slides, each with a file of a few marked objects, in any known format."""

import dataclasses
import glob
import os
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np

from sparseshot_jax.data import storage
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats import format_of, read_annotations
from sparseshot_jax.data.formats.label_map import read_label_map
from sparseshot_jax.data.labels import LabelSpec, check_classes, wanted
from sparseshot_jax.data.slides.slide import FileSlide, open_slide
from sparseshot_jax.data.sources.annotation_files import MARK_SUFFIXES, annotation_file
from sparseshot_jax.data.sources.placement import inside
from sparseshot_jax.data.sources.ranges import check_mpp, check_share
from sparseshot_jax.data.sparsify import nested_subset, spatial_holdout, without
from sparseshot_jax.errors import InputError

_THREADS = 8  # that open slides: on a network share most of the time is waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideSource:
    """Slides with sparse marks.

    Every slide trains. Without dense truth, validation is the recall on marked objects that are held
    out by spatial blocks: training sees them as it sees any unmarked object (unannotated, as METHOD
    has it for dropped ones), since ignoring them would spare the model the pressure that the objects
    nobody marked are under, and flatter the recall. With `truth`, the same slides are the test set.
    """

    slides: tuple[str, ...] = ()  # paths or URLs (gs://, s3://); * and ? are expanded
    annotations: str = ""  # folder of STEM.geojson, .xml, .csv ... (docs/formats.md); "" = beside each slide
    truth: str = ""  # folder of the same with dense marks; "" = none. For measuring, never for training
    # Where annotations count from: the slide's corner, or that of its scanned part (openslide.bounds-x and
    # -y: MRXS and the like).
    coords: Literal["level0", "bounds"] = "level0"
    mpp: float | None = None  # micrometres a level-0 pixel; None = as the file says
    keep: float = 1.0  # share of the marked objects that is used at all, (0, 1]
    hold_out: float = 0.2  # share of those kept from training, [0, 1)
    train_keep: float = 1.0  # share of the rest that training is told of, (0, 1]; what is held out stays
    block_um: float = 250.0  # side of the hold-out's blocks, micrometres, > 0

    def __post_init__(self):
        check_mpp(self.mpp)
        for field in ("keep", "train_keep"):
            check_share(field, getattr(self, field))
        if not 0.0 <= self.hold_out < 1.0:
            raise InputError(f"data.hold_out must be a share in [0, 1); got {self.hold_out}. Try 0.2.")
        if self.block_um <= 0:
            raise InputError(f"data.block_um must be above 0 micrometres; got {self.block_um}. Try 250.")

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """See `Source.load`."""
        paths = self._paths()
        train, validation, test, notes = [], [], [], []
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                for case, dense, found in threads.map(lambda path: self._load(path, labels, seed), paths):
                    notes += found
                    train.append(case)
                    if case.held_out is not None:
                        validation.append(case)
                    if dense is not None:
                        test.append(dataclasses.replace(case, truth=dense, held_out=None))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        if self.truth:
            notes.append(
                "The test part is the training slides themselves, with their dense truth: it measures how "
                "well the unmarked cells there were found, and not how the model does on new slides."
            )
        if not any(wanted(case.given, labels).any() for case in train):
            raise InputError(
                f"{paths[0]}: training needs at least one marked object of {', '.join(labels.names)}; "
                "the annotation files hold none. Mark some cells, or correct labels.classes."
            )
        return Splits(train=tuple(train), validation=tuple(validation), test=tuple(test), notes=tuple(notes))

    def _paths(self) -> list[str]:
        """Paths or URLs of the slides."""
        paths: dict[str, None] = {}
        for entry in self.slides:
            found = _matching(entry)
            if not found:
                raise InputError(
                    f"{entry}: no such slide. data.slides must be paths or patterns of files; check "
                    "the name and the folder."
                )
            paths.update(dict.fromkeys(p for p in found if not p.lower().endswith(MARK_SUFFIXES)))
        if not paths:
            raise InputError("data.slides must name at least one slide. Try slides=('slide.svs',).")
        stems = [Path(path).stem for path in paths]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise InputError(f"data.slides: slides need distinct names; {', '.join(twice)} is not.")
        return list(paths)

    def _load(self, path: str, labels: LabelSpec, seed: int) -> tuple[Case, Annotations | None, list[str]]:
        """The case, its dense truth, and what there is to say."""
        slide = open_slide(storage.fetch(path), mpp=self.mpp)
        case, notes = self._case(path, slide, labels, seed)
        dense = self._read(path, slide, labels, self.truth, "data.truth") if self.truth else None
        return case, dense, notes

    def _case(self, path: str, slide: FileSlide, labels: LabelSpec, seed: int) -> tuple[Case, list[str]]:
        name = Path(path).stem
        if slide.mpp is None:
            raise InputError(
                f"{path}: the file does not say how large a pixel is. Set data.mpp to the micrometres "
                "a full-resolution pixel (0.25 is usual at 40x, 0.5 at 20x)."
            )
        given = self._read(path, slide, labels, self.annotations, "data.annotations")
        notes = [f"{Path(given.source).name}: {note}" for note in given.notes]
        given, outside = inside(given, slide.width, slide.height, path)
        notes += [f"{Path(given.source).name}: {note}" for note in outside]
        given, held = self._thin(given, labels, name, slide.mpp, seed)
        if held is not None:
            notes.append(
                f"{Path(path).name}: {len(held)} marked objects are held out of training to measure recall."
            )
        case = Case(
            name=name,
            slide=slide,
            mpp=slide.mpp,
            given=given,
            truth=None,
            held_out=held,
            labels=labels,
        )
        return case, notes

    def _read(self, path: str, slide: FileSlide, labels: LabelSpec, folder: str, field: str) -> Annotations:
        stem, own = Path(path).stem, os.path.dirname(path) or "."
        where = folder or own
        beside = os.path.realpath(where) == os.path.realpath(own)
        found = annotation_file(stem, where, label_maps=not beside)
        if found is None:
            raise InputError(
                f"{path}: no annotations. Expected {storage.join(where, stem)}.geojson, or one of "
                f"{', '.join(MARK_SUFFIXES)}. Export the slide's annotations under that name, or set {field}."
            )
        if format_of(found) == "label_map":
            read = read_label_map(found, class_name=labels.names[0])
        else:
            read = read_annotations(found)
        check_classes(read, labels)
        if self.coords == "bounds" and slide.bounds is not None:
            read = read.transformed(dx=float(slide.bounds[0]), dy=float(slide.bounds[1]))
        return read

    def _thin(
        self, given: Annotations, labels: LabelSpec, name: str, mpp: float, seed: int
    ) -> tuple[Annotations, Annotations | None]:
        """The share to keep, the hold-out among it, and of the rest what training is told of."""
        gone = np.zeros(len(given), bool)
        objects = np.flatnonzero(wanted(given, labels))
        kept = nested_subset(len(objects), self.keep, seed=seed, dataset="slides", image=name)
        gone[objects[~kept]] = True
        left = objects[kept]
        held = spatial_holdout(
            given.centroids_px[left], self.hold_out, seed=seed, block_px=self.block_um / mpp
        )
        gone[left[held]] = True
        rest = left[~held]
        told = nested_subset(len(rest), self.train_keep, seed=seed, dataset="slides told", image=name)
        gone[rest[~told]] = True
        held_out = given.take(left[held]) if held.any() else None
        return without(given, gone, labels), held_out


def _matching(entry: str) -> list[str]:
    """Files of a pattern or name; those of a URL are listed in its folder."""
    if storage.is_local(entry):
        return [path for path in sorted(glob.glob(entry)) or [entry] if Path(path).is_file()]
    folder, _, pattern = entry.rpartition("/")
    return [storage.join(folder, name) for name in storage.list_names(folder) if fnmatchcase(name, pattern)]
