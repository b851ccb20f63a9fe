"""A guessing game: the reader finds out which of two replies the real person wrote, and which one the twin."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from usertwin.evals.metrics.statistics import CONFIDENCE
from usertwin.memory.progress import Progress, no_progress
from usertwin.personas import Pair, TwinError
from usertwin.simulator import SimulatedUser

from .moments import messages_before
from .views import chat_view, two_replies_view

#: The share of right guesses without looking.
CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class BlindPair:
    """A held-out moment with the twin's reply at it, and the letter under which the real turn is shown."""

    moment: Pair
    reply: str
    real: Literal["A", "B"]


def write_pairs(
    user: SimulatedUser, moments: Iterable[Pair], *, count: int, seed: int = 0, progress: Progress = no_progress
) -> list[BlindPair]:
    """Let the twin reply at the moments, in order, until there are `count` pairs, and return them.

    A moment at which the twin says nothing, or the same as the person, is skipped. A model that cannot be reached raises
    ModelError.
    """
    places, pairs = random.Random(seed), list[BlindPair]()
    progress("guessing", 0, count)
    for moment in moments:
        if len(pairs) == count:
            break
        reply = _reply_at(user, moment, seed)
        if reply and reply.split() != moment.action.split():
            pairs.append(BlindPair(moment, reply, "A" if places.random() < CHANCE else "B"))
            progress("guessing", len(pairs), count)
    return pairs


def play(console: Console, name: str, pairs: Sequence[BlindPair]) -> str:
    """Let the reader guess at each pair, and return a sentence with the score; "" without a guess.

    `name` is the person's. The game ends early with an empty answer, the end of the input, or Ctrl-C.
    """
    right, guesses = 0, 0
    for pair in pairs:
        texts = (pair.moment.action, pair.reply) if pair.real == "A" else (pair.reply, pair.moment.action)
        console.print(Rule(f"pair {guesses + 1} of {len(pairs)}", align="left", style="dim"))
        console.print(chat_view(pair.moment, name))
        console.print(two_replies_view(*texts))
        guess = _ask(console, name)
        if guess is None:
            break
        guesses, right = guesses + 1, right + (guess == pair.real)
        verdict = "Right" if guess == pair.real else "No"
        console.print(f"[bold]{verdict}[/bold]: {pair.real} is what {escape(name)} really wrote.\n")
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
        return user.respond(messages_before(pair), goal=pair.goal, seed=seed).action
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
