"""Figures of speed, each a ratio or a time measured against the other side in the same run: `make bench [ONLY=name]`.

The one design choice: both sides of a ratio run in turn, many times, and the figure is the median of the ratios with their
quartiles, so that a busy machine slows both alike. What is printed is also written to build/bench.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from usertwin.evals.cli.demo import SPEAKER
from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.personas import ModelError
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, load_embedder, load_model, load_scorer, simulate
from usertwin.simulator.backends.llama_cpp import cores, start_engine
from usertwin.simulator.backends.downloads import TINY, fetch

from .figures import Figure, figure, noted_questions, timed
from .memory import memory_part
from .recon import controls_part, recon_part
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
    """How long the command line and an unused plugin take to be there."""
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
    """A twin's turn with the local model, against the bare engine given the same prompts in the same order."""
    with tempfile.TemporaryDirectory() as home:
        user = _bench_twin(home)
        bare = start_engine(fetch(TINY), "transcript")  # a second engine, so that neither profits from the other's cache
        turns, rates, cached = list[float](), list[float](), list[float]()
        messages = [{"role": "assistant", "content": "Hey, how is your day going?"}]
        asked = noted_questions(user.model)
        user.abandonment = None  # it is to talk on
        for turn in range(24):
            asked.clear()
            began = time.perf_counter()
            answer = user.respond(messages)
            seconds = time.perf_counter() - began
            bare_seconds = 0.0
            bare_tokens = 0
            for payload in map(_for_engine, asked):
                began = time.perf_counter()
                reply: Any = bare.handle_chat_completions(payload)
                bare_seconds += time.perf_counter() - began
                bare_tokens += int(_usage(reply)["completion_tokens"])
            if turn >= 4:  # after warm-up
                turns.append(seconds)
                rates.append((answer.usage.output_tokens / seconds) / (bare_tokens / bare_seconds))
                cached.append(answer.usage.cached_tokens / answer.usage.input_tokens)
            messages += [answer.message, {"role": "assistant", "content": _SMALL_TALK[turn % len(_SMALL_TALK)]}]
        user.close()
    yield "twin.turn_s", figure(turns, "s", "bar: 6 s on 2 cores")
    yield "twin.tokens_per_s_vs_engine", figure(rates, "ratio", "bare xllamacpp, the same prompts and seeds (bar: 0.9)")
    yield "twin.prompt_cache_share", figure(cached, "share", "all prompt tokens of the turn")


_SMALL_TALK = (
    "Oh nice. What do you like about it?",
    "Same here. Did you do anything fun last weekend?",
    "I have never tried that. Is it hard?",
    "Haha, fair enough. So what are your plans for the summer?",
    "Cool! Do you have any pets?",
    "I see. What kind of music do you listen to?",
)


def _usage(reply: Any) -> dict[str, Any]:
    found = json.loads(reply) if isinstance(reply, str | bytes) else reply
    return found["usage"]


def _for_engine(question: str) -> dict[str, Any]:
    """What the twin's model was asked, as the engine is asked."""
    sent: dict[str, Any] = json.loads(question)
    extra = sent.pop("extra_body", {})  # the client puts these beside the others
    return {**sent, **extra, "stream": False}


def _bench_twin(home: str) -> SimulatedUser:
    """A twin with 200 moments, a few of them with traces."""
    log, embedder = load_chitchat(), load_embedder()
    model, scorer = load_model("local"), load_scorer("local")
    recipe = Recipe(
        source="chitchat", speaker=SPEAKER, method="recon", candidates=2, max_triples=200, max_traces=40, window=6,
        embedder=embedder.name, model=model.name, scorer=scorer.name, seed=0,
    )  # fmt: skip
    asyncio.run(alearn("bench", log, recipe, embedder=embedder, model=model, scorer=scorer, home=home))
    return SimulatedUser.load("bench", home=home, model=model, embedder=embedder)


_QUESTION = "Which number would you like?"


def simulate_part() -> Iterator[tuple[str, Figure]]:
    """What a conversation costs beside its model, against openevals' loop: both with the same scripted model."""
    try:
        from openevals.simulators import create_llm_simulated_user, run_multiturn_simulation
    except ImportError:
        raise ModelError("simulate.vs_openevals compares with openevals; run: pip install openevals") from None
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    os.environ.setdefault("LANGSMITH_TRACING", "false")
    chat = ScriptedChatModel(answers=[f"I would like number {i}, please" for i in range(50)])

    def reply(message: Any, **_: Any) -> dict[str, str]:
        return {"role": "assistant", "content": _QUESTION, "id": str(time.time_ns())}

    def agent(messages: list[dict[str, Any]]) -> str:
        return _QUESTION

    with tempfile.TemporaryDirectory() as home:
        log, embedder = load_chitchat(), load_embedder("fake:")
        recipe = Recipe(
            source="chitchat",
            speaker=SPEAKER,
            method="none",
            candidates=1,
            max_triples=200,
            max_traces=None,
            window=6,
            embedder=embedder.name,
            model=None,
            scorer=None,
            seed=0,
        )
        asyncio.run(alearn("bench", log, recipe, embedder=embedder, home=home))
        user = SimulatedUser.load("bench", home=home, model=ChatModel("scripted:bench", chat), embedder=embedder)
        user.last_turn = user.abandonment = None
        theirs = create_llm_simulated_user(system="You want a number.", client=chat)
        ratios: list[float] = []
        for _ in range(9):
            ours_s = timed(lambda: simulate(user, agent, max_turns=10))
            theirs_s = timed(lambda: run_multiturn_simulation(app=reply, user=theirs, max_turns=10))
            ratios.append(ours_s / theirs_s)
        user.close()
    yield "simulate.vs_openevals", figure(ratios, "ratio", "openevals, 10 turns, scripted model; ours also recalls and reasons")


_PARTS: dict[str, Callable[[], Iterator[tuple[str, Figure]]]] = {
    "cli": cli_part,
    "twin": twin_part,
    "recon": recon_part,
    "eval": eval_part,
    "simulate": simulate_part,
    "memory": memory_part,
    "controls": controls_part,
    "train": train_part,
}


@click.command()
@click.option("--only", type=click.Choice(list(_PARTS)), help="Measure only this part.")
@click.option("--out", default="build/bench.json", type=click.Path(path_type=Path), show_default=True)
def main(only: str | None, out: Path) -> None:
    """Measure, print a table, and write the figures to a file; figures of other parts in it are kept."""
    console = Console(highlight=False)
    for name, part in _PARTS.items():
        if only in {None, name}:
            with console.status(f"measuring {name}"):
                found = dict(part())
            _show(console, found)
            _write(out, found)  # a part that fails takes no other with it
    console.print(f"written to {out}", style="dim")


def _show(console: Console, found: dict[str, Figure]) -> None:
    table = Table("figure", "median", "low to high", "n", "against")
    for name, one in found.items():
        table.add_row(name, f"{one.value:.4g} {one.unit}", f"{one.low:.4g} to {one.high:.4g}", str(one.n), one.against)
    console.print(table)


def _write(out: Path, found: dict[str, Figure]) -> None:
    known: dict[str, Any] = json.loads(out.read_text("utf-8"))["figures"] if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cores": cores(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    report = {
        "figures": known | {name: asdict(one) for name, one in found.items()},
        "machine": machine,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
