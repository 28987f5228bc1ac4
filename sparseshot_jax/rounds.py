"""Training in rounds, each with pseudo labels of the model before (METHOD: pseudo_label).

    RUN/round-0/                    a run on the marks alone
    RUN/round-1/pseudo_labels/      what it found on the training images: CASE.geojson, for QuPath
    RUN/round-1/pseudo_labels.json  how many; where there is dense truth, how many of them are right
    RUN/                            the last round: a run as any other

Of several rounds those in between are runs in RUN/round-K, too.

Numbers that the loss leaves open (a weight by the share of the labels) are taken from the marks, once, and
are those of every round: pseudo labels would raise the share, right or wrong. RUN/config.json has them open,
as asked.
"""

import dataclasses
from typing import Any
from urllib.parse import quote

import numpy as np
from etils import epath

from sparseshot_jax import experiment, find
from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.data import storage
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.formats.geojson import read_geojson, write_geojson
from sparseshot_jax.data.labels import wanted
from sparseshot_jax.data.slides.tissue import tissue_mask
from sparseshot_jax.errors import InputError
from sparseshot_jax.experiment import Reporter
from sparseshot_jax.label_facts import label_facts, open_fields
from sparseshot_jax.run import Run
from sparseshot_jax.run_folder import (
    check_data,
    check_folder,
    data_record,
    folder_path,
    read_json,
    record_config,
    write_json,
)
from sparseshot_jax.training import processes
from sparseshot_jax.training.relabel import Agreement, RelabelSpec, agreement, free_detections, free_parts

LABELS = "pseudo_labels"


def train(
    config: ExperimentConfig,
    folder: epath.PathLike | None = None,
    *,
    extend: bool | None = False,
    splits: Splits | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """`experiment.train`, and where `config.relabel.rounds` asks for it in rounds with pseudo labels.

    Every round has `train.steps` steps, the same seed and fresh parameters. Stopped at any place, the same
    call goes on from there. In a job of many processes all call it; training images are dealt out to them.

    Args:
        config, folder, splits, reporter: as of `experiment.train`.
        extend: only where there are no rounds.

    Raises:
        InputError: as of `experiment.train`; a run in rounds that is to be extended.
        loop.Interrupted: a signal came; the state is saved.
    """
    rounds = config.relabel.rounds
    if not rounds:
        return experiment.train(config, folder, extend=extend, splits=splits, reporter=reporter)
    if extend:
        raise InputError(
            "a run with relabel.rounds cannot be extended: its last round alone would be longer. Train anew "
            "with more train.steps in another folder."
        )
    folder = folder_path(folder or f"runs/{config.name}")
    reporter = reporter if reporter and processes.is_lead() else Reporter()
    check_folder(folder, config, extend=None)
    splits = marked = config.data.load(config.labels, config.seed) if splits is None else splits
    check_data(folder / "round-0", data_record(splits))
    if processes.is_lead():
        record_config(folder, config)
    processes.barrier("rounds")
    alone = dataclasses.replace(config, relabel=RelabelSpec())
    facts = None
    if open_fields(config.loss):
        facts = label_facts(config, splits, experiment.training_tiles(config, splits))
    for k in range(rounds):
        labels = folder / f"round-{k + 1}" / LABELS
        # Asked by one process, or another might find what the first has just written.
        (done,) = processes.dealt([f"{labels}.json"], storage.exists)
        if not done:
            reporter.note(f"training {k + 1} of {rounds + 1}, on {_marks(marked)} marks.")
            own = dataclasses.replace(alone, name=f"{config.name}_round-{k}")
            place = folder / f"round-{k}"
            run = experiment.train(own, place, splits=marked, facts=facts, reporter=reporter)
            _relabel(run, splits.train, config, labels, reporter)
        marked = with_pseudo_labels(splits, labels)
    reporter.note(f"training {rounds + 1} of {rounds + 1}, on {_marks(marked)} marks and pseudo labels.")
    return experiment.train(config, folder, splits=marked, facts=facts, reporter=reporter)


def with_pseudo_labels(splits: Splits, labels: epath.PathLike) -> Splits:
    """The data with the pseudo labels of a folder among the marks of the training images.

    Raises:
        InputError: a file of them is missing or damaged.
    """

    def told(case: Case) -> Case:
        found = read_geojson(storage.fetch(_place(labels, case.name, "geojson")))
        found = dataclasses.replace(found, source="", notes=())
        return dataclasses.replace(case, given=Annotations.concatenate([case.given, found]))

    return dataclasses.replace(splits, train=tuple(told(case) for case in splits.train), notes=())


def _relabel(
    run: Run, cases: tuple[Case, ...], config: ExperimentConfig, labels: epath.Path, reporter: Reporter
) -> None:
    """Pseudo labels of all cases into a folder, and beside it their counts, last of all."""
    storage.make_folder(labels)

    def label(case: Case) -> dict[str, Any]:
        record = _place(labels, case.name, "json")
        counts = read_json(record)
        if counts is None:
            counts = _label(run, case, config, _place(labels, case.name, "geojson"))
            write_json(record, counts)
        reporter.on_case(case.name)
        return counts

    rows = processes.dealt(cases, label)
    added, found = (sum(row[name] for row in rows) for name in ("added", "found"))
    dense = [Agreement(**row["agreement"]) for row in rows if row["agreement"]]
    total = Agreement.total(dense).measures() if dense else {}
    known = [f"{name} {value:.2f}" for name, value in total.items() if value is not None]
    right = f" Against dense truth, which training does not see: {', '.join(known)}." if known else ""
    reporter.note(
        f"{added} pseudo labels from {found} finds of p > {config.relabel.threshold}, marked objects among "
        f"them, in {len(cases)} images: {labels}.{right}"
    )
    if not added:
        reporter.warn(
            f"no find on unannotated ground has p > {config.relabel.threshold}: the next round trains on the "
            "marks alone, as the one before. Plain cross-entropy settles near the share of objects that is "
            "annotated; lower relabel.threshold, or the weight of the background."
        )
    summary = {
        "threshold": config.relabel.threshold,
        "of_run": run.folder.name,
        "found": found,
        "added": added,
        **total,
        "cases": {case.name: row for case, row in zip(cases, rows)},
    }
    processes.dealt([f"{labels}.json"], lambda path: write_json(path, summary))


def _label(run: Run, case: Case, config: ExperimentConfig, path: str) -> dict[str, Any]:
    """Write the pseudo labels of one case; gives their counts."""
    # Where training looks for its tiles, and nowhere else.
    tissue = tissue_mask(case.slide) if config.tiles.min_tissue > 0 else None
    parts = find.objects(
        run.config, run.infer, case.slide, case.mpp, threshold=config.relabel.threshold, tissue=tissue
    )
    found = find.joined(run.config, parts)
    mpp = config.tiles.mpp
    if run.detects:
        kept = np.flatnonzero(free_detections(found.objects, case, mpp=mpp))
        pseudo = found.objects.take(kept)
    else:
        pseudo, kept = free_parts(found.objects, case, min_area_um2=config.predict.min_area_um2)
    # Of a part its area is another.
    measured = {name: v[kept] for name, v in found.measurements.items() if not name.startswith("area")}
    with storage.writable(path) as place:
        write_geojson(place, pseudo, measurements=measured)
    distance_um = config.measure.distance_um
    agreed = agreement(pseudo, case, mpp=mpp, distance_um=distance_um, pixels=not run.detects)
    of_class = np.bincount(pseudo.class_ids, minlength=len(pseudo.class_names)).tolist()
    return {
        "found": len(found.objects),
        "added": len(pseudo),
        "of_class": dict(zip(pseudo.class_names, of_class)),
        "agreement": None if agreed is None else dataclasses.asdict(agreed),
    }


def _place(labels: epath.PathLike, name: str, suffix: str) -> str:
    return storage.join(labels, f"{quote(name, safe=' ')}.{suffix}")


def _marks(splits: Splits) -> int:
    return sum(int(wanted(case.given, case.labels).sum()) for case in splits.train)
