"""Helpers of the crash-safety tests: processes that use a memory and are killed with SIGKILL, and the checks afterwards.

Design: processes are forked from a server that has imported everything but opened nothing (multiprocessing's forkserver), so
that one costs some milliseconds and inherits no lock, no connection and no thread of the test.
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
from usertwin.memory.twin import learn
from usertwin.personas import ChatLog, Pair, Turn, TwinError
from usertwin.personas.chat_log import sort_by_time

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
    """Return a triple of Ann; five consecutive numbers share a conversation."""
    context = (Turn("desk", "agent", f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} number {number}?"),)
    pair = Pair(
        speaker="Ann",
        context=context,
        action=f"answer {number}",
        goal="",
        conversation_id=conversation or f"c{number // 5}",
        position=number,
        when=float(number),
    )
    return Triple(pair, trace, None if trace is None else 0.5)


def triples(*numbers: int) -> list[Triple]:
    """Return triples with these numbers, without traces."""
    return [triple(number) for number in numbers]


QUERY = triple(3, conversation="now").pair


# Processes ---------------------------------------------------------------------------------------------------------------


class Child:
    """A process that runs `work(connection, *arguments)`, and this end of the connection."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.connection, child_end = _PROCESSES.Pipe()
        self.process = _PROCESSES.Process(target=_work, args=(child_end, work, arguments), daemon=True)
        self.process.start()
        child_end.close()

    def hear(self) -> Any:
        """Return its next message; EOFError if there is none."""
        if not self.connection.poll(60):
            raise TimeoutError("the process sends nothing")
        return self.connection.recv()

    def rest(self, seconds: float = 60) -> list[Any]:
        """Return its messages up to its end or the timeout; a partial message is dropped."""
        held: list[Any] = []
        end = time.monotonic() + seconds
        with suppress(EOFError, OSError):  # OSError if it ended in the middle of a message
            while self.connection.poll(max(0.0, end - time.monotonic())):
                held.append(self.connection.recv())
        return held

    def kill(self) -> list[Any]:
        """Kill it with SIGKILL; return its remaining messages."""
        self.process.kill()
        return [*self.rest(), *self.end()]

    def end(self) -> list[Any]:
        """Wait until it has ended; return its remaining messages."""
        messages = self.rest()
        self.process.join(60)
        return messages


def _work(connection: Connection, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    work(connection, *arguments)


@contextmanager
def killed_at(step: int | None) -> Any:
    """Kill this process before or after its n-th step that may change a file: an SQLite statement or a system call."""
    left = -1 if step is None else step

    def count(frame: object, event: str, function: Any) -> None:
        nonlocal left
        if event in ("c_call", "c_return") and _may_change_a_file(function):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(None if step is None else count)
    try:
        yield
    finally:
        sys.setprofile(None)


def _may_change_a_file(function: Any) -> bool:
    name = function.__name__
    if name in ("execute", "executemany", "executescript", "write_index", "flock"):
        return True
    return getattr(function, "__module__", "") == "posix" and name in ("unlink", "replace", "rename", "fsync")


# Writing until killed ----------------------------------------------------------------------------------------------------


def write(connection: Connection, folder: str, seed: int, step: int | None) -> None:
    """Change the memory in every possible way; send each change before it begins, and a message when it is done."""
    rng = random.Random(seed)
    with killed_at(step):
        store = TripleStore(folder, EMBEDDER)
        known = {t.id: t for t in store.triples()}
        connection.send(("opened", known))
        for _ in range(60):
            change = _change(rng, list(known.values()))
            connection.send(("begin", change))
            if change[0] == "reopen":
                store.close()
                store = TripleStore(folder, EMBEDDER)
            else:
                getattr(store, change[0])(*change[1:])
            connection.send(("done",))
            known = after(known, change)
        store.close()
    connection.send(("closed",))


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
        trace_source = Provenance(
            method="recon", proposer="scripted:test", scorer=None, prompt_version="1", seed=0, candidates=1, rejected={}
        )
        return kind, [
            replace(t, reasoning=f"was {rng.choice(WORDS)}", score=rng.random(), provenance=trace_source) for t in some
        ]
    if kind == "edit":
        return kind, some[0].id, triple(rng.randrange(1000, 10**6), conversation=some[0].pair.conversation_id)
    if kind == "delete":
        return kind, [t.id for t in some]
    return kind, some[0].pair.conversation_id


def after(known: Known, change: Step) -> Known:
    """Return the content of a memory after a change."""
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
    """Counts of `kill_often`: kills, acknowledged changes, kills during a change and during opening."""

    kills: int = 0
    acknowledged: int = 0
    in_a_change: int = 0
    while_opening: int = 0


def kill_often(times: int, seed: int, home: Path) -> Killed:
    """Kill a writing process many times, and assert after each kill that nothing acknowledged is lost.

    Half of the kills come at a random time, half before or after a random step (`killed_at`). After three of four kills the
    memory is opened here and must be clean; after the others the next process opens it, and may be killed during the repair.
    Every sixth kill begins a new memory, so that some kills come during creation.

    Asserted: the memory holds the result of all acknowledged changes, with or without the unfinished one, which is applied as a
    whole or not at all; it has no problems; and recall equals an exhaustive search.

    Args:
        times: number of kills.
        seed: seed of times, steps and changes (times are only as exact as the machine).
        home: an empty folder.
    """
    rng, counts, folder = random.Random(seed), Killed(), home
    options: list[Known] = [{}]
    number = 0
    while counts.kills < times or number % 6:
        if number % 6 == 0:
            folder, options = home / str(number), [{}]
        number += 1
        by_step = rng.random() < 0.5
        step, moment = int(rng.triangular(1, 700, 1)) if by_step else None, rng.uniform(0, 0.4)
        child = Child(write, str(folder), rng.randrange(2**32), step)
        messages = child.end() if by_step else [*child.rest(moment), *child.kill()]
        assert child.process.exitcode in (0, -signal.SIGKILL), f"the process failed: {child.process.exitcode}, {messages[-1:]}"
        counts.kills += child.process.exitcode != 0
        counts.while_opening += not messages
        options = _possible(options, messages, counts)
        if rng.random() < 0.75 or number % 6 == 0:
            options = [check(folder, options)]
    return counts


def _possible(options: Sequence[Known], messages: Sequence[Any], counts: Killed) -> list[Known]:
    """Return the possible contents of the memory after these messages, given the possible contents before."""
    if not messages:
        return list(options)
    assert messages[0][1] in options, "a process read a content that was not acknowledged"
    known, pending = messages[0][1], None
    for kind, *values in messages[1:]:
        if kind == "begin":
            pending = values[0]
        elif kind == "done":
            known, pending = after(known, pending or ()), None
            counts.acknowledged += 1
    counts.in_a_change += pending is not None
    return [known] if pending is None else [known, after(known, pending)]


def check(folder: Path, options: Sequence[Known]) -> Known:
    """Assert that a memory is clean, and holds and recalls one of these contents; return it."""
    with TripleStore(folder, EMBEDDER) as store:
        held = {t.id: t for t in store.triples()}
        assert held in options, f"{len(held)} triples instead of {[len(option) for option in options]}"
        assert store.problems() == []
        assert len(store) == store.stats().triples == len(held)
        assert_recalls(store, held)
    assert not list(folder.glob("memory*-wal")), "closed, but not into one file"
    return held


def assert_recalls(store: TripleStore, known: Known) -> None:
    """Assert that recall equals an exhaustive search."""
    for number in (3, 77):
        query = triple(number, conversation="now").pair
        held = store.recall(query, 10)
        assert similarities(held) == brute_force(known, query, 10)
        assert all(known[recalled.triple.id] == recalled.triple for recalled in held)


def similarities(held: Sequence[Recalled]) -> list[float]:
    """Return the similarities of a recall, to four digits."""
    return [round(recalled.similarity, 4) for recalled in held]


def brute_force(known: Known, query: Pair, k: int) -> list[float]:
    """Return the similarities of an exhaustive search, to four digits."""
    allowed = [t for t in known.values() if t.pair.conversation_id != query.conversation_id]
    if not allowed:
        return []
    held = EMBEDDER.embed([query_text(t.pair) for t in allowed]) @ EMBEDDER.embed([query_text(query)])[0]
    return [round(float(value), 4) for value in np.sort(held)[::-1][:k]]


# Reading a memory --------------------------------------------------------------------------------------------------------


def make(folder: Path, count: int = 60) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.add([triple(number, "was in a hurry" if number % 3 else None) for number in range(count)])


def known(folder: Path) -> Known:
    with TripleStore(folder, EMBEDDER) as store:
        return {t.id: t for t in store.triples()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without the shared-memory file and an empty log, which SQLite creates and removes."""
    held = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith("-shm")}
    return {name: data for name, data in held.items() if data or not name.endswith("-wal")}


def assert_one_sentence(error: BaseException, folder: Path) -> str:
    """Assert that an error is one sentence that names the folder; return the sentence."""
    text = str(error)
    assert isinstance(error, TwinError), repr(error)
    assert text.startswith(f"{folder}: "), text
    assert "\n" not in text
    assert not text.endswith(".")
    assert "Error" not in text
    return text


def look(folder: Path) -> tuple[str, Known, list[float], list[str]]:
    """Open a memory; return "opened" or the error, its content, a recall, and the log messages."""
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


# Work of other processes --------------------------------------------------------------------------------------------------


def read(connection: Connection, folder: str) -> None:
    """Recall until "stop" arrives; answer every other message with the content of the memory and a recall."""
    with TripleStore(folder, EMBEDDER, create=False) as store:
        connection.send("opened")
        while True:
            for recalled in store.recall(QUERY, 10):
                assert recalled.triple.pair.action == f"answer {recalled.triple.pair.position}"
            if connection.poll():
                if connection.recv() == "stop":
                    return
                connection.send(({t.id: t for t in store.triples()}, len(store), similarities(store.recall(QUERY, 10))))


def hold(connection: Connection, folder: str) -> None:
    """Add a triple and hold the writer lock until a message arrives."""
    store = TripleStore(folder, EMBEDDER)
    store.add(triples(60))
    connection.send(os.getpid())
    connection.recv()
    store.close()


def create(connection: Connection, folder: str, number: int) -> None:
    """Open a memory when a message arrives, add a triple, and close."""
    connection.recv()
    with TripleStore(folder, EMBEDDER, wait=60) as store:
        store.add(triples(number))


def upgrade(connection: Connection, folder: str, step: int) -> None:
    """Open a memory, unless killed at this step."""
    with killed_at(step):
        TripleStore(folder, EMBEDDER).close()


def long_log() -> ChatLog:
    """Return eighty conversations of Ann: enough for several batches."""
    return ChatLog(sort_by_time([small_conversation(number) for number in range(80)], "test"), "test")


def learn_ann(connection: Connection, home: str, method: Method, step: int | None) -> None:
    """Learn a twin, and send the progress."""
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    learn._CHUNK = 32  # several commits
    model = scripted("wants the weather for a city")
    ann_recipe = recipe(method=method, embedder=EMBEDDER.name, candidates=1, max_traces=30, window=2)
    with killed_at(step):
        asyncio.run(
            alearn(
                "ann", long_log(), ann_recipe, embedder=EMBEDDER, model=model, scorer=FakeScorer(), home=home,
                progress=lambda stage, done, total: connection.send((stage, done)),
            )
        )  # fmt: skip
    connection.send(("complete", 0))
