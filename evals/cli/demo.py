"""The demonstration: moments that a twin never saw, a guessing game, a chat with another twin, and a measurement.

Twins are of real people in the built-in log. They are learned once, and again when what they were learned with has changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from usertwin.evals.demo.guessing import play, write_pairs
from usertwin.evals.demo.moments import RULE, choose_moments, messages_before
from usertwin.evals.demo.views import chat_view, comparison_view
from usertwin.evals.records.result_shapes import MeasuredTwinShape
from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.reports.terminal import closeness_table
from usertwin.memory import Settings, TwinRecord, list_twins
from usertwin.memory.event_loop import run_sync
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.twin.record import twin_command, twin_folder, update_record
from usertwin.personas import Pair, TwinError, load_log, split_pairs
from usertwin.personas.persona import derive_persona
from usertwin.personas.reading import as_type
from usertwin.simulator import SimulatedUser, load_embedder
from usertwin.simulator.backends.downloads import SMALL, TINY, BackgroundFetch, cached_file
from usertwin.simulator.backends.model_choice import acting_model, fetch_obstacle, tiny_model_note
from usertwin.simulator.learning import alearn_with_recipe, make_recipe
from usertwin.simulator.terminal.chat import chat

from .parts.progress_bars import Bars
from .twin_actions import measure_twin, open_twin


@dataclass(frozen=True, slots=True)
class DemoPerson:
    """A person of the demonstration: the name of their twin, their id in the log, and a name of ours (the log has none)."""

    twin: str
    speaker: str
    display_name: str


SOURCE = "chitchat"
#: Two students of the BYU Chit-Chat Challenge of 2018, development people of evals/people.toml.
ROBIN = DemoPerson("demo", "60576dcf-5b39-4420-a850-33ff7d108047", "Robin")
KIM = DemoPerson("demo-chat", "842e34da-02f5-4904-ace0-fe96083a3a1c", "Kim")
MAX_TRIPLES, WINDOW = 600, 6
SETTINGS = Settings(traces="none", reasons=False, words=DEFAULT_WEIGHTS)
#: Moments shown, and pairs of the guessing game.
SHOWN, ROUNDS = 4, 5
#: The arms of the measurement: four baselines, one of them the twin without the person's own words, and the twin.
ARMS = ("no_memory", "other_person", "recalled_pairs", "recalled_pairs+words", "persona")


def run_demo(console: Console, *, home: Path | None, limit: int, interactive: bool, may_fetch: bool = True) -> None:
    """Show what a twin says at moments it never saw, play a game, let the reader chat, and measure.

    Args:
        console: where to print.
        home: the folder that holds the twins.
        limit: the most held-out turns to measure on.
        interactive: whether somebody can answer; without, there is neither game nor chat.
        may_fetch: whether the small model may be downloaded for the chat.

    Raises:
        TwinError: `home` holds a twin of the same name but of another person.
    """
    console.print(Rule("1  a twin beside the real person", align="left"))
    record = _learned(console, ROBIN, home)
    console.print(
        f"{ROBIN.display_name} is a real, anonymous student: {escape(record.persona.description)} The twin remembers the "
        f"latest {MAX_TRIPLES} of these turns. It never saw the chats below."
    )
    console.print(f"[dim]{RULE.format(name=ROBIN.display_name)}[/dim]\n")
    with _fetching(console, interactive=interactive, may_fetch=may_fetch) as download:
        with open_twin(console, ROBIN.twin, home, TINY.model) as user:
            moments = choose_moments(user, twin_folder(ROBIN.twin, home), SHOWN + ROUNDS)
            shown, others = moments[: 2 * SHOWN : 2], [*moments[1 : 2 * SHOWN : 2], *moments[2 * SHOWN :]]
            for number, pair in enumerate(shown, 1):
                _show_moment(console, user, pair, f"moment {number} of {len(shown)}")
            if interactive:
                console.print(Rule("2  which one is real?", align="left"))
                console.print(f"[dim]{ROUNDS} other moments, chosen by the same rule; an empty line ends the game[/dim]")
                with Bars(console) as bars:
                    pairs = write_pairs(user, others, count=ROUNDS, progress=bars)
                console.print(play(console, ROBIN.display_name, pairs), style="bold", markup=False)
                console.print()
        if interactive:
            console.print(Rule("3  chat with another person's twin", align="left"))
            _chat(console, home, download)
        else:
            console.print("[dim]2 and 3, a guessing game and a chat with another twin, need a terminal\n[/dim]")
        console.print(Rule("4  how close, measured", align="left"))
        console.print(closeness_table({**_measured(console, record, home, limit), "twin": f"{ROBIN.display_name}'s twin"}))
        if download is not None and download.is_running:
            left = f"the download of {SMALL.model} stops here; usertwin chat {KIM.twin} --model {SMALL.model} starts it again"
            console.print(f"[dim]{left}[/dim]", soft_wrap=True)
    commands = [twin_command(command, ROBIN.twin, home) for command in ("chat", "show")]
    console.print(f"\nNext: {'    '.join(commands)}    usertwin learn --help", markup=False, soft_wrap=True)


def _learned(console: Console, person: DemoPerson, home: Path | None) -> TwinRecord:
    """Return the record of a twin of the demonstration; learn it first if it is missing or was learned otherwise."""
    recipe = make_recipe(
        SOURCE, person.speaker, embedder=load_embedder().name, method="none", max_triples=MAX_TRIPLES, max_traces=0,
        candidates=1, window=WINDOW, seed=0,
    )  # fmt: skip
    folder = twin_folder(person.twin, home)
    if person.twin in list_twins(home):
        record = TwinRecord.load(folder)
        if record.recipe.speaker != person.speaker:
            raise TwinError(f'the twin "{person.twin}" is of another person; use another folder: usertwin demo --home DIR')
        is_current = record.recipe == recipe and record.versions.get("usertwin") == version("usertwin")
        if is_current and record.state == "complete":
            return update_record(folder, _with_settings)
    log = load_log(SOURCE)
    persona = derive_persona(split_pairs(log, person.speaker, window=WINDOW).corpus, person.display_name)
    with Bars(console) as bars:
        learning = alearn_with_recipe(
            person.twin, log, recipe, persona=persona, home=home, overwrite=True, progress=bars, fetch_progress=bars.fetch
        )
        run_sync(learning)
    return update_record(folder, _with_settings)


def _with_settings(record: TwinRecord) -> TwinRecord:
    """Return the record with the demonstration's settings, unless it was tuned, and without closeness of other settings."""
    if record.settings is not None and (record.settings.measured is not None or record.settings == SETTINGS):
        return record
    return replace(record, settings=SETTINGS, closeness=None)


def _show_moment(console: Console, user: SimulatedUser, pair: Pair, title: str) -> None:
    """Print the chat before a moment, and what the twin says beside what the person said, as soon as it is there."""
    name = user.persona.name
    console.print(Rule(title, align="left", style="dim"))
    console.print(chat_view(pair, name))
    try:
        with console.status("the twin recalls and writes"):
            answer = user.respond(messages_before(pair))
    except TwinError as error:
        console.print(str(error), style="red", markup=False)
    else:
        console.print(comparison_view(pair, answer, name))
    console.print()


@contextmanager
def _fetching(console: Console, *, interactive: bool, may_fetch: bool) -> Generator[BackgroundFetch | None]:
    """A download of the small model while the block runs, and None where there is none; prints why."""
    if not interactive or cached_file(SMALL) is not None:
        yield None
        return
    obstacle = fetch_obstacle() if may_fetch else "forbidden by --no-fetch or USERTWIN_NO_FETCH"
    if obstacle:
        console.print(f"{SMALL.model} is not downloaded for the chat: {obstacle}\n", style="dim", markup=False)
        yield None
        return
    size = f"{SMALL.size / 1e9:.1f} GB"
    console.print(
        f"meanwhile {SMALL.model} ({size}) is downloaded for the chat in 3; --no-fetch or USERTWIN_NO_FETCH=1 forbids it\n",
        style="dim", markup=False,
    )  # fmt: skip
    with BackgroundFetch(SMALL) as download:
        yield download


def _chat(console: Console, home: Path | None, download: BackgroundFetch | None) -> None:
    """Let the reader chat with the twin of another person, played by the small model if it can be."""
    _learned(console, KIM, home)
    if download is not None:
        _wait_for(console, download)
    model = acting_model(None)
    if note := tiny_model_note(model):
        console.print(note, style="yellow", markup=False)
    with open_twin(console, KIM.twin, home, model) as user:
        console.print(
            f"{KIM.display_name} is another real, anonymous student: {escape(user.persona.description)}\n"
            f"{model} plays the twin, which remembers what {KIM.display_name} said to others. Say hello; /quit goes on to 4."
        )
        chat(user, console, role="a stranger")
    console.print()


def _wait_for(console: Console, download: BackgroundFetch) -> None:
    """Wait for the download, with a bar; Ctrl-C ends the waiting, not the download."""
    if download.is_running:
        console.print(f"[dim]{SMALL.model} is on its way; Ctrl-C chats with {TINY.model} instead[/dim]")
        try:
            with Bars(console) as bars:
                while download.is_running:
                    bars.fetch(SMALL.model, download.bytes_done, SMALL.size)
                    time.sleep(0.2)
        except KeyboardInterrupt:
            return
    if download.error is not None:
        console.print(str(download.error), style="yellow", markup=False)


def _measured(console: Console, record: TwinRecord, home: Path | None, limit: int) -> dict[str, object]:
    """Return the measurement of the first twin: the stored one if it is of the same kind, else a new one."""
    result = record.closeness
    try:
        as_type(MeasuredTwinShape, result)
    except ValueError:  # not measured yet, or damaged
        result = None
    if result is not None and result["against"] is None and result["turns"] == limit and {*result["arms"]} == {*ARMS}:
        again = escape(twin_command("eval", record.name, home))
        console.print(f"[dim]measured on {escape(result['measured_at'])}; {again} measures again[/dim]", soft_wrap=True)
        return dict(result)
    return measure_twin(
        console, record.name, home=home, model=TINY.model, scorer=TINY.model, style=None, against=None,
        config=ReplayConfig(arms=ARMS, limit=limit, generate=0),
    )  # fmt: skip


def is_interactive(console: Console) -> bool:
    """Return whether somebody can read the console and answer."""
    return console.is_terminal and sys.stdin.isatty()
