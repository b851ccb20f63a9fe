"""The command `usertwin import`: logs of any known format become one log of JSON lines, with a summary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usertwin.personas import UsageError

from ..parts.options import check_writable, console_for, file_path, gap_option, skip_bad_lines_option

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.personas.importers.read_logs import ImportSummary

#: Rows of the table of speakers.
_SPEAKERS = 12


@click.command(name="import")
@click.argument("logs", nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=file_path, required=True, help="File of JSON lines to write; with .gz at its end it is compressed.")
@click.option("--format", "format_name", help="Format of the logs.  [default: found by looking at each file]")
@gap_option
@click.option(
    "--burst", metavar="TIME", help="Join messages of one speaker within this time; none for none.  [default: 2m in messengers]"
)
@click.option("--timezone", metavar="ZONE", help="Time zone of times that name none, such as Europe/Berlin.  [default: UTC]")
@skip_bad_lines_option
def import_command(
    logs: tuple[str, ...], *, out: Path, format_name: str | None, gap: str | None, burst: str | None, timezone: str | None,
    skip_bad_lines: bool,
) -> None:  # fmt: skip
    """Read chat logs of any known format into one log, and show what was read.

    A FILE may be a folder or a zip. Copies across files are found, and of a conversation that grew the longest state is kept.
    """
    from usertwin.personas.importers.assemble import make_rules
    from usertwin.personas.importers.read_logs import import_to_file

    if out.is_dir():
        raise UsageError(f"--out: {out} is a folder; name a file")
    check_writable(out.parent, "--out")
    if any(out.exists() and Path(log).exists() and out.samefile(log) for log in logs):
        raise UsageError(f"--out: {out} is one of the logs to read; name another file")
    rules = make_rules(gap=gap, burst=burst, timezone=timezone)
    summary = import_to_file(logs, out, rules=rules, format_name=format_name, skip_bad_lines=skip_bad_lines)
    _show(console_for(), summary, out)


def _show(console: Console, summary: ImportSummary, out: Path) -> None:
    """Print what was read, by whom, when, and what was left out."""
    from rich.table import Table
    from rich.text import Text

    from usertwin.personas.pairs import MIN_CONVERSATIONS, MIN_TURNS
    from usertwin.personas.printable import printable

    def say(text: str, style: str | None = None) -> None:
        console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    for path, title in summary.formats.items():
        say(f"{path}: {title}")
    period = f", {summary.first[:10]} to {summary.last[:10]}" if summary.first and summary.last else ""
    say(f"{summary.conversations} conversations, {summary.turns} turns, {len(summary.ranked())} speakers{period}")
    table = Table("speaker", "role", "turns", "conversations")
    for name, speaker in summary.ranked()[:_SPEAKERS]:
        cells = (name, speaker.role, str(speaker.turns), str(speaker.conversations))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    if (more := len(summary.ranked()) - _SPEAKERS) > 0:
        say(f"and {more} more speakers", "dim")
    for note in summary.notes():
        say(note, "yellow")
    names = summary.suggestions(min_turns=MIN_TURNS, min_conversations=MIN_CONVERSATIONS)
    if names:
        for name in names:
            say(f"usertwin learn NAME --from {shlex.quote(str(out))} --speaker {shlex.quote(name)}", "dim")
    else:
        say(f"no speaker has the {MIN_TURNS} turns in {MIN_CONVERSATIONS} conversations that a twin needs", "yellow")
