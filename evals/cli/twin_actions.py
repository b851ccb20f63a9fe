"""Twins as the commands open, show and measure them.

The one design choice: what several commands and the demonstration do is done here, once, with its bars and its messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Style, progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.replay.replay import ReplayConfig
    from usertwin.memory.models.chat import Price
    from usertwin.simulator import SimulatedUser


def measure(
    console: Console,
    name: str,
    *,
    home: Path | None,
    model: str,
    scorer: str,
    style: Style | None,
    against: Path | None,
    protocol: ReplayConfig,
) -> dict[str, Any]:
    """Measure a twin and note the result in its record."""
    from usertwin.evals.replay.evaluate import evaluate as replay
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.simulator import load_scorer

    folder = existing_twin(name, home)
    with open_twin(console, name, home, model, style, protocol.seed) as user, progress_bars(console) as bars:
        scoring = load_scorer(scorer, progress=bars.fetch)
        result = asyncio.run(
            replay(
                user, scoring, user.store.embedder, folder=folder, against=against, protocol=protocol, progress=bars
            )
        )  # fmt: skip
    TwinRecord.load(folder).with_closeness(result).save(folder)
    return result


def tune_twin(
    console: Console,
    name: str,
    *,
    home: Path | None,
    model: str,
    scorer: str,
    style: Style | None,
    seed: int,
    turns: int,
) -> None:
    """Decide by measuring how a twin uses its memory, say so, and note it in its record."""
    from usertwin.evals.replay.tune import TunePlan, tune
    from usertwin.evals.reports.twin_view import settings_table
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.simulator import load_scorer

    folder = existing_twin(name, home)
    with open_twin(console, name, home, model, style, seed, reasons=True) as user, progress_bars(console) as bars:

        def say(planned: TunePlan) -> None:
            console.print(f"deciding by measuring: {planned}", style="dim")

        scoring = load_scorer(scorer, progress=bars.fetch)
        settings = asyncio.run(
            tune(user, scoring, folder=folder, limit=turns, seed=seed, planned=say, progress=bars)
        )  # fmt: skip
    replace(TwinRecord.load(folder), settings=settings).save(folder)
    console.print(settings_table(settings))


@contextmanager
def open_twin(
    console: Console,
    name: str,
    home: Path | None,
    model: str,
    style: Style | None,
    seed: int,
    *,
    price: Price | None = None,
    reasons: bool | None = None,
) -> Generator[SimulatedUser]:
    """A twin with its models, loaded with a bar if that takes a download.

    Who reasons for it is loaded if its settings say that it reasons; with `reasons` True or False always, or never.
    """
    from usertwin.memory import Settings, TwinRecord, existing_twin
    from usertwin.simulator import SimulatedUser, load_model
    from usertwin.simulator.reasoner import reasoner_of

    record = TwinRecord.load(existing_twin(name, home))
    needs = None if reasons is None else Settings(reasons=reasons)
    with progress_bars(console) as bars:
        chat_model = load_model(model, style=style, price=price, progress=bars.fetch)
        reasoner = reasoner_of(record, chat_model, needs, price=price, progress=bars.fetch)
    with SimulatedUser.load(name, home=home, model=chat_model, reasoner=reasoner, seed=seed) as user:
        if user.record.state == "interrupted":
            console.print(
                f"{name} was not learned to the end; the same learn command goes on where it stopped.", style="yellow"
            )
        yield user


def show_twin(console: Console, name: str, home: Path | None) -> None:
    """Print what a twin holds."""
    from usertwin.evals.reports.twin_view import twin_view
    from usertwin.memory import TripleStore, TwinRecord, existing_twin
    from usertwin.memory.twin.abandonment import AbandonmentModel
    from usertwin.memory.twin.last_turn import LastTurnModel
    from usertwin.memory.twin.record import ENDING, LEAVING
    from usertwin.simulator import load_embedder

    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    with TripleStore(folder, load_embedder(record.recipe.embedder), create=False) as store:
        triples = list(store.triples())
    console.print(twin_view(record, triples, LastTurnModel.load(folder / ENDING), AbandonmentModel.load(folder / LEAVING)))
