"""What a profile shows in the terminal and as a picture."""

import io

import pytest
from PIL import Image
from rich.console import Console

from sparseshot_jax.report.step_profile import SHOWN, profile_chart, profile_tables


def result(kinds=15, **changes):
    rows = [
        {
            "instruction": f"kind_{k}",
            "origin": "" if k == 1 else "conv_general_dilated",
            "part": ("forward", "untold", "backward", "rest", "again")[k % 5],
            "share": (kinds - k) / sum(range(kinds + 1)),
            "calls": 3,
        }
        for k in range(kinds)
    ]
    return {
        "name": "unet [base 64]",
        "device": "NVIDIA H200",
        "devices": 8,
        "mesh": {"data": 4, "fsdp": 2, "space": 1},
        "dtype": "bfloat16",
        "images": 128,
        "tile_px": 512,
        "steps": 20,
        "start": {"first_batch": 0.25, "tracing": 3.0, "compiling": 41.0},
        "step_s": {"median": 0.1234, "p10": 0.12, "p90": 1.5},
        "images_per_second": 1037.0,
        "megapixels_per_second": 271.9,
        "wait_share": 0.0123,
        "flops": {"asked": 147.2e12, "compiled": 150e12},
        "flops_per_second": 1.19e15,
        "peak": {"flops_per_second": 7.91e15, "source": "8 x H200"},
        "utilisation": 0.1508,
        "memory": {"bytes": 42 * 2**30, "source": "peak in use", "limit": 139 * 2**30, "plan": {}},
        "operations": rows,
        **changes,
    }


def shown(tables):
    console = Console(width=200, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_the_tables_say_every_number_in_its_unit():
    text = shown(profile_tables(result()))
    for words in (
        *("unet [base 64]", "8 x NVIDIA H200", "mesh data 4 x fsdp 2 x space 1", "128 x 512² px"),
        *("41 s", "after 3 s of tracing", "123 ms", "120 ms to 1.5 s", "1037 images/s", "1.2%"),
        *("147 TFLOP", "15.1%", "1.19 PFLOP/s of 7.91 PFLOP/s", "42 GiB", "of 139 GiB", "peak in use"),
    ):
        assert words in text
    assert f"{15 - SHOWN} other kinds" in text
    assert "5.0%" in text
    assert all(f" {words} " in text for words in ("forward", "backward", "forward again", "other"))
    assert "conv_general_dilated" not in text


def test_without_a_trace_there_is_one_table():
    assert len(profile_tables(result(kinds=0))) == 1


@pytest.mark.parametrize("kinds", [0, 2, 15])
def test_the_picture_grows_with_its_bars(kinds):
    picture = Image.open(io.BytesIO(profile_chart(result(kinds))))
    assert picture.width == 1200
    assert picture.height == pytest.approx(150 * (0.8 + 0.32 * max(min(kinds, SHOWN), 3)), abs=2)
