"""Objects of a slide, as a config and its trained model have them: which of the predictors, and how."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data.cases import scale_at
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.predict import (
    DetectionPart,
    Prediction,
    Suppression,
    Work,
    predict,
    predict_detections,
    predict_instances,
)

Parts = Work[Prediction] | Work[DetectionPart]


def objects(
    config: ExperimentConfig, infer: Callable[[Any], Any], slide: Slide, mpp: float, **options: Any
) -> Parts:
    """Detections, parted cells or connected areas of a slide, as they are complete.

    Args:
        config: of the run.
        infer: images -> the model's output; see `Run.infer`.
        slide: the image.
        mpp: micrometres a level-0 pixel.
        options: threshold, region, tissue, band, on_progress, as of `predict`.
    """
    spec, model, classes = config.predict, config.model, config.labels.names
    options |= {"class_names": classes, **tiling(config, slide, mpp)}
    if model.task == "detection":
        decode = spec.decode
        rule = Suppression(
            by=decode.by,
            iou=decode.iou,
            distance_px=decode.distance_um / options["model_mpp"],
            class_aware=decode.class_aware,
        )
        about = {"rule": rule, "peaks": decode.peaks, "geometry": spec.geometry}
        return predict_detections(infer, slide, stride=model.multiple, **about, **options)
    options |= {"min_area_um2": spec.min_area_um2, "simplify_px": spec.simplify_px}
    if spec.instances:
        about = {"depth": model.needs.distance, "largest_um": spec.largest_um, "spec": spec.split}
        return predict_instances(infer, slide, **about, **options)
    return predict(lambda images: infer(images)[..., : len(classes)], slide, **options)


def joined(config: ExperimentConfig, parts: Iterable[Any]) -> Prediction | DetectionPart:
    """All objects of all parts as one."""
    kind: Any = DetectionPart if config.model.task == "detection" else Prediction
    return kind.concatenate(list(parts), class_names=config.labels.names)


def tiling(config: ExperimentConfig, slide: Slide, mpp: float) -> dict[str, Any]:
    """Resolution and size of the tiles in which a slide goes through the model."""
    return {
        "mpp": mpp,
        "model_mpp": scale_at(slide, mpp, config.tiles.mpp) * mpp,
        "core_px": config.predict.core_px,
        "halo_px": config.model.receptive_radius_px,
        "multiple": config.model.multiple,
        "batch_size": batch_size(config),
    }


def batch_size(config: ExperimentConfig) -> int:
    """Images of a forward pass: one for every device of this process at least, or some would wait."""
    return max(config.predict.batch_size, jax.local_device_count())
