"""Detect nuclei of TNBC (Naylor et al. 2017) from 30 % of the annotations."""

from sparseshot_jax.config import ExperimentConfig, TrainSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import FocalExclusive
from sparseshot_jax.models import YolloSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="yollo_tnbc",
        data=FolderSource(
            train=("0[1-4]_*",),
            validation=("0[56]_*",),
            mpp=0.25,
            keep=0.3,
        ),
        tiles=TileSpec(tile_px=128, mpp=0.25, annotated_share=0.0),
        model=YolloSpec(width=16, depth=3, stride=8),
        loss=FocalExclusive(share=0.3, share_factor=0.25),
        train=TrainSpec(steps=600, batch_size=8, ema_decay=0.98),
    )
