"""A slide in bands of tile rows, put together again, against the slide at once: the same objects."""

import itertools
import pickle

import numpy as np
import pytest
from scipy import ndimage

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.slides.tissue import TissueMask
from sparseshot_jax.predict import Suppression, predict, predict_detections, predict_instances
from sparseshot_jax.predict.bands import Band
from sparseshot_jax.predict.seams import SeamlessContours
from sparseshot_jax.types import CellOutput

COMMON = {"mpp": 0.25, "model_mpp": 0.25, "threads": 2}


def in_bands(work_of, count):
    """The parts of all bands, neighbours told only what travels between processes."""
    works = [work_of(Band(index=k, count=count)) for k in range(count)]
    parts = [part for work in works for part in work]
    edges = [pickle.loads(pickle.dumps(work.assembly.edges())) for work in works]
    for k, work in enumerate(works):
        above = edges[k - 1][1] if k else None
        below = edges[k + 1][0] if k + 1 < count else None
        parts += work.assembly.border(above, below)
    rests = (pickle.loads(pickle.dumps(work.assembly.rest())) for work in works)
    return [*parts, *works[0].assembly.join(rests)]


def rows_of(parts):
    """Every object as one comparable row: class, rings from their least vertex, measures of a file."""
    rows = []
    for part in parts:
        o = part.objects
        for k in range(len(o)):
            rings = [
                o.xy_px[o.ring_offsets[i] : o.ring_offsets[i + 1]].tolist()
                for i in range(o.object_offsets[k], o.object_offsets[k + 1])
            ]
            turned = [ring[ring.index(min(ring)) :] + ring[: ring.index(min(ring))] for ring in rings]
            measures = [float(values[k]) for values in part.measurements.values()]
            rows.append((int(o.class_ids[k]), turned[0], sorted(turned[1:]), measures))
    return sorted(rows)


def assert_same(one, many):
    one, many = rows_of(one), rows_of(many)
    assert len(one) == len(many)
    for a, b in zip(one, many):
        assert a[:3] == b[:3]  # every vertex, bit for bit
        assert a[3] == pytest.approx(b[3], rel=1e-12)  # sums of float64 in another order


def noise(seed, shape, sigmas):
    rng = np.random.default_rng(seed)
    z = sum(f / f.std() for f in (ndimage.gaussian_filter(rng.normal(size=shape), s) for s in sigmas))
    return 1 / (1 + np.exp(-2 * z))


def slide_of(seed=0, shape=(120, 90), sigmas=(1.5, 6.0)):
    """Areas with holes, some longer than any band, in red and green; depth in blue."""
    fields = [noise(seed + k, shape, s) for k, s in enumerate((sigmas, sigmas, (2.5,)))]
    return ArraySlide((255 * (1 - np.stack(fields, axis=-1))).astype(np.uint8), mpp=0.25)


def darkness(batch):
    return 1 - batch.astype(np.float32) / 255


def fake_cells(batch):
    """A detector of 4 px cells whose boxes are functions of the cell's own pixels, with many ties."""
    p = (255 - batch[:, ::4, ::4].astype(np.float32)) / 255
    rows, columns = (4.0 * np.arange(n)[..., None] for n in p.shape[1:3])
    centre = np.stack(np.broadcast_arrays(rows + 4 * p[..., 1], columns.T + 4 * p[..., 2]), axis=-1)
    half = np.stack([2 + 6 * p[..., 2], 2 + 6 * p[..., 1]], axis=-1)
    return CellOutput(
        objectness=(np.round(8 * p[..., :1]) - 4)[..., None, 0],
        boxes_yxyx_px=np.concatenate([centre - half, centre + half], -1)[..., None, :].astype(np.float32),
        classes=p[..., None, :2],
        anchors_px=np.ones((1, 2), np.float32),
    )


TISSUE = np.ones((12, 9), bool)
TISSUE[:4, 3:] = TISSUE[7:9] = False


@pytest.mark.parametrize(("count", "tissue"), [(2, False), (3, True), (40, False)])
def test_areas(count, tissue):
    slide = slide_of()
    tissue = TissueMask(mask=TISSUE, scale=10.0) if tissue else None

    def work(band):
        options = {"core_px": 24, "tissue": tissue, "band": band, "min_area_um2": 0.0, **COMMON}
        names = ("a", "b")
        return predict(lambda b: darkness(b)[..., :2], slide, class_names=names, halo_px=0, **options)

    whole = rows_of(work(Band()))
    assert max(max(y for _, y in row[1]) - min(y for _, y in row[1]) for row in whole) > 2 * 16
    assert any(row[2] for row in whole)  # holes
    assert_same(work(Band()), in_bands(work, count))


def test_bands_of_one_row_of_samples():
    """A comb: one area that enters every band several times, and holes; bands end anywhere."""
    p = np.zeros((12, 20), np.float32)
    p[1:11, 2] = p[1:11, 17] = p[1, 2:18] = 0.9
    p[3:10:3, 5:15] = p[3:10, 5] = p[3:10, 9] = 0.7
    shape = {"width": 20, "height": 12, "threshold": 0.5}

    def found(bounds):
        rests, out = [], []
        for top, bottom in itertools.pairwise(bounds):
            band = SeamlessContours(top=top, **shape)
            for y in range(top, bottom):
                for x in range(0, 20, 7):
                    out.append(band.add(x, y, p[y : y + 1, x : x + 7]))
            rests.append(pickle.loads(pickle.dumps(band.rest())))
        joined = SeamlessContours(**shape)
        out += [regions for rest in rests for regions in joined.bridge(rest, size=7)]
        assert joined.waiting == 0
        counts = np.concatenate([regions.p_count for regions in out])
        areas = np.concatenate([regions.outlines.areas_px for regions in out])
        return sorted(zip(counts.tolist(), areas.round(9).tolist()))

    one = found([0, 12])
    assert [count for count, _ in one] == [34, 38]
    for bounds in ([0, 5, 12], [0, 1, 2, 10, 11, 12], range(13)):
        assert found(bounds) == one


def test_simplified_areas_hang_on_no_band_either():
    slide = slide_of(3)

    def work(band):
        options = {"core_px": 32, "halo_px": 0, "band": band, "simplify_px": 0.25, **COMMON}
        return predict(lambda b: darkness(b)[..., :1], slide, class_names=("a",), **options)

    assert_same(work(Band()), in_bands(work, 3))


@pytest.mark.parametrize(("count", "tissue"), [(2, False), (3, True), (9, False)])
def test_touching_cells(count, tissue):
    slide = slide_of(5, sigmas=(2.0,))
    tissue = TissueMask(mask=TISSUE, scale=10.0) if tissue else None

    def work(band):
        return predict_instances(
            lambda batch: darkness(batch)[..., [0, 2]],
            slide,
            class_names=("cell",),
            depth=True,
            core_px=24,
            halo_px=0,
            largest_um=4.0,
            tissue=tissue,
            band=band,
            **COMMON,
        )

    assert len(rows_of(work(Band()))) > 10
    assert_same(work(Band()), in_bands(work, count))


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("rule", [Suppression(iou=0.3), Suppression(by="distance", distance_px=9.0)])
def test_detections(count, rule):
    slide = slide_of(7)
    region = Annotations.from_polygons([[[[5, 5], [85, 5], [85, 90], [5, 110]]]])

    def work(band):
        options = {"core_px": 16, "halo_px": 0, "stride": 4, "peaks": True, "threshold": 0.3} | COMMON
        names = ("a", "b")
        about = {"rule": rule, "region": region, "band": band}
        return predict_detections(fake_cells, slide, class_names=names, **about, **options)

    assert len(rows_of(work(Band()))) > 30
    assert_same(work(Band()), in_bands(work, count))


def test_bands_share_the_tissue_and_leave_no_row_out():
    wanted = np.zeros((20, 10), bool)
    wanted[12:18] = True
    rows = [Band(index=k, count=4).rows(wanted) for k in range(4)]
    assert [row for band in rows for row in band] == list(range(20))
    tiles = [int(wanted[band.start : band.stop].sum()) for band in rows]
    assert sum(tiles) == 60
    assert max(tiles) <= 20
    nothing = [Band(index=k, count=3).rows(np.zeros((2, 4), bool)) for k in range(3)]
    assert [len(band) for band in nothing] == [1, 1, 0]


def test_progress_is_of_the_band():
    told = []
    slide = slide_of()
    band = Band(index=1, count=2)
    options = {"core_px": 32, "halo_px": 0, "band": band, **COMMON}
    options["on_progress"] = lambda *row: told.append(row[:2])
    list(predict(lambda b: darkness(b)[..., :1], slide, class_names=("a",), **options))
    assert told[0] == (0, 6)
    assert told[-1] == (6, 6)
