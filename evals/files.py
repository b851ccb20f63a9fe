"""Writing what is to be read: the two reports of a run, and files that somebody named.

The one design choice: a file is written beside its place and then moved there, so there is never half of one that looks whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError

from .record import MeasuredTurn

PAGE, NOTES = "report.html", "report.md"


def write_reports(folder: Path, result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> tuple[Path, Path]:
    """Write both reports of a run into its folder.

    Args:
        folder: the run's folder.
        result: what `result.json` holds.
        turns: what was measured at each turn.

    Returns:
        The page and the Markdown.

    Raises:
        UsageError: nothing can be written there.
    """
    from .markdown import render_markdown
    from .webpage import render_html

    page, notes = render_html(result, turns), render_markdown(result)
    write_whole(folder / PAGE, page)
    write_whole(folder / NOTES, notes)
    return folder / PAGE, folder / NOTES


def write_whole(path: Path, text: str) -> None:
    """Write a file, or leave what was there. UsageError if it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
