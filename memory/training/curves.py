"""Training curves, kept in a file that survives a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .audit import Audit

#: The file of a training's curves in its folder.
CURVES = "curves.jsonl"


class Curves:
    """The file of a training's curves: one JSON object a line, in the order of the steps.

    Args:
        path: the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def add_audit(self, step: int, audit: Audit) -> None:
        """Add an audit's line."""
        self.add({"step": step, "audit": {name: round(value, 6) for name, value in asdict(audit).items()}})

    def read(self) -> list[dict[str, Any]]:
        """The lines; one that a stop cut off is left out."""
        if not self.path.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def begin_at(self, step: int) -> None:
        """Take off what was written after a step: training goes on from its checkpoint, and does those steps again."""
        self.write([row for row in self.read() if row["step"] <= step])

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write lines in place of those that are there."""
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        partial.replace(self.path)

    def first_audit(self) -> Audit | None:
        """The audit of the untrained policy, if it was made."""
        return next((Audit(**row["audit"]) for row in self.read() if row["step"] == 0 and "audit" in row), None)

    def last_audit(self) -> tuple[int, Audit] | None:
        """The step of the last audit, and the audit; None if there was none."""
        return next(((row["step"], Audit(**row["audit"])) for row in reversed(self.read()) if "audit" in row), None)
