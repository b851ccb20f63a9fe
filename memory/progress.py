"""Progress callbacks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told how far learning has come: the stage ("memories" or "traces"), how many are done, of how many."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Be told."""
        ...


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
