"""What several commands do with a twin: open it with its models, measure it, check its judge, tune it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from .parts.options import check_writable, complete_twins, console_for, home_option, progress_bars, twin_argument

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.replay.replay import ReplayConfig
    from usertwin.evals.suites.people import Look
    from usertwin.memory import Embedder, TripleStore, TwinRecord
    from usertwin.memory.models.chat import Price
    from usertwin.simulator import SimulatedUser


def measure_twin(
    console: Console,
    name: str,
    *,
    home: Path | None,
    model: str,
    scorer: str,
    style: PromptStyle | None,
    against: Path | None,
    config: ReplayConfig,
) -> dict[str, Any]:
    """Measure a twin's closeness, store the result in its record, and return it.

    It is not stored if the memory was changed meanwhile: the result is then of neither memory, and may count forgotten turns.
    """
    from usertwin.evals.replay.adapted import adapted_scorer
    from usertwin.evals.replay.evaluate import evaluate
    from usertwin.evals.reports.summary import summary_of, twin_warnings
    from usertwin.memory import existing_twin
    from usertwin.memory.store.repair import memory_version
    from usertwin.memory.twin.record import twin_command, update_record
    from usertwin.simulator import load_scorer

    folder = existing_twin(name, home)
    check_writable(folder, "--home")
    with open_twin(console, name, home, model, style) as user, progress_bars(console) as bars:
        version = memory_version(folder)
        scoring = load_scorer(scorer, progress=bars.fetch)
        result = run_sync(
            evaluate(
                user, scoring, user.store.embedder, folder=folder, against=against, config=config,
                adapted=adapted_scorer(user, scorer), progress=bars,
            )
        )  # fmt: skip
    result |= {"summary": summary_of(result), "warnings": twin_warnings(result)}

    def measured(record: TwinRecord) -> TwinRecord:
        return record.with_closeness(result) if memory_version(folder) == version else record

    if update_record(folder, measured).closeness != result:
        console.print(
            f"the memory of {name} was changed meanwhile, so this result is not stored in the twin; measure it again: "
            f"{twin_command('eval', name, home)}", style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    return result


def tune_twin(
    console: Console,
    name: str,
    *,
    home: Path | None,
    model: str,
    scorer: str | None,
    style: PromptStyle | None,
    seed: int,
    limit: int,
    replies: int = 0,
    embedder: Embedder | None = None,
) -> None:
    """Choose by measurement how a twin uses its memory, print the choice, and store it in the record.

    Args:
        console: where to print.
        name: the twin.
        home: the folder that holds the twins.
        model: writes the reasoning of the settings that use some.
        scorer: computes the log-probability of the validation turns; None to compare written replies.
        style: the prompt style of the model; None for its own.
        seed: of sampling and intervals.
        limit: the most validation turns, spread evenly.
        replies: the most of them at which the best of several replies is compared with one.
        embedder: the embedding model of the twin's memory, if it is loaded already.

    Raises:
        UsageError: the twin is of a registered test person.
    """
    from usertwin.evals.replay.adapted import adapted_scorer
    from usertwin.evals.reports.twin_view import settings_table
    from usertwin.evals.tuning.tune import tune
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.store.repair import memory_version
    from usertwin.memory.twin.record import twin_command, update_record
    from usertwin.simulator import load_scorer

    folder = existing_twin(name, home)
    check_writable(folder, "--home")
    _check_may_be_tuned(TwinRecord.load(folder))
    with (
        open_twin(console, name, home, model, style, reasons=True, embedder=embedder) as user,
        progress_bars(console) as bars,
    ):
        version = memory_version(folder)
        scoring = None if scorer is None else adapted_scorer(user, scorer) or load_scorer(scorer, progress=bars.fetch)
        settings = run_sync(
            tune(
                user, scoring, folder=folder, limit=limit, replies=replies, seed=seed, progress=bars,
                on_plan=lambda plan: console.print(f"tuning: {plan}", style="dim", markup=False),
            )
        )  # fmt: skip

    def tuned(record: TwinRecord) -> TwinRecord:
        same = memory_version(folder) == version
        return replace(record, settings=settings if same else replace(settings, measured=None))

    if update_record(folder, tuned).settings != settings:
        console.print(
            f"the memory of {name} was changed meanwhile, so the settings are stored without their measurement; tune it again: "
            f"{twin_command('tune', name, home)}", style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    console.print(settings_table(settings))


def _check_may_be_tuned(record: TwinRecord) -> None:
    """Raise UsageError if a twin is of a registered test person."""
    from usertwin.evals.suites.people import corpus_of_test_person, never_tuned

    source, speaker = record.recipe.source, record.recipe.speaker
    if (corpus := corpus_of_test_person(source, speaker)) is not None:
        raise UsageError(
            f"{never_tuned(corpus, speaker)}; tune a twin of a development person, and give this one its settings by hand: "
            f'SimulatedUser.load("{record.name}", settings=...)'
        )


def print_look(console: Console, name: str, home: Path | None, reason: str) -> None:
    """Print the line of the registry for a look at a twin's person; print nothing unless it is a registered test person."""
    from usertwin.evals.suites.people import looks_at, registered_test_people
    from usertwin.memory import TwinRecord, existing_twin

    recipe = TwinRecord.load(existing_twin(name, home)).recipe
    print_looks(console, looks_at(registered_test_people([(recipe.source, recipe.speaker)], {}), reason))


def print_looks(console: Console, looks: Sequence[Look]) -> None:
    """Print looks at test people as lines to add to the registry; print nothing without looks."""
    if looks:
        console.print("this was a look at test people; add these lines to evals/people.toml:", style="yellow")
    for look in looks:
        console.print(look.to_toml(), markup=False, highlight=False, soft_wrap=True)


def judge_check_of(
    console: Console,
    folder: Path,
    record: TwinRecord,
    store: TripleStore,
    *,
    style: PromptStyle | None,
    price: Price | None,
    concurrency: int | None,
) -> Mapping[str, Any] | None:
    """Return the check of a twin's judge: the stored one, or else a new one; None if its fidelity has no judge.

    Raises:
        ModelError: a model cannot be loaded, or does not answer.
        UsageError: the user has not allowed the twin to load the judge or the actor.
    """
    from usertwin.evals.judges.listwise_checks import check_twin_judge, stored_check
    from usertwin.memory.twin.consent import check_consent
    from usertwin.simulator import load_model
    from usertwin.simulator.learning import default_concurrency

    recipe = record.recipe
    if not recipe.ranked_by_judge or recipe.judge is None or recipe.actor is None:
        return None
    if (check := stored_check(record)) is not None:
        return check
    check_consent(record, recipe.judge, recipe.actor, folder=folder)
    with progress_bars(console) as bars:
        judge = load_model(recipe.judge, style="instruction", price=price, progress=bars.fetch)
        actor = load_model(recipe.actor, style=style, price=price, progress=bars.fetch)
        return run_sync(
            check_twin_judge(
                folder, record, store, judge, actor, concurrency=concurrency or default_concurrency(recipe.judge), progress=bars
            )
        )


def check_judge_of_twin(
    console: Console,
    name: str,
    *,
    home: Path | None,
    embedder: Embedder,
    style: PromptStyle | None,
    price: Price | None,
    concurrency: int | None,
) -> None:
    """Check the judge of a learned twin, unless that is done; print the outcome, and store it in the record.

    It is not stored if the memory was changed meanwhile: it may count forgotten turns.
    """
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.store.repair import memory_version
    from usertwin.memory.twin.forget import open_memory
    from usertwin.memory.twin.record import update_record

    folder = existing_twin(name, home)
    if not TwinRecord.load(folder).recipe.ranked_by_judge:
        return
    with open_memory(folder, embedder) as store:
        record, version = TwinRecord.load(folder), memory_version(folder)
        check = judge_check_of(console, folder, record, store, style=style, price=price, concurrency=concurrency)

    def checked(record: TwinRecord) -> TwinRecord:
        return replace(record, judge_check=check) if memory_version(folder) == version else record

    if check is not None:
        update_record(folder, checked)
        console.print(check["sentence"], style="" if check["outcome"] == "passed" else "yellow", markup=False)


@contextmanager
def open_twin(
    console: Console,
    name: str,
    home: Path | None,
    model: str,
    style: PromptStyle | None = None,
    *,
    price: Price | None = None,
    reasons: bool | None = None,
    embedder: Embedder | None = None,
) -> Generator[SimulatedUser]:
    """A twin with its models loaded, open while the block runs; a bar shows downloads.

    Args:
        console: where to print.
        name: the twin.
        home: the folder that holds the twins.
        model: the model that acts.
        style: its prompt style; None for its own.
        price: of hosted models.
        reasons: whether to load the twin's reasoner; None for what its settings say.
        embedder: the embedding model of its memory, if it is loaded already.
    """
    from usertwin.memory import Settings, TwinRecord, existing_twin
    from usertwin.simulator import SimulatedUser
    from usertwin.simulator.backends.lora_of_twin import model_for_twin
    from usertwin.simulator.reasoner import load_reasoner

    record = TwinRecord.load(folder := existing_twin(name, home))
    settings = None if reasons is None else Settings(reasons=reasons)
    with progress_bars(console) as bars:
        chat_model = model_for_twin(record, folder, model, style=style, price=price, progress=bars.fetch)
        reasoner = load_reasoner(record, chat_model, settings, price=price, progress=bars.fetch, folder=folder)
    with SimulatedUser.load(name, home=home, model=chat_model, reasoner=reasoner, embedder=embedder) as user:
        if user.record.state == "interrupted":
            console.print(f"{name} is not fully learned; the same learn command continues where it stopped.", style="yellow")
        yield user


@click.command()
@click.argument("name", required=False, shell_complete=complete_twins)
@home_option
def show(name: str | None, home: Path | None) -> None:
    """Show the twin NAME; without a name, list all twins.

    Shows how it was learned, what it remembers, what its memory is used for, and how close it is to the person.
    """
    from usertwin.memory import list_twins
    from usertwin.memory.twin.record import default_home, twin_command

    console = console_for()
    if name is not None:
        show_twin(console, name, home)
        return
    twins = list_twins(home)
    for twin in twins:
        console.print(twin, markup=False)
    if not twins:
        place, learn = home or default_home(), twin_command("learn", "NAME", home, "--from FILE")
        console_for(stderr=True).print(
            f"there is no twin in {place} yet; learn one (without --speaker this lists who speaks): {learn}, or try: "
            "usertwin demo", markup=False, soft_wrap=True,
        )  # fmt: skip


@click.command()
@twin_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
def trust(name: str, yes: bool, home: Path | None) -> None:
    """Allow the twin NAME, which somebody else learned, to load the models that it names.

    A model with a URL gets the chats with the twin, and the key in the environment variable that follows a "#". A path may lead
    to any file. A twin that was learned on this machine needs no such word.
    """
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.twin.consent import allow_models, needs_consent

    console, record = console_for(), TwinRecord.load(existing_twin(name, home))
    models = needs_consent(record)
    if not models:
        console.print(f"{name} names no model that it may not load already", markup=False)
        return
    for model in models:
        console.print(f"{name} names the model {model}", markup=False, soft_wrap=True)
    if not yes:
        click.confirm("Load them from now on?", abort=True)
    allow_models(record)


def show_twin(console: Console, name: str, home: Path | None) -> None:
    """Print a twin's recipe, memory, settings and closeness."""
    from usertwin.evals.reports.twin_view import twin_view
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.twin.abandonment import AbandonmentModel
    from usertwin.memory.twin.forget import open_memory
    from usertwin.memory.twin.last_turn import LastTurnModel
    from usertwin.memory.twin.record import ABANDONMENT_FILE, LAST_TURN_FILE
    from usertwin.simulator.reasoner import load_own_embedder

    folder = existing_twin(name, home)
    with open_memory(folder, load_own_embedder(TwinRecord.load(folder), folder)) as store:
        triples = list(store.triples())
    record = TwinRecord.load(folder)  # opening may have finished forgetting
    last_turn, abandonment = LastTurnModel.load(folder / LAST_TURN_FILE), AbandonmentModel.load(folder / ABANDONMENT_FILE)
    console.print(twin_view(record, triples, last_turn, abandonment, home))
