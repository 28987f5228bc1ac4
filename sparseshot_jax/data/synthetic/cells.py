"""Cells of a synthetic slide: their shapes as arrays, their outlines, and how they are stained."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Complex64, Float32, Float64, Int32

CLASSES = ("tumour", "lymphocyte", "fibroblast")

_HARMONICS = (2, 3, 4, 5)  # of the outline; the first would only shift it
_NUCLEOLI = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """How the cells of one class vary: each pair is (mean, spread)."""

    radius_um: tuple[float, float]  # geometric mean of the semi-axes; the spread is of its logarithm
    elongation: tuple[float, float]  # long over short axis, least value and mean excess
    roughness: float  # amplitude of the outline's harmonics, share of the radius
    bend: float  # spread of the curvature of the long axis
    stain: tuple[float, float]  # haematoxylin, optical density of the nucleus
    texture: float  # contrast of the chromatin
    rim: float  # extra stain of the membrane, share of the nucleus'
    nucleoli: float  # chance of each of two nucleoli
    membrane: float  # eosin of the cell's border, optical density


# Sizes as in textbooks of pathology (a lymphocyte's nucleus is 6 to 8 um across, a carcinoma's 9 to 14);
# the spreads make the classes overlap, so that no single feature tells them apart.
LOOKS = {
    "tumour": Look(
        radius_um=(4.7, 0.17),
        elongation=(1.0, 0.28),
        roughness=0.055,
        bend=0.06,
        stain=(0.95, 0.26),
        texture=0.30,
        rim=0.35,
        nucleoli=0.55,
        membrane=0.10,
    ),
    "lymphocyte": Look(
        radius_um=(3.3, 0.15),
        elongation=(1.0, 0.10),
        roughness=0.03,
        bend=0.0,
        stain=(1.35, 0.22),
        texture=0.28,
        rim=0.15,
        nucleoli=0.05,
        membrane=0.0,
    ),
    "fibroblast": Look(
        radius_um=(3.5, 0.18),
        elongation=(1.7, 1.6),
        roughness=0.04,
        bend=0.12,
        stain=(1.05, 0.25),
        texture=0.20,
        rim=0.20,
        nucleoli=0.15,
        membrane=0.0,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Cells:
    """Every cell of a slide. Unit coordinates (u, v) lie along the axes; u^2 + v^2 = 1 is the ellipse."""

    xy_px: Float64[np.ndarray, "n 2"]  # centre, level-0 pixels
    axes_px: Float32[np.ndarray, "n 2"]  # semi-axes, level-0 pixels, long one first
    angle: Float32[np.ndarray, "n"]  # of the long axis, radians from x to y
    bend: Float32[np.ndarray, "n"]  # v rises by bend * u^2
    outline: Complex64[np.ndarray, "n 4"]  # radius = 1 + Re(sum_k outline_k e^(i k theta))
    stain: Float32[np.ndarray, "n"]
    rim: Float32[np.ndarray, "n"]
    texture: Float32[np.ndarray, "n"]
    texture_xy: Int32[np.ndarray, "n 2"]  # where in the texture it is cut
    nucleoli: Float32[np.ndarray, "n 2 4"]  # u, v, radius (units), strength
    membrane: Float32[np.ndarray, "n"]
    class_ids: Int32[np.ndarray, "n"]  # index into CLASSES

    def __len__(self) -> int:
        return len(self.xy_px)

    def take(self, index: np.ndarray) -> "Cells":
        """The cells of an index array or a mask."""
        fields = dataclasses.fields(self)
        return Cells(**{field.name: getattr(self, field.name)[index] for field in fields})

    @property
    def reach_px(self) -> Float32[np.ndarray, "n"]:
        """Radius round the centre beyond which a cell leaves no trace."""
        bent = 1.0 + np.abs(self.bend)
        spread = np.where(self.membrane > 0.0, 1.75, 1.25)
        return self.axes_px[:, 0] * (bent * spread).astype(np.float32) + 2.0

    def outlines_px(self, vertices: int = 24) -> Float64[np.ndarray, "n vertices 2"]:
        """Polygons where the stain of the nucleus has fallen to half."""
        theta = np.arange(vertices) * (2.0 * np.pi / vertices)
        powers = np.exp(1j * np.multiply.outer(_HARMONICS, theta))
        radius = 1.0 + np.real(self.outline @ powers)
        u, v = radius * np.cos(theta), radius * np.sin(theta)
        v = v + self.bend[:, None] * u**2
        x, y = u * self.axes_px[:, :1], v * self.axes_px[:, 1:]
        cos, sin = np.cos(self.angle)[:, None], np.sin(self.angle)[:, None]
        turned = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
        return self.xy_px[:, None, :] + turned.astype(np.float64)


def make_cells(
    rng: np.random.Generator,
    name: str,
    xy_px: Float64[np.ndarray, "n 2"],
    direction: Float64[np.ndarray, "n"],
    mpp: float,
) -> Cells:
    """Draw the shapes and stains of one class's cells at given centres, long axes along `direction`."""
    look, n = LOOKS[name], len(xy_px)
    normal = rng.standard_normal
    radius = look.radius_um[0] * np.exp(look.radius_um[1] * normal(n)) / mpp
    ratio = look.elongation[0] + rng.gamma(2.0, look.elongation[1] / 2.0, n)
    harmonics = normal((n, 4)) + 1j * normal((n, 4))
    outline = look.roughness * harmonics / np.array([1.0, 1.2, 1.7, 2.2])
    stain = look.stain[0] * np.exp(look.stain[1] * normal(n))
    # Pale, vesicular nuclei show their rim and nucleoli best; dark ones hide both.
    pale = np.clip(1.6 - stain / look.stain[0], 0.2, 1.4)
    place = 0.45 * normal((n, _NUCLEOLI, 2)).clip(-1.2, 1.2)
    size = rng.uniform(0.16, 0.30, (n, _NUCLEOLI, 1))
    strength = rng.uniform(0.3, 0.8, (n, _NUCLEOLI, 1)) * pale[:, None, None]
    strength *= rng.random((n, _NUCLEOLI, 1)) < look.nucleoli
    return Cells(
        xy_px=xy_px,
        axes_px=np.stack([radius * ratio**0.5, radius * ratio**-0.5], axis=1).astype(np.float32),
        angle=direction.astype(np.float32),
        bend=(look.bend * normal(n)).astype(np.float32),
        outline=outline.astype(np.complex64),
        stain=stain.astype(np.float32),
        rim=(look.rim * pale).astype(np.float32),
        texture=(look.texture * rng.uniform(0.6, 1.4, n)).astype(np.float32),
        texture_xy=rng.integers(0, 1 << 16, (n, 2)).astype(np.int32),
        nucleoli=np.concatenate([place, size, strength], axis=2).astype(np.float32),
        membrane=(look.membrane * rng.uniform(0.2, 1.6, n)).astype(np.float32),
        class_ids=np.full(n, CLASSES.index(name), np.int32),
    )


def concatenate(parts: list[Cells]) -> Cells:
    """All cells of several arrays, in order."""
    names = [field.name for field in dataclasses.fields(Cells)]
    return Cells(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Patch:
    """One cell's stain on its own square of pixels."""

    x: int  # left edge, level-0 pixels
    y: int  # top edge
    cover: Float32[np.ndarray, "s s"]  # share of the pixel inside the nucleus, 0..1
    haematoxylin: Float32[np.ndarray, "s s"]  # optical density of the nucleus where it covers
    eosin: Float32[np.ndarray, "s s"]  # added round the nucleus


def patches(cells: Cells, texture: Float32[np.ndarray, "p p"], mpp: float) -> Iterator[Patch]:
    """Stain of cells of one class: computed at once for all of them, given out one by one."""
    side = 2 * int(np.ceil(cells.reach_px.max())) + 1
    corner = np.floor(cells.xy_px).astype(np.int64) - side // 2
    u, v = _unit_coordinates(cells, corner, side)
    rho = np.sqrt(u * u + v * v) + np.float32(1e-6)
    unit = (u + 1j * v) / rho
    radius, power = np.ones_like(rho), unit.copy()
    for k in range(len(_HARMONICS)):
        power *= unit
        radius += (cells.outline[:, k, None, None] * power).real
    relative = rho / radius  # 1 on the outline
    # Distance to the outline in um, positive inside: the gradient of `relative` is near 1 / radius.
    short, long = cells.axes_px[:, 1, None, None], cells.axes_px[:, 0, None, None]
    stretch = rho / np.sqrt((u / long) ** 2 + (v / short) ** 2)  # pixels per unit along the normal
    inside_um = (1.0 - relative) * stretch * np.float32(mpp)
    cover = np.clip(0.5 + inside_um / 0.5, 0.0, 1.0)
    density = _chromatin(cells, side, texture)
    density += cells.rim[:, None, None] * np.exp(-(((inside_um - 0.25) / 0.45) ** 2))
    for k in range(_NUCLEOLI):
        nu, nv, size, strength = (cells.nucleoli[:, k, j, None, None] for j in range(4))
        density += strength * np.exp(-(((u - nu) ** 2 + (v - nv) ** 2) / size**2))
    density *= cells.stain[:, None, None]
    border = np.exp(-(((relative - 1.5) / 0.12) ** 2)) * cells.membrane[:, None, None]
    for k, (x, y) in enumerate(corner.tolist()):
        yield Patch(x=x, y=y, cover=cover[k], haematoxylin=density[k], eosin=border[k])


def _unit_coordinates(
    cells: Cells, corner: np.ndarray, side: int
) -> tuple[Float32[np.ndarray, "n s s"], Float32[np.ndarray, "n s s"]]:
    """Where each pixel centre of each patch lies in the cell's own coordinates."""
    steps = np.arange(side) + 0.5
    x = (corner[:, :1] + steps - cells.xy_px[:, :1]).astype(np.float32)[:, None, :]
    y = (corner[:, 1:] + steps - cells.xy_px[:, 1:]).astype(np.float32)[:, :, None]
    cos, sin = np.cos(cells.angle)[:, None, None], np.sin(cells.angle)[:, None, None]
    u = (x * cos + y * sin) / cells.axes_px[:, 0, None, None]
    v = (y * cos - x * sin) / cells.axes_px[:, 1, None, None]
    return u, v - cells.bend[:, None, None] * u * u


def _chromatin(cells: Cells, side: int, texture: Float32[np.ndarray, "p p"]) -> Float32[np.ndarray, "n s s"]:
    """Relative density with clumps: the texture, cut at each cell's own place."""
    size = len(texture)
    steps = np.arange(side) - side // 2  # from the centre: `side` depends on the other cells
    columns = (cells.texture_xy[:, :1] + steps) % size
    rows = (cells.texture_xy[:, 1:] + steps) % size
    cut = texture[rows[:, :, None], columns[:, None, :]]
    return np.maximum(1.0 + cells.texture[:, None, None] * cut, 0.25).astype(np.float32)
