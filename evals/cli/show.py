"""The command `usertwin show`, and the view of a twin that `usertwin learn` ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import console_for, home_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("name", required=False)
@home_option
def show(name: str | None, home: Path | None) -> None:
    """Show the twin NAME; without a name, list all twins.

    Shows how it was learned, what it remembers, what its memory is used for, and how close it is to the person.
    """
    from usertwin.memory import list_twins

    console = console_for()
    if name is not None:
        show_twin(console, name, home)
        return
    for twin in list_twins(home):
        console.print(twin, markup=False)


def show_twin(console: Console, name: str, home: Path | None) -> None:
    """Print a twin's recipe, memory, settings and closeness."""
    from usertwin.evals.reports.twin_view import twin_view
    from usertwin.memory import TripleStore, TwinRecord, existing_twin
    from usertwin.memory.twin.abandonment import AbandonmentModel
    from usertwin.memory.twin.last_turn import LastTurnModel
    from usertwin.memory.twin.record import ABANDONMENT_FILE, LAST_TURN_FILE
    from usertwin.simulator import load_embedder

    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    with TripleStore(folder, load_embedder(record.recipe.embedder), create=False) as store:
        triples = list(store.triples())
    last_turn, abandonment = LastTurnModel.load(folder / LAST_TURN_FILE), AbandonmentModel.load(folder / ABANDONMENT_FILE)
    console.print(twin_view(record, triples, last_turn, abandonment))
