"""The command `usertwin doctor`: what is installed, downloaded and learned, what is missing, and the command that gets it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..parts.options import console_for, home_option, is_standard_output, json_option, progress_bars, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from .checks import Check

_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


@click.command()
@click.option(
    "--fetch", multiple=True, type=click.Choice(["local", "local:small"]), help="Download this model first; may be repeated."
)
@json_option
@home_option
def doctor(fetch: tuple[str, ...], json_file: Path | None, home: Path | None) -> None:
    """Check what is installed, downloaded and learned, and say what is missing.

    Loads no model, and needs no network without --fetch. The exit code is 1 if something is broken that usertwin needs.
    """
    from .checks import DOWNLOADS, all_checks, installed_versions

    console = console_for(stderr=is_standard_output(json_file))
    if fetch:
        from usertwin.simulator.backends.downloads import fetch as download

        with progress_bars(console) as bars:
            for model in fetch:
                download(DOWNLOADS[model], bars.fetch)
    checks = all_checks(home)
    broken = sum(check.state == "broken" for check in checks)
    console.print(_table(checks))
    for check in checks:
        if check.command:
            console.print(f"{check.name}: {check.command}", markup=False, soft_wrap=True)
    console.print(f"{broken} broken" if broken else "nothing is broken", style=_STYLES["broken" if broken else "ok"])
    findings = [asdict(check) for check in checks]
    write_json(json_file, {"ok": not broken, "versions": installed_versions(), "checks": findings})
    if broken:
        sys.exit(1)


def _table(checks: Sequence[Check]) -> Table:
    """Return the findings as a table; a state is a word, so it is seen without colour."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.state, style=_STYLES[check.state]), Text(check.name, style="dim"), Text(check.text))
    return table
