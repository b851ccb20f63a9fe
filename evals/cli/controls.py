"""The command `usertwin controls`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import click

from usertwin.personas import UsageError

from .learn import scorer_option
from .options import (
    Style,
    concurrency_of,
    concurrency_option,
    console_for,
    home_option,
    json_path,
    model_option,
    price_of,
    price_option,
    progress_bars,
    seed_option,
    style_option,
    write_json,
)
from .twin_actions import open_twin


@click.command()
@click.argument("name")
@click.option("--limit", default=60, show_default=True, help="On how many validation turns, spread evenly.")
@click.option("--candidates", default=4, show_default=True, help="How many traces are proposed for a moment.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure to this file; - for the screen.")
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
    style: Style | None,
) -> None:
    """Test whether the score of NAME's traces is more than leakage, with control traces on validation turns.

    Ends in a table and a decision. Nothing of the twin is changed but the answers that are kept; stopped, it goes on where
    it was.
    """
    from usertwin.evals.replay.tune import validation_pairs
    from usertwin.evals.reports.controls_table import controls_table
    from usertwin.evals.traces.control_traces import Controls, estimated_calls, other_moments
    from usertwin.memory import LikelihoodGain, Synthesizer, existing_twin
    from usertwin.memory.models.answer_cache import COMPLETIONS_FILE, CompletionCache
    from usertwin.simulator import load_scorer

    if limit < 2:
        raise UsageError(f"a limit of {limit}: controls need at least two turns")
    at_once, on_screen = concurrency_of(concurrency, model), json_path(json_file)
    console, folder = console_for(stderr=on_screen), existing_twin(name, home)
    opened = open_twin(console, name, home, model, style, seed, price=price_of(price), reasons=False)
    with opened as user, progress_bars(console) as bars:
        answers = CompletionCache(folder / COMPLETIONS_FILE)
        chat, likelihood, embedder = (
            replace(user.model, cache=answers),
            load_scorer(scorer, progress=bars.fetch),
            user.store.embedder,
        )
        pairs, others = validation_pairs(user, folder, limit), other_moments(user, folder, limit)
        how = user.record.recipe.proposal_mode
        texts, scorings = estimated_calls(len(pairs), len(others), candidates)
        console.print(
            f"{len(pairs)} validation turns: about {texts} texts of {model}, and {scorings} scored under {scorer}",
            style="dim", markup=False,
        )  # fmt: skip
        made = Controls(
            Synthesizer("recon", chat, LikelihoodGain(likelihood), likelihood, embedder, None, None, how, candidates),
            chat, likelihood, embedder, seed, concurrency=at_once,
        )  # fmt: skip
        try:
            found = asyncio.run(made.measure(pairs, others, user.store, name=user.persona.name, progress=bars))
        finally:
            answers.close()
    console.print(controls_table(found | {"twin": name}))
    write_json(json_file, found | {"twin": name})
