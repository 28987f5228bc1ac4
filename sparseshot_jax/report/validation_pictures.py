"""How each area of an image will be treated: an overview, and crops at the resolution of the tiles."""

import dataclasses
import io

import numpy as np
from jaxtyping import UInt8

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import scale_at
from sparseshot_jax.data.checks.findings import Findings, Severity
from sparseshot_jax.data.checks.validate import Subject, ground_map
from sparseshot_jax.data.labels import TargetMaps, discs, wanted
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.report.figures import INK, MUTED, STYLE
from sparseshot_jax.report.overlay import COLOURS, Layer, overlay, resized
from sparseshot_jax.types import Ground, Window

OVERVIEW_PX = 900  # longer side of the overview
CROP_PX = 160  # side of a crop, pixels of the tiles
CROPS = 6
_SHOWN_PX = 2 * CROP_PX
_READ_ROWS = 128  # of the overview at once: the level it is read from may be several times as fine
_LEGEND = {  # ground -> what training does with it
    Ground.UNANNOTATED: "unannotated (nobody looked)",
    Ground.ANNOTATED: "annotated object",
    Ground.BACKGROUND: "known background",
    Ground.IGNORED: "ignored (outside the loss)",
}
_TINTS = {  # colour and opacity; unannotated ground is shown as it is
    Ground.ANNOTATED: (COLOURS["truth"], 0.45),
    Ground.BACKGROUND: (COLOURS["background"], 0.35),
    Ground.IGNORED: (COLOURS["ignored"], 0.75),
}
_OUTLINE = (0, 200, 145)  # the tint, brighter: a thin line on a dark nucleus
_SUSPECT = COLOURS["false"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """A part of the image, enlarged."""

    title: str
    window: Window
    picture: UInt8[np.ndarray, "a b 3"]
    suspect: bool  # shows a finding


def sheet(case: Subject, found: Findings, *, mpp: float | None = None) -> bytes:
    """The picture of one image as PNG: overview with the crops' places, crops, legend.

    Args:
        case: the image with its annotations as read.
        found: what `validate_case` says of it: its places come first among the crops.
        mpp: micrometres a pixel of the tiles; None = the image's own.

    Raises:
        InputError: the slide cannot be read.
    """
    shown = crops(case, found, case.mpp if mpp is None else mpp)
    return _drawn(case, found, overview(case), shown)


def crops(case: Subject, found: Findings, mpp: float) -> list[Crop]:
    """At most `CROPS`: an example of each finding, then objects at random, always the same ones."""
    half = CROPS // 2
    pointed = [(one.kind, one.places[0]) for one in found.findings if one.places][:half]
    chosen = [(place.index, kind) for kind, place in pointed]
    objects = np.flatnonzero(wanted(case.annotations, case.labels))
    random = np.random.default_rng(0).permutation(objects)[: CROPS - len(chosen)]
    chosen += [(int(k), "") for k in random if int(k) not in {index for index, _ in chosen}]
    scale = scale_at(case.slide, case.mpp, mpp)
    maps = TargetMaps(case.annotations, case.labels, mpp=case.mpp)
    shapes = discs(case.annotations, case.labels, mpp=case.mpp)
    return [_crop(case, maps, shapes, index, kind, scale) for index, kind in chosen]


def _crop(case: Subject, maps: TargetMaps, shapes: Annotations, index: int, kind: str, scale: float) -> Crop:
    reach = CROP_PX * scale / 2
    centre = case.annotations.centroids_px[index]
    size = np.array([case.slide.width, case.slide.height])
    # Near the border the crop moves inwards; an object outside the image is shown where it lies.
    inside = (centre >= 0).all() and (centre <= size).all()
    if inside:
        centre = np.where(size > 2 * reach, np.clip(centre, reach, np.maximum(size - reach, reach)), size / 2)
    x, y = np.floor((centre - reach) / scale) * scale
    window = Window(x_px=float(x), y_px=float(y), width=CROP_PX, height=CROP_PX, scale=scale)
    ground, _ = maps.draw(window)
    separate = np.where(ground == Ground.ANNOTATED, maps.instances(window), 0)
    layers = [
        *(
            Layer(labels=(ground == code).astype(np.uint8), colour=colour, fill=0.5 * fill, line_px=0)
            for code, (colour, fill) in _TINTS.items()
        ),
        Layer(labels=separate, colour=_OUTLINE),
    ]
    if kind:
        layers.append(Layer(labels=rasterize(shapes.take(np.array([index])), window), colour=_SUSPECT))
    picture, labels = resized(case.slide.read(window), [layer.labels for layer in layers], _SHOWN_PX)
    layers = [dataclasses.replace(layer, labels=one) for layer, one in zip(layers, labels)]
    name = case.annotations.class_names[case.annotations.class_ids[index]] or "unclassified"
    return Crop(
        title=f"{kind}: object {index}" if kind else f"object {index} ({name})",
        window=window,
        picture=overlay(picture, layers),
        suspect=bool(kind),
    )


def overview(case: Subject) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """The whole image tinted by ground, and level-0 pixels a pixel."""
    ground, scale = ground_map(case, OVERVIEW_PX)
    height, width = ground.shape
    strips = [
        case.slide.read(
            Window(x_px=0.0, y_px=y * scale, width=width, height=min(_READ_ROWS, height - y), scale=scale)
        )
        for y in range(0, height, _READ_ROWS)
    ]
    layers = [
        Layer(labels=(ground == code).astype(np.uint8), colour=colour, fill=fill, line_px=0)
        for code, (colour, fill) in _TINTS.items()
    ]
    return overlay(np.concatenate(strips), layers), scale


def _drawn(case: Subject, found: Findings, overview: tuple[np.ndarray, float], shown: list[Crop]) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        picture, scale = overview
        figure = Figure(figsize=(14.0, 6.9), dpi=110, layout="constrained")
        grid = figure.add_gridspec(2, 5, width_ratios=(1.12, 1.12, 1, 1, 1))
        axes = figure.add_subplot(grid[:, :2])
        axes.imshow(picture, interpolation="lanczos")
        axes.set_axis_off()
        axes.set_anchor("N")
        axes.set_title(f"{found.width} x {found.height} pixels of {found.mpp:.4g} um")
        for number, crop in enumerate(shown, 1):
            _mark(axes, crop, number, scale)
            part = figure.add_subplot(grid[(number - 1) // 3, 2 + (number - 1) % 3])
            part.imshow(crop.picture, interpolation="nearest")
            part.set_xticks([])
            part.set_yticks([])
            colour = _hex(_SUSPECT) if crop.suspect else INK
            part.set_title(f"{number}  {crop.title}", color=colour, fontsize=9)
            for spine in part.spines.values():
                spine.set(visible=True, color=colour, linewidth=1.5 if crop.suspect else 0.8)
        figure.suptitle(_heading(case, found), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        _legend(figure, found)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _mark(axes, crop: Crop, number: int, scale: float) -> None:
    """Where a crop lies in the overview."""
    from matplotlib.patches import Rectangle

    window = crop.window
    side = window.width * window.scale / scale
    x, y = window.x_px / scale - 0.5, window.y_px / scale - 0.5
    colour = _hex(_SUSPECT) if crop.suspect else INK
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=1.2, clip_on=True))
    label = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
    axes.text(x, y, str(number), color="white", fontsize=8, bbox=label, ha="left", va="top", clip_on=True)


def _heading(case: Subject, found: Findings) -> str:
    marked = int(wanted(case.annotations, case.labels).sum())
    counts = {kind: sum(one.severity == kind for one in found.findings) for kind in Severity}
    faults = ", ".join(
        f"{n} {kind.name.lower()}{'s' if n > 1 else ''}" for kind, n in reversed(counts.items()) if n
    )
    return f"{found.name}: {marked} objects to be found" + (f"; {faults}" if faults else "")


def _legend(figure, found: Findings) -> None:
    from matplotlib.patches import Patch

    handles = []
    for code, text in _LEGEND.items():
        colour, alpha = _TINTS.get(code, ((255, 255, 255), 1.0))
        share = found.ground[code]
        handles.append(
            Patch(
                facecolor=(_hex(colour), alpha),
                edgecolor=MUTED,
                label=f"{text}: {_percent(share)}",
            )
        )
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9)


def _percent(share: float) -> str:
    if 0.0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
