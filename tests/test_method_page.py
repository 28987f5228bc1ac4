"""What docs/method.md says of the shipped configs is theirs, and its commands are read as they stand."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from sparseshot_jax.cli.arguments import with_config
from sparseshot_jax.config import ExperimentConfig, load_config
from sparseshot_jax.losses import LOSSES, CrossEntropy

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text()
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("sparseshot train ")]


@dataclasses.dataclass(frozen=True)
class Train:
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    run: str = ""


def test_the_shipped_configs_are_those_of_the_page():
    words = " ".join(PAGE.split())
    found = re.search(
        r"configs of sparse marks take the second row: `(\w+)` with `background_weight` open, tau \S+ "
        r"([\d.]+) for segmentation and ([\d.]+) for detection, .*?`train\.ema_decay`\) of ([\d.]+)",
        words,
    )
    assert found, "the sentence of the shipped configs"
    loss, segmentation, detection, decay = found.groups()
    for name, decision in (("unet_tnbc", segmentation), ("yollo_tnbc", detection)):
        config = load_config(ROOT / "configs" / f"{name}.py")
        assert type(config.loss) is LOSSES[loss]
        assert config.loss == CrossEntropy(background_weight=None, decision=float(decision))
        assert config.train.ema_decay == float(decay)
    (row,) = re.findall(r"^\| some are marked.*$", PAGE, re.MULTILINE)
    assert f"`{loss}` with `--loss.background-weight None`" in row
    assert f"`--loss.decision` {segmentation} (segmentation) or {detection} (detection)" in row
    (row,) = re.findall(r"^\| points only.*$", PAGE, re.MULTILINE)
    assert f"`{loss}` with `--loss.background-weight None --loss.decision {detection}`" in row


@pytest.mark.slow  # seconds each to read the options
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.rpartition("runs/")[2])
def test_a_rival_is_run_as_the_page_says(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = with_config(Train, shlex.split(command)[2:], "train")
    config, name = asked.config, Path(asked.run).name.partition("_")[0]
    rivals = {"ring": config.labels.ring_um == (2.75, 5.5), "pseudo": config.relabel.rounds == 1}
    rivals |= {kind: type(config.loss) is LOSSES[kind] for kind in ("nnpu", "ge_kl", "brl", "elr")}
    assert rivals["ge_kl" if "ge_kl" in command else name]
    if name == "elr":
        assert not config.loss.cautions(config.model.prior)


def test_every_rival_has_its_command():
    said = " ".join(COMMANDS)
    for part in ("--loss nnpu", "--loss ge_kl", "--loss brl", "--loss elr", "ring-um", "relabel.rounds"):
        assert part in said
