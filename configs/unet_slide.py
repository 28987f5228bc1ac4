"""Segment cells on your own slides, of which a few are marked in QuPath.

    sparseshot train configs/unet_slide.py --data.slides slides/*.svs --labels.classes Tumor

Beside each slide lies the QuPath export of the same name (case.svs, case.geojson); docs/qupath.md tells the
clicks. A fifth of the marked cells is held out, by blocks, to measure the recall on them. Say which share
of the cells is marked round your marks (`--labels.share 0.1`; the 0.3 here is a guess): the weight of
unmarked ground follows it. 2 CPU cores: about 25 minutes. No score is expected: it depends on your marks.
"""

from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import SlideSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import UNetSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="unet_slide",
        data=SlideSource(),
        labels=LabelSpec(share=0.3),
        tiles=TileSpec(tile_px=256, mpp=0.5, annotated_share=0.5),
        model=UNetSpec(base=16, depth=4),
        loss=CrossEntropy(background_weight=None, decision=0.4),
        train=TrainSpec(steps=1000, batch_size=8, ema_decay=0.99),
    )
