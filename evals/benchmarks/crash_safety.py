"""What is lost when a process is killed: SIGKILL at random moments, then a look at what is left. Needs a system that can fork.

The one design choice: the processes that are killed are forked from one that has imported everything but started no threads, so
that a kill costs milliseconds; and what was left is judged on a copy, so that the next process meets it as it was left.
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

#: The longest that a process may work before it is killed, and after how many kills it starts from nothing.
_LONGEST_S, _FRESH_AFTER = 0.5, 20
_DIMENSION = 384


@contextmanager
def quiet() -> Generator[None]:
    """Without the notices of memories that were killed: here they are expected, hundreds of them."""
    log = logging.getLogger("usertwin.memory")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


# Processes that are killed -------------------------------------------------------------------------------------------


def _forked(work: Callable[[], object]) -> int:
    """The id of a process that does this work and is gone."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:  # in a copy of this process nobody else may see it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Kill a process while it does this work; False if it failed before."""
    process = _forked(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _found_in_fork(work: Callable[[], Any]) -> Any:
    """What the work gives, as JSON, in a forked process; the error as a sentence, if there was one."""
    readable, writable = os.pipe()

    def tell() -> None:
        try:
            found = {"found": work()}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        os.write(writable, json.dumps(found).encode())

    process = _forked(tell)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    return json.loads(said or b'{"error": "died"}')


# 200 kills while learning and appending ------------------------------------------------------------------------------


def killed(name: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill as often while learning as while appending; what was lost, of how many, and a sentence for each unclean open."""
    import faiss  # noqa: F401 # pyright: ignore[reportUnusedImport] # imported once, here, and not in each fork
    import sklearn.linear_model  # noqa: F401 # pyright: ignore[reportUnusedImport]

    import usertwin.simulator.backends.scripted  # noqa: F401 # pyright: ignore[reportUnusedImport]

    rng, folder = random.Random(seed), Path(name)
    lost = acknowledged = 0
    unclean: list[str] = []
    with quiet():
        for number in range(kills):
            work, judge = ((_append, judge_appended), (_learn, judge_learned))[number % 2]
            place, copy = folder / f"{number % 2}-{number // _FRESH_AFTER}", folder / "copy"
            place.mkdir(parents=True, exist_ok=True)
            chance = rng.random()
            sane = _killed_after(rng.uniform(0, _LONGEST_S), lambda w=work, p=place, c=chance: w(p, p / "told", c))
            shutil.copytree(place, copy)
            said = _found_in_fork(lambda judge=judge, copy=copy: judge(copy, copy / "told"))
            told = sum(_acknowledged(copy / "told").values())
            found = said.get("found", {"lost": told, "wrong": [said.get("error")]})  # what cannot be opened is lost
            lost, acknowledged = lost + found["lost"], acknowledged + told
            unclean += found["wrong"] if sane else ["the process failed before it was killed"]
            shutil.rmtree(copy)
    return {"lost": lost, "acknowledged": acknowledged, "unclean": unclean}


def _teller(told: Path) -> Callable[[str], None]:
    """Write lines that outlive a kill of this process."""
    descriptor = os.open(told, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def tell(line: str) -> None:
        os.write(descriptor, f"{line}\n".encode())

    return tell


def _append(folder: Path, told: Path, seed: float) -> None:
    """Add, save, close and open until killed; tells how many triples are acknowledged."""
    rng, tell = random.Random(seed), _teller(told)
    store = TripleStore(folder / "memory", FakeEmbedder(_DIMENSION))
    while True:
        have = len(store)
        new = short_triples(have, rng.randint(1, 60))
        store.add(new)
        tell(f"memory memories {have + len(new)}")
        if rng.random() < 0.2:
            store.save()
        elif rng.random() < 0.1:
            store.close()
            store = TripleStore(folder / "memory", FakeEmbedder(_DIMENSION))


def judge_appended(folder: Path, told: Path) -> dict[str, Any]:
    """How many triples that were told to be in the memory are not, and what else is wrong with it."""
    acknowledged = _acknowledged(told).get(("memory", "memories"), 0)
    with TripleStore(folder / "memory", FakeEmbedder(_DIMENSION)) as store:
        lost = len(store.missing(short_triples(0, acknowledged)))
        return {"lost": lost, "wrong": _wrong_with(store)}


def _acknowledged(told: Path) -> dict[tuple[str, str], int]:
    """For each memory and stage, how many were acknowledged last."""
    lines = told.read_text("utf-8").splitlines() if told.exists() else []
    return {(name, stage): int(done) for name, stage, done in (line.split(" ") for line in lines)}


def _wrong_with(store: TripleStore) -> list[str]:
    """What an open memory says is wrong with it, or that it does not recall what is nearest."""
    import numpy as np

    wrong, triples = store.problems(), list(store.triples())
    if wrong or not triples:
        return wrong
    vectors = store.embedder.embed([query_text(triple.pair) for triple in triples])
    for triple in triples[:: max(1, len(triples) // 3)]:
        query = replace(triple.pair, conversation_id="now")
        nearest = np.sort(vectors @ store.embedder.embed([query_text(query)])[0])[::-1][:8]
        found = [recalled.similarity for recalled in store.recall(query, 8, left=None)]
        if len(found) != len(nearest) or not np.allclose(found, nearest, atol=1e-5):
            return ["a recall is not what is nearest"]
    return []


def small_log() -> ChatLog:
    """Talks of Ann with a help desk."""

    def talk(number: int) -> Conversation:
        said = [f"question {number} {place}?" if place % 2 == 0 else f"answer {number} {place}" for place in range(20)]
        turns = tuple(Turn(("desk", "Ann")[n % 2], ("agent", "user")[n % 2], text) for n, text in enumerate(said))
        return Conversation(f"talk-{number:03d}", turns, None)

    return ChatLog(sort_by_time([talk(number) for number in range(30)], "bench"), "bench")


def small_recipe(method: Method, dimension: int) -> Recipe:
    """How Ann is learned."""
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


def _learn(home: Path, told: Path, _: float) -> None:
    """Learn twins until killed, one after the other, the interrupted one first; tells what learning says is done."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    tell, recipe = _teller(told), small_recipe("recon", _DIMENSION)
    model = ChatModel("scripted:bench", ScriptedChatModel(answers=["wants to know it", "is in a hurry"]), "transcript")
    for name in (f"twin-{number}" for number in itertools.count()):
        if (home / name).exists() and TwinRecord.load(home / name).state == "complete":
            continue
        options: dict[str, Any] = {"embedder": FakeEmbedder(_DIMENSION), "model": model, "scorer": FakeScorer(), "home": home}

        def progress(stage: str, done: int, total: int, name: str = name) -> None:
            tell(f"{name} {stage} {done}")

        asyncio.run(alearn(name, small_log(), recipe, progress=progress, **options))


def judge_learned(home: Path, told: Path) -> dict[str, Any]:
    """How many triples and traces that learning told to be done are not there, and what else is wrong with the memories."""
    lost = 0
    wrong: list[str] = []
    known = _acknowledged(told)
    for name in {name for name, _ in known}:
        folder = next(f for f in (home / name, home / f".{name}.partial") if f.exists())
        with TripleStore(folder, FakeEmbedder(_DIMENSION), create=False) as store:
            triples = list(store.triples())
            tried = sum(triple.provenance is not None for triple in triples)
            lost += max(0, known.get((name, "memories"), 0) - len(triples)) + max(0, known.get((name, "traces"), 0) - tried)
            wrong += _wrong_with(store)
    return {"lost": lost, "wrong": wrong}


# A kill during a save ------------------------------------------------------------------------------------------------


def _killed_in(share: float, save: Callable[[Callable[[], object]], None], seconds: float) -> None:
    """Kill a process in its save, `share` of the `seconds` a save takes after it has said that it begins."""
    readable, writable = os.pipe()

    def work() -> None:
        save(lambda: os.write(writable, b"."))
        time.sleep(60)  # has saved before it was killed: that is a moment too

    process = _forked(work)
    os.close(writable)
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        pipe.read(1)
    time.sleep(share * seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def killed_in_save(name: str, count: int, dimension: int, kills: int) -> list[float]:
    """Kill while the index is built and written; which share of the acknowledged triples cannot be loaded, for each kill."""
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
            lost.append(1 - _found_in_fork(loaded).get("found", 0) / acknowledged)
    return lost


def killed_in_save_langchain(name: str, count: int, dimension: int, kills: int) -> list[float]:
    """The same with LangChain's FAISS vector store: what was saved before, and can no longer be loaded after the kill."""
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
        left: Any = FAISS.load_local(str(folder), embedding, allow_dangerous_deserialization=True)
        names = left.index_to_docstore_id
        return sum(place in names and names[place] in left.docstore._dict for place in range(left.index.ntotal))

    lost: list[float] = []
    for _ in range(kills):
        shutil.copytree(good, folder)
        _killed_in(rng.random(), save, seconds)
        lost.append(1 - min(count, _found_in_fork(loaded).get("found", 0)) / count)
        shutil.rmtree(folder)
    return lost
