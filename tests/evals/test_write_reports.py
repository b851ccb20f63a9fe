"""Tests of evals/reports/write_reports.py: the figures of the tables, and escaped text."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from invented_run import PEOPLE, result

from usertwin.evals.reports.summary import summary_of
from usertwin.evals.reports.tables import sections_of
from usertwin.evals.reports.templates import in_markdown
from usertwin.evals.reports.write_reports import render_markdown


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_every_figure_of_the_tables_is_in_the_page() -> None:
    page = render_markdown(result())
    for section in sections_of(result()):
        assert f"\n## {section.title}\n" in page
        for grid in section.grids:
            for row in grid.rows:
                assert [
                    cell for cell in row.cells if in_markdown(cell.detail) not in page or in_markdown(cell.text) not in page
                ] == []


def test_every_table_is_complete() -> None:
    lines = render_markdown(result()).split("\n")
    heads = [place for place, line in enumerate(lines) if set(line) == {"|", " ", "-"}]
    assert len(heads) == 17
    for head in heads:
        wide = len(cells(lines[head]))
        assert len(cells(lines[head - 1])) == wide
        assert lines[head - 2] == ""
        assert lines[head + 1].startswith("| ")
        end = next(place for place in range(head, len(lines)) if not lines[place])
        assert {len(cells(line)) for line in lines[head + 1 : end]} == {wide}


def test_the_summary_and_the_warnings_come_first() -> None:
    page = render_markdown(result())
    assert page.startswith("# How close is the twin? four \\<people\\>\n\n**The twin predicts these people's next turn")
    assert page.index("few replies: 40") < page.index("## The twin against each alternative")
    assert in_markdown(summary_of(result())) in page


@settings(max_examples=25)  # each draws a whole report
@given(st.text())
def test_a_name_cannot_break_a_table(name: str) -> None:
    people = {f"x|{name}\n": result()["people"][PEOPLE[0]]}
    page = render_markdown(result(people=people, judge=None))
    line = next(line for line in page.split("\n") if line.startswith(f"| {in_markdown('x|')}"))
    assert len(cells(line)) == 10


@given(st.text())
def test_no_markup_survives_in_a_text(text: str) -> None:
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>|#~&]", in_markdown(text))
    assert "\n" not in in_markdown(text)


def test_a_suite_with_backticks_stays_inside_its_fence() -> None:
    page = render_markdown(result(suite_text='name = "a"\n```\n# out?\n'))
    assert page.rstrip().endswith('````toml\nname = "a"\n```\n# out?\n````')
