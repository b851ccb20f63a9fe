"""The parts of a report's tables: cells, rows, grids and sections, and the cells of estimates and differences.

Design: an estimate becomes a cell only with its interval and its n, and only a verdict gives a cell a sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .labels import Estimate, counted, interval, number, p_value, verdict

Mark = Literal["", "closer", "further", "twin", "holds", "fails"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table."""

    text: str
    detail: str = ""  #: interval and n, or a remark
    mark: Mark = ""  #: the verdict on the twin, or whether a check holds


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its title, a remark on that, and its cells."""

    title: str
    description: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: caption, column heads (the first is that of the row titles), rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: a name for links, a title, sentences, tables."""

    name: str
    title: str
    notes: tuple[str, ...]
    grids: tuple[Grid, ...] = ()


NONE = Cell("–")
#: Signs of verdicts (see `verdict`), in every form of report; no other mark has a sign.
SIGNS = {"closer": "✓", "further": "✗"}
#: Heads of the columns that `contrast_cells` fills.
CONTRAST_COLUMNS = ("Bits per character", "Verdict", "Smallest detectable difference (80% power)")


def estimate_cell(estimate: Estimate | None, digits: int, *, signed: bool = False, mark: Mark = "") -> Cell:
    """Return the cell of an estimate with its interval and n; a dash for None."""
    if estimate is None:
        return NONE
    detail = f"{interval(estimate, digits, signed=signed)}, n={counted(estimate['n'])}"
    return Cell(number(estimate["value"], digits, signed=signed), detail, mark)


def difference_cell(paired: Estimate | None, digits: int = 3) -> Cell:
    """Return the cell of a paired difference, marked by its verdict; a dash for None."""
    return estimate_cell(paired, digits, signed=True, mark=mark_of(paired))


def mark_of(paired: Estimate | None) -> Mark:
    """Return the verdict on a difference where it is one of the two that have a sign."""
    outcome = "unknown" if paired is None else verdict(paired)
    return outcome if outcome == "closer" or outcome == "further" else ""


def count_cell(value: str, n: float) -> Cell:
    """Return the cell of a value without an interval, with its n."""
    return Cell(value or NONE.text, f"n={counted(n)}")


def p_values(paired: Estimate) -> str:
    """Return the p value, and the one after Holm's correction or that there is none; empty without a test."""
    if paired.get("p") is None:
        return ""
    corrected = paired.get("p_holm")
    adjusted = "not adjusted" if corrected is None else p_value(corrected).replace("p ", "after Holm p ", 1)
    return f"{p_value(paired['p'])}, {adjusted}"


def contrast_cells(difference: Cell, paired: Estimate, closer: str, further: str) -> tuple[Cell, ...]:
    """Return the cells below `CONTRAST_COLUMNS`; the verdict takes the mark of the difference."""
    outcome = {"closer": closer, "further": further, "same": "no difference shown", "unknown": "no test"}[verdict(paired)]
    visible = paired.get("visible")
    power = NONE if visible is None else count_cell(number(visible, 3), paired["n"])
    return difference, Cell(outcome, p_values(paired), difference.mark), power


def table_row(title: str, *cells: Cell, description: str = "") -> TableRow:
    """Return a row of these cells."""
    return TableRow(title, description, cells)


def section(
    name: str, title: str, caption: str, columns: Sequence[str], rows: Iterable[TableRow], notes: Sequence[str] = (),
    more: Sequence[Grid] = (),
) -> Section | None:  # fmt: skip
    """Return a section of a table with rows, and further tables; None without rows."""
    rows = tuple(rows)
    return Section(name, title, tuple(notes), (Grid(caption, tuple(columns), rows), *more)) if rows else None
