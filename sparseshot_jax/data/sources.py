"""Data sources by name. A new one is one file with a frozen dataclass, and one line here."""

from sparseshot_jax.data.cases import Case, Source, Splits
from sparseshot_jax.data.folder import FolderSource
from sparseshot_jax.data.slide_source import SlideSource
from sparseshot_jax.data.synthetic_source import SyntheticSource

__all__ = ["SOURCES", "Case", "FolderSource", "SlideSource", "Source", "Splits", "SyntheticSource"]

SOURCES = {"synthetic": SyntheticSource, "folder": FolderSource, "slides": SlideSource}
