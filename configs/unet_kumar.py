"""Segment nuclei of Kumar (Kumar et al. 2017, MoNuSeg's training images) from 30 % of the annotations.

    sparseshot train configs/unet_kumar.py --data.root $DATA/kumar

The folder holds images/, instances/ and split.json with the field's split: 12 training, 4 validation and 14
test images of 1000 x 1000 pixels at 40x. 2 CPU cores: about 5 minutes. The recipe is TNBC's, untuned here.
"""

from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import UNetSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="unet_kumar",
        data=FolderSource(
            split_file="split.json",
            train=("train",),
            validation=("validation",),
            test=("test_same_organ", "test_other_organ"),
            mpp=0.25,
            keep=0.3,
        ),
        tiles=TileSpec(tile_px=128, mpp=0.25, annotated_share=0.5),
        model=UNetSpec(base=8, depth=4),
        loss=CrossEntropy(background_weight=None, decision=0.4),
        train=TrainSpec(steps=1200, batch_size=4, ema_decay=0.98),
    )
