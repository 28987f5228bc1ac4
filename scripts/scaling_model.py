"""Predict seconds a step and weak-scaling efficiency of data parallel training on 1 to 1024 chips.

    python scripts/scaling_model.py FIGURES/*.json --png docs/scale_efficiency.png
    python scripts/scaling_model.py configs/unet_tnbc.py --set model.base=64 --tile-px 512

A .json holds the figures of `compile_for_tpu.py`; of a config the same is counted here, for --tiles tiles a
chip. Figures of data-parallel meshes are carried to other numbers of chips, those of others told as compiled.
Nothing here is measured. The model: a step computes, at an assumed share of the chip's peak; every
normalisation sums its statistics over all chips, twice, and waits; at the end the gradients are summed over
all chips. Peaks and link speeds: `sparseshot_jax/hardware.py`, with their sources. Left out: input,
checkpoints, chips that are slower than others, traffic of other jobs on the same network.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from sparseshot_jax.config import load_config, override
from sparseshot_jax.errors import InputError
from sparseshot_jax.hardware import CHIPS, Chip

# Chips that fast links join: a TPU pod (docs.cloud.google.com/tpu/docs), the GPUs of a host. A v5p job may
# span 6144 chips of a pod of 8960.
_ISLAND = {"TPU v4": 4096, "TPU v5e": 256, "TPU v5p": 6144, "TPU v6e": 256}
# An axis of a torus closes to a ring from this length on; a shorter one is a line, with half the bandwidth.
# jax-ml.github.io/scaling-book/tpus
_RING = {"TPU v4": 4, "TPU v5e": 16, "TPU v5p": 4, "TPU v6e": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to predict, and what is assumed."""

    figures: tyro.conf.Positional[tuple[Path, ...]]  # .json of compile_for_tpu.py, or configs
    chips: tuple[str, ...] = ("TPU v5e", "TPU v5p", "TPU v6e", "H100 SXM")
    # Assumed: share of the peak FLOP/s that the network's products reach, (0, 1]. A higher one makes
    # communication weigh more.
    utilisation: float = 0.4
    # Assumed: share of the backward pass behind which the sum of the gradients hides, [0, 1]. The compiled
    # programs sum them at the end: 0.
    overlap: float = 0.0
    hop_us: float = 1.0  # assumed: latency of a hop between TPU chips; jax-ml.github.io/scaling-book/sharding
    switch_us: float = 20.0  # assumed: latency of a small sum over the GPUs of a host
    network_us: float = 10.0  # assumed: latency that each doubling of the hosts (or slices) adds to it
    tiles: int = 16  # a chip, of a config
    tile_px: int = 512  # side of a tile, of a config
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # FIELD=VALUE of a config, repeated
    largest: int = 1024  # chips
    png: Path | None = None  # where to draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one chip does in a step, and what it tells the others."""

    name: str
    tiles: float  # a chip
    flops: float  # a chip, nothing computed twice
    gradient_bytes: float
    sums: int  # small ones over all chips, one after another
    traffic: dict[str, float]  # bytes between a chip and its memory, by kind of chip, where compiled


def works(options: Options) -> list[Work]:
    """One for each model named."""
    found: dict[str, Work] = {}
    for path in options.figures:
        if path.suffix == ".json":
            result = json.loads(path.read_text())
            if not result.get("fits") or result["mesh"]["fsdp"] * result["mesh"]["space"] > 1:
                continue
            work = _compiled(result)
        else:
            work = _counted(path, options)
        if work.name in found:
            work = dataclasses.replace(work, traffic=found[work.name].traffic | work.traffic)
        found[work.name] = work
    return list(found.values())


def _compiled(result: dict[str, Any]) -> Work:
    sums = [row for row in result["collectives"] if row["kind"] == "all-reduce"]
    return Work(
        name=_name(result["config"]),
        tiles=result["tiles"] / result["chips"],
        flops=result["model_flops"],
        gradient_bytes=sum(row["bytes"] for row in sums),  # but for a few KB of statistics
        sums=sum(row["count"] for row in sums) - 1,  # one is that of the gradients
        traffic={result["chip"]: result["memory_traffic"]},
    )


def _name(config: str | Path) -> str:
    return Path(config).stem.split("_")[0]


def _counted(path: Path, options: Options) -> Work:
    from compile_for_tpu import abstract_batch
    from sparseshot_jax.flops import flops
    from sparseshot_jax.label_facts import without_data
    from sparseshot_jax.programs import abstract_state, form_of, hyper_schedule, step_of
    from sparseshot_jax.training.sharding import MeshSpec, make_layout

    config = override(load_config(path), "tiles.tile_px", str(options.tile_px))
    for name, value in (
        ("form", "textbook"),
        ("dtype", "bfloat16"),
    ):  # as on a TPU, not on this machine's CPU
        if hasattr(config.model, name):
            config = override(config, f"model.{name}", value)
    for pair in options.set:
        field, _, value = pair.partition("=")
        config = override(config, field, value)
    state = abstract_state(config)
    batch = abstract_batch(options.tiles, options.tile_px, config.model.needs)
    step = step_of(form_of(config), make_layout(MeshSpec(data=1), jax.devices()[:1]))
    # A compiler sums the gradients in the type of the products that they come from.
    width = 2 if getattr(config.model, "dtype", "") == "bfloat16" else 4
    return Work(
        name=_name(path),
        tiles=options.tiles,
        flops=flops(step, state, batch, hyper_schedule(without_data(config))(0)),
        gradient_bytes=width * sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        # Mean and variance travel together: once forward, once backward.
        sums=sum(leaf.ndim == 1 for leaf in jax.tree.leaves(state.stats)),
        traffic={},
    )


def as_compiled(
    results: list[dict[str, Any]], options: Options
) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Of each: the figures, predicted seconds of a step, and efficiency.

    That is pixels a second and chip, against one such chip that computes the model and waits for nobody.
    """
    best: dict[tuple[str, str], float] = {}
    steps = []
    for result in results:
        chip, work = CHIPS[result["chip"]], _compiled(result)
        alone = predict(work, chip, 1, options).compute
        waits = sum(row["count"] for row in result["collectives"] if row["kind"] != "collective-permute")
        hops = sum(row["count"] for row in result["collectives"]) - waits
        seconds = alone + result["collective_s"] + waits * latency_s(chip, result["chips"], options)
        pixels = work.tiles * result["tile_px"] ** 2
        steps.append((result, seconds + 1e-6 * options.hop_us * hops, pixels))
        best[work.name, chip.name] = max(best.get((work.name, chip.name), 0.0), pixels / alone)
    for result, seconds, pixels in steps:
        yield result, seconds, pixels / seconds / best[_name(result["config"]), result["chip"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of a step on `chips` chips; efficiency against one chip with the same share of work."""

    chips: int
    compute: float
    small: float  # sums that the computation waits for
    gradients: float  # the part of their sum that nothing hides

    @property
    def total(self) -> float:
        """One after another."""
        return self.compute + self.small + self.gradients

    @property
    def efficiency(self) -> float:
        """Share of the time in which the chip computes."""
        return self.compute / self.total


def predict(work: Work, chip: Chip, count: int, options: Options) -> Step:
    """One step of data parallel training."""
    compute = work.flops / (options.utilisation * chip.bfloat16_flops_s)
    compute = max(compute, work.traffic.get(chip.name, 0.0) / chip.memory_bytes_s)
    # Two thirds of the operations are the backward pass's.
    hidden = options.overlap * compute * 2 / 3
    return Step(
        chips=count,
        compute=compute,
        small=work.sums * latency_s(chip, count, options),
        gradients=max(0.0, sum_s(work.gradient_bytes, chip, count) - hidden),
    )


def sum_s(size: float, chip: Chip, count: int) -> float:
    """Seconds of a sum of `size` bytes over all chips, bandwidth alone.

    Inside an island a chip sends 2 (n - 1) / n of it. Between islands each chip sums its n-th part with
    the others of its kind, over its host's share of the network.
    """
    inner, islands = _islands(chip, count)
    seconds = 2 * size * (inner - 1) / inner / _bandwidth(chip, inner) if inner > 1 else 0.0
    hosts = max(1, inner // chip.chips_per_host)
    if islands > 1:
        seconds += 2 * size * (islands - 1) / islands / (hosts * chip.network_bytes_s)
    return seconds


def latency_s(chip: Chip, count: int, options: Options) -> float:
    """Seconds of a sum of a few bytes over all chips."""
    inner, islands = _islands(chip, count)
    between = 1e-6 * options.network_us * math.log2(islands)
    if chip.name not in _RING:
        return (1e-6 * options.switch_us if count > 1 else 0.0) + between
    # Along every axis to the farthest chip and back; half as far where it is a ring.
    hops = sum(n if n >= _RING[chip.name] else 2 * (n - 1) for n in _torus(chip, inner))
    return 1e-6 * options.hop_us * hops + between


def _islands(chip: Chip, count: int) -> tuple[int, int]:
    size = _ISLAND.get(chip.name, chip.chips_per_host)
    return min(count, size), max(1, count // size)


def _torus(chip: Chip, count: int) -> tuple[int, ...]:
    """Sides of the most even box of so many chips, a power of two: two axes, or three."""
    axes = chip.links // 2
    power = count.bit_length() - 1
    return tuple(2 ** (power // axes + (axis < power % axes)) for axis in range(axes))


def _bandwidth(chip: Chip, count: int) -> float:
    """Bytes a second that a chip sends in a sum over `count` neighbours, over all its axes at once."""
    if chip.name not in _RING:
        return chip.interconnect_bytes_s
    sides = [n for n in _torus(chip, count) if n > 1]
    return chip.link_bytes_s * sum(2 if n >= _RING[chip.name] else 1 for n in sides)


def sizes(largest: int) -> Iterator[int]:
    """1, 2, 4 ... up to `largest`."""
    return (2**k for k in range(largest.bit_length()))


def show(work: Work, options: Options) -> None:
    """A table of one model, a row a number of chips."""
    chips = [CHIPS[name] for name in options.chips]
    heads = [f"{chip.name}: ms, efficiency" for chip in chips]
    table = Table("chips", *heads, title=f"{work.name}: predicted, {work.tiles:g} tiles a chip")
    for count in sizes(options.largest):
        steps = [predict(work, chip, count, options) for chip in chips]
        table.add_row(str(count), *(f"{1e3 * s.total:.1f}  {100 * s.efficiency:.1f} %" for s in steps))
    console = Console()
    console.print(table)
    console.print(
        f"{work.flops / 1e12:.2f} TFLOP a chip and step, gradients {work.gradient_bytes / 1e6:.1f} MB, "
        f"{work.sums} small sums. Assumed: {100 * options.utilisation:.0f} % of the peak, "
        f"{100 * options.overlap:.0f} % of the backward pass hides the gradients' sum."
    )


def show_compiled(options: Options) -> None:
    """A table of all compiled meshes, a row each."""
    results = [json.loads(path.read_text()) for path in options.figures if path.suffix == ".json"]
    table = Table("model", "on", "mesh", "tiles", "ms a step", "efficiency", title="predicted, as compiled")
    for result, seconds, share in as_compiled([r for r in results if r.get("fits")], options):
        mesh = " x ".join(str(size) for size in result["mesh"].values())
        tiles = f"{result['tiles']} x {result['tile_px']}^2"
        row = (
            _name(result["config"]),
            result["topology"],
            mesh,
            tiles,
            f"{1e3 * seconds:.1f}",
            f"{100 * share:.1f} %",
        )
        table.add_row(*row)
    if table.row_count:
        Console().print(table)


def draw(found: list[Work], options: Options, path: Path) -> None:
    """A column a model: efficiency above, tiles a second below; predictions, all of them."""
    import matplotlib
    from matplotlib.figure import Figure

    from sparseshot_jax.report.figures import LINES, MUTED, STYLE

    counts = list(sizes(options.largest))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(found) + 0.6, 6.2), layout="constrained")
        axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
        for column, work in enumerate(found):
            above, below = axes[:, column]
            for colour, name in zip(LINES, options.chips):
                steps = [predict(work, CHIPS[name], count, options) for count in counts]
                above.plot(counts, [100 * s.efficiency for s in steps], "o-", color=colour, label=name)
                rates = [work.tiles * s.chips / s.total for s in steps]
                below.plot(counts, rates, "o-", color=colour, label=name)
            above.set_title(f"{work.name}, {work.tiles:g} tiles a chip and step")
            above.set_xscale("log", base=2)
            below.set_yscale("log")
            below.set_xlabel("chips")
            below.set_xticks(counts[::2], [str(count) for count in counts[::2]])
            below.yaxis.set_major_formatter("{x:,.0f}")
        axes[0, 0].set_ylabel("efficiency, % of one chip's rate")
        axes[1, 0].set_ylabel("tiles a second")
        low, _ = axes[0, 0].get_ylim()
        axes[0, 0].set_ylim(5 * math.floor(low / 5), 101)
        axes[0, 0].legend(loc="lower left")
        figure.align_ylabels(axes[:, 0])
        title = f"Predicted, not measured: weak scaling, assumed {100 * options.utilisation:.0f} % of peak"
        figure.suptitle(title, fontsize=9, color=MUTED, x=0.01, ha="left")
        figure.savefig(path, dpi=150)


def main(options: Options) -> None:
    try:
        unknown = [name for name in options.chips if name not in CHIPS]
        if unknown:
            raise InputError(f"no chip {unknown[0]}. Known: {', '.join(CHIPS)}.")
        if not (0.0 < options.utilisation <= 1.0 and 0.0 <= options.overlap <= 1.0):
            raise InputError("--utilisation must be in (0, 1], --overlap in [0, 1]. Try 0.4 and 0.")
        found = works(options)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    for work in found:
        show(work, options)
    show_compiled(options)
    if options.png and found:
        draw(found, options, options.png)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
