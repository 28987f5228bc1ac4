"""The embedded data set: synthetic slides, drawn once and kept."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats.geojson import read_geojson
from sparseshot_jax.data.labels import LabelSpec, check_classes, wanted
from sparseshot_jax.data.slides.slide import open_slide
from sparseshot_jax.data.sources.ranges import check_share
from sparseshot_jax.data.synthetic.scene import WANTED, SyntheticPaths, SyntheticSlide, draw_slide
from sparseshot_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSource:
    """Three slides by `data.synthetic`: one with sparse marks to train on, two with dense truth.

    The marks are part of the slide (its given.geojson is what a user would have exported), so that the
    experiment's seed changes nothing here; `seed` does.
    """

    cache: str = "synthetic"  # folder for the slides; what lies there already is used again
    seed: int = 0  # of the three slides
    train_px: int = 2560  # side of the training slide, level-0 pixels
    measure_px: int = 1536  # side of the validation and of the test slide, level-0 pixels
    mpp: float = 0.5  # micrometres a level-0 pixel
    keep: float = 0.3  # share of the tumour nuclei that are marked for training, (0, 1]

    def __post_init__(self):
        check_share("keep", self.keep)
        if self.seed < 0:
            raise InputError(f"data.seed must be at least 0; got {self.seed}. Try 0.")
        for field in ("train_px", "measure_px"):
            side = getattr(self, field)
            try:
                SyntheticSlide(width=side, height=side, mpp=self.mpp)
            except InputError as error:
                raise InputError(f"data.{field}, data.mpp: {error}") from error

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """See `Source.load`."""
        del seed
        train = self._case("train", self.train_px, self.keep, 3 * self.seed, labels)
        validation, test = (
            self._case(name, self.measure_px, 1.0, 3 * self.seed + k, labels)
            for k, name in enumerate(("validation", "test"), 1)
        )
        return Splits(train=(train,), validation=(validation,), test=(test,))

    def _case(self, name: str, side: int, keep: float, seed: int, labels: LabelSpec) -> Case:
        spec = SyntheticSlide(seed=seed, width=side, height=side, mpp=self.mpp, keep=keep)
        paths = drawn(Path(self.cache), spec)
        slide = open_slide(paths.slide)
        given = read_geojson(paths.given)
        check_classes(given, labels)
        return Case(
            name=name,
            slide=slide,
            mpp=self.mpp,
            given=given,
            truth=_measured(read_geojson(paths.truth), labels),
            held_out=None,
            labels=labels,
        )


def drawn(cache: Path, spec: SyntheticSlide) -> SyntheticPaths:
    """The files of a slide in `cache`, drawn where they are not there yet.

    The folder's name holds the whole spec, and it appears when complete.

    Raises:
        InputError: the cache cannot be written.
    """
    fields = dataclasses.asdict(spec)
    folder = cache / "_".join(f"{name}-{value}" for name, value in fields.items())
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            started = Path(tempfile.mkdtemp(dir=cache, prefix=".drawing-"))
        except OSError as error:
            raise InputError(
                f"{cache}: the folder for synthetic slides cannot be written: {error.strerror}. Set "
                "data.cache to one that can."
            ) from error
        try:
            draw_slide(started, **fields)
            os.rename(started, folder)
        except OSError as error:
            if not folder.is_dir():  # else another process drew the same slide meanwhile
                raise InputError(f"{folder}: cannot be written: {error.strerror}.") from error
        finally:
            shutil.rmtree(started, ignore_errors=True)
    return SyntheticPaths(
        slide=folder / "slide.tiff", given=folder / "given.geojson", truth=folder / "truth.geojson"
    )


def _measured(truth: Annotations, labels: LabelSpec) -> Annotations:
    """The cells to be found; without named classes these are the class that the given marks have."""
    return truth.take(wanted(truth, labels) if labels.classes else truth.of_classes([WANTED]))
