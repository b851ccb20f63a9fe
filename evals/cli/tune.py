"""The command `usertwin tune`."""

from __future__ import annotations

from pathlib import Path

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from .options import console_for, home_option, model_option, scorer_option, seed_option, style_option
from .twin_actions import tune_twin

#: The most validation turns that `tune`, and `learn` at its end, measure settings on.
DEFAULT_TUNE_TURNS = 24


@click.command()
@click.argument("name")
@click.option(
    "--limit", default=DEFAULT_TUNE_TURNS, show_default=True, help="The most validation turns to measure on, spread evenly."
)
@model_option
@scorer_option
@home_option
@seed_option
@style_option
def tune(name: str, limit: int, model: str, scorer: str, home: Path | None, seed: int, style: PromptStyle | None) -> None:
    """Choose by measurement how the twin NAME uses its memory.

    Compares how many pairs are recalled, how much context is shown, and which traces are used. The simplest setting within one
    standard error of the best is stored in the twin. `usertwin learn` does this at its end; repeat it for another model or
    scorer. Nothing is tuned on a person that evals/people.toml lists as a test person.
    """
    if limit < 1:
        raise UsageError(f"--limit is {limit}; it must be at least 1")
    tune_twin(console_for(), name, home=home, model=model, scorer=scorer, style=style, seed=seed, limit=limit)
