"""The report in Markdown: for a pull request, a wiki, a terminal.

Design: it draws the tables of the HTML page, and escapes every text from people or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .html import method_of
from .summary import summary_of
from .tables import SIGNS, forest_grid, power_lines, sections_of
from .templates import template


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
        power=power_lines(result),
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
