"""The page of the drop-ins: each tool gets its twin in at most five lines, and the table names what was run."""

from __future__ import annotations

import re
from pathlib import Path

from environments import TOOLS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text("utf-8")


def test_each_tool_gets_its_twin_in_at_most_five_lines() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(TOOLS)
    for block in blocks:
        marked = [line for line in block.splitlines() if line.endswith("# +")]
        assert 2 <= len(marked) <= 5, block
        assert all("usertwin" not in line for line in block.splitlines() if line not in marked)


def test_the_table_has_a_version_of_each_tool() -> None:
    for tool in TOOLS.values():
        assert re.search(rf"^\|[^|]*\| {re.escape(tool.distribution)} [\d.]+ \|", PAGE, re.MULTILINE), tool
        for requirement in tool.requirements:
            assert f"`{requirement}`" in PAGE
