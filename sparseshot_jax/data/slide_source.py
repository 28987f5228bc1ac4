"""Whole slides, each with a QuPath GeoJSON of a few marked objects."""

import dataclasses
import glob
from pathlib import Path

import numpy as np

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.labels import LabelSpec, check_classes, wanted
from sparseshot_jax.data.placement import inside
from sparseshot_jax.data.slides import Slide, open_slide
from sparseshot_jax.data.sparsify import nested_subset, spatial_holdout, without
from sparseshot_jax.errors import InputError

SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideSource:
    """Slides with sparse marks.

    Every slide trains. Without dense truth, validation is the recall on marked objects that are held
    out by spatial blocks: training sees them as it sees any unmarked object (unannotated, as METHOD
    has it for dropped ones), since ignoring them would spare the model the pressure that the objects
    nobody marked are under, and flatter the recall. With `truth`, the same slides are the test set.
    """

    slides: tuple[str, ...] = ()  # paths; * and ? are expanded
    annotations: str = ""  # folder of STEM.geojson[.gz] or .json; "" = beside each slide
    truth: str = ""  # folder of dense STEM.geojson[.gz]; "" = none. For measuring, never for training
    mpp: float | None = None  # micrometres a level-0 pixel; None = as the file says
    keep: float = 1.0  # share of the marked objects that is used at all, (0, 1]
    hold_out: float = 0.2  # share of those kept from training, [0, 1)
    block_um: float = 250.0  # side of the hold-out's blocks, micrometres

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """See `Source.load`."""
        paths = self._paths()
        train, validation, test, notes = [], [], [], []
        for path in paths:
            slide = open_slide(path, mpp=self.mpp)
            case, found = self._case(path, slide, labels, seed)
            notes += found
            train.append(case)
            if case.held_out is not None:
                validation.append(case)
            if self.truth:
                dense = self._read(path, slide, labels, self.truth, "data.truth")
                test.append(dataclasses.replace(case, truth=dense, held_out=None))
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

    def _paths(self) -> list[Path]:
        paths: dict[Path, None] = {}
        for entry in self.slides:
            matched = sorted(glob.glob(entry)) or [entry]
            found = [Path(p) for p in matched if Path(p).is_file()]
            if not found:
                raise InputError(
                    f"{entry}: no such slide. data.slides must be paths or patterns of files; check "
                    "the name and the folder."
                )
            paths.update(dict.fromkeys(p for p in found if not p.name.endswith(SUFFIXES)))
        if not paths:
            raise InputError("data.slides must name at least one slide. Try slides=('slide.svs',).")
        stems = [path.stem for path in paths]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise InputError(f"data.slides: slides need distinct names; {', '.join(twice)} is not.")
        return list(paths)

    def _case(self, path: Path, slide: Slide, labels: LabelSpec, seed: int) -> tuple[Case, list[str]]:
        if slide.mpp is None:
            raise InputError(
                f"{path}: the file does not say how large a pixel is. Set data.mpp to the micrometres "
                "a full-resolution pixel (0.25 is usual at 40x, 0.5 at 20x)."
            )
        given = self._read(path, slide, labels, self.annotations, "data.annotations")
        notes = [f"{Path(given.source).name}: {note}" for note in given.notes]
        given, outside = inside(given, slide.width, slide.height, str(path))
        notes += [f"{Path(given.source).name}: {note}" for note in outside]
        given, held = self._thin(given, labels, path.stem, slide.mpp, seed)
        if held is not None:
            notes.append(
                f"{path.name}: {len(held)} marked objects are held out of training to measure recall."
            )
        case = Case(
            name=path.stem,
            slide=slide,
            mpp=slide.mpp,
            given=given,
            truth=None,
            held_out=held,
            labels=labels,
        )
        return case, notes

    def _read(self, path: Path, slide: Slide, labels: LabelSpec, folder: str, field: str) -> Annotations:
        where = Path(folder) if folder else path.parent
        candidates = [where / (path.stem + suffix) for suffix in SUFFIXES]
        found = next((c for c in candidates if c.is_file()), None)
        if found is None:
            raise InputError(
                f"{path}: no annotations. Expected {candidates[0]} (or .geojson.gz, .json, .json.gz). "
                f"Export the slide's annotations from QuPath under that name, or set {field}."
            )
        read = read_geojson(found)
        check_classes(read, labels)
        return read

    def _thin(
        self, given: Annotations, labels: LabelSpec, name: str, mpp: float, seed: int
    ) -> tuple[Annotations, Annotations | None]:
        """The share to keep, then the hold-out among it."""
        gone = np.zeros(len(given), bool)
        objects = np.flatnonzero(wanted(given, labels))
        kept = nested_subset(len(objects), self.keep, seed=seed, dataset="slides", image=name)
        gone[objects[~kept]] = True
        left = objects[kept]
        held = spatial_holdout(
            given.centroids_px[left], self.hold_out, seed=seed, block_px=self.block_um / mpp
        )
        gone[left[held]] = True
        held_out = given.take(left[held]) if held.any() else None
        return without(given, gone, labels), held_out
