"""What the terminal says of an evaluation."""

import numpy as np
import pytest
from rich.console import Console

from sparseshot_jax.cli import show
from sparseshot_jax.cli.show import held_out_words
from sparseshot_jax.metrics import ImageObjects, summarise_detections

FOUND = {"held_out": 12, "recall": 0.75, "threshold": 0.5}


@pytest.fixture(scope="module")
def detections() -> dict:
    xy = np.random.default_rng(0).uniform(0, 90, (30, 2))
    found = ImageObjects(
        xy_um=xy,
        boxes_um=np.concatenate([xy - 3, xy + 3], axis=1),
        label=np.arange(30) % 4 + 1,
        score=np.linspace(0.1, 0.9, 30),
    )
    return dict(
        summarise_detections(
            [found] * 3,
            [found] * 3,
            names=list("abc"),
            class_names=["epithelial", "fibroblast", "inflammatory", "others"],
            split="test",
            threshold_carried=0.4,
            elkan_noto_c=0.3125,
            seed=0,
            exclusive_class="inflammatory",
        )
    )


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (FOUND | {"predicted_area": 0.1}, "0.750, with 10.0% of the tissue called foreground"),
        (FOUND | {"predicted_per_mm2": 812.4}, "0.750, with 812 objects predicted in a mm²"),
        (FOUND | {"recall": None, "predicted_per_mm2": None}, "unknown, with no objects predicted"),
        (
            FOUND
            | {"predicted_area": 0.1}
            | {"elkan_noto": {"c": 0.31, "recall": 0.9, "predicted_area": 0.2, "threshold": 0.155}},
            "Elkan\N{EN DASH}Noto, c = 0.31: 0.900, with 20.0% of the tissue called foreground (p > 0.155)",
        ),
    ],
)
def test_held_out_marks_are_told_in_a_sentence(held, words):
    said = held_out_words(held)
    assert "12 held-out" in said
    assert words in said
    assert ("Dice" in said) == ("predicted_area" in held)


def test_an_evaluation_of_detections_fits_a_terminal(detections, capsys, monkeypatch):
    monkeypatch.setattr(show, "CONSOLE", Console(width=80, highlight=False))
    monkeypatch.setattr(show, "say", print)
    show.show_evaluation(detections | {"objects": detections})
    said = capsys.readouterr().out
    for word in (
        "Elkan\N{EN DASH}Noto",
        "c = 0.312",
        "F1 within 3 µm",
        "any class",
        "Exclusive recall",
        "AP at IoU",
        "Separate objects",
    ):
        assert word in said
    after = " ".join(said.split("Separate objects")[1].split())
    assert "Objects are those at predict.threshold" in after
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("classes", [1, 4])
def test_of_points_the_terminal_shows_nothing_by_iou(detections, capsys, monkeypatch, known, classes):
    monkeypatch.setattr(show, "CONSOLE", Console(width=80, highlight=False))
    monkeypatch.setattr(show, "say", print)
    names = detections["class_names"][:classes]
    show.show_evaluation(detections | {"extents_known": known, "class_names": names})
    said = " ".join(capsys.readouterr().out.split())  # wherever the lines break
    assert ("at IoU" in said) == known
    assert ("All true objects are points" in said) != known


def test_a_mean_and_its_spread_share_a_column(capsys, monkeypatch):
    monkeypatch.setattr(show, "CONSOLE", Console(width=100))
    show.show_spread(
        [
            {"loss.alpha": "0.1", "seeds": 2, "dice": 0.5, "dice_sd": 0.25},
            {"loss.alpha": "0.2", "seeds": 1, "failed": 1, "dice": 0.75},
        ]
    )
    shown = capsys.readouterr().out
    assert "dice_sd" not in shown
    assert "0.5000 ± 0.2500" in shown
    assert "│ 0.7500 " in shown


def test_a_row_of_a_failed_trial_says_what_happened(capsys, monkeypatch):
    monkeypatch.setattr(show, "CONSOLE", Console(width=100))
    show.show_rows([{"trial": "a", "dice": 0.5}, {"trial": "b", "error": "not finite at step 3. Try less."}])
    shown = capsys.readouterr().out
    assert "not finite at step 3 " in shown
    assert "Try" not in shown
