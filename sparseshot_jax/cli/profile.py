"""The verb on a training step: profile."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from sparseshot_jax.cli.arguments import with_config
from sparseshot_jax.console import CONSOLE, say
from sparseshot_jax.errors import InputError


def profile(arguments: list[str]) -> None:
    """`sparseshot profile ...`."""
    import jax

    from sparseshot_jax import config as configs
    from sparseshot_jax import profile as measuring
    from sparseshot_jax.experiment import Reporter
    from sparseshot_jax.report.step_profile import profile_chart, profile_tables
    from sparseshot_jax.training import processes

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Profile:
        """Time the training step of a config: speed, utilisation, waiting, memory, operations, a trace."""

        config: Annotated[configs.ExperimentConfig, tyro.conf.arg(name="")]
        steps: int = 20  # timed steps, at least 2
        out: Path | None = None  # folder of the results; runs/NAME_profile where it is not given

    chosen = with_config(Profile, arguments, "profile")
    folder = chosen.out or Path("runs") / f"{chosen.config.name}_profile"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error}. Choose another folder with --out.") from error
    jax.config.update("jax_enable_compilation_cache", False)  # the time of compiling is asked for
    with CONSOLE.status("reading, compiling and timing"):
        reporter = Reporter(
            note=lambda message: say(f"note: {message}"), warn=lambda message: say(f"warning: {message}")
        )
        result = measuring.profile(chosen.config, folder, steps=chosen.steps, reporter=reporter)
    if not processes.is_lead():
        return
    (folder / "profile.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "profile.png").write_bytes(profile_chart(result))
    for table in profile_tables(result):
        CONSOLE.print(table)
        CONSOLE.print()
    say(f"{folder}: profile.json, profile.png and trace/")
    say("look at the trace, every operation on its thread, in one of two ways:")
    for file in sorted((folder / "trace").rglob("*.trace.json.gz"))[-1:]:
        say(f"  https://ui.perfetto.dev, Open trace file: {file}")
    say(f"  pip install xprof, then xprof --logdir {folder / 'trace'}")
