"""The report in Markdown, and the files of both reports of a run.

Design: it draws the tables of the HTML page, and escapes every text from people or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT, write_atomically

from .html import method_of, render_html
from .summary import summary_of
from .tables import SIGNS, forest_grid, power_sentence, sections_of
from .templates import template


def write_reports(folder: Path, result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> tuple[Path, Path]:
    """Write both reports of a run into its folder, and return the two paths. UsageError if the folder is not writable.

    Args:
        folder: the run's folder.
        result: the content of `result.json`.
        turns: the measured turns, for the examples.
    """
    reports = {folder / HTML_REPORT: render_html(result, turns), folder / MARKDOWN_REPORT: render_markdown(result)}
    for path, text in reports.items():
        write_atomically(path, text)
    page, notes = reports
    return page, notes


def render_markdown(result: Mapping[str, Any]) -> str:
    """Return the report of a run in Markdown (GitHub's tables), without the examples.

    Args:
        result: the content of `result.json`.
    """
    suite = str(result.get("suite_text") or "")
    page = template("report_md.txt").render(
        name=result.get("name") or "a run",
        summary=result.get("summary") or summary_of(result),
        warnings=result.get("warnings", ()),
        forest=forest_grid(result),
        power=power_sentence(result),
        sections=sections_of(result),
        method=method_of(result),
        suite_text=suite.strip("\n"),
        fence=_fence(suite),
        signs=SIGNS,
    )
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _fence(text: str) -> str:
    """Backticks that no run of backticks in the text can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
