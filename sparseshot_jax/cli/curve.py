"""The verb that says what more labels would give: curve."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tyro

from sparseshot_jax.cli.arguments import config_path, config_with, options_of, stoppable
from sparseshot_jax.cli.show import show_rows
from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.errors import InputError

_SHOWN = {
    "dice_pooled": "Dice at p > 0.5",
    "dice_pooled_best": "Dice at the best threshold",
    "f1_distance": "F1 at p > 0.5",
    "f1_distance_best": "F1 at the best threshold",
    "recall": "recall on held-out marks",
    "predicted_area": "share of tissue called foreground",
    "predicted_per_mm2": "objects predicted in a mm²",
}
_SCORED = {
    "validation": "on the validation part",
    "test": "on the test part",
    "held_out": "by the recall on marks held out of training, which knows no false alarms: see how much is "
    "predicted beside it",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Train with parts of the labels, and say what more labels are expected to give."""

    fractions: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)  # of the labels that the config trains on, (0, 1]
    seeds: tuple[int, ...] = (0,)  # every fraction is trained once a seed; 0 1 2 gives honest intervals
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # FIELD=VALUE for all trials
    out: str | None = None  # folder of the curve, also gs:// or s3://; else runs/NAME_curve
    target: float = 0.95  # share of the plateau to be reached, (0, 1)
    score: Literal["validation", "test"] = "validation"  # part of the data to score on
    together: int = 0  # trials at once, a device each; 0: all devices; 1: one by one over all devices

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise InputError(
                f"--target must be a share of the plateau in (0, 1); got {self.target}. Try 0.95."
            )


def curve(arguments: list[str]) -> None:
    """`sparseshot curve ...`."""
    from sparseshot_jax import curve as labels
    from sparseshot_jax import run_folder, sweep
    from sparseshot_jax.experiment import compilations

    path, rest = config_path(arguments, "curve", fields="for --set")
    chosen = options_of(CurveOptions, path, rest, "curve")
    config = config_with(path, chosen.set)
    devices = sweep.trial_devices(config, chosen.together)
    plan = labels.plan(config, chosen.fractions, chosen.seeds, chosen.score)
    folder = run_folder.folder_path(chosen.out or f"runs/{config.name}_curve")
    # Rows of another config are no answer.
    run_folder.check_folder(folder, config, extend=None, option="--out")
    run_folder.record_config(folder, config)
    say(f"{plan.today} annotated objects; {plan.field} thins them; scored {_SCORED[plan.kind]}.")
    before = compilations()
    found = _trained(plan, devices, folder)
    _tell(plan, found, chosen.target, folder)
    made = compilations() - before
    say(f"{made} training step{'s' * (made != 1)} compiled for {len(plan.trials)} trials")
    say(folder / "curve.json")
    say(folder / "curve.png")


def _trained(plan: Any, devices: Sequence[Any], folder: Any) -> list[dict[str, Any]]:
    """The rows of all trials; those of an earlier call are not run again."""
    from sparseshot_jax import ablate, sweep
    from sparseshot_jax import curve as labels
    from sparseshot_jax.console import sweep_progress

    groups = sweep.grouped(plan.config, plan.trials, devices)
    steps = {trial.name: plan.config.train.steps for trial in plan.trials}
    with stoppable(), sweep_progress(plan.config.name, steps) as progress:
        rows_of = functools.partial(labels.rows, plan, folder=folder, reporter_of=progress.reporter_of)
        return ablate.run_trials(
            plan.trials,
            sweep.groups_of(groups, rows_of),
            folder / f"results_{plan.kind}.jsonl",
            on_done=lambda trial, row: progress.done(trial.name, row),
        )


def _tell(plan: Any, found: Sequence[Mapping[str, Any]], target: float, folder: Any) -> None:
    """Table, answer, curve.json and curve.png."""
    from sparseshot_jax import curve as labels
    from sparseshot_jax import efficiency
    from sparseshot_jax.data import storage
    from sparseshot_jax.report.efficiency_figure import efficiency_png
    from sparseshot_jax.run_folder import write_json

    columns = ("fraction", "seed", "objects", *plan.measures, "best_threshold", "error")
    show_rows([{name: row[name] for name in columns if name in row} for row in found])
    fitted = labels.curves(plan, found)
    first, beside = plan.measures
    main = fitted[first]
    answer = efficiency.answers(main, plan.today, target)
    show_rows(_forecast_rows(answer))
    words = efficiency.sentences(main, plan.today, target, _SHOWN[first])
    if beside in fitted and fitted[beside].is_law:
        words.insert(1, efficiency.doubling(fitted[beside], plan.today, _SHOWN[beside]))
    words += labels.doubts(plan, found)
    for line in words:
        say(line)
    write_json(
        folder / "curve.json",
        {
            "scored": plan.kind,
            "measures": {name: efficiency.answers(one, plan.today, target) for name, one in fitted.items()},
            "words": words,
            "trainings": list(found),
        },
    )
    aside = {} if plan.kind != "held_out" else {_SHOWN[beside]: [row.get(beside) for row in found]}
    objects = [float(row.get("objects", 0)) for row in found]
    with CONSOLE.status("drawing"):
        picture = efficiency_png(
            {_SHOWN[name]: one for name, one in fitted.items()},
            today=plan.today,
            title=plan.config.name,
            beside={
                name: [(n, v) for n, v in zip(objects, values) if v is not None]
                for name, values in aside.items()
            },
        )
    storage.write_bytes(folder / "curve.png", picture)


def _forecast_rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is expected at multiples of today's labels, a row each."""
    shown = []
    for one in answer["expected"]:
        score = one["score"]
        known = score["value"] is not None
        remark = "beyond 4 x what was measured" if one["beyond_4_times_measured"] else "extrapolated"
        if not one["extrapolated"]:
            remark = "measured range"
        shown.append(
            {
                "labels": f"{one['times']:g} x",
                "objects": f"{one['objects']:.0f}",
                "score": f"{score['value']:.3f}" if known else "not foretold",
                "80 %": _pair(score.get("80%")),
                "95 %": _pair(score.get("95%")),
                "": remark,
            }
        )
    return shown


def _pair(pair: Sequence[float] | None) -> str:
    return f"{pair[0]:.3f} to {pair[1]:.3f}" if pair else ""
