"""Ranges of the fields that several sources have, looked at when a spec is made and not when it loads."""

from sparseshot_jax.errors import InputError


def check_share(field: str, value: float) -> None:
    """Raise InputError unless a share of the marks is in (0, 1]."""
    if not 0.0 < value <= 1.0:
        raise InputError(f"data.{field} must be a share in (0, 1]; got {value}. Try 0.3.")


def check_mpp(value: float | None) -> None:
    """Raise InputError unless micrometres a pixel are above 0, or left to the file (None)."""
    if value is not None and value <= 0:
        raise InputError(f"data.mpp must be above 0 micrometres a pixel; got {value}. Try 0.25.")
