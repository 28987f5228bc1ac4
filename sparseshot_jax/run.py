"""A trained run: load it, measure it, find objects with it."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Array, Float, Float32, UInt8

from sparseshot_jax import find, metrics
from sparseshot_jax.config import ExperimentConfig, load_config, to_json
from sparseshot_jax.data import storage
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.slides.slide import Slide, open_slide
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import (
    by_truth,
    carried_from_detections,
    carried_from_pixels,
    foreground_of,
    found_objects,
    image_objects,
    measure_dense,
    measure_detections,
    measure_sparse,
    measure_sparse_detections,
)
from sparseshot_jax.predict import WHOLE, Band, DetectionPart, Prediction, Spread, Work, probability_map
from sparseshot_jax.programs import abstract_state, detector, eval_program, form_of, without_traced
from sparseshot_jax.run_folder import folder_path, has_checkpoint, read_json, write_json
from sparseshot_jax.training import processes, sharding
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.types import Detections, TrainState

FLOOR = 0.001  # of a detection's score; without a weight p ends near c, and thresholds are a part of that


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A trained model with all that was used to train it."""

    folder: epath.Path
    config: ExperimentConfig
    variables: tuple[Any, Any]  # parameters and statistics, averaged where the config says so
    step: int

    @property
    def detects(self) -> bool:
        """Whether the model gives boxes, and not a class for each pixel."""
        return self.config.model.task == "detection"

    @property
    def floor(self) -> float:
        """Of a detection's score, where measures of a detector end."""
        return min(FLOOR, self.config.predict.threshold)

    @functools.cached_property
    def _spread(self) -> Spread:
        return Spread(self.variables)

    def infer(self, images: UInt8[np.ndarray, "b h w 3"]) -> Any:
        """What the model says of RGB images whose sides it can take, as its task has it.

        The images are split over the devices of this process.

        `CellOutput` of a detector; else p of each class [b, h, w, C], and the depth behind it where the
        model has one.
        """
        return self._spread(eval_program(form_of(self.config)), images)

    def probability(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b h w c"]:
        """p of each class at every pixel of RGB images whose sides the model can take."""
        return self.infer(images)[..., : len(self.config.labels.names)]

    def detect(self, images: UInt8[np.ndarray, "b h w 3"]) -> Detections:
        """A detector's objects in RGB images whose sides it can take, down to a score of `FLOOR`."""
        spec = self.config.predict.decode
        limits = spec.limits(mpp=self.config.tiles.mpp) | {"threshold": self.floor}
        return self._spread(detector(form_of(self.config), without_traced(spec)), images, limits)

    def probability_map(self, case: Case) -> Float32[np.ndarray, "h w"]:
        """p of foreground of a whole image or slide at the model's resolution."""
        p = probability_map(self.probability, case.slide, **find.tiling(self.config, case.slide, case.mpp))
        return foreground_of(p)

    def predict_stream(
        self,
        slide: Slide,
        *,
        region: Annotations | None = None,
        mpp: float | None = None,
        threshold: float | None = None,
        band: Band = WHOLE,
        on_progress: Callable[[int, int, int], None] = lambda done, total, objects: None,
    ) -> Work[Prediction] | Work[DetectionPart]:
        """Objects of an image or slide of any size, as they are complete; memory stays bounded.

        Polygons of a segmentation (parted where they touch, if `predict.instances` says so); boxes or
        points of a detector.

        Args:
            slide: what `open_slide` gives.
            region: only objects whose centroid lies in these polygons; level-0 pixels.
            mpp: micrometres a level-0 pixel, where the file does not say.
            threshold: in place of the config's `predict.threshold`.
            band: of a slide that is shared out: see `predict.write_shared`.
            on_progress: told of tiles done, tiles in all, and objects found.

        Raises:
            InputError: the slide's mpp is unknown; the slide is damaged.
        """
        spec, mpp = self.config.predict, slide.mpp if mpp is None else mpp
        if mpp is None:
            trained = getattr(self.config.data, "mpp", None)
            hint = f"; the training images of this run had {trained}" if trained else ""
            raise InputError(
                f"{slide.path}: the file does not say how large a pixel is. Give --mpp, the micrometres a "
                f"full-resolution pixel (0.25 is usual at 40x, 0.5 at 20x{hint})."
            )
        return find.objects(
            self.config,
            self.infer,
            slide,
            mpp,
            threshold=spec.threshold if threshold is None else threshold,
            region=region,
            tissue=tissue_mask(slide) if spec.tissue_only else None,
            band=band,
            on_progress=on_progress,
        )

    def predict(self, image: str | Path | Slide, **options: Any) -> Prediction | DetectionPart:
        """All objects of an image or slide at once; options as of `predict_stream`."""
        slide = open_slide(image) if isinstance(image, str | Path) else image
        return find.joined(self.config, self.predict_stream(slide, **options))

    def find(self, case: Case) -> metrics.ImageObjects:
        """All objects of a case as what is measured.

        Of a detector down to a score of `FLOOR`; of a segmentation at the config's threshold, with the
        mean p as score.
        """
        threshold = self.floor if self.detects else self.config.predict.threshold
        parts = find.objects(self.config, self.infer, case.slide, case.mpp, threshold=threshold)
        found = find.joined(self.config, parts)
        if isinstance(found, DetectionPart):
            return found_objects(found, mpp=case.mpp)
        label = found.objects.class_ids + 1
        return image_objects(
            found.objects, label=label, score=found.probability, spec=case.labels, mpp=case.mpp
        )

    def with_data_root(self, root: str) -> "Run":
        """The same run, its data read from another place.

        Raises:
            InputError: its data have no one root.
        """
        if not hasattr(self.config.data, "root"):
            raise InputError(
                f"the data of {self.folder} have no root that could move; they are "
                f"{type(self.config.data).__name__}. Correct their paths in {self.folder / 'config.json'}."
            )
        data = dataclasses.replace(self.config.data, root=root)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl."""
        return read_rows(self.folder / "log.jsonl")

    def splits(self) -> Splits:
        """The data of this run, read again."""
        return self.config.data.load(self.config.labels, self.config.seed)

    def choose_threshold(self, cases: Sequence[Case]) -> float:
        """The threshold with the best pooled Dice, or F1 of a detector, on cases with dense truth."""
        return self.carried_from(cases)["threshold_carried"]

    def carried_from(self, cases: Sequence[Case]) -> metrics.Carried:
        """What `evaluate` of another run may take over from cases with dense truth: the threshold with the
        best pooled Dice, or F1 of a detector, and Elkan and Noto's c."""
        if self.detects:
            return carried_from_detections(self.find, cases, distance_um=self.config.measure.distance_um)
        return carried_from_pixels(self.probability_map, cases, mpp=self.config.tiles.mpp)

    def measure_held_out(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Recall on held-out marks beside how much is predicted, numbers alone; see `measure_sparse`."""
        return {name: value for name, value in self._held_out(cases).items() if name != "elkan_noto"}

    def _held_out(self, cases: Sequence[Case]) -> dict[str, Any]:
        """The same, and at Elkan and Noto's threshold as "elkan_noto"."""
        config = self.config
        about: dict[str, Any] = {"tiles": config.tiles, "multiple": config.model.multiple}
        about |= {"threshold": config.predict.threshold, "batch_size": find.batch_size(config)}
        if self.detects:
            about |= {"halo_px": config.model.receptive_radius_px, "distance_um": config.measure.distance_um}
            return measure_sparse_detections(self.detect, cases, **about)
        return measure_sparse(self.probability, cases, **about)

    def evaluation_of(self, splits: Splits) -> dict[str, Any]:
        """evaluation.json, measured first where it is missing, of another step or of other options."""
        # Read by one process: another might find what the first has just written, and not measure with it.
        (result,) = processes.dealt([self], Run.recorded)
        return result or self.evaluate(splits)

    def recorded(self) -> dict[str, Any] | None:
        """evaluation.json; None where it is missing, of another step or of other options."""
        result = read_json(self.folder / "evaluation.json") or {}
        fits = result.get("step") == self.step and result.get("options") == self._options()
        return result if fits else None

    def evaluate(
        self,
        splits: Splits | None = None,
        *,
        threshold_carried: float | None = None,
        elkan_noto_c: float | None = None,
        on_case: Callable[[str], None] = lambda name: None,
    ) -> dict[str, Any]:
        """Measure on the test part, or on validation where there is no test part.

        In a job of many processes all call it: cases are dealt out, each has the result, the lead writes it.

        Args:
            splits: the data, where it was read already.
            threshold_carried: chosen elsewhere; None: the best one on dense validation images.
            elkan_noto_c: estimated elsewhere; None: on dense validation images, else on held-out marks.
            on_case: told of every scored case of this process.

        Returns:
            `metrics.Evaluation`, or `metrics.DetectionEvaluation` of a detector, and "step"; "held_out"
            beside it where validation has sparse marks alone. Also written to evaluation.json.
        """
        splits = splits or self.splits()
        dense, sparse = by_truth(splits.validation)
        result: dict[str, Any] = {"step": self.step, "options": self._options()}
        carried: dict[str, Any] = {"threshold_carried": threshold_carried, "elkan_noto_c": elkan_noto_c}
        if dense and None in carried.values():
            asked = {name: value for name, value in carried.items() if value is not None}
            carried = {**self.carried_from(dense), **asked}
        if sparse:
            result["held_out"] = held_out = self._held_out(sparse)
            if carried["elkan_noto_c"] is None:
                carried["elkan_noto_c"] = held_out.get("elkan_noto", {}).get("c")
        scored = splits.test or tuple(dense)
        if scored:
            about = {"split": "test" if splits.test else "validation", "seed": 0, "on_case": on_case}
            result |= self.measure(scored, **carried, **about)
        processes.dealt([self.folder / "evaluation.json"], lambda path: write_json(path, result))
        return result

    def _options(self) -> dict[str, Any]:
        """All that may change after training and decides a score, as JSON reads it back."""
        config, own = to_json(self.config), {"floor": self.floor} if self.detects else {}
        return json.loads(json.dumps({name: config[name] for name in ("predict", "measure")} | own))

    def measure(
        self,
        cases: Sequence[Case],
        *,
        threshold_carried: float | None,
        elkan_noto_c: float | None = None,
        **about: Any,
    ) -> dict[str, Any]:
        """The evaluation on cases with dense truth.

        Of a segmentation with `predict.instances` also "objects", its cells scored as detections are.
        """
        spec = self.config.measure
        options = {
            "class_names": self.config.labels.names,
            "distance_um": spec.distance_um,
            "iou": spec.iou,
            "exclusive_class": spec.exclusive_class or None,
            **about,
        }
        carried = {"threshold_carried": threshold_carried, "elkan_noto_c": elkan_noto_c}
        if self.detects:
            return dict(measure_detections(self.find, cases, **carried, **options))
        mpp = self.config.tiles.mpp
        result = dict(measure_dense(self.probability_map, cases, mpp=mpp, **carried, **about))
        if self.config.predict.instances:
            result["objects"] = measure_detections(self.find, cases, threshold_carried=None, **options)
        return result


def load(folder: epath.PathLike) -> Run:
    """The run in a folder, at its newest checkpoint.

    Raises:
        InputError: no run there, or none that got as far as a checkpoint.
    """
    folder = folder_path(folder)
    if not storage.exists(folder / "config.json"):
        raise InputError(f"{folder} is not a run folder: it has no config.json. Train first.")
    if not has_checkpoint(folder):
        raise InputError(
            f"{folder}: training has not reached a checkpoint yet (train.checkpoint_every). Train on first."
        )
    config = load_config(folder / "config.json")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(abstract_state(config))
    return run_of(folder, config, state)


def run_of(folder: epath.Path, config: ExperimentConfig, state: TrainState) -> Run:
    """The run as it stands in a training state; averaged parameters where the config asks for them.

    Where the state is split over devices, its parts come together: all processes of a job call this.
    """
    variables = state.ema if state.ema is not None else (state.params, state.stats)
    whole = sharding.local_copy(variables)
    return Run(folder=folder, config=config, variables=whole, step=int(state.step))
