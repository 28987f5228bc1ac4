"""Slides to files of their objects, by one process or by all of a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sparseshot_jax.console import say, tile_progress
from sparseshot_jax.data import storage
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.predict import overlay_png, write_predictions, write_shared
from sparseshot_jax.training import processes


def predict_slides(
    run: Any, slides: Sequence[tuple[Path, Slide]], folder: storage.Url, **options: Any
) -> None:
    """Write a GeoJSON and an overlay of every slide into `folder`, and say so.

    In a job of many processes all call it. Slides are dealt out as long as there is one for each process;
    those that remain are shared by all of them, in bands of tiles.

    Args:
        run: a `Run`.
        slides: name and slide; the names' stems, all different, name the results.
        folder: exists; all processes see it.
        options: of `Run.predict_stream`.
    """
    count = jax.process_count()
    alone = len(slides) - len(slides) % count

    def target_of(image: Path) -> str:
        return storage.join(folder, f"{image.stem}.geojson")

    def finish(image: Path, slide: Slide, found: int) -> str:
        overlay = storage.join(folder, f"{image.stem}_overlay.png")
        overlay_png(slide, target_of(image), overlay, class_names=run.config.labels.names)
        say(line := f"{found} objects: {target_of(image)}, {overlay}")
        return line

    def one(named: tuple[Path, Slide]) -> str:
        image, slide = named
        with tile_progress(image.name) as on_progress:
            parts = run.predict_stream(slide, on_progress=on_progress, **options)
            found = write_predictions(target_of(image), parts)
        return finish(image, slide, found)

    for k, line in enumerate(processes.dealt(slides[:alone], one)):
        if k % count:  # the lead has said its own
            say(line)
    for image, slide in slides[alone:]:
        with tile_progress(image.name) as on_progress:
            about = {"on_progress": on_progress, **options}
            found = write_shared(
                target_of(image),
                lambda band, slide=slide, about=about: run.predict_stream(slide, band=band, **about),
                bands=count,
            )
        processes.dealt([slide], lambda slide, image=image, found=found: finish(image, slide, found))
