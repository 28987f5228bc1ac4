"""The TNBC images as two mosaic slides with GeoJSON: the slide route against the folder route.

    python scripts/mosaic_tnbc.py --root $DATA/tnbc --folder-run \
      runs/reproduction/small/tnbc_segmentation/report/default--w-by-share_keep0.3_seed0

Patients 01-06 become the training slide, with the very marks that the folder route keeps for the seed;
07-08 become the test slide with all marks. The same config trains from the slide, predicts the test slide
into a GeoJSON, and is scored on it; `--folder-run` is scored on the same mosaic beside it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax import experiment
from sparseshot_jax.config import ExperimentConfig, load_config
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits, read_whole
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.sources import SlideSource
from sparseshot_jax.predict import overlay_png, write_predictions

CONFIG = Path(__file__).parents[1] / "configs" / "unet_tnbc.py"
_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Args:
    """The slide route on the TNBC images."""

    root: str  # folder with images/ and instances/ of TNBC
    out: Path = Path("runs/mosaic")
    folder_run: Path | None = None  # a finished run of the folder route, scored on the same mosaic
    seed: int = 0
    quality: int = 95  # of the JPEG tiles


def main() -> None:
    args, console = tyro.cli(Args), Console()
    base = load_config(CONFIG)
    data = dataclasses.replace(
        base.data,  # pyright: ignore
        root=args.root,
        train=("0[1-6]_*",),
        validation=(),
        test=("0[78]_*",),
    )
    folder = data.load(base.labels, args.seed)
    for name, cases in (("train", folder.train), ("test", folder.test)):
        console.print(f"{name}: {write_mosaic(args.out / name, cases, args.quality)}")

    config = slide_config(base, args)
    splits = mosaic_splits(config, args)
    run = experiment.train(config, args.out / f"seed{args.seed}", splits=splits)
    slide = splits.test[0].slide
    count = write_predictions(run.folder / "predictions.geojson", run.predict_stream(slide))
    overlay_png(slide, run.folder / "predictions.geojson", run.folder / "overlay.png")
    console.print(f"{count} objects: {run.folder / 'predictions.geojson'}")

    table = Table("route", "Dice at p > 0.5", "object F1", title="test patients, as one mosaic")
    runs = {} if args.folder_run is None else {"folder": experiment.load(args.folder_run)}
    for route, each in (runs | {"slide": run}).items():  # evaluation.json is left of the slide's own
        point = dataclasses.replace(each, folder=run.folder).evaluate(splits)["operating_points"]["fixed"]
        table.add_row(route, f"{point['dice_pooled']['mean']:.3f}", f"{point['object_f1']['mean']:.3f}")
    console.print(table)


def write_mosaic(folder: Path, cases: Sequence[Case], quality: int) -> Path:
    """slide.tiff and slide.geojson of images of one size, row by row."""
    side = cases[0].slide.width
    rows = -(-len(cases) // _COLUMNS)
    canvas = np.full((rows * side, _COLUMNS * side, 3), 255, np.uint8)
    parts = []
    for k, case in enumerate(cases):
        y, x = k // _COLUMNS * side, k % _COLUMNS * side
        canvas[y : y + side, x : x + side] = read_whole(case, case.mpp)
        parts.append(case.given.transformed(1.0, float(x), float(y)))
    folder.mkdir(parents=True, exist_ok=True)
    write_geojson(folder / "slide.geojson", Annotations.concatenate(parts), object_type="annotation")
    write_pyramid(
        folder / "slide.tiff",
        lambda x, y, width, height: canvas[y : y + height, x : x + width],
        canvas.shape[1],
        canvas.shape[0],
        mpp=cases[0].mpp,
        quality=quality,
    )
    return folder / "slide.tiff"


def slide_config(base: ExperimentConfig, args: Args) -> ExperimentConfig:
    """The shipped config, its source exchanged for the training mosaic."""
    source = SlideSource(slides=(str(args.out / "train" / "slide.tiff"),), hold_out=0.0)
    labels = dataclasses.replace(base.labels, share=base.data.keep)  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(base, name="mosaic", data=source, labels=labels, seed=args.seed)


def mosaic_splits(config: ExperimentConfig, args: Args) -> Splits:
    """Train on one mosaic, test on the other with all its marks as truth."""
    source = dataclasses.replace(
        config.data,  # pyright: ignore
        slides=(str(args.out / "test" / "slide.tiff"),),
        truth=str(args.out / "test"),
    )
    test = source.load(config.labels, args.seed).test
    return Splits(train=config.data.load(config.labels, args.seed).train, validation=(), test=test)


if __name__ == "__main__":
    main()
