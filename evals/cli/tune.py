"""The command `usertwin tune`."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.simulator.backends.model_name import ModelName

from .parts.options import console_for, home_option, model_option, scorer_option, seed_option, style_option, twin_argument
from .twin_actions import tune_twin

#: The most validation turns that `tune`, and `learn` at its end, measure settings on.
DEFAULT_TUNE_TURNS = 24
#: The most of them at which several replies are written.
DEFAULT_REPLIES = 24


@click.command()
@twin_argument
@click.option(
    "--limit", default=DEFAULT_TUNE_TURNS, show_default=True, help="The most validation turns to measure on, spread evenly."
)
@click.option(
    "--replies",
    default=DEFAULT_REPLIES,
    show_default=True,
    help="The most of these turns at which the model writes several replies, to choose the best; 0 skips this.",
)
@model_option
@scorer_option
@home_option
@seed_option
@style_option
def tune(
    name: str, limit: int, replies: int, model: str, scorer: str, home: Path | None, seed: int, style: PromptStyle | None
) -> None:  # fmt: skip
    """Choose by measurement how the twin NAME uses its memory.

    Compares how many pairs are recalled, how much context is shown, and which traces are used. The simplest setting within one
    standard error of the best is stored in the twin. Then it looks whether the best of several replies is closer to the person
    than one. `usertwin learn` does the first at its end; repeat it for another model. A hosted model is tuned by what it
    writes, unless you name a scorer with its weights. Nothing is tuned on a person that evals/people.toml lists as a test
    person.
    """
    for option, value, least in (("--limit", limit, 1), ("--replies", replies, 0)):
        if value < least:
            raise UsageError(f"{option} is {value}; it must be at least {least}")
    source = click.get_current_context().get_parameter_source("scorer")
    by_replies = ModelName.parse(model).is_hosted and source is ParameterSource.DEFAULT
    tune_twin(
        console_for(), name, home=home, model=model, scorer=None if by_replies else scorer, style=style, seed=seed, limit=limit,
        replies=replies,
    )  # fmt: skip
