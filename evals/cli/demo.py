"""The demonstration: a real person's chats become a twin, the twin talks, and its closeness is measured.

The one design choice: it is nothing but the commands a user would type (`learn`, `simulate`, `eval`), on the built-in
corpus with the built-in model; each is shown before it runs, and what a former demonstration has done is not done again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.reports.terminal import closeness_table
from usertwin.evals.reports.twin_view import settings_table
from usertwin.memory import Recipe, TwinRecord, list_twins
from usertwin.memory import alearn as learn_twin
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import TwinError, load_log, split_pairs
from usertwin.personas.persona import draw_persona
from usertwin.simulator import load_embedder, load_model, load_scorer, simulate
from usertwin.simulator.demo_agent import help_desk
from usertwin.simulator.terminal import show_exchange

from .progress_bars import Bars
from .twin_actions import measure, open_twin, tune_twin

NAME = "demo"
#: A student who took part in 118 chats of the BYU Chit-Chat Challenge of 2018; the corpus gives no name, "Robin" is ours.
SPEAKER, CALLED = "60576dcf-5b39-4420-a850-33ff7d108047", "Robin"
GOAL = "Your parcel should have come on Monday and has not. You want to know where it is."
MAX_TRIPLES, MAX_TRACES, CANDIDATES, WINDOW, GENERATE = 200, 40, 4, 6, 4
#: Validation turns on which it is decided what the twin is shown.
MEASURE = 8


def run_demo(console: Console, *, home: Path | None, turns: int, limit: int) -> None:
    """Learn, talk, measure.

    Args:
        console: where to show it.
        home: where twins live.
        turns: the most turns the twin has.
        limit: on how many held-out turns to measure.
    """
    console.print(Rule("1  learn a twin from a real person's chats", align="left"))
    record = _learn(console, home)
    console.print(
        f"{CALLED} is a real, anonymous person: {escape(record.persona.description)}\n"
        f"The twin remembers the latest {MAX_TRIPLES} of their moments. For {MAX_TRACES} of them {CANDIDATES} traces of "
        "reasoning were proposed; the one with which what they really wrote is predicted best was kept, if it helps at all.\n"
    )
    if record.settings is None:
        tune_twin(console, NAME, home=home, model="local", scorer="local", style=None, seed=0, turns=MEASURE)
    else:
        console.print(settings_table(record.settings))
    console.print()
    console.print(Rule("2  let the twin talk with a help desk", align="left"))
    console.print(f"[dim]What only the twin knows: {GOAL}[/dim]\n")
    with open_twin(console, NAME, home, "local", None, 0) as user:
        console.print("[dim]the twin recalls, reasons if that was found to help, and speaks; a few seconds a turn[/dim]\n")
        simulation = simulate(
            user, help_desk, turns=turns, goal=GOAL, agent_first=True,
            on_exchange=partial(show_exchange, console, CALLED),
        )  # fmt: skip
    console.print(f"[dim]ended: {simulation.stop_reason}{escape(': ' + simulation.error) if simulation.error else ''}[/dim]\n")
    console.print(Rule("3  measure how close it is", align="left"))
    known = record.closeness
    if known is not None and known["against"] is None and known["turns"] == limit:
        console.print(f"[dim]measured on {known['measured_at']}; usertwin eval {NAME} measures again[/dim]")
        result = known
    else:
        result = measure(
            console, NAME, home=home, model="local", scorer="local", style=None, against=None,
            protocol=ReplayConfig(limit=limit, generate=GENERATE),
        )  # fmt: skip
    console.print(closeness_table(result))
    console.print(f"\nNext: usertwin chat {NAME}    usertwin show {NAME}    usertwin learn --help")


def _learn(console: Console, home: Path | None) -> TwinRecord:
    """The demonstration's twin, learned if it is not there yet."""
    recipe = Recipe(
        source="chitchat",
        speaker=SPEAKER,
        method="recon",
        candidates=CANDIDATES,
        max_triples=MAX_TRIPLES,
        max_traces=MAX_TRACES,
        window=WINDOW,
        embedder=load_embedder().name,
        model="local",
        scorer="local",
        seed=0,
    )
    if NAME in list_twins(home):
        record = TwinRecord.load(twin_folder(NAME, home))
        if record.recipe == recipe and record.state == "complete":
            console.print(f"[dim]learned on {record.learned_at}; usertwin show {NAME} tells what it holds[/dim]")
            return record
        if (record.recipe.source, record.recipe.speaker) != (recipe.source, recipe.speaker):
            raise TwinError(
                f'the twin "{NAME}" is of somebody else; show the demonstration another home: usertwin demo --home DIR'
            )
    log = load_log(recipe.source)
    persona = draw_persona(split_pairs(log, SPEAKER, window=WINDOW).corpus, CALLED)
    with Bars(console) as bars:
        model = load_model("local", progress=bars.fetch)
        scorer = load_scorer("local", progress=bars.fetch)
        return asyncio.run(
            learn_twin(
                NAME, log, recipe, embedder=load_embedder(), model=model, scorer=scorer, persona=persona, home=home,
                overwrite=True, progress=bars,
            )
        )  # fmt: skip
