"""Crash-safety benchmark: SIGKILL at random times, then a check of what is left. Needs an operating system that can fork.

Design: killed processes are forked from one that has imported everything but started no threads, so a kill costs milliseconds.
The check runs on a copy, so that the next process opens the files as the kill left them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel, Recipe, TripleStore, TwinRecord, alearn
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.synthesizer import Method
from usertwin.personas import ChatLog, Conversation, Turn
from usertwin.personas.chat_log import sort_by_time

from .figures import timed
from .large_memory import Prepared, short_triples, units

#: Longest run of a process before its kill in seconds, and the number of kills after which a new folder is used.
_MAX_SECONDS, _KILLS_PER_FOLDER = 0.5, 20
_DIMENSION = 384


@contextmanager
def quiet() -> Generator[None]:
    """Hide the log records about killed writers; hundreds of them are expected here."""
    log = logging.getLogger("usertwin.memory")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


# Processes that are killed -------------------------------------------------------------------------------------------


def _forked(work: Callable[[], object]) -> int:
    """Run `work` in a forked process that then exits; return the id of the process."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:  # must not propagate into the caller's code in the copy of this process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Kill a process after some seconds of `work`; return False if it failed before."""
    process = _forked(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _run_in_fork(work: Callable[[], Any]) -> Any:
    """Run `work` in a forked process; return {"result": its JSON value} or {"error": a sentence}."""
    readable, writable = os.pipe()

    def send() -> None:
        try:
            message = {"result": work()}
        except Exception as error:
            message = {"error": f"{type(error).__name__}: {error}"}
        os.write(writable, json.dumps(message).encode())

    process = _forked(send)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        message = pipe.read()
    os.waitpid(process, 0)
    return json.loads(message or b'{"error": "died"}')


# 200 kills while learning and appending ------------------------------------------------------------------------------


def killed(name: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill during learning and during appending in turn; return counts of lost and acknowledged items, and the problems."""
    import faiss  # noqa: F401 # pyright: ignore[reportUnusedImport] # imported here once, not in each fork
    import sklearn.linear_model  # noqa: F401 # pyright: ignore[reportUnusedImport]

    import usertwin.simulator.backends.scripted  # noqa: F401 # pyright: ignore[reportUnusedImport]

    rng, folder = random.Random(seed), Path(name)
    lost = acknowledged = 0
    unclean: list[str] = []
    with quiet():
        for number in range(kills):
            work, check = ((_append, check_appended), (_learn, check_learned))[number % 2]
            place, copy = folder / f"{number % 2}-{number // _KILLS_PER_FOLDER}", folder / "copy"
            place.mkdir(parents=True, exist_ok=True)
            worker_seed = rng.random()
            was_killed = _killed_after(
                rng.uniform(0, _MAX_SECONDS), lambda w=work, p=place, s=worker_seed: w(p, p / "acknowledged", s)
            )
            shutil.copytree(place, copy)
            message = _run_in_fork(lambda check=check, copy=copy: check(copy, copy / "acknowledged"))
            count = sum(_acknowledged(copy / "acknowledged").values())
            result = message.get("result", {"lost": count, "problems": [message.get("error")]})  # not opened: all is lost
            lost, acknowledged = lost + result["lost"], acknowledged + count
            unclean += result["problems"] if was_killed else ["the process failed before it was killed"]
            shutil.rmtree(copy)
    return {"lost": lost, "acknowledged": acknowledged, "unclean": unclean}


def _line_writer(path: Path) -> Callable[[str], None]:
    """Return a function that appends lines to a file; they survive a kill of this process."""
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def write(line: str) -> None:
        os.write(descriptor, f"{line}\n".encode())

    return write


def _append(folder: Path, acknowledged: Path, seed: float) -> None:
    """Add, save, close and open until killed; write the number of acknowledged triples to a file."""
    rng, write = random.Random(seed), _line_writer(acknowledged)
    store = TripleStore(folder / "memory", FakeEmbedder(_DIMENSION))
    while True:
        count = len(store)
        new = short_triples(count, rng.randint(1, 60))
        store.add(new)
        write(f"memory memories {count + len(new)}")
        if rng.random() < 0.2:
            store.save()
        elif rng.random() < 0.1:
            store.close()
            store = TripleStore(folder / "memory", FakeEmbedder(_DIMENSION))


def check_appended(folder: Path, acknowledged: Path) -> dict[str, Any]:
    """Return the number of acknowledged triples that are not in the memory, and its other problems."""
    count = _acknowledged(acknowledged).get(("memory", "memories"), 0)
    with TripleStore(folder / "memory", FakeEmbedder(_DIMENSION)) as store:
        lost = len(store.missing(short_triples(0, count)))
        return {"lost": lost, "problems": _problems(store)}


def _acknowledged(path: Path) -> dict[tuple[str, str], int]:
    """Return, for each memory and stage, the last acknowledged number."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {(name, stage): int(done) for name, stage, done in (line.split(" ") for line in lines)}


def _problems(store: TripleStore) -> list[str]:
    """Return the problems that an open memory reports, or that it does not recall the nearest triples."""
    import numpy as np

    problems, triples = store.problems(), list(store.triples())
    if problems or not triples:
        return problems
    vectors = store.embedder.embed([query_text(triple.pair) for triple in triples])
    for triple in triples[:: max(1, len(triples) // 3)]:
        query = replace(triple.pair, conversation_id="now")
        nearest = np.sort(vectors @ store.embedder.embed([query_text(query)])[0])[::-1][:8]
        similarities = [recalled.similarity for recalled in store.recall(query, 8, abandoned=None)]
        if len(similarities) != len(nearest) or not np.allclose(similarities, nearest, atol=1e-5):
            return ["a recall does not return the nearest triples"]
    return []


def small_log() -> ChatLog:
    """Return thirty conversations of Ann with a help desk."""

    def conversation(number: int) -> Conversation:
        texts = [f"question {number} {n}?" if n % 2 == 0 else f"answer {number} {n}" for n in range(20)]
        turns = tuple(Turn(("desk", "Ann")[n % 2], ("agent", "user")[n % 2], text) for n, text in enumerate(texts))
        return Conversation(f"talk-{number:03d}", turns, None)

    return ChatLog(sort_by_time([conversation(number) for number in range(30)], "bench"), "bench")


def small_recipe(method: Method, dimension: int) -> Recipe:
    """Return the recipe that Ann is learned by."""
    model, scorer = (None, None) if method == "none" else ("scripted:bench", "fake:")
    return Recipe(
        source="bench",
        speaker="Ann",
        method=method,
        candidates=2,
        max_triples=None,
        max_traces=60,
        window=6,
        embedder=f"fake:{dimension}",
        model=model,
        scorer=scorer,
        seed=0,
    )


def _learn(home: Path, acknowledged: Path, _: float) -> None:
    """Learn twins until killed, one after the other, the interrupted one first; write the progress to a file."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    write, recipe = _line_writer(acknowledged), small_recipe("recon", _DIMENSION)
    model = ChatModel("scripted:bench", ScriptedChatModel(answers=["wants to know it", "is in a hurry"]), "transcript")
    for name in (f"twin-{number}" for number in itertools.count()):
        if (home / name).exists() and TwinRecord.load(home / name).state == "complete":
            continue
        options: dict[str, Any] = {"embedder": FakeEmbedder(_DIMENSION), "model": model, "scorer": FakeScorer(), "home": home}

        def progress(stage: str, done: int, total: int, name: str = name) -> None:
            write(f"{name} {stage} {done}")

        asyncio.run(alearn(name, small_log(), recipe, progress=progress, **options))


def check_learned(home: Path, acknowledged: Path) -> dict[str, Any]:
    """Return the number of acknowledged triples and traces that are missing, and the other problems of the memories."""
    lost = 0
    problems: list[str] = []
    counts = _acknowledged(acknowledged)
    for name in {name for name, _ in counts}:
        folder = next(f for f in (home / name, home / f".{name}.partial") if f.exists())
        with TripleStore(folder, FakeEmbedder(_DIMENSION), create=False) as store:
            triples = list(store.triples())
            tried = sum(triple.provenance is not None for triple in triples)
            lost += max(0, counts.get((name, "memories"), 0) - len(triples)) + max(0, counts.get((name, "traces"), 0) - tried)
            problems += _problems(store)
    return {"lost": lost, "problems": problems}


# A kill during a save ------------------------------------------------------------------------------------------------


def _killed_in(share: float, save: Callable[[Callable[[], object]], None], seconds: float) -> None:
    """Kill a process during its save, after `share` of the `seconds` that a save takes."""
    readable, writable = os.pipe()

    def work() -> None:
        save(lambda: os.write(writable, b"."))
        time.sleep(60)  # a kill after the save is a valid case too

    process = _forked(work)
    os.close(writable)
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        pipe.read(1)
    time.sleep(share * seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def killed_in_save(name: str, count: int, dimension: int, kills: int) -> list[float]:
    """Kill while the index is built and written; return, for each kill, the share of acknowledged triples that is lost."""
    import numpy as np

    rng, vectors, folder = random.Random(0), np.random.default_rng(0), Path(name)
    with quiet():
        with TripleStore(folder, Prepared(dimension)) as store:
            store.add(short_triples(0, count), units(vectors, count, dimension))
            seconds = timed(lambda: (store.rebuild(), store.save()))
        more = max(1, count // 100)

        def save(begin: Callable[[], object]) -> None:
            store = TripleStore(folder, Prepared(dimension), create=False)
            store.add(short_triples(acknowledged, more), units(vectors, more, dimension))
            begin()
            store.rebuild()
            store.close()

        def loaded() -> int:
            with TripleStore(folder, Prepared(dimension), create=False) as store:
                return sum(1 for _ in store.triples())

        acknowledged, lost = count, list[float]()
        for _ in range(kills):
            _killed_in(rng.random(), save, seconds)
            acknowledged += more
            lost.append(1 - _run_in_fork(loaded).get("result", 0) / acknowledged)
    return lost


def killed_in_save_langchain(name: str, count: int, dimension: int, kills: int) -> list[float]:
    """Return the same for LangChain's FAISS vector store: the share saved before that cannot be loaded after the kill."""
    import numpy as np
    from langchain_community.vectorstores import FAISS
    from langchain_core.embeddings import FakeEmbeddings

    rng, vectors, embedding = random.Random(0), np.random.default_rng(0), FakeEmbeddings(size=dimension)
    folder, good = Path(name) / "killed", Path(name) / "good"

    def rows(start: int, count: int) -> tuple[list[Any], list[dict[str, Any]]]:
        triples = short_triples(start, count)
        texts = [query_text(triple.pair) for triple in triples]
        return list(zip(texts, units(vectors, count, dimension), strict=True)), [asdict(triple) for triple in triples]

    pairs, metadata = rows(0, count)
    store: Any = FAISS.from_embeddings(pairs, embedding, metadata)
    seconds = timed(lambda: store.save_local(str(good)))
    more, details = rows(count, max(1, count // 100))

    def save(begin: Callable[[], object]) -> None:
        store.add_embeddings(more, details)
        begin()
        store.save_local(str(folder))

    def loaded() -> int:
        remaining: Any = FAISS.load_local(str(folder), embedding, allow_dangerous_deserialization=True)
        ids = remaining.index_to_docstore_id
        return sum(n in ids and ids[n] in remaining.docstore._dict for n in range(remaining.index.ntotal))

    lost: list[float] = []
    for _ in range(kills):
        shutil.copytree(good, folder)
        _killed_in(rng.random(), save, seconds)
        lost.append(1 - min(count, _run_in_fork(loaded).get("result", 0)) / count)
        shutil.rmtree(folder)
    return lost
