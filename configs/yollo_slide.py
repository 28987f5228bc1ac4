"""Detect cells on your own slides, of which a few are marked in QuPath by points, boxes or outlines.

    sparseshot train configs/yollo_slide.py --data.slides slides/*.svs --labels.classes Tumor

Beside each slide lies the QuPath export of the same name (case.svs, case.geojson); docs/qupath.md tells the
clicks. A point stands for a square of twice labels.point_radius_um. A fifth of the marks is held out, by
blocks, to measure the recall on them. Say which share of the cells is marked round your marks
(`--labels.share 0.1`; the 0.3 here is a guess): the weight of unmarked ground follows it. Half of the tiles
are drawn round marks, as the other detectors' are not: of a slide marked in a few places hardly a tile drawn
anywhere would hold a mark. The weight follows what such tiles show (docs/method.md, docs/qupath.md). Nuclei
of 8 um span two cells of the grid; where they are smaller or packed, `--model.stride 4` (docs/detection.md).
No score is expected: it depends on your marks.
"""

from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SlideSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import YolloSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="yollo_slide",
        data=SlideSource(),
        labels=LabelSpec(share=0.3),
        tiles=TileSpec(tile_px=256, mpp=0.5, annotated_share=0.5),
        model=YolloSpec(width=16, depth=3, stride=8),
        loss=CrossEntropy(background_weight=None, decision=0.125),
        train=TrainSpec(steps=1000, batch_size=8, ema_decay=0.99),
    )
