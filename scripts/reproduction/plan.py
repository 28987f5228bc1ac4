"""What is trained for the paper's tables and figures: data sets, methods, budgets."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
Changes = Mapping[str, str]  # dotted field of the config -> value as text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """A task on a data set, and how it is split."""

    title: str
    config: str  # file in configs/
    folder: str  # below --root
    measure: str  # of an operating point
    # Where recipe and threshold are chosen, and where the run that is scored was trained. One phase where
    # the data set has a validation part of its own.
    choose: Changes
    report: Changes | None = None
    test: str = ""  # patterns of the images that are scored; "" = the config's own

    @property
    def phases(self) -> dict[str, Changes]:
        """What is trained, in this order; runs of the last are scored."""
        return {"choose": self.choose} | ({} if self.report is None else {"report": self.report})

    @property
    def last(self) -> str:
        """The phase whose runs are scored."""
        return list(self.phases)[-1]


_TNBC_CHOOSE = {"data.train": '["0[1-4]_*"]', "data.validation": '["0[56]_*"]', "data.test": "[]"}
_TNBC_REPORT = {"data.train": '["0[1-6]_*"]', "data.validation": "[]", "data.test": "[]"}
_TNBC = {"choose": _TNBC_CHOOSE, "report": _TNBC_REPORT, "test": '["0[78]_*"]', "folder": "tnbc"}

DATA_SETS = {
    "tnbc_segmentation": DataSet(
        title="TNBC, segmentation", config="unet_tnbc.py", measure="dice_image", **_TNBC
    ),
    "kumar_segmentation": DataSet(
        title="Kumar (MoNuSeg), segmentation",
        config="unet_kumar.py",
        folder="kumar",
        measure="dice_image",
        choose={},
    ),
    "tnbc_detection": DataSet(
        title="TNBC, detection", config="yollo_tnbc.py", measure="f1_distance", **_TNBC
    ),
    "crchisto_detection": DataSet(
        title="CRCHistoPhenotypes, detection",
        config="yollo_crchisto.py",
        folder="crchisto",
        measure="f1_distance",
        choose={},
    ),
}

TNBC = ("tnbc_segmentation", "tnbc_detection")  # where the rivals are tried
CE, FOCAL, HUBER, ECE = "cross-entropy", "focal", "Huber", "ECE"
PAPER_ECE, FOCAL_ECE, DEFAULT = "focal ECE, alpha = 0.2", "focal ECE, alpha by share", "default: w by share"
WEIGHTED = "cross-entropy, w = 0.2"  # the weight of PAPER_ECE without its mask
WEAK = {tau: f"cross-entropy + weak supervision, tau = {tau:g}" for tau in (0.75, 0.5)}
RIVALS = {
    "BRL": {"loss": "brl"},
    "nnPU": {"loss": "nnpu"},
    "GE-KL": {"loss": "ge_kl"},
    "ignore ring": {"loss": "cross_entropy", "labels.ring_um": "[2.75, 5.5]"},
    WEAK[0.75]: {"loss": "cross_entropy", "relabel.rounds": "1", "relabel.threshold": "0.75"},
    WEAK[0.5]: {"loss": "cross_entropy", "relabel.rounds": "1", "relabel.threshold": "0.5"},
    "ELR": {"loss": "elr", "model.prior": "0.25"},  # from lower it falls to background: see losses/elr.py
    "official": {"loss": "official"},
}
# The default is what the configs ship: cross-entropy with a weight by the share of the labels. Focal ECE "by
# share" has the very same weight, so that what differs is the mask.
_MASKED = {"loss": "focal_exclusive", "loss.alpha": "None", "loss.decision": "{decision}"}
METHODS: dict[str, Changes] = {
    CE: {"loss": "cross_entropy"},
    WEIGHTED: {"loss": "cross_entropy", "loss.background_weight": "0.2"},
    DEFAULT: {},
    FOCAL: {"loss": "focal"},
    HUBER: {"loss": "huber"},
    ECE: {"loss": "exclusive"},
    PAPER_ECE: {"loss": "focal_exclusive"},
    FOCAL_ECE: _MASKED,
    **RIVALS,
}
SCHEDULES: dict[str, Changes] = {
    "fixed, rho = 0.75": {**_MASKED, "loss.schedule": "fixed", "loss.rho": "0.75"},
    "fixed, rho = 0.5": {**_MASKED, "loss.schedule": "fixed", "loss.rho": "0.5"},
    "linear": {**_MASKED, "loss.schedule": "linear"},
    "sigmoid": {**_MASKED, "loss.schedule": "sigmoid"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained."""

    name: str
    fractions: tuple[float, ...]  # of the labels, in figures 4 and 5
    seeds: tuple[int, ...]  # at 30 % of the labels and in tables 1 and 2
    elsewhere: tuple[int, ...]  # seeds at other shares
    segmentation: Changes  # beside the config
    detection: Changes
    own: Mapping[str, Changes] = dataclasses.field(default_factory=dict)  # of single data sets, by name
    epochs: int | None = None  # over the tiles that the images hold side by side; None: the config's steps
    figures: tuple[str, ...] = (CE, DEFAULT, FOCAL, HUBER, FOCAL_ECE)  # methods of figures 4 and 5


_TINY = {"train.steps": "12", "train.batch_size": "2", "predict.core_px": "256"}
# The authors': U-Net of 32 features, 512 x 512, batches of 4, at 3e-4.
_AUTHORS = {
    "tiles.tile_px": "512",
    "train.batch_size": "4",
    "optimizer.learning_rate": "3e-4",
}
BUDGETS = {
    "smoke": Budget(
        name="smoke",
        fractions=(0.3, 1.0),
        seeds=(0,),
        elsewhere=(0,),
        segmentation={**_TINY, "model.base": "2", "model.depth": "2"},
        detection={**_TINY, "model.width": "4"},
        figures=(CE, DEFAULT),
    ),
    "small": Budget(
        name="small",
        fractions=(0.1, 0.3, 0.6, 1.0),
        seeds=(0, 1, 2),
        elsewhere=(0,),
        segmentation={},
        detection={},
    ),
    "paper": Budget(
        name="paper",
        fractions=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        seeds=(0, 1, 2),
        elsewhere=(0, 1, 2),
        segmentation={**_AUTHORS, "model.base": "32"},
        detection={**_AUTHORS, "model.width": "64"},
        own={"crchisto_detection": {"tiles.tile_px": "496"}},  # its images are 500 x 500
        epochs=300,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of a table: a method on a share of the labels, over some seeds."""

    data: str  # key of DATA_SETS
    method: str  # key of METHODS, or of SCHEDULES
    keep: float  # share of the labels
    seeds: tuple[int, ...]


def seeds_of(budget: Budget, keep: float) -> tuple[int, ...]:
    """More seeds where the paper's claims are made."""
    return budget.seeds if keep == 0.3 else budget.elsewhere


def table(number: int, budget: Budget) -> list[Cell]:
    """The cells of the paper's table of that number; beside table 3 stands what else CRCHisto was asked."""
    if number == 1:
        methods = (CE, WEIGHTED, *WEAK.values(), FOCAL, ECE, PAPER_ECE, FOCAL_ECE, DEFAULT)
        return [
            Cell(data="tnbc_detection", method=method, keep=keep, seeds=budget.seeds)
            for method in methods
            for keep in (0.3, 0.6)
        ]
    if number == 2:
        return [
            Cell(data="tnbc_detection", method=schedule, keep=keep, seeds=budget.seeds)
            for schedule in SCHEDULES
            for keep in (0.3, 0.6)
        ]
    return [
        Cell(data="crchisto_detection", method=method, keep=0.3, seeds=budget.seeds)
        for method in (CE, WEIGHTED, FOCAL, HUBER, ECE, PAPER_ECE, FOCAL_ECE, DEFAULT)
    ]


def figure(number: int, budget: Budget) -> list[Cell]:
    """The cells of the paper's figure of that number: 4 segmentation, 5 detection, 3 pictures of both."""
    if number == 3:
        return [
            Cell(data=data, method=method, keep=0.3, seeds=budget.seeds[:1])
            for data in DATA_SETS
            for method in (CE, PAPER_ECE, DEFAULT)
        ]
    task = {4: "segmentation", 5: "detection"}[number]
    return [
        Cell(data=data, method=method, keep=keep, seeds=seeds_of(budget, keep))
        for data in DATA_SETS
        if data.endswith(task)
        for method in budget.figures
        for keep in budget.fractions
    ]


def rivals(budget: Budget) -> list[Cell]:
    """Every rival at 30 % of TNBC, in both tasks."""
    return [
        Cell(data=data, method=method, keep=0.3, seeds=budget.elsewhere)
        for data in TNBC
        for method in METHODS
    ]


def sections(
    tables: Sequence[int], figures: Sequence[int], budget: Budget, *, with_rivals: bool
) -> dict[str, list[Cell]]:
    """Part of docs/results.md -> all of its cells."""
    return {
        **{f"table {n}": table(n, budget) for n in tables},
        **{f"figure {n}": figure(n, budget) for n in figures},
        **({"rivals": rivals(budget)} if with_rivals else {}),
    }


def cut(parts: Mapping[str, Sequence[Cell]], data: Sequence[str]) -> dict[str, list[Cell]]:
    """The parts with the cells of these data sets alone; of all where none is named."""
    return {name: [cell for cell in cells if not data or cell.data in data] for name, cells in parts.items()}
