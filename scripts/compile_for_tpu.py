"""Compile the train step of a config for a TPU pod that is not there, and say what it would need.

The real step (`programs.train_program`), ahead of time, by the TPU's own compiler, on any machine with
Linux: no TPU is needed. The compiler (libtpu) comes with jax[tpu]; give it an environment of its own:

    python3.12 -m venv tpu && tpu/bin/pip install -e ".[tpu]"
    tpu/bin/python scripts/compile_for_tpu.py configs/unet_tnbc.py --topology v5e:16x16 \
        --set model.base=64 --set model.dtype=bfloat16 --batch-a-chip 16 --tile-px 512

Printed, and written as JSON where asked for: memory of a chip, collectives with their bytes, FLOPs beside
a count of the program's own equations, and the seconds below which no step can be (roofline). Nothing here
is measured. One such program at a time: libtpu holds a lock. U-Net of base 64: 4 minutes on 2 idle cores.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU is described, never opened
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks a cloud for its machine, minutes long
os.environ.setdefault("TPU_LOG_DIR", "disabled")

import dataclasses
import json
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from sparseshot_jax.collectives import Collective, collectives, gathered_activations
from sparseshot_jax.config import ExperimentConfig, load_config, override
from sparseshot_jax.errors import InputError
from sparseshot_jax.flops import flops
from sparseshot_jax.hardware import Chip, chip_of
from sparseshot_jax.label_facts import without_data
from sparseshot_jax.programs import abstract_state, form_of, hyper_schedule, step_of, train_program
from sparseshot_jax.training.sharding import Layout, MeshSpec, check_height, make_layout
from sparseshot_jax.types import Batch, Hyper, Needs, Objects, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile."""

    config: tyro.conf.Positional[Path]  # a Python file with get_config(), or a run's config.json
    topology: str = "v5e:4x4"  # kind and shape of the TPU, such as v5e:16x16, v5p:4x4x4, v6e:8x8
    slices: int = 1  # such pods, joined by a slow network that "data" spans
    mesh: str = "-1,1,1"  # sizes of data, fsdp and space; -1: the rest
    tile_px: int | None = None  # side of a tile, pixels; none: the config's
    batch_a_chip: float = 16.0  # tiles; a share of one where "space" splits a tile, such as 0.0625
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # FIELD=VALUE of the config, repeated
    json: Path | None = None  # where to write the figures
    hlo: Path | None = None  # where to write the compiled program


def configured(options: Options) -> ExperimentConfig:
    """The config, changed as the options say."""
    config = load_config(options.config)
    for pair in options.set:
        field, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set takes FIELD=VALUE, such as model.base=64; got {pair!r}.")
        config = override(config, field, value)
    if options.tile_px is not None:
        config = override(config, "tiles.tile_px", str(options.tile_px))
    return config


def mesh_of(options: Options) -> MeshSpec:
    """The sizes of the mesh."""
    try:
        data, fsdp, space = (int(size) for size in options.mesh.split(","))
    except ValueError as error:  # no number, or not three
        raise InputError(
            f"--mesh takes the sizes of data, fsdp and space; got {options.mesh!r}. Try -1,1,1."
        ) from error
    return MeshSpec(data=data, fsdp=fsdp, space=space, slices=options.slices)


def laid_out(options: Options) -> tuple[Layout, Chip]:
    """The mesh over the described devices, and what they are."""
    spec = mesh_of(options)
    several = {"num_slices": options.slices} if options.slices > 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology, **several)
    except Exception as error:  # whatever libtpu says of a name, or jax of a missing libtpu
        raise InputError(
            f"no topology {options.topology}: {str(error).splitlines()[0]}. Try v5e:16x16; libtpu must be "
            'installed (pip install "jax[tpu]").'
        ) from error
    layout = make_layout(spec, topology.devices)
    chip = chip_of(topology.devices[0])
    if chip is None:
        raise InputError(f"hardware.py does not know {topology.devices[0].device_kind}. Add its rates there.")
    return layout, chip


def abstract_batch(tiles: int, side: int, needs: Needs) -> Batch:
    """Shapes and types of a global batch."""

    def array(*shape: int, dtype: Any = jnp.uint8) -> Any:
        return jax.ShapeDtypeStruct((tiles, *shape), dtype)

    objects = Objects(
        boxes_yxyx_px=array(needs.objects, 4, dtype=jnp.float32),
        label=array(needs.objects),
        present=array(needs.objects, dtype=jnp.bool_),
        left_out=array(dtype=jnp.int32),
    )
    return Batch(
        image=array(side, side, 3),
        ground=array(side, side),
        label=array(side, side),
        valid=array(dtype=jnp.bool_),
        objects=objects if needs.objects else None,
        distance=array(side, side) if needs.distance else None,
    )


def placed(tree: Any, shardings: Any) -> Any:
    """The same shapes with the shardings of arrays."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def arguments(config: ExperimentConfig, layout: Layout, tiles: int) -> tuple[TrainState, Batch, Hyper]:
    """What the train step takes, as shapes, types and shardings."""
    state, batch = abstract_state(config), abstract_batch(tiles, config.tiles.tile_px, config.model.needs)
    numbers = hyper_schedule(without_data(config))(0)
    hyper = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), numbers)
    everywhere = jax.tree.map(lambda _: layout.replicated, hyper)
    return (
        placed(state, layout.state(state)),
        placed(batch, layout.batch(batch)),
        placed(hyper, everywhere),
    )


def figures(options: Options) -> dict[str, Any]:
    """Everything that is printed, as JSON values; bytes, FLOPs and seconds are a chip's and a step's."""
    config = configured(options)
    layout, chip = laid_out(options)
    chips = layout.mesh.devices.size
    tiles = round(options.batch_a_chip * chips)
    if tiles < 1 or tiles % (layout.batch_parts * config.train.micro_batches):
        raise InputError(
            f"{tiles} tiles ({options.batch_a_chip} a chip) must be a multiple of the {layout.batch_parts} "
            f"parts of a batch and of {config.train.micro_batches} micro-batches. Change --batch-a-chip."
        )
    check_height(config.tiles.tile_px, layout, config.model.multiple)
    form, given = form_of(config), arguments(config, layout, tiles)
    plain = dataclasses.replace(form, remat="none")
    counted = {name: flops(step_of(f, layout), *given) / chips for name, f in (("", form), ("model", plain))}
    result: dict[str, Any] = {
        "config": str(options.config),
        "set": list(options.set),
        "topology": options.topology,
        "slices": options.slices,
        "chip": chip.name,
        "chips": chips,
        "mesh": dict(layout.mesh.shape),
        "tile_px": config.tiles.tile_px,
        "tiles": tiles,
        "remat": config.train.remat,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(given[0].params)),
        "flops_counted": counted[""],
        "model_flops": counted["model"],
        "versions": {"jax": jax.__version__, "libtpu": _libtpu_version()},
    }
    began = time.perf_counter()
    program: Any = train_program(form, layout)
    lowered = program.lower(*given)
    try:
        compiled = lowered.compile()
    except Exception as error:  # the compiler's own types are not public
        return result | {"fits": False, "error": _needed(str(error))}
    text = compiled.as_text()
    if options.hlo:
        options.hlo.write_text(text)
    state_shapes = [leaf.shape for leaf in jax.tree.leaves(given[0])]
    # One number for each 8 x 8 pixels, as a detector's cells have them, may be gathered: no map is so small.
    cells = tiles // layout.batch_parts * config.tiles.tile_px**2 // 64
    result |= {"compile_s": time.perf_counter() - began, "memory": memory(compiled)}
    return (
        result
        | costs(compiled, chip)
        | told(collectives(text), state_shapes, chip, cells + 1)
        | {"fits": True}
    )


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a chip, by kind."""
    stats = compiled.memory_analysis()
    kinds = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "alias": stats.alias_size_in_bytes,  # outputs that take the place of arguments (donated)
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return kinds | {"all": sum(kinds.values()) - 2 * kinds["alias"]}


def costs(compiled: Any, chip: Chip) -> dict[str, Any]:
    """What the compiler counts, and the seconds that it takes at the chip's peaks."""
    cost = compiled.cost_analysis()
    return {
        "flops": cost["flops"],
        "memory_traffic": cost["bytes accessed"],
        "compute_s": cost["flops"] / chip.bfloat16_flops_s,
        "memory_s": cost["bytes accessed"] / chip.memory_bytes_s,
    }


def told(
    found: list[Collective], state_shapes: list[tuple[int, ...]], chip: Chip, smallest: int
) -> dict[str, Any]:
    """The collectives by kind and axes, and the all-gathers of `smallest` elements that should not be."""
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"count": 0, "bytes": 0, "sent": 0.0})
    for one in found:
        row = rows[one.kind, one.axes or (f"groups of {one.group}" if one.group else "")]
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["sent"] += one.sent
    bad = gathered_activations(found, state_shapes, smallest=smallest)
    odd = [one for one in found if one.kind in ("all-to-all", "ragged-all-to-all")]
    return {
        "collectives": [{"kind": kind, "axes": axes, **row} for (kind, axes), row in rows.items()],
        "collective_s": sum(row["sent"] / links_used(kind, chip) for (kind, _), row in rows.items()),
        "gathered_activations": [_named(one) for one in bad],
        "all_to_all": [_named(one) for one in odd],
    }


def links_used(kind: str, chip: Chip) -> float:
    """Bytes a second that a chip sends: one link to a neighbour, both ways round a ring else."""
    links = 1 if kind == "collective-permute" else min(2, chip.links)
    return links * chip.link_bytes_s


def _named(one: Collective) -> str:
    return f"{one.kind} of {one.shapes} ({one.operation}, {one.source})"


def _needed(message: str) -> str:
    """The line in which the compiler says how much it would have needed."""
    line = re.search(r"[^\n]*Used [^\n]*hbm[^\n]*", message)
    return (line[0] if line else message.splitlines()[0])[:500]


def _libtpu_version() -> str:
    from importlib import metadata

    return metadata.version("libtpu")


def show(result: dict[str, Any]) -> None:
    """Tables on the screen."""
    console = Console()
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    console.print(
        f"[bold]{result['topology']}[/] ({result['chips']} {result['chip']}), mesh {mesh}; "
        f"{result['tiles']} tiles of {result['tile_px']} px; {result['parameters'] / 1e6:.1f} M parameters"
    )
    if not result["fits"]:
        console.print(f"[bold red]does not fit:[/] {result['error']}")
        return
    table = Table("a chip, a step", "figure", "of", title="compiled, not measured")
    for name, size in result["memory"].items():
        table.add_row(f"memory: {name}", f"{size / 2**30:.2f} GiB", "")
    ratio = result["flops"] / result["flops_counted"]
    table.add_row("FLOPs, compiler", f"{result['flops'] / 1e12:.3f} T", f"{ratio:.3f} of the count")
    table.add_row("FLOPs, counted", f"{result['flops_counted'] / 1e12:.3f} T", "products and convolutions")
    table.add_row("memory traffic", f"{result['memory_traffic'] / 1e9:.1f} GB", "")
    for row in result["collectives"]:
        name = f"{row['count']} {row['kind']} {row['axes']}".rstrip()
        table.add_row(name, f"{row['bytes'] / 1e6:.1f} MB", f"{row['sent'] / 1e6:.1f} MB sent")
    for name in ("compute", "memory", "collective"):
        table.add_row(f"roofline: {name}", f"{1e3 * result[f'{name}_s']:.2f} ms", "")
    console.print(table)
    for line in (*result["gathered_activations"], *result["all_to_all"]):
        console.print(f"[yellow]look at:[/] {line}")


def main(options: Options) -> None:
    try:
        result = figures(options)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
