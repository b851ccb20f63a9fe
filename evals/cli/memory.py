"""`usertwin memory`: look at a twin's memory, check it, mend it, let it grow, let it forget.

The one design choice: these commands only need the memory, never a chat model (but for new traces), so that they work on a
memory that a twin could not be loaded from any more.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import concurrency_of, console_for, home_option, model_option, progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory import Embedder
    from usertwin.memory.store.triple_store import MemoryStats


@click.group()
def memory() -> None:
    """Look at the memory of a twin, check and mend it, let it grow, let it forget."""


@memory.command()
@click.argument("name")
@home_option
def stats(name: str, home: Path | None) -> None:
    """Show what the memory of NAME holds, and how it is searched."""
    from usertwin.memory import TripleStore

    console = console_for()
    folder, embedder, dated = _twin(name, home)
    with _notices(console), TripleStore(folder, embedder, create=False) as store:
        found = store.stats()
    console.print(_stats_table(found, dated))


@memory.command()
@click.argument("name")
@home_option
def check(name: str, home: Path | None) -> None:
    """Read every byte of the memory of NAME, and say what is wrong. Exit code 1 if something is."""
    from usertwin.memory.store.repair import inspect

    console = console_for()
    folder, _, _ = _twin(name, home)
    found = inspect(folder)
    for sentence in found.problems:
        console.print(f"memory.sqlite: {sentence}", style="red", markup=False)
    if found.index is not None:
        console.print(f"memory.faiss {found.index}; it is built again when the twin is used next", style="yellow", markup=False)
    if found.unclosed:
        console.print("the last writer did not close it, or is still at work", style="yellow")
    if found.problems:
        console.print(f"{found.whole} triples are whole; keep them with: usertwin memory rebuild {name}", markup=False)
        sys.exit(1)
    console.print(f"all {found.whole} triples are whole", markup=False)


@memory.command()
@click.argument("name")
@click.option(
    "--index",
    type=click.Choice(["auto", "flat", "hnsw", "ivf", "ivfpq"]),
    help="The kind of index from now on.  [default: as it was; at first chosen by size]",
)
@home_option
def rebuild(name: str, index: Literal["auto", "flat", "hnsw", "ivf", "ivfpq"] | None, home: Path | None) -> None:
    """Build the index of NAME anew. Of a damaged memory every triple that is whole is kept."""
    from usertwin.memory import TripleStore
    from usertwin.memory.store.repair import inspect, salvage

    console = console_for()
    folder, embedder, dated = _twin(name, home)
    if inspect(folder).problems:
        kept, lost = salvage(folder, embedder.name)
        console.print(f"{kept} triples were kept, {lost} could not be read and are lost", style="yellow")
        if lost:
            console.print(f"bring them back from the log: usertwin memory add {name} --from FILE", markup=False)
    with _notices(console), TripleStore(folder, embedder, create=False) as store:
        store.rebuild(index)
        found = store.stats()
    console.print(_stats_table(found, dated))


@memory.command()
@click.argument("name")
@click.option("--from", "source", required=True, help="Another log of the same person.")
@click.option("--max-traces", default=0, show_default=True, help="Find traces for the latest so many of the new moments.")
@model_option
@click.option("--scorer", default="local", show_default=True, help="The model that scores traces.")
@click.option("--skip-bad-lines", is_flag=True, help="Read the rest of a log that has broken lines, and count those.")
@home_option
def add(name: str, source: str, max_traces: int, model: str, scorer: str, skip_bad_lines: bool, home: Path | None) -> None:
    """Add what the person said in another log to the memory of NAME; what is there already is skipped."""
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.twin.append import aappend
    from usertwin.personas import load_log
    from usertwin.simulator import load_model, load_scorer

    console = console_for()
    recipe = TwinRecord.load(existing_twin(name, home)).recipe
    if click.get_current_context().get_parameter_source("model") is click.core.ParameterSource.DEFAULT:
        model = recipe.synthesizer or model  # who proposed the traces that are there, if that is who the twin reasons with
    method = recipe.method
    _, embedder, _ = _twin(name, home)
    log = load_log(source, skip_bad_lines=skip_bad_lines)
    with _notices(console), progress_bars(console) as bars:
        wanted = max_traces > 0
        chat = load_model(model, progress=bars.fetch) if wanted and method != "none" else None
        likelihood = load_scorer(scorer, progress=bars.fetch) if wanted and method == "recon" else None
        _, new = asyncio.run(
            aappend(
                name, log, embedder=embedder, model=chat, scorer=likelihood, home=home, max_traces=max_traces,
                concurrency=concurrency_of(None, model), progress=bars,
            )
        )  # fmt: skip
    console.print(f"{new} new moments are remembered." if new else "nothing new: all of it was there, or is held out.")


@memory.command()
@click.argument("name")
@click.option("--conversation", help="The id of the conversation that is to be forgotten.")
@click.option("--before", help="Forget what was said before this date, such as 2026-05-31.")
@click.option("--after", help="Forget what was said after this date; with --before, what was said between.")
@home_option
def forget(name: str, conversation: str | None, before: str | None, after: str | None, home: Path | None) -> None:
    """Take a conversation, or what was said before or after a date, out of everything that NAME is made of. For good."""
    from usertwin.memory.twin.forget import forget as forget_it
    from usertwin.memory.twin.forget import moment_of

    console = console_for()
    folder, embedder, _ = _twin(name, home)
    with _notices(console):
        found = forget_it(
            folder,
            embedder,
            conversation=conversation,
            before=None if before is None else moment_of(before),
            after=None if after is None else moment_of(after),
        )
    console.print(f"{found.triples} moments and {found.conversations} other conversations are forgotten.")
    console.print("The log it was learned from is not touched: take them out there too.", style="dim")


def _twin(name: str, home: Path | None) -> tuple[Path, Embedder, bool]:
    """A twin's folder, the embedding model of its memory, and whether its log had dates."""
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.simulator import load_embedder

    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    return folder, load_embedder(record.recipe.embedder), record.dated


@contextmanager
def _notices(console: Console) -> Generator[None]:
    """Print what the memory has to tell, such as that its index was built again."""

    class Printed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), style="yellow", markup=False)

    handler, logger = Printed(), logging.getLogger("usertwin.memory")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _stats_table(found: MemoryStats, dated: bool) -> Any:
    from rich.table import Table

    def moment(value: float | None) -> str:
        if value is None:
            return "–"
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="minutes") if dated else f"{value:g}"

    tuning = found.tuning
    measured = f"measured on {tuning.queries} moments between its own" if tuning.queries else "every triple is compared"
    effort = {"hnsw": "candidates", "ivf": "clusters", "ivfpq": "clusters"}.get(tuning.kind, "")
    why = {"auto": "chosen by size", tuning.kind: "as wanted"}
    rows = {
        "triples": f"{found.triples}, {found.traced} with a trace, {found.left} silent leavings",
        "conversations": f"{found.conversations}",
        "from, to": f"{moment(found.first)}, {moment(found.last)}" + ("" if dated else " (places in the log)"),
        "index": f"{tuning.kind} ({why.get(found.wanted, f'{found.wanted} is wanted, for more triples than these')})"
        + (f", looks at {tuning.effort} {effort}" if tuning.effort else ""),
        "recall@10": f"{tuning.recall_at_10:.3f} ({measured})",
        "added since": f"{found.tail} triples, compared one by one",
        "embeddings": f"{found.embedder}, {found.dimension} numbers each",
        "files": f"memory.sqlite {found.database_bytes / 2**20:.1f} MiB, memory.faiss {found.index_bytes / 2**20:.1f} MiB",
        "format": f"{found.format}, {found.generation} transactions",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, text)
    return table
