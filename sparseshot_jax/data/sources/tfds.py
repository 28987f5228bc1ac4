"""A TFDS data set as a source of cases: the same cases as from a folder of its images."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats.label_map import label_map_to_annotations
from sparseshot_jax.data.labels import LabelSpec, check_classes
from sparseshot_jax.data.sources.encoded_image import EncodedSlide
from sparseshot_jax.data.sources.overlap_check import check_disjoint, check_parts
from sparseshot_jax.data.sources.placement import inside
from sparseshot_jax.data.sources.ranges import check_mpp, check_share
from sparseshot_jax.data.sources.sparse_case import sparse_case, unknown_note
from sparseshot_jax.errors import InputError

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A public data set by the name of its builder (`data.builders`), built on first use.

    Training images get the sparse share `keep` of their objects; validation and test stay dense. An
    object whose class the data set does not tell is unclassified: "" in labels.unknown_class (wanted all the
    same) or in labels.unused.
    """

    name: str = ""  # tnbc, monuseg, kumar, consep, cpm15, cpm17, crchisto, nuclick_wbc, bccd or til
    data_dir: str = "~/tensorflow_datasets"  # folder of built data sets
    manual_dir: str = ""  # folder with the published files; read where the data set is not built yet
    train: tuple[str, ...] = ("train",)  # TFDS splits and their slices ("train[:80%]"); "builder/split" is
    # one of another data set, which must have been built
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    mpp: float | None = None  # micrometres a pixel, > 0; None = as the data set says
    keep: float = 1.0  # share of the training objects that stay annotated, (0, 1]

    def __post_init__(self):
        check_mpp(self.mpp)
        check_share("keep", self.keep)

    def load(self, labels: LabelSpec, seed: int) -> Splits:
        """See `Source.load`."""
        parts = {split: self._parts(split) for split in _SPLITS}
        check_parts(parts["train"], parts["validation"] + parts["test"])
        names = dict.fromkeys(name for several in parts.values() for name, _ in several)
        builders = {name: self._builder(name) for name in names}
        notes = [f"{name}: {note}" for name, builder in builders.items() for note in builder.notes]
        patients: dict[str, str] = {}
        cases: dict[str, dict[str, Case]] = {split: {} for split in _SPLITS}
        for split in _SPLITS:
            for name, tfds_split in parts[split]:
                class_names = tuple(builders[name].info.metadata["class_names"])
                for record in _records(builders[name], name, tfds_split):
                    case, found = self._case(record, name, class_names, labels)
                    notes += found
                    if split == "train":
                        case = sparse_case(case, self.keep, seed=seed, image=record["image_id"])
                    cases[split][case.name] = case
                    patients[case.name] = record["patient"]
        # By name, as from a folder.
        train, validation, test = (
            tuple(case for _, case in sorted(cases[split].items())) for split in _SPLITS
        )
        splits = Splits(train=train, validation=validation, test=test)
        notes += [*check_disjoint(splits, patients), *unknown_note(splits)]
        return dataclasses.replace(splits, notes=tuple(dict.fromkeys(notes)))

    def _parts(self, split: str) -> list[tuple[str, str]]:
        """(builder, TFDS split) of each entry of a field."""
        if not self.name:
            raise InputError("data.name must be a data set. Try data.name=kumar with data.manual_dir=FOLDER.")
        entries: tuple[str, ...] = getattr(self, split)
        if split == "train" and not entries:
            raise InputError("data.train must name at least one split; it is empty. Try train=('train',).")
        pairs = [entry.rpartition("/") for entry in entries]
        return [(name or self.name, tfds_split) for name, _, tfds_split in pairs]

    def _builder(self, name: str) -> Any:
        from sparseshot_jax.data.builders.registry import prepare

        # The published files are those of the source's own data set.
        manual_dir = self.manual_dir if name == self.name and self.manual_dir else None
        return prepare(
            name,
            manual_dir=Path(manual_dir).expanduser() if manual_dir else None,
            data_dir=Path(self.data_dir).expanduser(),
        )

    def _case(
        self, record: Mapping[str, Any], name: str, class_names: tuple[str, ...], labels: LabelSpec
    ) -> tuple[Case, list[str]]:
        image_id = record["image_id"]
        place = f"{name}/{image_id}"
        mpp = record["mpp"] if self.mpp is None else self.mpp
        if np.isnan(mpp):
            raise InputError(
                f"{place}: the data set does not say how large a pixel is. Set data.mpp to micrometres a "
                "pixel (0.25 is usual at 40x, 0.5 at 20x, 0.1 at 100x)."
            )
        slide = EncodedSlide(record["image"], name=place, mpp=mpp)
        dense = _annotations(record, class_names, place)
        check_classes(dense, labels)
        notes = [f"{place}: {note}" for note in dense.notes]
        dense, outside = inside(dense, slide.width, slide.height, place)
        case = Case(
            name=image_id if name == self.name else f"{name}_{image_id}",
            slide=slide,
            mpp=mpp,
            given=dense,
            truth=dense,
            held_out=None,
            labels=labels,
        )
        return case, [*notes, *(f"{place}: {note}" for note in outside)]


def _records(builder: Any, name: str, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a TFDS split; the image stays encoded, names and numbers are Python's own.

    Raises:
        InputError: there is no such split.
    """
    import tensorflow_datasets as tfds

    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (KeyError, ValueError, AssertionError) as error:  # for a bad name, a bad slice, an empty one
        raise InputError(
            f"data: {name} has no split {split!r}. There are: {', '.join(builder.info.splits)}; a share of "
            "one is 'train[:80%]'."
        ) from error
    for record in records:
        text = {key: record[key].decode() for key in ("image_id", "patient")}
        # The shortest number that is this one in 32 bits: 0.55, and not 0.5500000119.
        yield {**record, **text, "mpp": float(str(np.float32(record["mpp"])))}


def _annotations(record: Mapping[str, Any], class_names: tuple[str, ...], source: str) -> Annotations:
    """Outlines where the data set has them, else boxes, else points."""
    if "instances" in record:
        marks = label_map_to_annotations(record["instances"][..., 0], source=source)
    elif "boxes_xyxy_px" in record:
        marks = Annotations.from_boxes(record["boxes_xyxy_px"], source=source)
    else:
        marks = Annotations.from_points(record["points_xy_px"], source=source)
    ids = np.asarray(record["class_ids"], np.int32)
    unknown = len(class_names)
    return dataclasses.replace(
        marks,
        class_names=(*class_names, ""),
        class_ids=np.where(ids < 0, unknown, ids).astype(np.int32),
    )
