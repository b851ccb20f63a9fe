"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

#: Called after each finished unit of work with the stage (such as "memories"), the units done, and the units in total.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""
