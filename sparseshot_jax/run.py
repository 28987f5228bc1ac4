"""A trained run: load it, measure it, find objects with it."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from sparseshot_jax import metrics
from sparseshot_jax.config import ExperimentConfig, load_config
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits, scale_at
from sparseshot_jax.data.slides.slide import Slide, open_slide
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.evaluate import (
    by_truth,
    foreground_of,
    measure_dense,
    measure_sparse,
    pixel_counts,
)
from sparseshot_jax.predict import Prediction, predict, probability_map
from sparseshot_jax.programs import form_of, fresh_state, programs
from sparseshot_jax.training.checkpoint import Checkpoints
from sparseshot_jax.training.log import read_rows
from sparseshot_jax.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A trained model with all that was used to train it."""

    folder: Path
    config: ExperimentConfig
    variables: tuple[Any, Any]  # parameters and statistics, averaged where the config says so
    step: int

    def probability(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b h w c"]:
        """p of each class at every pixel of RGB images whose sides the model can take."""
        return programs(form_of(self.config)).eval_step(self.variables, images)

    def probability_map(self, case: Case) -> Float32[np.ndarray, "h w"]:
        """p of foreground of a whole image or slide at the model's resolution."""
        p = probability_map(self.probability, case.slide, **self._tiling(case.slide, case.mpp))
        return foreground_of(p)

    def predict_stream(
        self,
        slide: Slide,
        *,
        region: Annotations | None = None,
        mpp: float | None = None,
        threshold: float | None = None,
        on_progress: Callable[[int, int, int], None] = lambda done, total, objects: None,
    ) -> Iterator[Prediction]:
        """Objects of an image or slide of any size, as they are complete; memory stays bounded.

        Args:
            slide: what `open_slide` gives.
            region: only objects whose centroid lies in these polygons; level-0 pixels.
            mpp: micrometres a level-0 pixel, where the file does not say.
            threshold: in place of the config's `predict.threshold`.
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
        return predict(
            self.probability,
            slide,
            class_names=self.config.labels.names,
            threshold=spec.threshold if threshold is None else threshold,
            min_area_um2=spec.min_area_um2,
            simplify_px=spec.simplify_px,
            region=region,
            tissue=tissue_mask(slide) if spec.tissue_only else None,
            on_progress=on_progress,
            **self._tiling(slide, mpp),
        )

    def predict(self, image: str | Path | Slide, **options: Any) -> Prediction:
        """All objects of an image or slide at once; options as of `predict_stream`."""
        slide = open_slide(image) if isinstance(image, str | Path) else image
        parts = list(self.predict_stream(slide, **options))
        return Prediction(
            objects=Annotations.concatenate(
                [Annotations.empty(self.config.labels.names), *(part.objects for part in parts)]
            ),
            probability=np.concatenate([np.zeros(0), *(part.probability for part in parts)]),
            area_um2=np.concatenate([np.zeros(0), *(part.area_um2 for part in parts)]),
        )

    def _tiling(self, slide: Slide, mpp: float) -> dict[str, Any]:
        return {
            "mpp": mpp,
            "model_mpp": scale_at(slide, mpp, self.config.tiles.mpp) * mpp,
            "core_px": self.config.predict.core_px,
            "halo_px": self.config.model.receptive_radius_px,
            "multiple": self.config.model.multiple,
            "batch_size": self.config.predict.batch_size,
        }

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
        """The threshold with the best pooled Dice on cases with dense truth: one to carry over."""
        counts = pixel_counts(self.probability_map, cases, mpp=self.config.tiles.mpp)
        return metrics.best_threshold(counts)

    def measure_held_out(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Recall on held-out marks beside the area called foreground; see `measure_sparse`."""
        return measure_sparse(
            self.probability,
            cases,
            tiles=self.config.tiles,
            multiple=self.config.model.multiple,
            threshold=self.config.predict.threshold,
        )

    def evaluation_of(self, splits: Splits) -> dict[str, Any]:
        """evaluation.json, measured first where it is missing or of another step."""
        path = self.folder / "evaluation.json"
        if path.is_file():
            result = json.loads(path.read_text())
            if result.get("step") == self.step:
                return result
        return self.evaluate(splits)

    def evaluate(
        self,
        splits: Splits | None = None,
        *,
        threshold_carried: float | None = None,
        on_case: Callable[[str], None] = lambda name: None,
    ) -> dict[str, Any]:
        """Measure on the test part, or on validation where there is no test part.

        Args:
            splits: the data, where it was read already.
            threshold_carried: chosen elsewhere; None: the best one on dense validation images.
            on_case: told of every scored case.

        Returns:
            `metrics.Evaluation` and "step"; "held_out" beside it where validation has sparse marks
            alone. Also written to evaluation.json.
        """
        splits = splits or self.splits()
        dense, sparse = by_truth(splits.validation)
        result: dict[str, Any] = {"step": self.step}
        if dense and threshold_carried is None:
            threshold_carried = self.choose_threshold(dense)
        if sparse:
            result["held_out"] = self.measure_held_out(sparse)
        scored = splits.test or tuple(dense)
        if scored:
            result |= measure_dense(
                self.probability_map,
                scored,
                mpp=self.config.tiles.mpp,
                split="test" if splits.test else "validation",
                threshold_carried=threshold_carried,
                seed=0,
                on_case=on_case,
            )
        write_json(self.folder / "evaluation.json", result)
        return result


def load(folder: str | Path) -> Run:
    """The run in a folder, at its newest checkpoint.

    Raises:
        InputError: no run there, or none that got as far as a checkpoint.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.json. Train first.")
    if not has_checkpoint(folder):
        raise InputError(
            f"{folder}: training has not reached a checkpoint yet (train.checkpoint_every). Train on first."
        )
    config = load_config(folder / "config.json")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(fresh_state(config))
    return run_of(folder, config, state)


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in a folder got as far as a checkpoint."""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(child.name.isdigit() for child in checkpoints.iterdir())


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error}. Make the folder writable, or free some space."
        ) from error


def run_of(folder: Path, config: ExperimentConfig, state: TrainState) -> Run:
    """The run as it stands in a training state; averaged parameters where the config asks for them."""
    variables = state.ema if state.ema is not None else (state.params, state.stats)
    return Run(folder=folder, config=config, variables=variables, step=int(state.step))
