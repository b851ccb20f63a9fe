"""The journal of adding: the new triples of an `add` that is not finished, so that the same call completes it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from usertwin.personas import TwinError
from usertwin.personas.files import write_private

_JOURNAL = "adding.json"


@dataclass(frozen=True, slots=True)
class UnfinishedAdd:
    """What a stopped call of `aappend` was adding.

    Attributes:
        triples: ids of its new triples; empty if there was no such call.
        shift: what was added to `Pair.when`, which has no dates to go by; 0 for a log with dates.
    """

    triples: tuple[str, ...] = ()
    shift: float = 0.0

    def without(self, triples: Iterable[str]) -> UnfinishedAdd:
        """Return the same without some of the triples."""
        gone = {*triples}
        return replace(self, triples=tuple(id_ for id_ in self.triples if id_ not in gone))

    def save(self, folder: Path) -> None:
        """Write the journal durably, or remove it if it is empty. OSError if the disk is full."""
        if self.triples:
            write_private(folder / _JOURNAL, json.dumps(asdict(self)))
        else:
            (folder / _JOURNAL).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> UnfinishedAdd:
        """Read the journal of a twin. TwinError if it is damaged."""
        path = folder / _JOURNAL
        try:
            raw = json.loads(path.read_text("utf-8"))
            return cls(tuple(map(str, raw["triples"])), float(raw["shift"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise TwinError(f"{path}: is damaged ({error}); delete it, and add the same log again") from None
