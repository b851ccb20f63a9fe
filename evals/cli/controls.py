"""The command `usertwin controls`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from .parts.options import (
    candidates_option,
    check_concurrency,
    check_writable,
    concurrency_option,
    console_for,
    home_option,
    is_standard_output,
    json_option,
    model_option,
    parse_price,
    price_option,
    progress_bars,
    scorer_option,
    seed_option,
    style_option,
    twin_argument,
    write_json,
)
from .twin_actions import judge_check_of, open_twin, print_look

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.simulator import SimulatedUser


@click.command()
@twin_argument
@click.option("--limit", default=60, show_default=True, help="The most validation turns to measure on, spread evenly.")
@candidates_option
@json_option
@model_option
@scorer_option
@concurrency_option
@price_option
@home_option
@seed_option
@style_option
def controls(
    name: str,
    limit: int,
    candidates: int,
    json_file: Path | None,
    model: str,
    scorer: str,
    concurrency: int | None,
    price: str | None,
    home: Path | None,
    seed: int,
    style: PromptStyle | None,
) -> None:
    """Test with control traces whether the trace score of NAME is only leakage.

    Each control trace is wrong in one way: shuffled, of another person, a copy of the action and so on. Prints a table and a
    decision; for a twin whose traces a judge selected, also whether the judge passes its checks. The twin stays as it is;
    completions are cached, so a stopped command continues where it stopped.
    """
    from usertwin.evals.reports.controls_table import controls_table
    from usertwin.memory import existing_twin
    from usertwin.simulator.learning import default_concurrency

    if limit < 2:
        raise UsageError(f"--limit is {limit}; controls need at least 2 turns")
    check_concurrency(concurrency)
    prices = parse_price(price)
    console, folder = console_for(stderr=is_standard_output(json_file)), existing_twin(name, home)
    check_writable(folder, "--home")
    with open_twin(console, name, home, model, style, price=prices, reasons=False) as user:
        result = _measure(
            console, user, folder, model=model, scorer=scorer, limit=limit, candidates=candidates, seed=seed,
            concurrency=concurrency or default_concurrency(model),
        )  # fmt: skip
        check = judge_check_of(console, folder, user.record, user.store, style=style, price=prices, concurrency=concurrency)
    result |= {"twin": name} | ({} if check is None else {"judge_check": check})
    console.print(controls_table(result))
    print_look(console, name, home, f"usertwin controls {name}")
    write_json(json_file, result)


def _measure(
    console: Console, user: SimulatedUser, folder: Path, *, model: str, scorer: str, limit: int, candidates: int, seed: int,
    concurrency: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the result of a control experiment on a twin's validation turns; print its cost before it begins.

    UsageError if the memory nearly holds all of these turns.
    """
    from usertwin.evals.metrics.statistics import evenly_spaced
    from usertwin.evals.replay.leak_checks import all_repeat_error
    from usertwin.evals.traces.control_traces import ControlExperiment, estimated_calls, other_person_pairs
    from usertwin.evals.tuning.tune import fresh_validation_pairs
    from usertwin.memory import Synthesizer
    from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
    from usertwin.memory.recon.judged_fidelity import fidelity_by_name
    from usertwin.simulator import load_scorer

    with progress_bars(console) as bars, closing(CompletionCache(folder / COMPLETIONS_FILE)) as cache:
        embedder = user.store.embedder
        chat, scoring = replace(user.model, cache=cache), load_scorer(scorer, progress=bars.fetch)
        fresh, dropped = fresh_validation_pairs(user, folder)
        if dropped and not fresh:
            raise all_repeat_error(user.name)
        if dropped:
            of = f"{dropped} of {len(fresh) + dropped} validation turns"
            console.print(f"{of} nearly repeat the memory, and were dropped", style="yellow", markup=False)
        pairs, others = evenly_spaced(fresh, limit), other_person_pairs(user, folder, limit)
        completions, scorings = estimated_calls(len(pairs), len(others), candidates)
        console.print(
            f"{len(pairs)} validation turns: about {completions} completions of {model}, and {scorings} scored under {scorer}",
            style="dim", markup=False,
        )  # fmt: skip
        mode = user.record.recipe.proposal_mode
        synthesizer = Synthesizer(
            model=chat, fidelity=fidelity_by_name("guarded_gain", scorer=scoring, proposal_mode=mode), scorer=scoring,
            embedder=embedder, proposal_mode=mode, candidates=candidates,
        )  # fmt: skip
        experiment = ControlExperiment(
            synthesizer=synthesizer, model=chat, scorer=scoring, embedder=embedder, seed=seed, concurrency=concurrency
        )
        return run_sync(experiment.measure(pairs, others, user.store, name=user.persona.name, progress=bars))
