"""The commands `usertwin memory`: inspect, check, repair, extend and erase the memory of a twin.

They open the memory without the twin, so they also work on a memory that is too damaged for the twin to load. Only new traces
need a model.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from usertwin.memory.event_loop import run_sync
from usertwin.memory.store.vector_index import IndexKind

from .parts.options import (
    console_for,
    gap_option,
    home_option,
    model_option,
    print_notes,
    progress_bars,
    scorer_option,
    skip_bad_lines_option,
    twin_argument,
)

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory import ChatModel, Embedder
    from usertwin.memory.models.chat import PromptStyle
    from usertwin.memory.store.triple_store import MemoryStats


@click.group()
def memory() -> None:
    """Inspect, check, repair, extend and erase the memory of a twin."""


@memory.command()
@twin_argument
@home_option
def stats(name: str, home: Path | None) -> None:
    """Show the contents, the index and the files of the memory of NAME."""
    from usertwin.memory.twin.forget import open_memory

    console = console_for()
    folder, embedder, dated = _open_record(name, home)
    with _show_log_records(console), open_memory(folder, embedder) as store:
        memory_stats = store.stats()
    console.print(_stats_table(memory_stats, dated))


@memory.command()
@twin_argument
@home_option
def check(name: str, home: Path | None) -> None:
    """Verify the memory of NAME byte by byte and list its problems.

    The exit code is 1 if there are any, or if turns that were to be forgotten remain because "forget" was stopped. A damaged
    index does not count: it is rebuilt automatically.
    """
    from usertwin.memory.store.repair import inspect_memory
    from usertwin.memory.twin.forget import unfinished_forgetting
    from usertwin.memory.twin.record import twin_command

    console = console_for()
    folder, _, _ = _open_record(name, home)
    inspection = inspect_memory(folder)
    for problem in inspection.problems:
        console.print(f"memory.sqlite: {problem}", style="red", markup=False)
    if inspection.index_problem is not None:
        console.print(
            f"memory.faiss {inspection.index_problem}; it is rebuilt when the twin is next opened", style="yellow", markup=False
        )
    if inspection.not_closed:
        console.print("the memory was not closed, or another process is writing to it", style="yellow")
    remaining = unfinished_forgetting(folder)
    if remaining is not None:
        files = ", ".join(str(path.relative_to(folder.parent)) for path in remaining) or "no file"
        console.print(f"forgetting was stopped; what was to be forgotten is still in: {files}", style="red", markup=False)
        command = twin_command("memory stats", name, home)
        console.print(f"the next command that opens the twin erases it: {command}", markup=False, soft_wrap=True)
    if inspection.problems:
        command = twin_command("memory rebuild", name, home)
        console.print(f"{inspection.intact} triples are intact; keep them with: {command}", markup=False, soft_wrap=True)
        sys.exit(1)
    console.print(f"all {inspection.intact} triples are intact", markup=False)
    if remaining is not None:
        sys.exit(1)


@memory.command()
@twin_argument
@click.option(
    "--index",
    type=click.Choice(["auto", *get_args(IndexKind)]),
    help="Kind of the index; auto chooses by the number of triples.  [default: the present setting]",
)
@home_option
def rebuild(name: str, index: IndexKind | Literal["auto"] | None, home: Path | None) -> None:
    """Rebuild the index of NAME; keep all intact triples of a damaged memory."""
    from usertwin.memory import TripleStore
    from usertwin.memory.store.error_messages import changed_before
    from usertwin.memory.store.repair import inspect_memory, repair_memory
    from usertwin.memory.twin.forget import finish_forgetting
    from usertwin.memory.twin.locks import writing
    from usertwin.memory.twin.record import twin_command, update_record

    console = console_for()
    folder, embedder, dated = _open_record(name, home)
    with _show_log_records(console), writing(folder), changed_before("what is finished is kept"):
        if inspect_memory(folder).problems:
            kept, lost = repair_memory(folder, embedder.name)
            console.print(f"{kept} triples were kept, {lost} were unreadable and are lost", style="yellow")
            if lost:
                update_record(folder, lambda record: replace(record, closeness=None))  # it was that of another memory
                command = twin_command("memory add", name, home, "--from FILE")
                console.print(f"restore them from the log: {command}", markup=False, soft_wrap=True)
        finish_forgetting(folder, embedder)
        with TripleStore(folder, embedder, create=False) as store:
            store.rebuild(index)
            memory_stats = store.stats()
    console.print(_stats_table(memory_stats, dated))


@memory.command()
@twin_argument
@click.option("--from", "source", required=True, help="Another chat log of the same person.")
@click.option("--max-traces", default=0, show_default=True, help="Select traces for only this many of the latest new pairs.")
@model_option
@scorer_option
@gap_option
@skip_bad_lines_option
@home_option
def add(
    name: str, source: str, max_traces: int, model: str, scorer: str, gap: str | None, skip_bad_lines: bool, home: Path | None
) -> None:  # fmt: skip
    """Add the person's turns in another log to the memory of NAME.

    Pairs already in the memory and held-out conversations are skipped. Traces are scored and judged by the models that the twin
    was learned with, unless --scorer names another.
    """
    from usertwin.memory import TwinRecord
    from usertwin.memory.twin.append import aappend
    from usertwin.memory.twin.consent import check_consent
    from usertwin.personas import load_log
    from usertwin.personas.importers.assemble import make_rules
    from usertwin.simulator import load_model, load_scorer
    from usertwin.simulator.learning import default_concurrency

    console = console_for()
    folder, embedder, _ = _open_record(name, home)
    record = TwinRecord.load(folder)
    recipe = record.recipe
    with_traces = max_traces > 0 and recipe.method != "none"
    source_of, default = click.get_current_context().get_parameter_source, click.core.ParameterSource.DEFAULT
    chosen = {name for option, name in (("model", model), ("scorer", scorer)) if source_of(option) is not default}
    if source_of("model") is default:
        model = recipe.synthesizer or model  # the twin's other traces are by this synthesizer
    if source_of("scorer") is default:
        scorer = recipe.scorer or scorer
    if with_traces:
        check_consent(record, *({model, scorer, recipe.actor, recipe.judge} - chosen), folder=folder)
    log = load_log(source, skip_bad_lines=skip_bad_lines, rules=make_rules(gap=gap))
    print_notes(console, log)
    with _show_log_records(console), progress_bars(console) as bars:

        def load(name: str | None, style: PromptStyle | None = None) -> ChatModel | None:
            return load_model(name, style=style, progress=bars.fetch) if with_traces and name is not None else None

        _, added = run_sync(
            aappend(
                name, log, embedder=embedder, model=load(model), actor=load(recipe.actor),
                judge=load(recipe.judge, "instruction"),
                scorer=load_scorer(scorer, progress=bars.fetch) if with_traces else None,
                home=home, max_traces=max_traces, concurrency=default_concurrency(model), progress=bars,
            )
        )  # fmt: skip
    console.print(f"{added} pairs added" if added else "nothing added: every pair is known or held out")


@memory.command()
@twin_argument
@click.option("--conversation", help="Id of the conversation to erase.")
@click.option("--before", help="Erase everything before this date, such as 2026-05-31.")
@click.option("--after", help="Erase everything after this date; with --before, only what lies between.")
@home_option
def forget(name: str, conversation: str | None, before: str | None, after: str | None, home: Path | None) -> None:
    """Erase a conversation, or a time span, from every file of NAME; this cannot be undone."""
    from usertwin.memory.twin.forget import forget as erase
    from usertwin.memory.twin.forget import parse_date
    from usertwin.memory.twin.record import SESSIONS_FILE, twin_command

    console = console_for()
    folder, embedder, _ = _open_record(name, home)
    has_sessions = (folder / SESSIONS_FILE).exists()
    with _show_log_records(console):
        erased = erase(
            folder,
            embedder,
            conversation=conversation,
            before=None if before is None else parse_date(before),
            after=None if after is None else parse_date(after),
        )
    console.print(f"{erased.triples} pairs, and {erased.conversations} conversations held out or kept for comparison, erased")
    if has_sessions and not (folder / SESSIONS_FILE).exists():
        console.print("its sessions are erased, since the twin may have repeated the turns there", style="yellow")
    if erased.adapter:
        again = twin_command("learn", name, home, "--adapt")
        console.print(
            f"its adapter was trained on them, so it is deleted; train another one: {again}", style="yellow", markup=False,
            soft_wrap=True,
        )  # fmt: skip
    console.print("The log that the twin was learned from is unchanged; erase them there too.", style="dim")


def _open_record(name: str, home: Path | None) -> tuple[Path, Embedder, bool]:
    """Return a twin's folder, the embedding model of its memory, and whether its log has dates."""
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.simulator.reasoner import load_own_embedder

    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    return folder, load_own_embedder(record, folder), record.dated


@contextmanager
def _show_log_records(console: Console) -> Generator[None]:
    """Print the log records of the memory while the block runs, such as that the index was rebuilt."""

    class ConsoleHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), style="yellow", markup=False)

    handler, logger = ConsoleHandler(), logging.getLogger("usertwin.memory")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _stats_table(memory_stats: MemoryStats, dated: bool) -> Any:
    """Return a table of the contents, the index and the files of a memory."""
    from rich.table import Table
    from rich.text import Text

    def format_time(value: float | None) -> str:
        if value is None:
            return "–"
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="minutes") if dated else f"{value:g}"

    tuning, requested = memory_stats.tuning, memory_stats.requested_kind
    measured = f"measured on {tuning.queries} queries between its pairs" if tuning.queries else "every triple is compared"
    reasons = {"auto": "chosen by size", tuning.kind: "as requested"}
    reason = reasons.get(requested, f"{requested} is requested, but needs more triples")
    sizes = (("memory.sqlite", memory_stats.database_bytes), ("memory.faiss", memory_stats.index_bytes))
    rows = {
        "triples": f"{memory_stats.triples}, {memory_stats.traced} with a trace, {memory_stats.abandoned} abandonments",
        "conversations": f"{memory_stats.conversations}",
        "from, to": f"{format_time(memory_stats.first)}, {format_time(memory_stats.last)}"
        + ("" if dated else " (positions in the log)"),
        "index": f"{tuning.kind} ({reason})" + (f", searches {tuning.effort} clusters" if tuning.effort else ""),
        "recall@10": f"{tuning.recall_at_10:.3f} ({measured})",
        "not in the index": f"{memory_stats.tail} triples, compared one by one",
        "embeddings": f"{memory_stats.embedder}, {memory_stats.dimension} dimensions",
        "files": ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes),
        "format": f"{memory_stats.format}, {memory_stats.generation} transactions",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table
