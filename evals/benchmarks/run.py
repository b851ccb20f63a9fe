"""Run the benchmarks, print their figures and write build/bench.json: `make bench [ONLY=name]`.

Design: the two sides of a ratio run alternately and the figure is the median of the ratios, so a busy machine slows both alike.
"""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import Recipe, alearn
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.own_words.word_weights import WordWeights
from usertwin.memory.twin.reranking import DEFAULT_RERANKING
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, load_embedder, load_model, load_scorer
from usertwin.simulator.backends.downloads import TINY, fetch
from usertwin.simulator.backends.llama_cpp import cores, start_engine

from .canaries import canaries_part
from .conversations.engine import concurrency_figures
from .conversations.first_token import serve_part
from .conversations.kept_and_killed import kept_connections_part, killed_runs_part
from .conversations.part import simulate_part
from .figures import Figure, figure, ratios, record_requests, run_alternately, timed
from .fuzz.part import fuzz_part
from .hostile_agents.run import hostile_part
from .importing.part import import_part
from .kill_points import crash_part
from .learning import learn_part, threads_part
from .memory import memory_part
from .recon import controls_part, recon_part
from .run_view.part import view_part
from .scale_out.part import scale_out_part
from .scoring import eval_part
from .training import train_part

_PACKAGES = (
    "usertwin",
    "xllamacpp",
    "torch",
    "transformers",
    "langgraph",
    "langchain-openai",
    "openevals",
    "faiss-cpu",
    "langchain-community",
    "trl",
    "peft",
)


# Each part yields (name, figure) -------------------------------------------------------------------------------------


def cli_part() -> Iterator[tuple[str, Figure]]:
    """Yield the startup times of the command line and of the unused pytest plugin."""
    usertwin = Path(sys.executable).parent / "usertwin"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True)

    yield "cli.help_s", figure([timed(lambda: run(usertwin, "--help")) for _ in range(15)], "s", "bar: 0.3 s")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_nothing.py").write_text("def test_nothing(): pass\n")
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
        extra = [1000 * (timed(lambda: run(*pytest)) - timed(lambda: run(*pytest, "-p", "no:usertwin"))) for _ in range(11)]
    yield "plugin.startup_ms", figure(extra, "ms", "the same pytest run without the plugin")


def twin_part() -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a twin's turn with the local model, against the bare engine with the same prompts."""
    with tempfile.TemporaryDirectory() as home:
        user = _bench_twin(home)
        bare = start_engine(fetch(TINY), "transcript")  # a second engine, with a cache of its own
        turns, rates, cached = list[float](), list[float](), list[float]()
        messages = [{"role": "assistant", "content": "Hey, how is your day going?"}]
        requests = record_requests(user.model)
        user.abandonment = None  # the chat must not end early
        for turn in range(24):
            requests.clear()
            start = time.perf_counter()
            answer = user.respond(messages)
            seconds = time.perf_counter() - start
            bare_seconds = 0.0
            bare_tokens = 0
            for payload in map(_engine_payload, requests):
                start = time.perf_counter()
                reply: Any = bare.handle_chat_completions(payload)
                bare_seconds += time.perf_counter() - start
                bare_tokens += int(_usage(reply)["completion_tokens"])
            if turn >= 4:  # after warm-up
                turns.append(seconds)
                rates.append((answer.usage.output_tokens / seconds) / (bare_tokens / bare_seconds))
                cached.append(answer.usage.cached_tokens / answer.usage.input_tokens)
            messages += [answer.message, {"role": "assistant", "content": _SMALL_TALK[turn % len(_SMALL_TALK)]}]
        with_words, alone = _seconds_per_token(user)
        concurrency = dict(concurrency_figures(user))
        best = _best_of_seconds(user)
        user.close()
    yield from concurrency.items()
    yield "twin.turn_s", figure(turns, "s", "bar: 6 s on 2 cores")
    yield "twin.tokens_per_s_vs_engine", figure(rates, "ratio", "bare xllamacpp, the same prompts and seeds (bar: 0.95)")
    yield "twin.prompt_cache_share", figure(cached, "share", "all prompt tokens of a turn after the first (bar: 0.6)")
    yield "twin.words_token_time_vs_model", figure(ratios(with_words, alone), "ratio", "the model alone, whole turns")
    yield (
        "twin.best_of_turn_s",
        figure(best, "s", "the best of 4 replies and the recalled answers, own words (bar: 3 s on 2 cores)"),
    )


def _best_of_seconds(user: SimulatedUser) -> list[float]:
    """Return the time of turns that are the best of several, with own words."""
    user.settings = replace(user.settings, traces="none", reasons=False, words=DEFAULT_WEIGHTS, reranking=DEFAULT_RERANKING)
    seconds = list[float]()
    for number in range(12):
        start = time.perf_counter()
        user.respond([{"role": "assistant", "content": _SMALL_TALK[number % len(_SMALL_TALK)]}], seed=number)
        seconds.append(time.perf_counter() - start)
    return seconds[2:]  # after warm-up


def _seconds_per_token(user: SimulatedUser) -> tuple[list[float], list[float]]:
    """Return the time of a turn for each token that it has, prompt included, with own words and without."""
    settings = user.settings

    def write(words: WordWeights | None) -> Callable[[int], float]:
        def respond(number: int) -> float:
            user.settings = replace(settings, traces="none", reasons=False, words=words)
            start = time.perf_counter()
            answer = user.respond([{"role": "assistant", "content": _SMALL_TALK[number % len(_SMALL_TALK)]}], seed=number)
            return (time.perf_counter() - start) / max(1, answer.usage.output_tokens)

        return respond

    sides = write(DEFAULT_WEIGHTS), write(None)
    sides[0](0)  # the words of the memory are read once
    with_words, alone = run_alternately(12, *sides)
    return with_words, alone


_SMALL_TALK = (
    "Oh nice. What do you like about it?",
    "Same here. Did you do anything fun last weekend?",
    "I have never tried that. Is it hard?",
    "Haha, fair enough. So what are your plans for the summer?",
    "Cool! Do you have any pets?",
    "I see. What kind of music do you listen to?",
)


def _usage(reply: Any) -> dict[str, Any]:
    return (json.loads(reply) if isinstance(reply, str | bytes) else reply)["usage"]


def _engine_payload(request: str) -> dict[str, Any]:
    """Return a recorded request in the form that the engine takes."""
    payload: dict[str, Any] = json.loads(request)
    extra = payload.pop("extra_body", {})  # the client merges these into the payload
    return {**payload, **extra, "stream": False}


def _bench_twin(home: str) -> SimulatedUser:
    """Learn a twin with 200 triples, of which 40 get traces."""
    log, embedder = load_chitchat(), load_embedder()
    model, scorer = load_model("local"), load_scorer("local")
    recipe = Recipe(
        source="chitchat", speaker=ROBIN.speaker, method="recon", candidates=2, max_triples=200, max_traces=40, window=6,
        embedder=embedder.name, model=model.name, scorer=scorer.name, seed=0,
    )  # fmt: skip
    asyncio.run(alearn("bench", log, recipe, embedder=embedder, model=model, scorer=scorer, home=home))
    return SimulatedUser.load("bench", home=home, model=model, embedder=embedder)


_PARTS: dict[str, Callable[[], Iterator[tuple[str, Figure]]]] = {
    "cli": cli_part,
    "twin": twin_part,
    "recon": recon_part,
    "eval": eval_part,
    "simulate": simulate_part,
    "memory": memory_part,
    "controls": controls_part,
    "train": train_part,
    "import": import_part,
    "learn": learn_part,
    "fuzz": fuzz_part,
    "crash": crash_part,
    "canaries": canaries_part,
    "threads": threads_part,
    "hostile": hostile_part,
    "ray": scale_out_part,
    "connections": kept_connections_part,
    "kills": killed_runs_part,
    "view": view_part,
    "serve": serve_part,
}


@click.command()
@click.option("--only", type=click.Choice(list(_PARTS)), help="Run only this part.")
@click.option("--out", default="build/bench.json", type=click.Path(path_type=Path), show_default=True)
def main(only: str | None, out: Path) -> None:
    """Run the benchmarks, print their figures and write them to a file; figures of other parts stay in it."""
    console = Console(highlight=False)
    for name, part in _PARTS.items():
        if only in {None, name}:
            with console.status(f"measuring {name}"):
                figures = dict(part())
            _show(console, figures)
            _write(out, figures)  # before the next part, which may fail
    console.print(f"written to {out}", style="dim")


def _show(console: Console, figures: dict[str, Figure]) -> None:
    table = Table("figure", "median", "low to high", "n", "against")
    for name, row in figures.items():
        table.add_row(name, f"{row.value:.4g} {row.unit}", f"{row.low:.4g} to {row.high:.4g}", str(row.n), row.against)
    console.print(table)


def _write(out: Path, figures: dict[str, Figure]) -> None:
    known: dict[str, Any] = json.loads(out.read_text("utf-8"))["figures"] if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cores": cores(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    report = {
        "figures": known | {name: asdict(row) for name, row in figures.items()},
        "machine": machine,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
