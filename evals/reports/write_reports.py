"""Write the HTML and the Markdown report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT, write_atomically

from .html import render_html
from .markdown import render_markdown


def write_reports(folder: Path, result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> tuple[Path, Path]:
    """Write both reports of a run into its folder, and return the two paths. UsageError if the folder is not writable.

    Args:
        folder: the run's folder.
        result: the content of `result.json`.
        turns: the measured turns, for the examples.
    """
    page, notes = folder / HTML_REPORT, folder / MARKDOWN_REPORT
    texts = render_html(result, turns), render_markdown(result)
    for path, text in zip((page, notes), texts, strict=True):
        write_atomically(path, text)
    return page, notes
