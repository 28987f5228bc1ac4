"""Sparse data sets on disk: a source with fewer marked objects, in its own layout."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from scipy.spatial import KDTree

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Source
from sparseshot_jax.data.convert_losses import losses
from sparseshot_jax.data.formats import FORMATS, format_of, read_annotations
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.geometry import geometries, rings_of
from sparseshot_jax.data.labels import LabelSpec, Role, discs, roles, wanted
from sparseshot_jax.data.point_lists import lists_of
from sparseshot_jax.data.sources.folder import FolderSource, image_folder
from sparseshot_jax.data.sources.slides import SlideSource
from sparseshot_jax.data.sparsify import sparse_subset
from sparseshot_jax.errors import InputError

MANIFEST = "sparsify.json"
_SAME_PX = 1.0  # points of two lists that are this near are one nucleus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinning:
    """Which objects stay marked; see `sparsify.sparse_subset`."""

    keep: float = 0.3  # share of the wanted objects of each image, (0, 1]
    regime: str = "uniform"  # a key of `sparsify.REGIMES`
    seed: int = 0
    field_um: float = 64.0  # "per-field": side of a field, micrometres, > 0
    cluster_objects: int = 20  # "clustered": mean number of objects a cluster, >= 1
    class_ratio: float = 2.0  # "class-biased": share over that of the next more frequent class, >= 1


def write_subset(
    source: Source, out: str | os.PathLike[str], thinning: Thinning, labels: LabelSpec
) -> dict[str, Any]:
    """Write `source` with fewer marked objects; training on it with keep 1 is training on a part.

    Of a folder the images of `train` are thinned, and all others go over as they are, since what is
    measured stays dense; images are hard links where the file system allows it, else copies; all other
    files are copies. Of slides the annotations alone are written, as STEM.geojson. What is not to be
    found stays: regions, known background, unused classes. Where an object is taken away in an
    exhaustively annotated region, the region gets a hole: its pixels are unannotated from then on.

    Where one list of a points file is in use (`FolderSource.points_key`), a point of its other lists goes
    as the nearest point in use within 1 px goes or stays, and a point without such a partner is left out:
    the file holds no more than the share that was asked for. Where no point is taken away, all lists stay
    whole.

    The targets are those of the same source thinned while it is read, but for coordinates that a text
    format rounds (0.001 px). OUT appears when it is complete.

    Args:
        source: a folder or slides; its own `keep` and `hold_out` do not count here.
        out: the folder to make.
        thinning: which objects stay.
        labels: what the class names mean: which objects are wanted.

    Returns:
        What OUT/sparsify.json holds: the thinning, and counts for each image.

    Raises:
        InputError: OUT exists or cannot be written; the source is wrong, or of a kind that has no files to
            thin; a file's format cannot hold what is left.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already. Name a new folder, or remove this one.")
    dataset, cases = _cases(source, labels, thinning.seed)
    manifest: dict[str, Any] = {**dataclasses.asdict(thinning), "dataset": dataset, "images": {}}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        started = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        written = set()
        for case in cases:
            left, manifest["images"][case.name] = _thinned(case, dataset, thinning)
            target = _target(case, source)
            written.add(str(target))
            if isinstance(source, FolderSource) and target.parent.name == "points":
                left = lists_of(left, source.points_key, labels)
            _write(started / target, case, left)
        if isinstance(source, FolderSource):
            _copy_rest(source, cases, started, written)
        (started / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        started.chmod(0o755)  # a temporary folder is closed to others
        os.rename(started, out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(started, ignore_errors=True)
    return manifest


def _cases(source: Source, labels: LabelSpec, seed: int) -> tuple[str, Sequence[Case]]:
    """The name under which the source draws its own subsets, and the dense training cases."""
    if isinstance(source, FolderSource):
        return "folder", dataclasses.replace(source, keep=1.0).load(labels, seed).train
    if isinstance(source, SlideSource):
        whole = dataclasses.replace(source, keep=1.0, hold_out=0.0, train_keep=1.0, truth="")
        return "slides", whole.load(labels, seed).train
    raise InputError(
        f"a folder of images or slides can be thinned; {type(source).__name__} has no annotation files of "
        "its own. Set data.keep, which thins while reading."
    )


def _thinned(case: Case, dataset: str, thinning: Thinning) -> tuple[Annotations, dict[str, Any]]:
    """What stays of a case, and its counts."""
    is_object = wanted(case.given, case.labels)
    stays = sparse_subset(
        case.given,
        is_object,
        thinning.keep,
        regime=thinning.regime,
        seed=thinning.seed,
        dataset=dataset,
        image=case.name,
        field_px=thinning.field_um / case.mpp,
        cluster_objects=thinning.cluster_objects,
        class_ratio=thinning.class_ratio,
    )
    classes = {
        name: [int((is_object & of).sum()), int((is_object & of & stays).sum())]
        for name, of in ((name, case.given.of_classes([name])) for name in case.given.class_names)
        if (is_object & of).any()
    }
    counts = {
        "objects": int(is_object.sum()),
        "kept": int((is_object & stays).sum()),
        "classes": {name: {"objects": n, "kept": k} for name, (n, k) in classes.items()},
    }
    return _with_holes(case, stays), counts


def _with_holes(case: Case, stays: np.ndarray) -> Annotations:
    """The objects that stay; exhaustive regions without the area of those that do not."""
    marks = case.given
    kept = marks.take(stays)
    is_region = roles(kept, case.labels) == Role.EXHAUSTIVE
    if stays.all() or not is_region.any():
        return kept
    gone = discs(marks.take(~stays), case.labels, mpp=case.mpp)
    taken = shapely.union_all(geometries(gone))
    parts, places = [kept.take(~is_region)], np.flatnonzero(~is_region).tolist()
    for k in np.flatnonzero(is_region).tolist():
        left = rings_of(shapely.difference(geometries(kept.take(np.array([k])))[0], taken))
        if left:  # else nothing of the region is certain any more
            parts.append(Annotations.from_polygons([left], kept.class_names[kept.class_ids[k]]))
            places.append(k)
    joined = Annotations.concatenate(parts).take(np.argsort(places))  # in the order of the file
    return dataclasses.replace(joined, source=marks.source)


def _target(case: Case, source: Source) -> Path:
    """Where the annotations of a case go, inside OUT."""
    if isinstance(source, FolderSource):
        return Path(case.given.source).relative_to(source.root)
    return Path(f"{case.name}.geojson")


def _write(path: Path, case: Case, left: Annotations) -> None:
    """In the file's own format; read again, since not every format holds every object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    original = Path(case.given.source)
    name = "geojson" if path.suffix == ".geojson" else format_of(original)
    picture = Picture(name=Path(case.slide.path).name, width=case.slide.width, height=case.slide.height)
    write = FORMATS[name].write
    if write is None:
        raise InputError(
            f"{original}: {FORMATS[name].title} can be read and not written. Convert the annotations to "
            "GeoJSON first (sparseshot data convert)."
        )
    if name == "points_json":
        # A folder reads one list of such a file where labels.classes is empty; the others go with it.
        every = read_annotations(original, name)
        used = [case.given.class_names[k] for k in np.unique(case.given.class_ids)]
        others = every.take(~every.of_classes(used))
        left = Annotations.concatenate([left, others.take(_with_partner(others, case.given, left))])
    write(path, left, picture)
    lost = losses(name, left, read_annotations(path, name), picture)
    if lost:
        listed = " ".join(text.format(n) for text, n in lost.items())
        raise InputError(
            f"{original}: {FORMATS[name].title} cannot hold what is left: {listed} Convert the annotations "
            "to GeoJSON first (sparseshot data convert)."
        )


def _with_partner(others: Annotations, given: Annotations, left: Annotations) -> np.ndarray:
    """True for the points whose nearest one of `given` is within reach and is left."""
    if len(left) == len(given):  # nothing was taken away
        return np.ones(len(others), bool)
    nearest, nearest_left = (KDTree(one.centroids_px).query(others.centroids_px)[0] for one in (given, left))
    return (nearest <= _SAME_PX) & (nearest_left == nearest)


def _copy_rest(source: FolderSource, cases: Sequence[Case], started: Path, written: set[str]) -> None:
    """Images, annotations of what is not thinned, and the split file."""
    root = Path(source.root)
    pictures = image_folder(root)
    folders = {pictures, *(Path(case.given.source).parent for case in cases)}
    files = [path for folder in sorted(folders) for path in sorted(folder.iterdir()) if path.is_file()]
    if source.split_file:
        lists = root / source.split_file
        files += sorted(lists.glob("*.txt")) if lists.is_dir() else [lists]
    for path in files:
        inside = path.relative_to(root)
        if str(inside) in written or path.name.startswith("."):
            continue
        target = started / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent != pictures:  # a link to what is edited by hand would change with the original
            shutil.copy2(path, target)
            continue
        try:
            os.link(path.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copy2(path, target)


def _unwritable(out: Path, error: OSError) -> InputError:
    return InputError(
        f"{out}: cannot be written: {error.strerror or error}. Check that its folder may be written to and "
        "has space left."
    )
