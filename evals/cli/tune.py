"""The command `usertwin tune`."""

from __future__ import annotations

from pathlib import Path

import click

from usertwin.personas import UsageError

from .learn import DEFAULT_TUNE_TURNS, scorer_option
from .options import Style, console_for, home_option, model_option, seed_option, style_option
from .twin_actions import tune_twin


@click.command()
@click.argument("name")
@click.option("--turns", default=DEFAULT_TUNE_TURNS, show_default=True, help="On how many validation turns, spread evenly.")
@model_option
@scorer_option
@home_option
@seed_option
@style_option
def tune(name: str, turns: int, model: str, scorer: str, home: Path | None, seed: int, style: Style | None) -> None:
    """Decide by measuring what the twin NAME is shown of its memory: how many moments, which traces.

    `learn` does this once; do it again for another model that is to score or to act. The simplest setting within a standard
    error of the best is kept in the twin's record.
    """
    if turns < 1:
        raise UsageError(f"{turns} turns to measure on: at least one is needed")
    tune_twin(console_for(), name, home=home, model=model, scorer=scorer, style=style, seed=seed, turns=turns)
