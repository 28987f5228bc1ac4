"""Data sources by name. A new one is one file with a frozen dataclass, and one line here."""

from sparseshot_jax.data.cases import Case, Source, Splits
from sparseshot_jax.data.folder import FolderSource
from sparseshot_jax.data.slide_source import SlideSource
from sparseshot_jax.data.synthetic_source import SyntheticSource
from sparseshot_jax.data.tfds_source import TfdsSource

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
