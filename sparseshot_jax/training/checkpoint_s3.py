"""Arrays of checkpoints on s3://, which orbax (0.12) hands to tensorstore as if they were on a disk.

Orbax asks one function for the tensorstore "spec" of every array, `tensorstore_utils.build_kvstore_tspec`,
which knows gs:// and local paths. Here it learns s3://: the spec is that of gs://, its driver exchanged for
tensorstore's "s3". The rest of orbax goes through etils.epath and needs nothing but commit markers.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

from sparseshot_jax.errors import InputError

_BUILDER = "orbax.checkpoint._src.serialization.tensorstore_utils"


def teach_orbax() -> None:
    """Let orbax keep arrays on s3://; nothing happens where it can already.

    Raises:
        InputError: this orbax builds its specs in another way.
    """
    try:
        place: Any = importlib.import_module(_BUILDER)
        if not _knows_s3(place.build_kvstore_tspec):
            place.build_kvstore_tspec = _with_s3(place.build_kvstore_tspec)
        known = _knows_s3(place.build_kvstore_tspec)
    except (ImportError, AttributeError):
        known = False
    if not known:
        raise InputError(
            "checkpoints on s3:// need another orbax: this one cannot be taught where to put arrays. Try "
            'pip install "orbax-checkpoint==0.12.8", or a run folder on gs://, a shared disk, or a mounted '
            "bucket."
        )


def _knows_s3(build: Callable[..., dict[str, Any]]) -> bool:
    try:
        return build("s3://bucket/checkpoints/1", use_ocdbt=True)["base"]["driver"] == "s3"
    except (ValueError, LookupError, TypeError):  # it takes the URL for a relative path, or has another form
        return False


def _with_s3(build: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(build)
    def wrapped(directory: str, *args: Any, **options: Any) -> dict[str, Any]:
        directory = os.fspath(directory)
        if not directory.startswith("s3:/"):
            return build(directory, *args, **options)
        place = directory.removeprefix("s3:").lstrip("/")
        return _exchanged(build(f"gs://{place}", *args, **options))

    return wrapped


def _exchanged(spec: Any) -> Any:
    """The same spec, each gs:// place in it on s3://."""
    if isinstance(spec, list):
        return [_exchanged(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return spec | {"driver": "s3"} | _access()
    return {name: _exchanged(part) for name, part in spec.items()}


def _access() -> dict[str, Any]:
    """Server, region and keys from the variables that every AWS tool reads; else tensorstore's own search."""
    given = os.environ.get
    endpoint = given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL")
    region = given("AWS_REGION") or given("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    access: dict[str, Any] = {}
    if endpoint:
        access["endpoint"] = endpoint
    if region:
        access["aws_region"] = region
    if given("AWS_ACCESS_KEY_ID"):
        access["aws_credentials"] = {"type": "environment"}
    return access
