"""The check of the judge whose ranks are a twin's fidelity, for `usertwin learn` and `usertwin controls`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.evals.records.result_shapes import ListwiseCheckShape
from usertwin.memory.event_loop import run_sync
from usertwin.personas.reading import as_type

from .options import progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory import Embedder, TripleStore, TwinRecord
    from usertwin.memory.models.chat import Price, PromptStyle


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
    from usertwin.evals.judges.listwise_checks import check_twin_judge
    from usertwin.memory.twin.consent import check_consent
    from usertwin.simulator import load_model
    from usertwin.simulator.learning import default_concurrency

    recipe = record.recipe
    if not recipe.ranked_by_judge or recipe.judge is None or recipe.actor is None:
        return None
    with suppress(ValueError):  # not checked yet, or damaged
        return as_type(ListwiseCheckShape, record.judge_check)
    check_consent(record, recipe.judge, recipe.actor)
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
