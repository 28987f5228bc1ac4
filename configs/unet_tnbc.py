"""Segment nuclei of TNBC (Naylor et al. 2017) from 30 % of the annotations of patients 01 to 06.

sparseshot train configs/unet_tnbc.py --data.root $DATA/tnbc
"""

from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import UNetSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="unet_tnbc",
        data=FolderSource(
            train=("0[1-4]_*",),
            validation=("0[56]_*",),
            mpp=0.25,
            keep=0.3,
        ),
        tiles=TileSpec(tile_px=128, mpp=0.25, annotated_share=0.0),
        model=UNetSpec(base=8, depth=4),
        loss=FocalExclusive(alpha=0.2, gamma=0.1, schedule="sigmoid"),
        train=TrainSpec(steps=1200, batch_size=4),
    )
