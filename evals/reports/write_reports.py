"""Write the HTML and the Markdown report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.run_folder import NOTES, PAGE, write_atomically


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
    from usertwin.evals.reports.html import render_html
    from usertwin.evals.reports.markdown import render_markdown

    page, notes = render_html(result, turns), render_markdown(result)
    write_atomically(folder / PAGE, page)
    write_atomically(folder / NOTES, notes)
    return folder / PAGE, folder / NOTES
