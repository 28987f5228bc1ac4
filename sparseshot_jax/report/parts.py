"""Pieces of HTML that pages are made of: plain functions from content to text."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image


@runtime_checkable
class Drawing(Protocol):
    """What has a title and can be drawn."""

    @property
    def title(self) -> str:
        """Said to who cannot see it."""
        ...

    def svg(self) -> str:
        """The drawing as SVG text."""
        ...


def section(heading: str, content: str) -> str:
    """A section under its heading, its content as HTML; nothing where there is nothing to show."""
    return f"<section><h2>{html.escape(heading)}</h2>{content}</section>" if content else ""


def note_list(notes: Sequence[str]) -> str:
    """Sentences that a reader has to know before the numbers."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<ul class='notes'>{items}</ul>" if items else ""


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Numbers shown large: title, value and remark of each."""
    parts = "".join(
        f"<div class='tile'><span>{html.escape(title)}</span>"
        f"<b>{html.escape(value)}</b><small>{html.escape(remark)}</small></div>"
        for title, value, remark in values
    )
    return f"<div class='tiles'>{parts}</div>"


def charts(drawings: Sequence[Drawing]) -> str:
    """Charts side by side."""
    pictures = "".join(
        f"<img alt='{html.escape(one.title, quote=True)}' src='{_data(one.svg().encode(), 'svg+xml')}'>"
        for one in drawings
    )
    return f"<div class='charts'>{pictures}</div>" if pictures else ""


def legend(colours: Sequence[tuple[tuple[int, int, int], str]]) -> str:
    """What each colour says."""
    items = "".join(
        f"<li><i style='background: rgb{colour}'></i>{html.escape(text)}</li>" for colour, text in colours
    )
    return f"<ul class='legend'>{items}</ul>"


def picture_row(heading: str, pictures: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]) -> str:
    """Pictures with their captions, side by side under a heading."""
    across = len(pictures) if len(pictures) <= 5 else 3
    columns = "".join(
        f"<figure><img alt='{html.escape(caption, quote=True)}' src='{jpeg_data(picture)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in pictures
    )
    return (
        f"<div class='panel'><h3>{html.escape(heading)}</h3>"
        f"<div class='pictures' style='--across: {across}'>{columns}</div></div>"
    )


def jpeg_data(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as the address of an image element."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return _data(buffer.getvalue(), "jpeg")


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
