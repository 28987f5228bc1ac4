"""Parts of an experiment that no registry offers: the loop, output to objects, what counts as found."""

import dataclasses
import math

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.decode import DecodeSpec
from sparseshot_jax.predict.detections import GEOMETRIES
from sparseshot_jax.predict.watershed import SplitSpec
from sparseshot_jax.training.sharding import MeshSpec
from sparseshot_jax.training.step import REMAT


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The loop: how long, in what portions, and how often what happens."""

    steps: int = 2000  # optimiser steps of the whole run, > 0
    batch_size: int = 8  # tiles a step over all devices, > 0
    micro_batches: int = 1  # parts of a batch whose gradients are accumulated, > 0
    ema_decay: float = 0.0  # of the average of parameters that is evaluated; 0: the last ones, [0, 1)
    mesh: MeshSpec = MeshSpec()  # the devices, and what is split over them
    # What of the forward pass is kept for the backward pass; the rest is computed again:
    # "none" (nothing is), "convolutions" (their results are kept) or "blocks" (the results of blocks).
    remat: str = "none"
    prefetch: int = 2  # batches placed on the devices ahead of the step; 0: none
    log_every: int = 20  # steps
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    workers: int = 0  # processes that prepare batches; 0: threads of this one
    threads: int = 4  # reading threads a worker
    shards: str = ""  # folder or URL that "sparseshot data tile" wrote: its tiles in place of fresh cuts
    max_fault_share: float = 0.01  # of tiles that cannot be read, above which training stops, [0, 1]
    tensorboard: bool = False  # write RUN/tensorboard too; needs the extra of that name
    log_tiles: bool = False  # write RUN/tiles too: which tiles every step was given

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "micro_batches", "threads")
        for name in (*counts, "log_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("workers", "prefetch"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} must be at least 0; got {getattr(self, name)}. Try 0.")
        if self.remat not in REMAT:
            raise InputError(f"train.remat must be one of {', '.join(REMAT)}; got {self.remat!r}.")
        if not 0.0 <= self.max_fault_share <= 1.0:
            raise InputError(
                f"train.max_fault_share must be in [0, 1]; got {self.max_fault_share}. Try 0.01."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"train.ema_decay must be in [0, 1); got {self.ema_decay}. Try 0.99.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSpec:
    """From a model's output to objects."""

    threshold: float = 0.5  # a pixel is foreground, a detection an object above it, (0, 1)
    core_px: int = 512  # side of a tile without its halo, pixels at the model's resolution
    batch_size: int = 4  # tiles a forward pass, over all devices of a process; one a device at least
    min_area_um2: float = 8.0  # smaller objects are left out, square micrometres
    simplify_px: float = 0.25  # outlines may be off by this for fewer vertices, model pixels, >= 0
    tissue_only: bool = True  # skip tiles of bare glass
    instances: bool = False  # segmentation: part cells that touch
    largest_um: float = 25.0  # with instances: diameter of the largest object, micrometres, > 0
    split: SplitSpec = SplitSpec()  # with instances: when one area is several objects
    decode: DecodeSpec = DecodeSpec()  # detection: which candidates are one object
    geometry: str = "box"  # detection: of the objects, box or point

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise InputError(f"predict.threshold must be in (0, 1); got {self.threshold}. Try 0.5.")
        for name in ("core_px", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"predict.{name} must be at least 1; got {getattr(self, name)}.")
        if not 0.0 < self.largest_um < math.inf:
            raise InputError(f"predict.largest_um must be above 0; got {self.largest_um}. Try 25.")
        if self.geometry not in GEOMETRIES:
            raise InputError(
                f"predict.geometry must be {' or '.join(GEOMETRIES)}; got {self.geometry!r}. Try box."
            )
        if self.decode.soft_sigma:
            raise InputError(
                "predict.decode.soft_sigma must be 0: across the tiles of a slide suppression is hard. "
                "`models.decode.detect` is soft on single images."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """When a prediction and a true object are one and the same."""

    distance_um: float = 3.0  # centres at most this far apart, > 0
    iou: float = 0.5  # boxes overlap at least so much, (0, 1]
    exclusive_class: str = ""  # class for which the exclusive recall is kept image by image

    def __post_init__(self) -> None:
        if not (0.0 < self.distance_um < math.inf and 0.0 < self.iou <= 1.0):
            raise InputError(
                "measure.distance_um must be above 0 and measure.iou in (0, 1]; got "
                f"{self.distance_um} and {self.iou}. Try 3 and 0.5."
            )
