"""Data sources by name. A new one is one file with a frozen dataclass, and one line here."""

from sparseshot_jax.data.cases import Case, Source, Splits
from sparseshot_jax.data.sources.folder import FolderSource
from sparseshot_jax.data.sources.slides import SlideSource
from sparseshot_jax.data.sources.synthetic import SyntheticSource
from sparseshot_jax.data.sources.tfds import TfdsSource

__all__ = [
    "SOURCES",
    "Case",
    "FolderSource",
    "SlideSource",
    "Source",
    "Splits",
    "SyntheticSource",
    "TfdsSource",
]

SOURCES = {
    "synthetic": SyntheticSource,
    "folder": FolderSource,
    "slides": SlideSource,
    "tfds": TfdsSource,
}
