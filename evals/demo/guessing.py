"""A guessing game: the reader finds out which of two replies the real person wrote, and which one the twin."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from usertwin.evals.metrics.statistics import CONFIDENCE
from usertwin.personas import Pair, TwinError
from usertwin.simulator import SimulatedUser

from .moments import messages_before
from .views import chat_view, two_replies_view

#: The share of right guesses without looking.
CHANCE = 0.5


def play(console: Console, user: SimulatedUser, moments: Iterable[Pair], *, rounds: int, seed: int = 0) -> str:
    """Let the reader guess at most `rounds` times, and return a sentence with the score; "" without a guess.

    A moment at which the twin says nothing, or the same as the person, is skipped. The game ends early with an empty answer,
    the end of the input, or Ctrl-C.
    """
    name, places, right, guesses = user.persona.name, random.Random(seed), 0, 0
    for pair in moments:
        if guesses == rounds:
            break
        with console.status("the twin writes"):
            reply = _reply_at(user, pair, seed)
        if not reply or reply.split() == pair.action.split():
            continue
        real = places.choice("AB")
        console.print(Rule(f"pair {guesses + 1} of {rounds}", align="left", style="dim"))
        console.print(chat_view(pair, name))
        console.print(two_replies_view(*((pair.action, reply) if real == "A" else (reply, pair.action))))
        guess = _ask(console, name)
        if guess is None:
            break
        guesses, right = guesses + 1, right + (guess == real)
        console.print(f"[bold]{'Right' if guess == real else 'No'}[/bold]: {real} is what {escape(name)} really wrote.\n")
    return score(right, guesses) if guesses else ""


def score(right: int, guesses: int) -> str:
    """Return the number of right guesses as a sentence, with its 95% interval (Wilson's)."""
    from statsmodels.stats.proportion import proportion_confint

    ends: Any = proportion_confint(right, guesses, 1 - CONFIDENCE, method="wilson")
    low, high = map(float, ends)
    if low > CHANCE:
        reading = "you can tell them apart"
    elif high < CHANCE:
        reading = "the twin passes for the person"
    else:
        reading = "not told from blind guessing, which finds half"
    return f"You found the real turn in {right} of {guesses} pairs (95% interval {low:.0%} to {high:.0%}): {reading}."


def _reply_at(user: SimulatedUser, pair: Pair, seed: int) -> str:
    """Return what the twin says at a moment; "" if it leaves, or its model writes no turn."""
    try:
        return user.respond(messages_before(pair), seed=seed).action
    except TwinError:
        return ""


def _ask(console: Console, name: str) -> Literal["A", "B"] | None:
    """Return the reader's guess; None to end the game."""
    while True:
        try:
            answer = console.input(f"Which one did {escape(name)} really write, [bold]A[/bold] or [bold]B[/bold]? ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
        match answer.strip().upper():
            case "A":
                return "A"
            case "B":
                return "B"
            case "":
                return None
            case _:
                console.print("[dim]type A or B; an empty line ends the game[/dim]")
