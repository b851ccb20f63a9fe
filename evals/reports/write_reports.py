"""The report in Markdown, with the tables of the HTML page, and the files of both reports of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT, write_atomically

from .html import common_values, render_html
from .templates import template


def write_reports(folder: Path, result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> tuple[Path, Path]:
    """Write both reports of a run into its folder, and return the two paths. UsageError if the folder is not writable."""
    page, notes = folder / HTML_REPORT, folder / MARKDOWN_REPORT
    write_atomically(page, render_html(result, turns))
    write_atomically(notes, render_markdown(result))
    return page, notes


def render_markdown(result: Mapping[str, Any]) -> str:
    """Return the report of a run in Markdown (GitHub's tables), without the examples."""
    suite = str(result.get("suite_text") or "")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", suite))])  # no backticks in the text close it
    page = template("report_md.txt").render(**common_values(result), suite_text=suite.strip("\n"), fence=fence)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
