"""Tissue of a synthetic slide: smooth random fields, stroma, nests and glass as stain densities."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32, Float64
from scipy import ndimage

_PERIOD_PX = (1021, 1019)  # of repeated textures: primes, so that no pattern meets itself in step
_SLOPE = np.array([0.022, 0.030])  # of the fibres' potential, 1/um: keeps most fibres from closing to rings


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Waves:
    """A smooth random function of the plane, mean 0 and variance 1: a sum of plane waves."""

    vectors: Float64[np.ndarray, "k 2"]  # radians per um
    phases: Float64[np.ndarray, "k"]

    @classmethod
    def random(cls, rng: np.random.Generator, short_um: float, long_um: float, count: int = 24) -> "Waves":
        """Wavelengths spread evenly (in the logarithm) from `short_um` to `long_um`."""
        length = np.exp(rng.uniform(math.log(short_um), math.log(long_um), count))
        angle = rng.uniform(0.0, 2.0 * np.pi, count)
        unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        phases = rng.uniform(0.0, 2.0 * np.pi, count)
        return cls(vectors=unit * (2.0 * np.pi / length)[:, None], phases=phases)

    def at(self, xy_um: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n"]:
        """Values at points."""
        total = np.zeros(len(xy_um))
        for vector, phase in zip(self.vectors, self.phases):
            total += np.cos(xy_um @ vector + phase)
        return total * math.sqrt(2.0 / len(self.phases))

    def grid(
        self, x_um: Float64[np.ndarray, "w"], y_um: Float64[np.ndarray, "h"]
    ) -> Float32[np.ndarray, "h w"]:
        """Values on a lattice: cos(a + b) = cos a cos b - sin a sin b makes it a matrix product."""
        a = np.multiply.outer(y_um, self.vectors[:, 1]) + self.phases
        b = np.multiply.outer(self.vectors[:, 0], x_um)
        left = np.concatenate([np.cos(a), -np.sin(a)], axis=1).astype(np.float32)
        right = np.concatenate([np.cos(b), np.sin(b)], axis=0).astype(np.float32)
        return (left @ right) * np.float32(math.sqrt(2.0 / len(self.phases)))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tissue:
    """Where tissue, nests and fibres lie, and what stain they take up, at any place."""

    width_um: float
    height_um: float
    mpp: float
    outline: Waves
    ragged: Waves  # fine shape of the tissue's edge
    nests: Waves
    infiltrate: Waves  # where lymphocytes gather
    fibres: Waves  # fibres follow the level lines of this potential
    fibre_density: Float32[np.ndarray, "4096"]  # along the potential, periodic, mean 0
    coarse: Float32[np.ndarray, "p q"]  # textures at level-0 pixels, periodic, mean 0, variance 1
    fine: Float32[np.ndarray, "p q"]

    @classmethod
    def random(cls, rng: np.random.Generator, width_um: float, height_um: float, mpp: float) -> "Tissue":
        """Draw the layout of one slide."""
        extent = min(width_um, height_um)
        profile = ndimage.gaussian_filter1d(rng.standard_normal(4096), 7.0, mode="wrap")
        profile /= profile.std()
        broad = ndimage.gaussian_filter1d(rng.standard_normal(4096), 35.0, mode="wrap")
        profile += broad / broad.std()
        return cls(
            width_um=width_um,
            height_um=height_um,
            mpp=mpp,
            outline=Waves.random(rng, extent / 2.5, extent * 1.2, 12),
            ragged=Waves.random(rng, 25.0, 220.0),
            nests=Waves.random(rng, 110.0, 420.0, 32),
            infiltrate=Waves.random(rng, 90.0, 350.0),
            fibres=Waves.random(rng, 120.0, 600.0),
            fibre_density=(profile / profile.std()).astype(np.float32),
            coarse=periodic_texture(rng, 3.5 / mpp),
            fine=periodic_texture(rng, 1.1 / mpp),
        )

    def edge(self, rim: np.ndarray, outline: np.ndarray, ragged: np.ndarray) -> np.ndarray:
        """Signed depth in the tissue, about 1 at its heart; negative on glass."""
        return 0.80 - rim**2.2 + 0.17 * outline + 0.025 * ragged

    def depth_at(self, xy_um: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n"]:
        """Depth in the tissue at points."""
        x, y = self._centred(xy_um[:, 0], xy_um[:, 1])
        return self.edge(np.hypot(x, y), self.outline.at(xy_um), self.ragged.at(xy_um))

    def nest_at(self, xy_um: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n"]:
        """Above 0 inside the tumour's nests."""
        return self.nests.at(xy_um) + 0.12 * self.ragged.at(xy_um) - 0.42

    def fibre_direction_at(self, xy_um: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n"]:
        """Angle of the fibres, radians: across the gradient of their potential."""
        # A step of 1 um, far below the shortest wave.
        right, down = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        dx = self._potential_at(xy_um + right) - self._potential_at(xy_um - right)
        dy = self._potential_at(xy_um + down) - self._potential_at(xy_um - down)
        return np.arctan2(dx, -dy)

    def stains(
        self, x_px: int, y_px: int, width: int, height: int
    ) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Optical densities of haematoxylin and eosin without nuclei, and the tissue's cover 0..1."""
        columns, rows = np.arange(x_px, x_px + width), np.arange(y_px, y_px + height)
        x_um, y_um = (columns + 0.5) * self.mpp, (rows + 0.5) * self.mpp
        cut = np.ix_(rows % _PERIOD_PX[0], columns % _PERIOD_PX[1])
        shifted = np.ix_((rows + 517) % _PERIOD_PX[0], (columns + 311) % _PERIOD_PX[1])
        coarse, fine, other = self.coarse[cut], self.fine[cut], self.coarse[shifted]
        ragged = self.ragged.grid(x_um, y_um)
        cx, cy = self._centred(x_um, y_um)
        rim = np.hypot(cx[None, :], cy[:, None]).astype(np.float32)
        depth = self.edge(rim, self.outline.grid(x_um, y_um), ragged)
        cover = _step(depth + 0.004 * coarse, 0.0, 0.012)
        nest_level = self.nests.grid(x_um, y_um) + 0.12 * ragged - 0.42
        nest = _step(nest_level + 0.03 * coarse, 0.0, 0.10)
        fibre = self._fibre(x_um, y_um, other)
        pale = _step(fibre + 0.9 * other + 0.7 * ragged, -2.0, -1.3)  # clefts between the bundles
        stroma = (0.34 + 0.06 * fibre + 0.045 * other + 0.03 * fine) * (0.15 + 0.85 * pale)
        cell_body = 0.30 + 0.045 * coarse + 0.03 * fine
        retraction = np.exp(-(((nest_level + 0.09) / 0.05) ** 2)) * _step(other, 0.0, 0.8)
        eosin = stroma + (cell_body - stroma) * nest
        eosin *= 1.0 - 0.8 * retraction
        haematoxylin = 0.04 + 0.015 * other + 0.01 * fine
        haematoxylin = haematoxylin + (0.12 + 0.03 * coarse + 0.025 * fine) * nest
        return np.maximum(haematoxylin, 0.0) * cover, np.maximum(eosin, 0.01) * cover, cover

    def _centred(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in which the slide's inscribed ellipse has radius 1."""
        return 2.0 * x_um / self.width_um - 1.0, 2.0 * y_um / self.height_um - 1.0

    def _potential_at(self, xy_um: np.ndarray) -> np.ndarray:
        return xy_um @ _SLOPE + self.fibres.at(xy_um)

    def _fibre(self, x_um: np.ndarray, y_um: np.ndarray, texture: np.ndarray) -> Float32[np.ndarray, "h w"]:
        potential = self.fibres.grid(x_um, y_um)
        potential += np.add.outer(_SLOPE[1] * y_um, _SLOPE[0] * x_um).astype(np.float32)
        place = ((potential + 0.03 * texture) * 450.0).astype(np.int64) % len(self.fibre_density)
        return self.fibre_density[place] * (1.0 + 0.35 * texture)


def periodic_texture(
    rng: np.random.Generator, grain_px: float, shape: tuple[int, int] = _PERIOD_PX
) -> Float32[np.ndarray, "p q"]:
    """Noise over three octaves from `grain_px` up, wrapping round, mean 0 and variance 1."""
    total = np.zeros(shape)
    for octave in range(3):
        sigma = grain_px * 2.0**octave / 2.5  # a Gaussian's grain is about 2.5 sigma across
        smooth = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
        total += smooth / smooth.std() * 0.7**octave
    return (total / total.std()).astype(np.float32)


def _step(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
