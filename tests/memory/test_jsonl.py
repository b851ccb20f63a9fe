"""memory/jsonl.py: half a line is skipped by readers, and no writer appends to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usertwin.memory.jsonl import append_line, complete_lines, open_for_append


@pytest.mark.parametrize("half", ["", "{", '{"text": "' + "half " * 40_000, '{"text": "whole without its newline"}'])
@pytest.mark.parametrize("whole", [[], [{"number": 0}], [{"number": 0}, {"text": "long " * 40_000}]])
def test_half_a_line_is_skipped_and_replaced(tmp_path: Path, half: str, whole: list[object]) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in whole) + half, "utf-8")
    assert list(map(json.loads, complete_lines(path))) == whole
    with open_for_append(path) as file:
        append_line(file, {"number": 2})
    with open_for_append(path) as file:
        append_line(file, {"number": 3})
    assert list(map(json.loads, path.read_text("utf-8").splitlines())) == [*whole, {"number": 2}, {"number": 3}]
