"""Draw the figures of docs/method.md. No data, no training of a network; seconds on a CPU.

    python scripts/method_figures.py --folder docs

Every curve comes from the library's own losses, differentiated by jax, so that the pictures show what runs,
not what a formula says. tests/test_theory.py holds the formulas against the same losses.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from sparseshot_jax.losses import (
    Exclusive,
    FocalExclusive,
    cross_entropy,
    exclusive_cross_entropy,
    focal,
    focal_exclusive_cross_entropy,
    schedules,
)
from sparseshot_jax.losses.share import share_weight
from sparseshot_jax.report.figures import INK, LINES, MUTED, STYLE
from sparseshot_jax.types import Ground, Targets

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = LINES[:5]  # Okabe and Ito's, told apart by the colour-blind
STARTS = (0.02, 0.8)  # p at time 0 of the simulated clusters
SHARES = (0.1, 0.3, 0.6)  # c, of the look-alikes, those annotated
DURATION = 200.0  # of a simulated training, learning rate x steps
STEPS = 800
WIDTH_IN = 9.0  # at DPI: 1350 px; the text stays legible at 900
DPI = 150

Loss = Callable[..., Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Where to write."""

    folder: Path = Path("docs")


def logit(p: Any) -> Any:
    """Log-odds."""
    return jnp.log(p) - jnp.log1p(-jnp.asarray(p))


# --- what is drawn -------------------------------------------------------------------------------


def background_curves(
    loss: Loss, z: Float[Array, "n"], **numbers: float
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Value of the unannotated term of a loss and its gradient in the logit."""

    def one(z: Float[Array, ""]) -> Float[Array, ""]:
        return loss(z, jnp.asarray(False), **numbers)

    return jax.jit(jax.vmap(jax.value_and_grad(one)))(z)


def capped(spec: Exclusive, z: Float[Array, "n"], rho: float) -> Float[Array, "n"]:
    """What the library logs of an exclusive loss: dropped terms held at the threshold."""
    ground = jnp.full(z.shape, Ground.UNANNOTATED, jnp.uint8)
    targets = Targets(ground=ground, label=jnp.zeros(z.shape, jnp.int32))
    return spec.terms(z[:, None], targets, spec.hyper(0.0) | {"rho": rho}).capped


def along_time(p: Float[Array, "n"], *, annotated: bool) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """dL/dt and d2L/dt2 of one term while its logit follows dz/dt = -dL/dz."""

    def loss(z: Float[Array, ""]) -> Float[Array, ""]:
        return cross_entropy(z, jnp.asarray(annotated))

    def flowing(rate: Callable[..., Float[Array, ""]]) -> Callable[..., Float[Array, ""]]:
        return lambda z: jax.jvp(rate, (z,), (-jax.grad(loss)(z),))[1]

    speed = flowing(loss)
    z = logit(p)
    return jax.jit(jax.vmap(speed))(z), jax.jit(jax.vmap(flowing(speed)))(z)


@jax.jit
def trajectory(
    share: Float[Array, ""], weight: Float[Array, ""], start: Float[Array, ""], rho: Float[Array, "steps"]
) -> Float[Array, "steps"]:
    """p of a cluster of look-alikes, of which `share` are annotated, under gradient flow.

    Args:
        share: c.
        weight: of unannotated ground.
        start: p at time 0.
        rho: threshold of the mask at each step; 1: no mask.
    """

    def pull(z: Float[Array, ""], threshold: Float[Array, ""]) -> Float[Array, ""]:
        terms = focal_exclusive_cross_entropy(
            jnp.stack([z, z]), jnp.array([True, False]), threshold=threshold, alpha=weight, gamma=0.0
        )
        return share * terms[0] + (1.0 - share) * terms[1]

    def step(z: Float[Array, ""], threshold: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return z - DURATION / STEPS * jax.grad(pull)(z, threshold), jax.nn.sigmoid(z)

    return jax.lax.scan(step, logit(start), rho)[1]


def settled(share: Any, weight: Any) -> Any:
    """Where p of a sure object settles: c / (c + (1 - c) w)."""
    return share / (share + (1.0 - share) * weight)


def needed_chance(share: Any, weight: Any) -> Any:
    """P(object) above which p settles above 1/2: w / (c (1 + w)); above 1 nothing is called."""
    return weight / (share * (1.0 + weight))


# --- the figures ---------------------------------------------------------------------------------


def draw_gradients(figure: Any) -> None:
    """Loss and gradient of an unannotated element against its logit."""
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    z = jnp.linspace(-5.0, 5.0, 1001)
    value, slope = background_curves(cross_entropy, z)
    for above, below in axes.T:
        above.plot(z, value, color=BLUE, lw=3.5, alpha=0.45, label="cross-entropy")
        below.plot(z, slope, color=BLUE, lw=3.5, alpha=0.45)
    for rho, colour, style in ((0.5, VERMILLION, "-"), (0.75, GREEN, "--"), (0.95, PURPLE, "-.")):
        _, slope = background_curves(exclusive_cross_entropy, z, threshold=rho)
        label = f"exclusive, rho = {rho:g} (capped)"
        axes[0, 0].plot(z, capped(Exclusive(), z, rho), style, color=colour, label=label)
        axes[1, 0].plot(z, slope, style, color=colour)
    _weighted_curves(axes[:, 1], z)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("gradient: push towards background")
    axes[0, 0].set_title("The mask caps the loss")
    axes[0, 1].set_title("Weights scale it")
    for axis in axes[0]:
        axis.legend(loc="upper left")
        axis.set_ylim(-0.1, 5.2)
    for axis in axes[1]:
        places = [0.01, 0.1, 0.5, 0.75, 0.95, 0.99]
        axis.set_xticks([float(logit(p)) for p in places], [f"{p:g}" for p in places])
        axis.set_xlabel("p of the unmarked element (its logit z is the axis)")


def _weighted_curves(axes: Any, z: Float[Array, "n"]) -> None:
    light, slope = background_curves(cross_entropy, z, background_weight=0.2)
    axes[0].plot(z, light, "--", color=ORANGE, label="cross-entropy, w = 0.2")
    axes[1].plot(z, slope, "--", color=ORANGE)
    value, slope = background_curves(focal, z)
    axes[0].plot(z, value, "-.", color=GREEN, label="focal (alpha 0.25, gamma 2)")
    axes[1].plot(z, slope, "-.", color=GREEN)
    value = capped(FocalExclusive(), z, 0.75)
    _, slope = background_curves(focal_exclusive_cross_entropy, z, threshold=0.75)
    axes[0].plot(z, value, color=VERMILLION, label="focal exclusive (0.2, 0.1), rho = 0.75")
    axes[1].plot(z, slope, color=VERMILLION)


def draw_dynamics(figure: Any) -> None:
    """p of look-alikes over a training, a row a weight, a column a share."""
    weights: list[tuple[str, Callable[[float], float]]] = [
        ("w = 1", lambda c: 1.0),
        ("w = 0.2", lambda c: 0.2),
        ("w = c / (2 - c)", share_weight),
    ]
    axes = figure.subplots(len(weights), len(SHARES), sharex=True, sharey=True)
    for row, (name, weight) in zip(axes, weights):
        for axis, c in zip(row, SHARES):
            w = weight(c)
            _trajectories(axis, c, w)
            axis.set_title(f"c = {c:g}, {name}" + (f" = {w:.2f}" if "c /" in name else ""))
            axis.set_ylim(0.0, 1.02)
    for axis in axes[-1]:
        axis.set_xlabel("t, part of the training")
    for axis in axes[:, 0]:
        axis.set_ylabel("p of the look-alikes")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _trajectories(axis: Any, share: float, weight: float) -> None:
    times = np.linspace(0.0, 1.0, STEPS, dtype=np.float32)
    rising = schedules.sigmoid(times)
    axis.plot(times, rising, ":", color=MUTED, lw=1.2, label="rho of the schedule")
    for label, rho, colour, style, width, alpha in (
        ("no mask (cross-entropy)", np.ones_like(times), BLUE, "-", 3.0, 0.5),
        ("mask, sigmoid schedule", rising, VERMILLION, "-", 1.5, 1.0),
        ("mask, rho fixed at 0.75", np.full_like(times, 0.75), GREEN, "--", 1.5, 1.0),
    ):
        for start in STARTS:
            p = trajectory(*(jnp.float32(x) for x in (share, weight, start)), jnp.asarray(rho))
            shown = label if start == STARTS[0] else None
            axis.plot(times, p, style, color=colour, lw=width, alpha=alpha, label=shown)
    end = settled(share, weight)
    axis.plot(1.0, end, "o", color=INK, ms=5, clip_on=False, zorder=5, label="c / (c + (1 - c) w)")


def draw_weight_rule(figure: Any) -> None:
    """What each rule for the weight makes of a share: settled p, and the decision at p > 1/2."""
    left, right = figure.subplots(1, 2)
    c = np.linspace(0.01, 0.99, 197)
    rules: list[tuple[str, Any, str, str]] = [
        ("w = 1", np.ones_like(c), BLUE, "-"),
        ("w = 0.2", np.full_like(c, 0.2), ORANGE, "-."),
        ("w = 0.5 c / (1 - c)", 0.5 * c / (1.0 - c), PURPLE, ":"),
        ("calibrated, tau = 0.5", np.array([share_weight(x) for x in c]), VERMILLION, "-"),
        ("calibrated, tau = 0.4", np.array([share_weight(x, 0.4) for x in c]), GREEN, "--"),
    ]
    for label, w, colour, style in rules:
        width = 2.6 if style == ":" else 1.8
        left.plot(c, settled(c, w), style, color=colour, lw=width, label=label)
        needed = needed_chance(c, w)
        right.plot(c, np.where(needed <= 1.0, needed, np.nan), style, color=colour, lw=width)
    left.axhline(0.5, color=MUTED, lw=0.8)
    left.annotate("called an object at p > 0.5", (0.985, 0.47), ha="right", color=MUTED, fontsize=8)
    left.set_title("Where p of a sure object settles")
    left.set_ylabel("settled p")
    left.set_ylim(0.0, 1.02)
    left.legend(loc="lower right", bbox_to_anchor=(1.0, 0.03))
    right.set_title("Which places are called at p > 0.5")
    right.set_ylabel("needed P(object)")
    right.set_ylim(0.0, 1.05)
    right.axhline(1.0, color=MUTED, lw=0.8)
    right.annotate("above 1: nothing is called", (0.98, 1.015), ha="right", color=MUTED, fontsize=8)
    for axis in (left, right):
        axis.set_xlim(0.0, 1.0)
        axis.set_xlabel("c, share of the objects that is marked")


def draw_speed(figure: Any) -> None:
    """dL/dt and d2L/dt2 of the two terms over p."""
    left, right = figure.subplots(1, 2)
    p = jnp.linspace(0.001, 0.999, 999)
    for annotated, label, colour, style, at in (
        (True, "marked: pulled up", BLUE, "--", 0.25),
        (False, "unmarked: pushed down", VERMILLION, "-", 0.75),
    ):
        speed, bend = along_time(p, annotated=annotated)
        left.plot(p, speed, style, color=colour, label=label)
        right.plot(p, bend, style, color=colour)
        top = float(bend[np.argmin(np.abs(np.asarray(p) - at))])
        right.plot(at, top, "o", color=colour, ms=6)
        right.annotate(f"p = {at:g}", (at, top), (0, 6), textcoords="offset points", ha="center")
    right.axvspan(0.0, 0.5, color=BLUE, alpha=0.08, lw=0)
    right.annotate("eq. 5 holds\n(p < 1/2)", (0.02, 0.238), color=MUTED, va="top", fontsize=8)
    left.set_title("Speed dL/dt")
    right.set_title("Curvature d2L/dt2")
    right.set_ylim(0.0, 0.245)
    left.legend(loc="lower center")
    for axis in (left, right):
        axis.set_xlim(0.0, 1.0)
        axis.set_xlabel("p of the element")


FIGURES: dict[str, tuple[Callable[[Any], None], float]] = {  # with their heights, in inches
    "gradient": (draw_gradients, 6.0),
    "dynamics": (draw_dynamics, 7.6),
    "weight": (draw_weight_rule, 3.8),
    "speed": (draw_speed, 3.5),
}


def main(options: Options) -> list[Path]:
    """The files written, method_NAME.png."""
    import matplotlib
    from matplotlib.figure import Figure

    options.folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (draw, height) in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
            draw(figure)
            path = options.folder / f"method_{name}.png"
            # Neither date nor version of matplotlib: the same curves give the same file.
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
        written.append(path)
    return written


if __name__ == "__main__":
    for path in main(tyro.cli(Options, description=__doc__)):
        print(path)
