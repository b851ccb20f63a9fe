"""Processes that use a memory and are killed with SIGKILL, at random moments or at random steps, and what must hold afterwards.

The one design choice: processes are forked from a server that has imported everything but opened nothing (multiprocessing's
forkserver), so that one costs some milliseconds and inherits no lock, no connection and no thread of the test.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from conftest import recipe, scripted, small_conversation
from usertwin.memory import Provenance, Recalled, Triple, TripleStore, alearn
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.synthesizer import Method
from usertwin.personas import ChatLog, Pair, Turn, TwinError
from usertwin.personas.chat_log import in_time_order

EMBEDDER = FakeEmbedder(32)
WORDS = ("weather", "oslo", "refund", "order", "monday", "please", "train", "music")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "faiss",
        "filelock",
        "hypothesis",
        "pytest",
        "sklearn.linear_model",
        "usertwin.memory.store.triple_store",
        "usertwin.simulator.backends.scripted",
    ]
)

Known = Mapping[str, Triple]
Step = tuple[Any, ...]


def triple(number: int, trace: str | None = None, conversation: str = "") -> Triple:
    """A moment of Ann's life; five numbers in a row share a conversation."""
    context = (Turn("desk", "agent", f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} number {number}?"),)
    pair = Pair("Ann", context, f"answer {number}", "", conversation or f"c{number // 5}", number, float(number))
    return Triple(pair, trace, None if trace is None else 0.5)


def triples(*numbers: int) -> list[Triple]:
    """Triples of these moments, without traces."""
    return [triple(number) for number in numbers]


QUERY = triple(3, conversation="now").pair


# Processes ---------------------------------------------------------------------------------------------------------------


class Child:
    """A process that does `work(connection, *arguments)`, and what it says over the connection."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.said, there = _PROCESSES.Pipe()
        self.process = _PROCESSES.Process(target=_work, args=(there, work, arguments), daemon=True)
        self.process.start()
        there.close()

    def hear(self) -> Any:
        """The next thing it says; EOFError if it says nothing more."""
        if not self.said.poll(60):
            raise TimeoutError("the process says nothing")
        return self.said.recv()

    def rest(self, seconds: float = 60) -> list[Any]:
        """All that it says up to its end, or until so many seconds have passed; half a message is none."""
        found: list[Any] = []
        end = time.monotonic() + seconds
        with suppress(EOFError, OSError):  # the latter if it ended in the middle of a message
            while self.said.poll(max(0.0, end - time.monotonic())):
                found.append(self.said.recv())
        return found

    def kill(self) -> list[Any]:
        """End it with SIGKILL; what it had said until then."""
        self.process.kill()
        return [*self.rest(), *self.end()]

    def end(self) -> list[Any]:
        """Wait until it has ended; what it said."""
        said = self.rest()
        self.process.join(60)
        return said


def _work(there: Connection, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    work(there, *arguments)


@contextmanager
def killed_at(step: int | None) -> Any:
    """Kill this process before or after a step that could leave a trace on disk, the given one: of SQLite, a system call."""
    left = -1 if step is None else step

    def count(frame: object, event: str, function: Any) -> None:
        nonlocal left
        if event in ("c_call", "c_return") and _leaves_a_trace(function):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(None if step is None else count)
    try:
        yield
    finally:
        sys.setprofile(None)


def _leaves_a_trace(function: Any) -> bool:
    name = function.__name__
    if name in ("execute", "executemany", "executescript", "write_index", "flock"):
        return True
    return getattr(function, "__module__", "") == "posix" and name in ("unlink", "replace", "rename", "fsync")


# Writing until killed ----------------------------------------------------------------------------------------------------


def write(there: Connection, folder: str, seed: int, step: int | None) -> None:
    """Change the memory in every way there is, saying before each change what it is, and afterwards that it is done."""
    rng = random.Random(seed)
    with killed_at(step):
        store = TripleStore(folder, EMBEDDER)
        known = {t.id: t for t in store.triples()}
        there.send(("opened", known))
        for _ in range(60):
            change = _change(rng, list(known.values()))
            there.send(("begin", change))
            if change[0] == "reopen":
                store.close()
                store = TripleStore(folder, EMBEDDER)
            else:
                getattr(store, change[0])(*change[1:])
            there.send(("done",))
            known = after(known, change)
        store.close()
    there.send(("closed",))


def _change(rng: random.Random, known: Sequence[Triple]) -> Step:
    kind = rng.choices(
        ("add", "set_traces", "edit", "delete", "forget", "save", "reopen"), weights=(8, 3, 2, 2, 1, 2, 1)
    )[0]  # fmt: skip
    if kind == "add" or (not known and kind in ("set_traces", "edit", "delete", "forget")):
        return "add", triples(*rng.sample(range(400), rng.choice((1, 3, 40))))
    if kind in ("save", "reopen"):
        return (kind,)
    some = rng.sample(known, min(len(known), rng.choice((1, 5))))
    if kind == "set_traces":
        told = Provenance("recon", "scripted:test", None, "1", 0, 1, {})
        return kind, [replace(t, reasoning=f"was {rng.choice(WORDS)}", score=rng.random(), provenance=told) for t in some]
    if kind == "edit":
        return kind, some[0].id, triple(rng.randrange(1000, 10**6), conversation=some[0].pair.conversation_id)
    if kind == "delete":
        return kind, [t.id for t in some]
    return kind, some[0].pair.conversation_id


def after(known: Known, change: Step) -> Known:
    """What a memory of these triples knows after a change."""
    kind, *values = change
    if kind == "add":
        return {t.id: t for t in values[0]} | dict(known)
    if kind == "set_traces":
        return dict(known) | {t.id: t for t in values[0]}
    if kind == "edit":
        return {name: t for name, t in known.items() if name != values[0]} | {values[1].id: values[1]}
    if kind == "delete":
        return {name: t for name, t in known.items() if name not in values[0]}
    if kind == "forget":
        return {name: t for name, t in known.items() if t.pair.conversation_id != values[0]}
    return known


@dataclass(slots=True)
class Killed:
    """What `kill_often` saw: kills, changes that were acknowledged, kills in the middle of a change or of opening."""

    kills: int = 0
    acknowledged: int = 0
    in_a_change: int = 0
    while_opening: int = 0


def kill_often(times: int, seed: int, home: Path) -> Killed:
    """Kill a process that writes so many times, and assert after each that nothing acknowledged is lost.

    Half of the kills come at a random moment, half before or after a random step (`killed_at`). After three of four of them
    the memory is opened here and must be clean; after the others the next process opens it, and may be killed while it mends
    what the last one left. Every sixth kill begins a new memory, so that some come while it is made.

    What is asserted: the memory holds what the acknowledged changes made, with or without the one that was under way, which
    happens wholly or not at all; it has no problems; and recall finds what comparing every embedding finds.

    Args:
        times: how many kills.
        seed: of the moments, the steps and the changes (the moments are only as exact as the machine is).
        home: an empty folder to work in.
    """
    rng, seen, folder = random.Random(seed), Killed(), home
    options: list[Known] = [{}]
    number = 0
    while seen.kills < times or number % 6:
        if number % 6 == 0:
            folder, options = home / str(number), [{}]
        number += 1
        by_step = rng.random() < 0.5
        step, moment = int(rng.triangular(1, 700, 1)) if by_step else None, rng.uniform(0, 0.4)
        child = Child(write, str(folder), rng.randrange(2**32), step)
        said = child.end() if by_step else [*child.rest(moment), *child.kill()]
        assert child.process.exitcode in (0, -signal.SIGKILL), f"the process failed: {child.process.exitcode}, {said[-1:]}"
        seen.kills += child.process.exitcode != 0
        seen.while_opening += not said
        options = _possible(options, said, seen)
        if rng.random() < 0.75 or number % 6 == 0:
            options = [check(folder, options)]
    return seen


def _possible(options: Sequence[Known], said: Sequence[Any], seen: Killed) -> list[Known]:
    """What the memory may hold after a process said this, if it might hold one of these before."""
    if not said:
        return list(options)
    assert said[0][1] in options, "a process found something else than was acknowledged"
    known, pending = said[0][1], None
    for kind, *values in said[1:]:
        if kind == "begin":
            pending = values[0]
        elif kind == "done":
            known, pending = after(known, pending or ()), None
            seen.acknowledged += 1
    seen.in_a_change += pending is not None
    return [known] if pending is None else [known, after(known, pending)]


def check(folder: Path, options: Sequence[Known]) -> Known:
    """Assert that a memory is clean, and holds and recalls one of these; which."""
    with TripleStore(folder, EMBEDDER) as store:
        found = {t.id: t for t in store.triples()}
        assert found in options, f"{len(found)} triples instead of {[len(option) for option in options]}"
        assert store.problems() == []
        assert len(store) == store.stats().triples == len(found)
        assert_recalls(store, found)
    assert not list(folder.glob("memory*-wal")), "closed, but not into one file"
    return found


def assert_recalls(store: TripleStore, known: Known) -> None:
    """Assert that recall finds what comparing every embedding finds."""
    for number in (3, 77):
        query = triple(number, conversation="now").pair
        found = store.recall(query, 10)
        assert similarities(found) == brute_force(known, query, 10)
        assert all(known[recalled.triple.id] == recalled.triple for recalled in found)


def similarities(found: Sequence[Recalled]) -> list[float]:
    """The similarities of what was recalled, to four digits."""
    return [round(recalled.similarity, 4) for recalled in found]


def brute_force(known: Known, query: Pair, k: int) -> list[float]:
    """The similarities that recall has to find, to four digits."""
    allowed = [t for t in known.values() if t.pair.conversation_id != query.conversation_id]
    if not allowed:
        return []
    found = EMBEDDER.embed([query_text(t.pair) for t in allowed]) @ EMBEDDER.embed([query_text(query)])[0]
    return [round(float(value), 4) for value in np.sort(found)[::-1][:k]]


# Looking at a memory -----------------------------------------------------------------------------------------------------


def make(folder: Path, count: int = 60) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.add([triple(number, "was in a hurry" if number % 3 else None) for number in range(count)])


def known(folder: Path) -> Known:
    with TripleStore(folder, EMBEDDER) as store:
        return {t.id: t for t in store.triples()}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder; those that SQLite has while it is open may come and go, if there is nothing in the log."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith("-shm")}
    return {name: data for name, data in found.items() if data or not name.endswith("-wal")}


def assert_one_sentence(error: BaseException, folder: Path) -> str:
    """Assert that an error is a sentence that names the folder; the sentence."""
    text = str(error)
    assert isinstance(error, TwinError), repr(error)
    assert text.startswith(f"{folder}: "), text
    assert "\n" not in text
    assert not text.endswith(".")
    assert "Error" not in text
    return text


def look(folder: Path) -> tuple[str, Known, list[float], list[str]]:
    """What opening a memory ends in ("opened", or the sentence), what is in it, what it recalls, and what was logged."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("usertwin").addHandler(handler)
    try:
        with TripleStore(folder, EMBEDDER, create=False, wait=0) as store:
            return "opened", {t.id: t for t in store.triples()}, similarities(store.recall(QUERY, 20)), logged
    except TwinError as error:
        return assert_one_sentence(error, folder), {}, [], logged
    finally:
        logging.getLogger("usertwin").removeHandler(handler)


# More that processes do ---------------------------------------------------------------------------------------------------


def read(there: Connection, folder: str) -> None:
    """Recall until told to stop; whenever asked, tell what is in the memory and what is recalled of it."""
    with TripleStore(folder, EMBEDDER, create=False) as store:
        there.send("opened")
        while True:
            for recalled in store.recall(QUERY, 10):
                assert recalled.triple.pair.action == f"answer {recalled.triple.pair.position}"
            if there.poll():
                if there.recv() == "stop":
                    return
                there.send(({t.id: t for t in store.triples()}, len(store), similarities(store.recall(QUERY, 10))))


def hold(there: Connection, folder: str) -> None:
    """Add a triple and keep the right to write until told otherwise."""
    store = TripleStore(folder, EMBEDDER)
    store.add(triples(60))
    there.send(os.getpid())
    there.recv()
    store.close()


def create(there: Connection, folder: str, number: int) -> None:
    """Open a memory at a signal, add a triple, and close."""
    there.recv()
    with TripleStore(folder, EMBEDDER, wait=60) as store:
        store.add(triples(number))


def upgrade(there: Connection, folder: str, step: int) -> None:
    """Open a memory, if it gets as far."""
    with killed_at(step):
        TripleStore(folder, EMBEDDER).close()


def long_log() -> ChatLog:
    """Eighty talks of Ann: enough for several batches."""
    return ChatLog(in_time_order([small_conversation(number) for number in range(80)], "test"), "test")


def learn_ann(there: Connection, home: str, method: Method, step: int | None) -> None:
    """Learn a twin, saying how far it has come."""
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    model = scripted("wants the weather for a city")
    how = recipe(method=method, embedder=EMBEDDER.name, candidates=1, max_traces=30, window=2)
    with killed_at(step):
        asyncio.run(
            alearn(
                "ann", long_log(), how, embedder=EMBEDDER, model=model, scorer=FakeScorer(), home=home,
                progress=lambda stage, done, total: there.send((stage, done)),
            )
        )  # fmt: skip
    there.send(("complete", 0))
