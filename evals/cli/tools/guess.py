"""The command `usertwin guess`: in blind pairs of a held-out turn and the twin's reply, find the real one."""

from __future__ import annotations

from pathlib import Path

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from ..parts.options import console_for, home_option, progress_bars, seed_option, style_option, twin_argument
from ..talk import acting_model_for, acting_model_option
from ..twin_actions import open_twin, print_look


@click.command()
@twin_argument
@click.option("--turns", default=10, show_default=True, help="Number of pairs.")
@acting_model_option
@home_option
@seed_option
@style_option
def guess(name: str, turns: int, model: str | None, home: Path | None, seed: int, style: PromptStyle | None) -> None:
    """Guess in blind pairs which turn the person of NAME really wrote.

    The moments are drawn at random from the held-out conversations, which the twin never saw. An empty line ends the game. A
    moment at which the twin says nothing, or the same as the person, is no pair.
    """
    from usertwin.evals.demo.guessing import play, write_pairs
    from usertwin.evals.demo.moments import draw_moments
    from usertwin.memory import existing_twin

    if turns < 1:
        raise UsageError(f"--turns is {turns}; it must be at least 1")
    console = console_for()
    folder = existing_twin(name, home)
    with open_twin(console, name, home, acting_model_for(console, model, ""), style) as user:
        moments = draw_moments(user, folder, seed=seed)
        if not moments:
            raise UsageError(f"{folder}: its memory nearly repeats every held-out turn; learn from a longer log")
        with progress_bars(console) as bars:
            pairs = write_pairs(user, moments, count=turns, seed=seed, progress=bars)
        person = user.persona.name
        model_name = user.model.name
    if not pairs:
        raise UsageError(f"{name} wrote no reply at {len(moments)} moments that could be told from the real one; try --model")
    if len(pairs) < turns:
        console.print(f"{len(pairs)} of {turns} pairs could be made of {len(moments)} held-out turns", style="yellow")
    result = play(console, person, pairs)
    console.print(result or "no guess, so no result", style="bold", markup=False)
    if result:
        console.print(f"replies written by {model_name}, seed {seed}", style="dim", markup=False)
    print_look(console, name, home, f"usertwin guess {name}")
