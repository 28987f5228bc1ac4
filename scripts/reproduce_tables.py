"""The paper's tables and figures, and more, from the public data sets: docs/results.md and its pictures.

    python scripts/reproduce_tables.py --root $DATA --table 1 2 3 --figure 3 4 5 --rivals --budget small

$DATA holds tnbc/, kumar/ and crchisto/ as docs/data.md lays them out. Budgets: smoke (minutes, numbers mean
nothing), small (the shipped configs on 2 CPU cores, hours), paper (the authors' sizes and length, for a GPU).
A method has one set of numbers for all data sets, shares and seeds; what follows the data (size of a pixel,
of the detector's grid and of its objects, colours, steps) stands in configs/. Stop it at any time; the same
command goes on. Runs of another config in the same folder are refused.
--write puts the tables into docs/results.md, each between its marks, and leaves the text round them.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from reproduction.runs import Bench

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

# As reproduction.plan names them, which is imported after the flags of JAX are set.
DataName = Literal["tnbc_segmentation", "kumar_segmentation", "tnbc_detection", "crchisto_detection"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to reproduce."""

    root: Path  # folder of the data sets
    runs: Path = Path("runs/reproduction")  # run folders are made in RUNS/BUDGET
    table: tuple[Literal[1, 2, 3], ...] = ()
    figure: tuple[Literal[3, 4, 5], ...] = ()
    rivals: bool = False  # every rival at 30 % of TNBC, segmentation and detection
    # Shown in figures 4 and 5, or "none". As it stands: the best of --rivals on validation images; none in
    # budget smoke.
    rival: str = ""
    budget: Literal["smoke", "small", "paper"] = "smoke"
    together: int = 1  # runs at once, a device each; on a CPU so many devices are made of its cores
    data: tuple[DataName, ...] = ()  # train and score these alone; none: all
    train_only: bool = False  # leave scoring and writing to a second call
    write: bool = False  # put tables and pictures into docs/, else into RUNS/BUDGET


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.write and (args.data or args.budget == "smoke"):
        raise SystemExit(
            "--write puts whole tables of a budget that means something into docs/results.md. Leave out "
            "--data, and give --budget small or paper."
        )
    if not (args.table or args.figure or args.rivals):
        raise SystemExit(
            "nothing to reproduce: give --table 1 2 3, --figure 3 4 5 or --rivals, any of them or several."
        )
    if args.together > 1:
        flag = f"--xla_force_host_platform_device_count={args.together}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    # JAX reads its flags when it is imported.
    from sparseshot_jax.errors import InputError

    try:
        reproduce(args)
    except InputError as error:
        raise SystemExit(str(error)) from error


def reproduce(args: Args) -> None:
    """Train what is missing, score it, write the parts that are whole.

    Raises:
        InputError: bad data, runs of another config, no such rival or none chosen.
    """
    from rich.console import Console

    from reproduction import plan, sections
    from reproduction.runs import Bench, merged

    bench = Bench(
        root=args.root,
        runs=args.runs / args.budget,
        budget=plan.BUDGETS[args.budget],
        together=args.together,
        console=Console(width=140),
    )
    rival = rival_of(args, bench)
    if rival != "none":
        budget = dataclasses.replace(bench.budget, figures=(*bench.budget.figures, rival))
        bench = dataclasses.replace(bench, budget=budget)
    whole = plan.sections(args.table, args.figure, bench.budget, with_rivals=args.rivals)
    parts = plan.cut(whole, args.data)
    # Table 2 is one sweep of its own: its runs share one compilation, and the count says so.
    own = merged(parts.get("table 2", []))
    rest = merged(cell for name, cells in parts.items() if name != "table 2" for cell in cells)
    for cells in (own, rest):
        bench.trained(cells)
    if args.train_only:
        return
    found = bench.scored([*own, *rest])
    complete = {name: cells for name, cells in whole.items() if parts[name] == cells}
    for name in whole.keys() - complete.keys():
        bench.console.print(f"left out: {name}, which needs more than --data {' '.join(args.data)}")
    target = DOCS if args.write else bench.runs
    texts = sections.of(found, complete, bench, target, rival=rival)
    if texts:
        sections.write(texts, target / "results.md")
        bench.console.print(f"wrote {', '.join(texts)} to {target / 'results.md'}")


def rival_of(args: Args, bench: "Bench") -> str:
    """The rival of figures 4 and 5; "none" where there is none to show."""
    from reproduction import plan
    from reproduction.runs import merged
    from sparseshot_jax.errors import InputError

    if not {4, 5} & set(args.figure):
        return "none"
    if args.rival:
        if args.rival not in (*plan.RIVALS, "none"):
            raise InputError(f"--rival must be one of {'; '.join(plan.RIVALS)}; or none. Got {args.rival!r}.")
        return args.rival
    if args.budget == "smoke":
        return "none"
    if args.rivals:
        cells = plan.cut({"rivals": plan.rivals(bench.budget)}, args.data)["rivals"]
        bench.trained(merged(cells))
    rival = bench.best_rival()
    bench.console.print(f"the best rival on validation images: {rival}")
    return rival


if __name__ == "__main__":
    main()
