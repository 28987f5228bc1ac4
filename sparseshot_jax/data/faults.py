"""Tiles that could not be read in mid-training: counted, named once a file and reason, and at most so many.

log = FaultLog(max_share=0.01, on_fault=print)
log.add(tiles=8, faults=[Fault(file="a.svs", message="a.svs: level 0, x 0..512 ... cannot be read ...")])
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

from sparseshot_jax.errors import InputError

_ENOUGH = 100  # tiles seen before a share means anything
_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a tile is missing."""

    file: str  # the file that could not be read
    message: str  # of the error, with place and remedy


def fault_of(error: InputError, name: str) -> Fault:
    """The fault behind an error: its message begins with the file, as all of them do, or `name` is meant.

    >>> fault_of(InputError("a.svs: level 0 cannot be read."), "b.svs").file
    'a.svs'
    """
    message = str(error)
    file, colon, _ = message.partition(": ")
    return Fault(file=file if colon else name, message=message)


class FaultLog:
    """Counts the faults of one run and stops it when there are too many.

    Args:
        max_share: of tiles, [0, 1]; it is held from 100 tiles on. 0 = none at all, 1 = any number.
        on_fault: called with a sentence, once for each file and reason.
    """

    def __init__(self, *, max_share: float, on_fault: Callable[[str], None]):
        if not 0.0 <= max_share <= 1.0:
            raise InputError(f"max_fault_share must be a share in [0, 1]; got {max_share}. Try 0.01.")
        self._max_share = max_share
        self._on_fault = on_fault
        self._known: set[tuple[str, str]] = set()
        self._files: collections.Counter[str] = collections.Counter()
        self.tiles = 0  # seen, valid ones and faults
        self.faults = 0

    def add(self, *, tiles: int, faults: Sequence[Fault]) -> None:
        """Take note of a batch.

        Raises:
            InputError: more than `max_share` of the tiles so far could not be read.
        """
        self.tiles += tiles
        self.faults += len(faults)
        for fault in faults:
            self._files[fault.file] += 1
            reason = fault.file, _NUMBER.sub("#", fault.message)  # the same at another place is no news
            if reason not in self._known:
                self._known.add(reason)
                self._on_fault(f"a tile was left out of training: {fault.message}")
        if faults and self.tiles >= _ENOUGH and self.faults > self._max_share * self.tiles:
            raise InputError(self._too_many(faults[-1]))

    def _too_many(self, last: Fault) -> str:
        worst, count = self._files.most_common(1)[0]
        others = len(self._files) - 1
        return (
            f"{worst}: at most {self._max_share:.2%} of the tiles may be unreadable "
            f"(train.max_fault_share={self._max_share}); {self.faults} of {self.tiles} were, {count} of them "
            f"in this file{f', the others in {others} more' if others else ''}. The last: {last.message} "
            "Mend or leave out the files, or raise train.max_fault_share."
        )
