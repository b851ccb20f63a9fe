"""Progress callbacks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each finished unit of work: the stage ("memories" or "traces"), units done, and units in total."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        ...


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""
