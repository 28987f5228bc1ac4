"""What a report shows of runs: crops with labels and predictions, config, versions, notes."""

import importlib.metadata
import sys
from collections.abc import Mapping

import numpy as np

from sparseshot_jax.data.cases import Case, Splits, truth_instances, whole_window
from sparseshot_jax.data.labels import draw_targets, wanted
from sparseshot_jax.evaluate import foreground_of
from sparseshot_jax.report import Panel
from sparseshot_jax.run import Run
from sparseshot_jax.types import Window

_SIDE_PX = 256  # of a crop, pixels at the model's resolution
_CASES = 2  # of each part

NO_DENSE_TRUTH = (
    "The marks are sparse and there is no dense truth: Dice and F1 cannot be measured. A share of the marked "
    "objects was held out of training by spatial blocks; the report gives the recall on them beside the "
    "share of tissue that is called foreground. The parameters are the last ones (averaged where the "
    "config says so), and the threshold is the config's: nothing was chosen on these marks."
)


def panels(runs: Mapping[str, Run], splits: Splits) -> list[Panel]:
    """Crops of the training part with the given labels, and of the test part with the truth."""
    shown = [("training", case) for case in splits.train[:_CASES]]
    shown += [("test", case) for case in splits.test[:_CASES]]
    return [_panel(runs, part, case) for part, case in shown]


def _panel(runs: Mapping[str, Run], part: str, case: Case) -> Panel:
    first = next(iter(runs.values()))
    window = _crop(case, first.config.tiles.mpp)
    ground = None
    if part == "training":
        ground, _ = draw_targets(case.given, window, case.labels, mpp=case.mpp)
    return Panel(
        title=case.name if case.name == part else f"{case.name} ({part})",
        image=case.slide.read(window),
        given=ground,
        predictions={name: _p(run, case, window) for name, run in runs.items()},
        threshold=first.config.predict.threshold,
        truth=truth_instances(case, window) if case.truth is not None else None,
    )


def _crop(case: Case, mpp: float) -> Window:
    """A square round the annotated object with the most neighbours, inside the image."""
    whole = whole_window(case, mpp)
    side = min(_SIDE_PX, whole.width, whole.height)
    chosen = case.given if wanted(case.given, case.labels).any() else case.truth
    centre = np.array([whole.width, whole.height]) / 2
    if chosen is not None and wanted(chosen, case.labels).any():
        xy = chosen.centroids_px[wanted(chosen, case.labels)] / whole.scale
        some = xy[:: max(1, len(xy) // 500)]
        near = (np.abs(some[:, None] - some[None]) < side / 2).all(-1).sum(0)
        centre = some[near.argmax()]
    corner = np.clip(centre - side // 2, 0, [whole.width - side, whole.height - side]).astype(int)
    x, y = corner * whole.scale
    return Window(x_px=float(x), y_px=float(y), width=side, height=side, scale=whole.scale)


def _p(run: Run, case: Case, window: Window) -> np.ndarray:
    """p of foreground in a window, computed with the halo that the model needs."""
    multiple = run.config.model.multiple
    halo = -(-run.config.model.receptive_radius_px // multiple) * multiple
    side = -(-window.width // multiple) * multiple + 2 * halo
    reach = halo * window.scale
    wide = Window(
        x_px=window.x_px - reach, y_px=window.y_px - reach, width=side, height=side, scale=window.scale
    )
    p = foreground_of(np.asarray(run.probability(case.slide.read(wide)[None])))[0]
    return p[halo : halo + window.height, halo : halo + window.width]


def versions() -> dict[str, str]:
    """Of the packages that decide a result."""
    names = ("sparseshot-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "fastslide")
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names}
