"""The command `usertwin learn`.

It prints what learning costs before it begins, and what it did cost at the end, in completions, tokens and dollars.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click

from usertwin.memory.event_loop import run_sync
from usertwin.memory.recon.propose import ProposalMode
from usertwin.memory.recon.synthesizer import Method
from usertwin.personas import TwinError, UsageError
from usertwin.simulator.backends.model_name import ModelName

from .parts.options import (
    RECIPE_DEFAULTS,
    actor_option,
    candidates_option,
    check_concurrency,
    check_writable,
    concurrency_option,
    console_for,
    dry_run_option,
    embedder_option,
    fidelity_option,
    file_path,
    gap_option,
    home_option,
    model_option,
    parse_price,
    price_option,
    print_notes,
    progress_bars,
    scorer_option,
    seed_option,
    skip_bad_lines_option,
    style_option,
    twin_argument,
)
from .parts.recipe_file import RecipeCommand, print_dry_run, recipe_option
from .tune import DEFAULT_TUNE_TURNS
from .twin_actions import check_judge_of_twin, open_twin, show_twin, tune_twin

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.tuning.adapt import AdaptConfig
    from usertwin.memory import Embedder, Recipe
    from usertwin.memory.models.chat import Price, PromptStyle
    from usertwin.personas import ChatLog

#: The defaults of `AdaptConfig`, whose file is imported when it is needed.
ADAPT_ROWS, ADAPT_EPOCHS, ADAPT_RANK = 160, 1, 16


@click.command(
    cls=RecipeCommand,
    common=("from", "speaker", "model", "traces", "max-traces", "recipe", "dry-run", "overwrite", "home", "seed"),
)
@twin_argument
@click.option(
    "--from",
    "source",
    help="Chat log: a file, folder or zip of any known format (docs/chat-logs.md), such as JSON lines or the export of a "
    'messenger; "chitchat", which is built in; "oyez:FOLDER" of court arguments; or "twinbench:FILE" of that benchmark.  '
    "[required, unless a learned twin is adapted]",
)
@gap_option
@click.option("--speaker", help="The person to learn, as the log names them; without it, who speaks is listed.")
@model_option
@click.option(
    "--traces",
    type=click.Choice(get_args(Method)),
    default="recon",
    show_default=True,
    help="How a reasoning trace is selected from the proposals: by fidelity (recon), at random, by length (longest), by a "
    "judge (quality), or the first one (backward); none makes no traces.",
)
@click.option(
    "--max-traces", default=100, show_default=True, help="Select traces for only this many of the latest pairs; -1 for all."
)
@recipe_option
@dry_run_option
@click.option("--overwrite", is_flag=True, help="Replace an existing twin of this name.")
@home_option
@seed_option
@click.option("--max-triples", type=int, help="Remember only this many of the latest pairs.  [default: all]")
@click.option("--window", default=6, show_default=True, help="Number of turns before an action that count as its context.")
@click.option(
    "--persona", type=file_path, help="TOML file that describes the person.  [default: a description derived from the log]"
)
@candidates_option
@click.option(
    "--propose",
    type=click.Choice(get_args(ProposalMode)),
    default=RECIPE_DEFAULTS["proposal_mode"],
    show_default=True,
    help="How traces are proposed: with the action in the prompt (backward) or without (forward), along psychological "
    "questions (scaffolded), or by a local search that improves parts of a trace (search).",
)
@click.option(
    "--max-calls",
    default=RECIPE_DEFAULTS["max_calls"],
    show_default=True,
    help="The most completions per pair with --propose search.",
)
@click.option(
    "--synthesizer",
    metavar="ADAPTER",
    help="Folder of a trained adapter, or a model, that proposes the traces and reasons for the twin.  [default: the model]",
)
@fidelity_option
@scorer_option
@actor_option
@click.option("--judge", help="Model that judges, for --fidelity judge and --traces quality.  [default: the model]")
@embedder_option
@click.option(
    "--tune-turns",
    default=DEFAULT_TUNE_TURNS,
    show_default=True,
    help="The most validation turns to tune the use of the memory on (see usertwin tune); 0 skips tuning.",
)
@click.option(
    "--adapt",
    is_flag=True,
    help="Train a LoRA adapter of --model on the twin's own prompts, and use it if it pays on validation turns; without "
    "--from, that of a twin that is learned. A recipe may set adapt_rows, adapt_epochs and adapt_rank.",
)
@click.option("--adapt-rows", default=ADAPT_ROWS, show_default=True, help="The most pairs that --adapt trains on.")
@click.option("--adapt-epochs", default=ADAPT_EPOCHS, show_default=True, help="Times that --adapt trains on each pair.")
@click.option("--adapt-rank", default=ADAPT_RANK, show_default=True, help="Rank of the adapter that --adapt trains.")
@style_option
@concurrency_option
@price_option
@skip_bad_lines_option
@click.pass_context
def learn(
    ctx: click.Context, name: str, *, home: Path | None, overwrite: bool, dry_run: bool, persona: Path | None, **options: Any
) -> None:
    """Learn the twin NAME from a chat log.

    Stopped with Ctrl-C, it leaves a usable twin, and the same command continues where it stopped without repeating a request
    to a model. At its end it checks a judge whose ranks select traces, tunes how the twin uses its memory, and with --adapt
    adapts the model.
    """
    from usertwin.evals.suites.people import corpus_of_test_person, never_tuned
    from usertwin.memory.twin.record import twin_command, twin_folder
    from usertwin.personas import load_log
    from usertwin.personas.importers.assemble import make_rules
    from usertwin.personas.persona import read_persona
    from usertwin.simulator import load_embedder
    from usertwin.simulator.learning import alearn_with_recipe

    console, price = console_for(stderr=dry_run), parse_price(options["price"])
    twin_folder(name, home)  # reports an invalid name before anything is loaded
    _check_options(options)
    if options["source"] is None and options["adapt"]:
        _adapt_only(ctx, console, name, home, options, dry_run=dry_run)
        return
    if options["source"] is None:
        raise click.UsageError("Missing option '--from'.")
    rules = make_rules(gap=options["gap"])
    log = load_log(str(options["source"]), skip_bad_lines=options["skip_bad_lines"], rules=rules)
    print_notes(console, log)
    if options["speaker"] is None:
        _refuse_without_speaker(console, log, twin_command("learn", name, home, "--from", shlex.quote(str(options["source"]))))
    description = None if persona is None else read_persona(persona)
    embedder = load_embedder(options["embedder"])
    recipe = _recipe(options, embedder.name)
    corpus = corpus_of_test_person(log.source, recipe.speaker, log) if options["tune_turns"] or options["adapt"] else None
    if corpus is not None and options["adapt"]:
        raise UsageError(f"--adapt: {never_tuned(corpus, recipe.speaker)}; leave it out")
    if corpus is not None:
        console.print(
            f"{never_tuned(corpus, recipe.speaker)}; the twin keeps the default settings", style="yellow", markup=False
        )
        options["tune_turns"] = 0
    hosted = ModelName.parse(options["model"]).is_hosted
    estimate = _estimate(log, recipe, options["style"], price, options["tune_turns"], hosted=hosted)
    if options["adapt"]:
        estimate.append(_adapting_estimate(log, recipe, options))
    if dry_run:
        print_dry_run(ctx, estimate)
        return
    check_writable(twin_folder(name, home), "--home")
    for line in estimate:
        console.print(line, style="dim", markup=False)
    if overwrite or not _needs_last_steps_only(
        name, home, recipe, tunes=options["tune_turns"] > 0, adapts=options["adapt"]
    ):  # fmt: skip
        with progress_bars(console) as bars:
            run_sync(
                alearn_with_recipe(
                    name, log, recipe, embedder=embedder, style=options["style"], price=price, persona=description, home=home,
                    overwrite=overwrite, concurrency=options["concurrency"], progress=bars, fetch_progress=bars.fetch,
                )
            )  # fmt: skip
    _take_last_steps(console, name, home, embedder, price, options)
    if options["adapt"]:
        _adapt(console, name, home, embedder, options)
    show_twin(console, name, home)
    talk, measure = (twin_command(command, name, home) for command in ("chat", "eval"))
    console.print(f"\nTalk to it: {talk}    Measure it: {measure}", style="dim", markup=False, soft_wrap=True)


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError if a number is out of range, or two options exclude each other."""
    if options["tune_turns"] < 0:
        raise UsageError(f"--tune-turns is {options['tune_turns']}; it must be at least 0")
    check_concurrency(options["concurrency"])
    if options["adapt"]:
        from usertwin.evals.tuning.adapt import check_adaptable

        _adapt_config(options).check()
        check_adaptable(options["model"], options["style"])
    if options["synthesizer"] is not None and options["traces"] == "none":
        raise UsageError("--synthesizer proposes traces, and --traces none makes none; leave out one of the two")


def _refuse_without_speaker(console: Console, log: ChatLog, command: str) -> NoReturn:
    """List who speaks in a log, and raise UsageError with the command that learns one of them."""
    from .parts.speakers import most_likely_person, speakers_table

    console.print(speakers_table(log))
    person = shlex.quote(most_likely_person(log))
    raise UsageError(f"--speaker is missing; name one of these people: {command} --speaker {person}")


def _take_last_steps(
    console: Console, name: str, home: Path | None, embedder: Embedder, price: Price | None, options: Mapping[str, Any]
) -> None:
    """Check the judge of a learned twin's fidelity, if it has one, and tune the twin, unless --tune-turns is 0."""
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.store.error_messages import changed_before

    with changed_before("the twin is learned"):
        check_judge_of_twin(
            console, name, home=home, embedder=embedder, style=options["style"], price=price, concurrency=options["concurrency"]
        )
        tuned = options["adapt"] and TwinRecord.load(existing_twin(name, home)).settings is not None  # before it was adapted
        if options["tune_turns"] and not tuned:
            models = {key: options[key] for key in ("model", "scorer", "style", "seed")}
            if ModelName.parse(models["model"]).is_hosted:
                models["scorer"] = None  # another model's likelihoods would choose what suits the other model
            tune_twin(console, name, home=home, limit=options["tune_turns"], embedder=embedder, **models)


def _adapt_config(options: Mapping[str, Any]) -> AdaptConfig:
    from usertwin.evals.tuning.adapt import AdaptConfig

    return AdaptConfig(
        rows=options["adapt_rows"], epochs=options["adapt_epochs"], rank=options["adapt_rank"], seed=options["seed"]
    )  # fmt: skip


def _adapting_estimate(log: ChatLog, recipe: Recipe, options: Mapping[str, Any]) -> str:
    """Return what adapting takes, in a sentence. LogError if the recipe does not fit the log."""
    from usertwin.evals.tuning.adapt import estimate_adapting
    from usertwin.memory import Settings
    from usertwin.personas import split_pairs

    pairs, k = split_pairs(log, recipe.speaker, window=recipe.window).corpus, Settings().k
    plan = estimate_adapting(pairs, options["model"], _adapt_config(options), k=k, window=recipe.window)
    return f"then {plan}, with {k} recalled pairs"


def _adapt_only(
    ctx: click.Context, console: Console, name: str, home: Path | None, options: Mapping[str, Any], *, dry_run: bool
) -> None:
    """Adapt a twin that is learned, or print what that takes."""
    from usertwin.evals.suites.people import corpus_of_test_person, never_tuned
    from usertwin.evals.tuning.adapt import estimate_adapting
    from usertwin.memory import Settings, TwinRecord, existing_twin, open_memory
    from usertwin.simulator.reasoner import load_own_embedder

    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    source, speaker = record.recipe.source, record.recipe.speaker
    if (corpus := corpus_of_test_person(source, speaker)) is not None:
        raise UsageError(f"--adapt: {never_tuned(corpus, speaker)}; adapt a twin of a development person")
    if record.state == "interrupted":
        raise TwinError(f"{name} is not fully learned; give --from and --speaker, and the learn command continues")
    embedder = load_own_embedder(record, folder)
    if dry_run:
        settings = record.settings or Settings()
        with open_memory(folder, embedder) as store:
            pairs = [triple.pair for triple in store.triples(abandoned=False)]
        plan = estimate_adapting(pairs, options["model"], _adapt_config(options), k=settings.k, window=settings.window)
        print_dry_run(ctx, [f"{plan}, with {settings.k} recalled pairs"])
        return
    check_writable(folder, "--home")
    _adapt(console, name, home, embedder, options)
    show_twin(console, name, home)


def _adapt(console: Console, name: str, home: Path | None, embedder: Embedder, options: Mapping[str, Any]) -> None:
    """Train and measure an adapter of a learned twin, and print the outcome; Ctrl-C prints the command that continues."""
    from usertwin.evals.reports.twin_view import adapter_text
    from usertwin.evals.tuning.adapt import adapt
    from usertwin.memory import existing_twin
    from usertwin.memory.twin.record import twin_command

    config = _adapt_config(options)
    with open_twin(console, name, home, options["model"], options["style"], embedder=embedder) as user:
        try:
            with progress_bars(console) as bars:
                attempt = adapt(
                    user, existing_twin(name, home), config, progress=bars, fetch=bars.fetch,
                    on_plan=lambda plan: console.print(f"adapting: {plan}", style="dim", markup=False),
                )  # fmt: skip
        except KeyboardInterrupt:
            command = twin_command("learn", name, home, "--adapt", *_adapt_options(options))
            console.print(
                f"the last checkpoint of the adapter is kept; continue with: {command}", style="yellow", markup=False,
                soft_wrap=True,
            )  # fmt: skip
            raise
    console.print(adapter_text(attempt), style="" if attempt.used else "yellow", markup=False)


def _adapt_options(options: Mapping[str, Any]) -> list[str]:
    """Return the options, as in a shell, that an adapter depends on and that have no default value."""
    defaults: dict[str, Any] = {
        "model": "local", "style": None, "seed": 0, "adapt_rows": ADAPT_ROWS, "adapt_epochs": ADAPT_EPOCHS,
        "adapt_rank": ADAPT_RANK,
    }  # fmt: skip
    given = [(key, options[key]) for key, default in defaults.items() if options[key] != default]
    return [f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in given]


def _recipe(options: dict[str, Any], embedder: str) -> Recipe:
    """Return the checked recipe that the options describe, with the name of the embedding model."""
    from usertwin.simulator.learning import make_recipe

    keys = (
        "source", "speaker", "model", "scorer", "synthesizer", "actor", "judge", "candidates", "max_triples", "window", "seed",
        "fidelity", "max_calls",
    )  # fmt: skip
    return make_recipe(
        embedder=embedder,
        method=options["traces"],
        max_traces=None if options["max_traces"] < 0 else options["max_traces"],
        proposal_mode=options["propose"],
        **{key: options[key] for key in keys},
    )


def _estimate(
    log: ChatLog, recipe: Recipe, style: PromptStyle | None, price: Price | None, tune_turns: int, *, hosted: bool
) -> list[str]:  # fmt: skip
    """Return what learning takes, in sentences. LogError or UsageError if the recipe does not fit the log."""
    from usertwin.evals.judges.listwise_checks import CHECKED_PAIRS, VERDICTS
    from usertwin.memory.models.chat import FREE
    from usertwin.memory.twin.learn_plan import estimate_cost
    from usertwin.simulator.backends.load import prompt_style_of

    names = [name for name in (recipe.model, recipe.actor, recipe.judge) if name is not None]
    free = all(ModelName.parse(name).is_free for name in names)
    prompt_style, together = prompt_style_of(recipe.model or "local", style if recipe.synthesizer is None else None)
    estimate = estimate_cost(log, recipe, style=prompt_style, shares_prompt=together, price=FREE if free else price)
    lines = [f"{estimate.triples} pairs to remember, {estimate.traces} to select traces for"]
    if estimate.traces:
        cost = "price unknown (--price)" if estimate.dollars is None else f"${estimate.dollars:.2f}"
        most = f" (at most {estimate.max_calls} if guards reject)" if estimate.max_calls > estimate.calls else ""
        lines.append(
            f"about {estimate.calls} completions of {recipe.model}{most}, {estimate.usage.input_tokens:,} input and "
            f"{estimate.usage.output_tokens:,} output tokens: {cost}"
        )
    if recipe.ranked_by_judge and estimate.traces:
        pairs = min(CHECKED_PAIRS, estimate.traces)
        lines.append(f"then the judge is checked on {pairs} of these pairs: {VERDICTS * pairs} completions of {recipe.judge}")
    if recipe.synthesizer is not None:
        lines.append(f"where the twin reasons, it reasons with {recipe.synthesizer}")
    if tune_turns:
        done = "replied to" if hosted else "scored"
        lines.append(f"then up to {tune_turns} validation turns are {done} under a few settings (--tune-turns 0 skips this)")
    return lines


def _needs_last_steps_only(name: str, home: Path | None, recipe: Recipe, *, tunes: bool, adapts: bool) -> bool:
    """Return whether the twin is fully learned with this recipe, and the command was stopped before its last step ended."""
    from usertwin.evals.judges.listwise_checks import stored_check
    from usertwin.memory import TwinRecord
    from usertwin.memory.twin.record import existing_twin

    try:
        record = TwinRecord.load(existing_twin(name, home))
    except TwinError:
        return False
    unfinished = (tunes and record.settings is None) or (adapts and record.adapter is None)
    unfinished = unfinished or (recipe.ranked_by_judge and stored_check(record) is None)
    return unfinished and (record.state, record.recipe) == ("complete", recipe)
