"""The demonstration: learn a twin from a real person's chats, let it talk, and measure its closeness.

It runs the commands that a user would type (`learn`, `simulate`, `eval`) on the built-in log with the built-in model, and
reuses the results of an earlier demonstration.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from usertwin.evals.records.result_shapes import MeasuredTwinShape
from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.reports.terminal import closeness_table
from usertwin.evals.reports.twin_view import settings_table
from usertwin.memory import TwinRecord, list_twins
from usertwin.memory.event_loop import run_sync
from usertwin.memory.twin.record import twin_command, twin_folder
from usertwin.personas import TwinError, load_log, split_pairs
from usertwin.personas.persona import derive_persona
from usertwin.personas.reading import as_type
from usertwin.simulator import load_embedder, simulate
from usertwin.simulator.demo_agent import help_desk
from usertwin.simulator.learning import alearn_with_recipe, make_recipe
from usertwin.simulator.terminal import show_exchange

from .progress_bars import Bars
from .twin_actions import measure_twin, open_twin, tune_twin

NAME = "demo"
#: A student with 118 chats in the BYU Chit-Chat Challenge of 2018. The log holds no name; "Robin" is ours.
SPEAKER, DISPLAY_NAME = "60576dcf-5b39-4420-a850-33ff7d108047", "Robin"
GOAL = "Your parcel should have come on Monday and has not. You want to know where it is."
MAX_TRIPLES, MAX_TRACES, CANDIDATES, WINDOW, GENERATE = 200, 40, 4, 6, 4
#: Validation turns to tune on.
TUNE_TURNS = 8


def run_demo(console: Console, *, home: Path | None, max_turns: int, limit: int) -> None:
    """Learn a twin, let it talk with a help desk, and measure its closeness.

    Args:
        console: where to print.
        home: the folder that holds the twins.
        max_turns: the most turns of the twin in the conversation.
        limit: the most held-out turns to measure on.

    Raises:
        TwinError: `home` holds a twin of the same name but of another person.
    """
    console.print(Rule("1  learn a twin from a real person's chats", align="left"))
    record = _learn(console, home)
    console.print(
        f"{DISPLAY_NAME} is a real, anonymous person: {escape(record.persona.description)}\n"
        f"The twin remembers the latest {MAX_TRIPLES} pairs of context and action. For {MAX_TRACES} of them {CANDIDATES} "
        "reasoning traces were proposed. The trace with the largest gain in predicting the real action is kept, if any gains.\n"
    )
    if record.settings is None:
        tune_twin(console, NAME, home=home, model="local", scorer="local", style=None, seed=0, limit=TUNE_TURNS)
    else:
        console.print(settings_table(record.settings))
    console.print()
    console.print(Rule("2  let the twin talk with a help desk", align="left"))
    console.print(f"[dim]Only the twin knows: {GOAL}[/dim]\n")
    with open_twin(console, NAME, home, "local") as user:
        console.print("[dim]the twin recalls, reasons if its settings say so, and writes; a few seconds a turn[/dim]\n")
        simulation = simulate(
            user, help_desk, max_turns=max_turns, goal=GOAL, agent_first=True,
            on_exchange=partial(show_exchange, console, DISPLAY_NAME),
        )  # fmt: skip
    error = escape(f": {simulation.error}") if simulation.error else ""
    console.print(f"[dim]ended: {simulation.stop_reason}{error}[/dim]\n")
    console.print(Rule("3  measure its closeness", align="left"))
    result = record.closeness
    try:
        as_type(MeasuredTwinShape, result)
    except ValueError:  # not measured yet, or damaged
        result = None
    if result is not None and result["against"] is None and result["turns"] == limit:
        again = escape(twin_command("eval", NAME, home))
        console.print(f"[dim]measured on {escape(result['measured_at'])}; {again} measures again[/dim]", soft_wrap=True)
    else:
        result = measure_twin(
            console, NAME, home=home, model="local", scorer="local", style=None, against=None,
            config=ReplayConfig(limit=limit, generate=GENERATE),
        )  # fmt: skip
    console.print(closeness_table(result))
    talk, show = (twin_command(command, NAME, home) for command in ("chat", "show"))
    console.print(f"\nNext: {talk}    {show}    usertwin learn --help", markup=False, soft_wrap=True)


def _learn(console: Console, home: Path | None) -> TwinRecord:
    """Return the record of the demonstration's twin; learn it first where it is missing or differs."""
    recipe = make_recipe(
        "chitchat", SPEAKER, embedder=load_embedder().name, method="recon", candidates=CANDIDATES, max_triples=MAX_TRIPLES,
        max_traces=MAX_TRACES, window=WINDOW, seed=0,
    )  # fmt: skip
    if NAME in list_twins(home):
        record = TwinRecord.load(twin_folder(NAME, home))
        if record.recipe == recipe and record.state == "complete":
            see = escape(twin_command("show", NAME, home))
            console.print(f"[dim]learned on {escape(record.learned_at)}; see {see}[/dim]", soft_wrap=True)
            return record
        if (record.recipe.source, record.recipe.speaker) != (recipe.source, recipe.speaker):
            raise TwinError(f'the twin "{NAME}" is of another person; use another folder: usertwin demo --home DIR')
    log = load_log(recipe.source)
    persona = derive_persona(split_pairs(log, SPEAKER, window=WINDOW).corpus, DISPLAY_NAME)
    with Bars(console) as bars:
        return run_sync(
            alearn_with_recipe(
                NAME, log, recipe, persona=persona, home=home, overwrite=True, progress=bars, fetch_progress=bars.fetch
            )
        )
