"""The commands that make and test traces: `usertwin learn`, `usertwin tune`, `usertwin controls`.

The one design choice: what a command will take is printed before it begins, and what it took after, in texts, tokens and money.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from usertwin.personas import TwinError, UsageError

from .options import (
    Style,
    concurrency_of,
    concurrency_option,
    console_for,
    embedder_option,
    fidelity_option,
    home_option,
    model_option,
    price_of,
    price_option,
    progress_bars,
    seed_option,
    style_option,
)
from .twin_actions import show_twin, tune_twin

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory import ChatModel, Recipe
    from usertwin.memory.models.chat import Price
    from usertwin.personas import ChatLog

    from .progress_bars import Bars

#: How the names of models begin that cost nothing.
_IN_PROCESS = ("local", "hf:", "transformers:", "scripted:")
#: On how many validation turns `learn` decides how the twin uses its memory.
DEFAULT_TUNE_TURNS = 24

scorer_option = click.option(
    "--scorer", default="local", show_default=True, help="The model under which traces and turns are scored, or fake:."
)


@click.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    required=True,
    help='A log: JSON lines, plain or gzip; or "chitchat", which is built in; or "oyez:FOLDER" of Supreme Court arguments.',
)
@click.option("--speaker", required=True, help="Whose twin to learn, as the log calls them.")
@click.option("--max-triples", type=int, help="Remember only the latest so many moments.  [default: all]")
@click.option(
    "--traces",
    type=click.Choice(["recon", "random", "longest", "quality", "backward", "none"]),
    default="recon",
    show_default=True,
    help="How a trace is chosen among the proposals: the best-scored, any, the longest, by a judge of looks, the first; none.",
)
@click.option(
    "--max-traces", default=100, show_default=True, help="Find traces only for the latest so many (seconds each); -1 for all."
)
@click.option("--candidates", default=4, show_default=True, help="How many traces are proposed for a moment.")
@click.option(
    "--propose",
    "how",
    type=click.Choice(["backward", "forward", "scaffolded", "search"]),
    default="backward",
    show_default=True,
    help="With the action in sight, without, by psychological lenses, or bettered part by part.",
)
@click.option(
    "--synthesizer",
    metavar="ADAPTER",
    help="Who proposes the traces and then reasons for the twin: an adapter's folder, or a model.  [default: the model]",
)
@click.option("--calls", default=12, show_default=True, help="For search: how many texts a moment may take.")
@fidelity_option(
    "What scores a trace: likelihood gained (on words not copied, on all), a judge, a forced choice, a rank, a prior."
)
@model_option
@scorer_option
@click.option("--actor", help="The model that reconstructs actions, for judge and rank.  [default: the model]")
@click.option("--judge", help="The model that judges, for judge and quality.  [default: the model]")
@embedder_option
@click.option(
    "--persona", type=click.Path(path_type=Path), help="A TOML file about the person, instead of one drawn from the log."
)
@click.option("--window", default=6, show_default=True, help="How many turns before an action belong to it.")
@click.option(
    "--measure",
    default=DEFAULT_TUNE_TURNS,
    show_default=True,
    help="On how many validation turns to decide how the twin uses its memory; 0 to leave that out.",
)
@concurrency_option
@price_option
@click.option("--dry-run", is_flag=True, help="Print what it would take, and do nothing.")
@home_option
@seed_option
@style_option
@click.option("--skip-bad-lines", is_flag=True, help="Read the rest of a log that has broken lines, and count those.")
@click.option("--overwrite", is_flag=True, help="Replace a twin of this name.")
def learn(
    name: str,
    source: str,
    speaker: str,
    max_triples: int | None,
    traces: Literal["recon", "random", "longest", "quality", "backward", "none"],
    max_traces: int,
    candidates: int,
    how: Literal["backward", "forward", "scaffolded", "search"],
    synthesizer: str | None,
    calls: int,
    fidelity: Literal["novel", "gain", "judge", "choice", "rank", "prior"],
    model: str,
    scorer: str,
    actor: str | None,
    judge: str | None,
    embedder: str | None,
    persona: Path | None,
    window: int,
    measure: int,
    concurrency: int | None,
    price: str | None,
    dry_run: bool,
    home: Path | None,
    seed: int,
    style: Style | None,
    skip_bad_lines: bool,
    overwrite: bool,
) -> None:
    """Learn the twin NAME from a chat log.

    Stopped with Ctrl-C, it leaves a twin that can be used, and the same command goes on where it stopped. Nothing that a model
    was asked before is asked again. At the end it is decided, by measuring, what the twin is shown of its memory.
    """
    from usertwin.memory import Recipe
    from usertwin.memory.twin.record import twin_folder
    from usertwin.personas.persona import read_persona
    from usertwin.simulator import load_embedder
    from usertwin.simulator.reasoner import synthesizer_named

    console, costs = console_for(), price_of(price)
    twin_folder(name, home)  # a name that cannot be is said before anything is loaded
    if measure < 0 or (concurrency is not None and concurrency < 1):
        raise UsageError("the number of turns to measure on is at least 0, and that of moments at once at least 1")
    if synthesizer is not None and traces == "none":
        raise UsageError("a synthesizer makes traces, and --traces none makes none; leave one of the two out")
    trained = None if synthesizer is None else synthesizer_named(synthesizer)
    log = _log(console, source, skip_bad_lines=skip_bad_lines)
    drawn = read_persona(persona) if persona is not None else None
    vectors = load_embedder(embedder)
    recipe = Recipe(
        source=source,
        speaker=speaker,
        method=traces,
        candidates=candidates,
        max_triples=max_triples,
        max_traces=None if max_traces < 0 else max_traces,
        window=window,
        embedder=vectors.name,
        model=trained or model,
        scorer=scorer,
        seed=seed,
        proposal_mode=how,
        fidelity=fidelity,
        actor=actor or model,
        judge=judge or model,
        max_calls=calls,
        synthesizer=trained,
    ).without_unused()
    _say_plan(console, log, recipe, style, costs, measure)
    if dry_run:
        return
    if overwrite or not (measure and _undecided(name, home, recipe)):
        options: dict[str, Any] = {"embedder": vectors, "persona": drawn, "home": home, "overwrite": overwrite}
        _learn(console, name, log, recipe, style, costs, concurrency=concurrency_of(concurrency, trained or model), **options)
    if log.skipped:
        console.print(f"{len(log.skipped)} broken lines were skipped.")
    if measure:
        tune_twin(console, name, home=home, model=model, scorer=scorer, style=style, seed=seed, turns=measure)
    show_twin(console, name, home)
    console.print(f"\nTalk to it: usertwin chat {name}    How close is it: usertwin eval {name}", style="dim")


def _log(console: Console, source: str, *, skip_bad_lines: bool) -> ChatLog:
    """The log of that name; what of it was left out is said."""
    from usertwin.personas import load_log

    log = load_log(source, skip_bad_lines=skip_bad_lines)
    for bad in log.skipped:
        console.print(f"skipped line {bad.line}: {bad.reason}", style="yellow", markup=False)
    if log.files_without_turns:
        console.print(f"{log.files_without_turns} files without a conversation were left out.", style="dim")
    return log


def _learn(
    console: Console, name: str, log: ChatLog, recipe: Recipe, style: Style | None, price: Price | None, **options: Any
) -> None:
    """Learn after a recipe, with bars; the options are those of `usertwin.memory.twin.learn`."""
    from usertwin.memory import alearn as learn_twin
    from usertwin.simulator import load_scorer

    with progress_bars(console) as bars:
        loaded = _Loader(bars, style, price)
        proposer = loaded.chat(recipe.model) if recipe.synthesizer is None else loaded.synthesizer(recipe.synthesizer)
        scorer = None if recipe.scorer is None else load_scorer(recipe.scorer, progress=bars.fetch)
        asyncio.run(
            learn_twin(
                name, log, recipe, model=proposer, actor=loaded.chat(recipe.actor), scorer=scorer,
                judge=loaded.judge(recipe.judge), progress=bars, **options,
            )
        )  # fmt: skip


def _undecided(name: str, home: Path | None, recipe: Recipe) -> bool:
    """Whether the twin was learned so to the end, and then stopped before it was decided what it is shown."""
    from usertwin.memory import TwinRecord
    from usertwin.memory.twin.record import twin_folder

    try:
        record = TwinRecord.load(twin_folder(name, home))
    except TwinError:
        return False
    return (record.state, record.settings, record.recipe) == ("complete", None, recipe)


class _Loader:
    """Loads models by name, each once."""

    def __init__(self, bars: Bars, style: Style | None, price: Price | None) -> None:
        self._bars, self._price = bars, price
        self._style: Style | None = style

    def chat(self, name: str | None) -> ChatModel | None:
        """The chat model of that name, in its usual manner or the one that was asked for."""
        from usertwin.simulator import load_model

        return None if name is None else load_model(name, style=self._style, price=self._price, progress=self._bars.fetch)

    def synthesizer(self, name: str) -> ChatModel:
        """The model of that name in its own manner, the one that it was trained in if it was."""
        from usertwin.simulator import load_model

        return load_model(name, price=self._price, progress=self._bars.fetch)

    def judge(self, name: str | None) -> ChatModel | None:
        """The same for a judge, which is always told what to do."""
        from usertwin.simulator import load_model

        return None if name is None else load_model(name, style="instruction", price=self._price, progress=self._bars.fetch)


def _say_plan(console: Console, log: ChatLog, recipe: Recipe, style: Style | None, price: Price | None, measure: int) -> None:
    """What learning will take, in two lines."""
    from usertwin.memory.models.chat import FREE
    from usertwin.memory.twin.learn_plan import estimate_cost
    from usertwin.simulator.backends.load import prompt_style_of

    name = recipe.model or ""
    manner, together = prompt_style_of(name or "local", style if recipe.synthesizer is None else None)
    here = all((one or "local").startswith(_IN_PROCESS) for one in (recipe.model, recipe.actor, recipe.judge))
    found = estimate_cost(log, recipe, style=manner, together=together, price=FREE if here else price)
    cost = "price not known (--price)" if found.dollars is None else f"${found.dollars:.2f}"
    console.print(f"{found.triples} moments to remember, {found.traces} to find traces for", style="dim")
    if found.traces:
        most = f" (at most {found.most_calls} where guards reject)" if found.most_calls > found.calls else ""
        console.print(
            f"about {found.calls} texts of {name}{most}, {found.usage.input_tokens:,} tokens read and "
            f"{found.usage.output_tokens:,} written: {cost}",
            style="dim", markup=False,
        )  # fmt: skip
    if recipe.synthesizer is not None:
        console.print(f"the twin reasons with: {recipe.synthesizer}, where it reasons at all", style="dim", markup=False)
    if measure:
        console.print(
            f"then up to {measure} validation turns are scored under a few settings (--measure 0 leaves that out)", style="dim"
        )
