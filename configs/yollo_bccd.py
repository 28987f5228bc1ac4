"""Detect and classify the cells of BCCD blood smears from all annotations: Pascal VOC boxes, three classes.

    sparseshot train configs/yollo_bccd.py --data.root $DATA/bccd

The folder is as published: JPEGImages/, Annotations/ and ImageSets/Main/ with the official lists. Two boxes
without width or height are left out, and the run says so. The files do not say how large a pixel is; 0.07 um
makes a red cell 7 um wide. Red and white cells and platelets differ in size: three anchors; a platelet may
lie on a cell: suppression within a class. 2 CPU cores: 2 minutes. Measured on the 72 test images
(`sparseshot evaluate runs/yollo_bccd`, seed 0): F1 at IoU 0.5 0.75 at p > 0.5; average precision at IoU 0.5
of red cells 0.78, white cells 0.97, platelets 0.68; the published boxes miss some red cells.
"""

from sparseshot_jax.config import ExperimentConfig, PredictSpec, TrainSpec
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.sources import FolderSource
from sparseshot_jax.data.tiles import TileSpec
from sparseshot_jax.losses import CrossEntropy
from sparseshot_jax.models import YolloSpec
from sparseshot_jax.models.decode import DecodeSpec


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="yollo_bccd",
        data=FolderSource(
            split_file="ImageSets/Main", train=("train",), validation=("val",), test=("test",), mpp=0.07
        ),
        labels=LabelSpec(classes=("RBC", "WBC", "Platelets")),
        tiles=TileSpec(tile_px=112, mpp=0.28, annotated_share=0.0, min_tissue=0.0),
        model=YolloSpec(width=16, depth=3, stride=8, anchors=3),
        loss=CrossEntropy(),
        train=TrainSpec(steps=1200, batch_size=8, validate_every=400, ema_decay=0.98),
        predict=PredictSpec(decode=DecodeSpec(iou=0.4, class_aware=True), tissue_only=False),
    )
