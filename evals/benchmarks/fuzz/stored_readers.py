"""The readers of what usertwin stores: twins, memories, caches, runs and trainings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from usertwin.evals.judges.human_judge import agreement, agreement_view, read_labels
from usertwin.evals.judges.model_judge import summarize_verdicts
from usertwin.evals.records.measured_turns import (
    LABELS,
    MANIFEST,
    RESULT,
    VERDICTS,
    read_facts,
    read_result,
    read_turns,
)
from usertwin.evals.records.mirrorbench_export import mirrorbench_lines
from usertwin.evals.records.training_run import is_training, read_training
from usertwin.evals.records.verdicts import read_verdicts
from usertwin.evals.reports.compare_runs import compare, comparison_table
from usertwin.evals.reports.html import render_html
from usertwin.evals.reports.terminal import closeness_table
from usertwin.evals.reports.training_summary import training_page
from usertwin.evals.reports.twin_view import settings_table, twin_view
from usertwin.evals.reports.write_reports import render_markdown
from usertwin.memory import TripleStore, TwinRecord
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.store.repair import inspect_memory
from usertwin.memory.twin.abandonment import AbandonmentModel
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.memory.twin.record import read_stored_conversations
from usertwin.personas import read_conversations, split_pairs

from . import examples
from .mutations import (
    mutate_bytes,
    mutate_gzip,
    mutate_json,
    mutate_lines,
)
from .reader import Reader, from_database, from_file, from_folder, mutate_database, sampled, show, written

#: The memory's files in a twin's folder.
_MEMORY = ("memory.sqlite", "memory.faiss", "memory.seal")


def twin_readers(folder: Path) -> list[Reader]:
    """Return the readers of a twin's files and caches."""
    twin = examples.learn_twin(folder / "home")
    examples.write_caches(folder)
    held_out, record = twin / "held_out.jsonl.gz", (twin / "twin.json").read_bytes()
    pair = split_pairs(read_conversations(written(folder / "whole.jsonl", examples.logs()[0])), examples.SPEAKER).corpus[0]

    def show_record(_: Path) -> None:
        loaded = TwinRecord.load(folder / "copy")
        show(twin_view(loaded, [], None, None))
        if loaded.settings is not None:
            show(settings_table(loaded.settings))

    def last_turn(path: Path) -> None:
        model = LastTurnModel.load(path)
        assert model is None or model.probability(pair) >= 0
        show(twin_view(TwinRecord.load(twin), [], model, None))

    def abandonment(path: Path) -> None:
        show(twin_view(TwinRecord.load(twin), [], None, AbandonmentModel.load(path)))

    def scores(path: Path) -> None:
        CachedScorer(FakeScorer(), path).score([("a b", "b c")])

    (folder / "copy").mkdir()
    memory = {name: (twin / name).read_bytes() for name in _MEMORY}
    read_memory = partial(_read_memory, folder / "memory", memory, pair)
    return [
        Reader(
            name="twin.json",
            inputs=[record],
            mutate=mutate_json,
            weight=2,
            read=from_file(folder / "copy" / "twin.json", show_record),
        ),
        Reader(
            name="ending.json",
            inputs=[(twin / "ending.json").read_bytes()],
            mutate=mutate_json,
            read=from_file(folder / "ending.json", last_turn),
            weight=2,
        ),
        Reader(
            name="leaving.json",
            inputs=[(twin / "leaving.json").read_bytes()],
            mutate=mutate_json,
            read=from_file(folder / "leaving.json", abandonment),
            weight=2,
        ),
        Reader(
            name="held-out turns",
            inputs=[held_out.read_bytes()],
            mutate=mutate_gzip(mutate_lines),
            read=from_file(folder / "held_out.jsonl.gz", read_stored_conversations),
            weight=2,
        ),
        Reader(
            name="answers.sqlite",
            inputs=[(folder / "answers.sqlite").read_bytes()],
            mutate=partial(mutate_database, folder),
            read=from_database(folder / "a.sqlite", examples.complete),
            weight=1,
        ),
        Reader(
            name="score cache",
            inputs=[(folder / "scores.sqlite").read_bytes()],
            mutate=partial(mutate_database, folder),
            read=from_database(folder / "s.sqlite", scores),
            weight=1,
        ),
        Reader(
            name="memory.sqlite",
            inputs=[memory["memory.sqlite"]],
            mutate=partial(mutate_database, folder),
            read=partial(read_memory, "memory.sqlite"),
            weight=1,
        ),
        Reader(
            name="memory.faiss",
            inputs=[memory["memory.faiss"]],
            mutate=mutate_bytes,
            read=partial(read_memory, "memory.faiss"),
            weight=1,
        ),
        Reader(
            name="memory.seal",
            inputs=[memory["memory.seal"]],
            mutate=mutate_bytes,
            read=partial(read_memory, "memory.seal"),
            weight=1,
        ),
    ]


def _read_memory(folder: Path, memory: Mapping[str, bytes], pair: Any, name: str, content: bytes) -> None:
    """Check a memory of which one file is replaced, open it, and recall from it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, valid in memory.items():
        (folder / file).write_bytes(content if file == name else valid)
    inspect_memory(folder)
    with TripleStore(folder, examples.EMBEDDER, create=False) as store:
        list(store.triples())
        store.recall(pair, 4)
        store.stats()


def run_readers(folder: Path) -> list[Reader]:
    """Return the readers of runs and trainings."""
    run, other = folder / "run", folder / "other"
    manifest = json.dumps({"format": 1, "kind": "closeness", "state": "complete", "suite": {}}).encode()
    result, turns = json.dumps(examples.result()).encode(), [json.dumps(turn.to_json()) for turn in examples.turns()]
    for place in (run, other):
        (place / "people").mkdir(parents=True)
        (place / MANIFEST).write_bytes(manifest)
        (place / RESULT).write_bytes(result)
        (place / "people" / "0.jsonl").write_text("\n".join(turns) + "\n")
    known_result, known_turns = read_result(other), read_turns(other)
    known_verdicts = examples.verdicts()

    def report(_: Path) -> None:
        found = read_result(run)
        render_html(found, known_turns)
        render_markdown(found)
        if not sampled(found):
            return
        show(comparison_table(compare(known_result, found, [], [])))
        if found.get("models"):
            show(closeness_table(found))

    def measured(_: Path) -> None:
        found = read_turns(run)
        render_html(known_result, found)
        list(mirrorbench_lines(found, "recalled_pairs"))

    def judged(path: Path) -> None:
        if sampled(found := read_verdicts(path)):
            summarize_verdicts(found)

    def labelled(path: Path) -> None:
        if sampled(found := read_labels(path)):
            show(agreement_view(agreement(found, known_verdicts)))

    def trained(_: Path) -> None:
        if is_training(folder / "training"):
            training_page(read_training(folder / "training"))

    training_manifest, outcome = (json.dumps(value).encode() for value in examples.training())
    (folder / "training" / "dpo").mkdir(parents=True)
    (folder / "training" / MANIFEST).write_bytes(training_manifest)
    written(folder / "training" / "dpo" / RESULT, outcome)
    restored = partial(
        from_folder, run, {MANIFEST: manifest, RESULT: result, "people/0.jsonl": ("\n".join(turns) + "\n").encode()}
    )
    trainings = partial(from_folder, folder / "training", {MANIFEST: training_manifest, f"dpo/{RESULT}": outcome})
    return [
        Reader(name="manifest of a run", inputs=[manifest], mutate=mutate_json, read=restored(MANIFEST, read_result), weight=1),
        Reader(name="result of a run", inputs=[result], mutate=mutate_json, read=restored(RESULT, report), weight=3),
        Reader(
            name="measured turns",
            inputs=["\n".join(turns).encode()],
            mutate=mutate_lines,
            read=restored("people/0.jsonl", measured),
            weight=3,
        ),
        Reader(
            name="facts of a person",
            inputs=[json.dumps(examples.facts()).encode()],
            mutate=mutate_json,
            read=from_file(folder / "0.json", read_facts),
        ),
        Reader(
            name="verdicts",
            inputs=["\n".join(json.dumps(v.to_json()) for v in known_verdicts).encode()],
            mutate=mutate_lines,
            read=from_file(folder / VERDICTS, judged),
            weight=1,
        ),
        Reader(
            name="labels",
            inputs=["\n".join(json.dumps(v.to_json()) for v in examples.labels()).encode()],
            mutate=mutate_lines,
            read=from_file(folder / LABELS, labelled),
            weight=1,
        ),
        Reader(
            name="manifest of a training", inputs=[training_manifest], mutate=mutate_json, read=trainings(MANIFEST, trained)
        ),
        Reader(name="result of a training", inputs=[outcome], mutate=mutate_json, read=trainings(f"dpo/{RESULT}", trained)),
    ]
