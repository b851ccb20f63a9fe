"""The report in Markdown: for a pull request, a wiki, a terminal.

The one design choice: it draws the same tables as the page, cell by cell, so the two cannot differ; whatever came from people
or files is escaped, so that no name can break a table or become a link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .html import method_of
from .summary import summary_of
from .tables import forest_grid, power_lines, sections_of
from .templates import template


def render_markdown(result: Mapping[str, Any]) -> str:
    """The report of a run, in Markdown (GitHub's tables), without the examples.

    Args:
        result: what `result.json` holds.
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
        signs={"closer": "✓", "further": "✗", "holds": "✓", "fails": "✗"},
    )
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _fence(inside: str) -> str:
    """Backticks that do not end in the midst of a text that has some itself."""
    longest = max((len(run) for run in re.findall(r"`+", inside)), default=0)
    return "`" * max(3, longest + 1)
