"""All builders by name, and how one is built. Importing this imports TFDS: do it where it is needed."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sparseshot_jax.data.builders.bccd import Bccd
from sparseshot_jax.data.builders.consep import Consep
from sparseshot_jax.data.builders.cpm15 import Cpm15
from sparseshot_jax.data.builders.cpm17 import Cpm17
from sparseshot_jax.data.builders.crchisto import Crchisto
from sparseshot_jax.data.builders.dataset import Dataset, files_digest
from sparseshot_jax.data.builders.kumar import Kumar
from sparseshot_jax.data.builders.monuseg import Monuseg
from sparseshot_jax.data.builders.nuclick_wbc import NuclickWbc
from sparseshot_jax.data.builders.til import Til
from sparseshot_jax.data.builders.tnbc import Tnbc
from sparseshot_jax.errors import InputError

BUILDERS: dict[str, type[Dataset]] = {
    "bccd": Bccd,
    "consep": Consep,
    "cpm15": Cpm15,
    "cpm17": Cpm17,
    "crchisto": Crchisto,
    "kumar": Kumar,
    "monuseg": Monuseg,
    "nuclick_wbc": NuclickWbc,
    "til": Til,
    "tnbc": Tnbc,
}


def prepare(name: str, *, manual_dir: str | Path | None, data_dir: str | Path) -> Dataset:
    """The builder of a data set, built into `data_dir` first unless it is there. Downloads nothing.

    Args:
        name: key of BUILDERS.
        manual_dir: folder with the published files; may be left out where the data set is built already.
        data_dir: folder of built data sets; TFDS writes beside the final place and renames at the end.

    Raises:
        InputError: the name is unknown, a file is missing or cannot be used, or the data set was built from
            other files.
    """
    if name not in BUILDERS:
        raise InputError(f"data set {name!r} is not known. There are: {', '.join(sorted(BUILDERS))}.")
    builder = BUILDERS[name](data_dir=str(data_dir))
    if (builder.data_path / "dataset_info.json").exists() and builder.is_prepared():
        _check_files(builder, manual_dir)
        return builder
    if manual_dir is None or not Path(manual_dir).is_dir():
        raise builder.missing("the folder of the published files", Path(manual_dir or "manual_dir"))
    config = tfds.download.DownloadConfig(manual_dir=str(Path(manual_dir).resolve()))
    builder.find(Path(manual_dir))  # TFDS says less of an empty folder than the builder does
    # TFDS announces a download, and makes a folder for it; there is none.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_config=config, download_dir=downloads)
    return builder


def _check_files(builder: Dataset, manual_dir: str | Path | None) -> None:
    """A data set is not served in place of another that lies in `manual_dir`."""
    metadata: Any = builder.info.metadata
    if manual_dir is None or not Path(manual_dir).is_dir():
        return
    if metadata["files"] != files_digest(Path(manual_dir).resolve()):
        raise InputError(
            f"{builder.data_path}: was built from other files than {manual_dir} holds. Remove that folder to "
            "build it anew, or leave data.manual_dir out to use it as it is."
        )
