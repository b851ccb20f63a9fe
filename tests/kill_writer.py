"""Helpers of the crash-safety tests: processes that use a memory and are killed with SIGKILL, and the checks afterwards.

Design: processes are forked from a server that has imported everything but opened nothing (multiprocessing's forkserver), so
that one costs some milliseconds and inherits no lock, no connection and no thread of the test.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from conftest import recipe, scripted, small_conversation
from usertwin.evals.benchmarks.file_operations import Decision, FileOperation, fork, supervise
from usertwin.memory import Provenance, Recalled, Triple, TripleStore, alearn
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.synthesizer import Method
from usertwin.memory.twin import learn
from usertwin.personas import ChatLog, Pair, Turn, TwinError
from usertwin.personas.chat_log import sort_by_time

EMBEDDER = FakeEmbedder(32)
FAST = next((folder for folder in ("/dev/shm",) if os.path.isdir(folder)), None)  #: a folder in memory, where syncing is free
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

Send = Callable[[Any], None]


def sender(path: Path) -> Send:
    """Return a function that appends messages to a file; each is there before the function returns."""
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    return lambda message: [os.write(descriptor, pickle.dumps(message))].clear()


def received(path: Path) -> list[Any]:
    """Return the messages in a file, and remove it; a partial message is dropped."""
    messages: list[Any] = []
    if path.exists():
        with path.open("rb") as file, suppress(EOFError, pickle.UnpicklingError):
            while True:
                messages.append(pickle.load(file))
    path.unlink(missing_ok=True)
    return messages


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    """Kill a process after some seconds of `work`; return its wait status."""
    process = fork(work)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def killed_before(number: int, work: Callable[[], object], folder: Path) -> int:
    """Kill a process before its n-th file operation in a folder, counted from 0, or in the middle of it if it is a write."""
    left = number

    def decide(operation: FileOperation) -> Decision:
        nonlocal left
        left -= operation.changes
        if left >= 0:
            return "go on"
        return "kill in half" if number % 2 and operation.can_be_half else "kill"

    return supervise(work, folder, decide)


def operations_of(work: Callable[[], object], folder: Path) -> int:
    """Return the number of file operations of `work` in a folder."""
    count = 0

    def decide(operation: FileOperation) -> Decision:
        nonlocal count
        count += operation.changes
        return "go on"

    assert supervise(work, folder, decide) == 0, "the process failed"
    return count


def write(send: Send, folder: Path, seed: int) -> None:
    """Change the memory in every possible way; send each change before it begins, and a message when it is done."""
    rng = random.Random(seed)
    store = TripleStore(folder, EMBEDDER)
    known = {t.id: t for t in store.triples()}
    send(("opened", known))
    for _ in range(60):
        change = _change(rng, list(known.values()))
        send(("begin", change))
        if change[0] == "reopen":
            store.close()
            store = TripleStore(folder, EMBEDDER)
        else:
            getattr(store, change[0])(*change[1:])
        send(("done",))
        known = after(known, change)
    store.close()
    send(("closed",))


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


def kill_often(times: int, seed: int) -> dict[str, int]:
    """Kill a writing process many times, and assert after each kill that nothing acknowledged is lost; return the counts.

    Half of the kills come at a random time, half before or in a random file operation. After three of four kills the memory is
    opened here and must be clean; after the others the next process opens it, and may be killed during the repair. Every sixth
    kill begins a new memory, so that some kills come during creation.

    Asserted: the memory holds the result of all acknowledged changes, with or without the unfinished one, which is applied as a
    whole or not at all; it has no problems; and recall equals an exhaustive search.

    Run it in a `Child`: it forks the processes that it kills.

    Args:
        times: number of kills.
        seed: seed of times, operations and changes (times are only as exact as the machine).
    """
    rng, counts = random.Random(seed), Killed()
    options: list[Known] = [{}]
    number = 0
    with tempfile.TemporaryDirectory(dir=FAST) as home:
        folder, messages = Path(home), Path(home, "messages")
        while counts.kills < times or number % 6:
            if number % 6 == 0:
                folder, options = Path(home, str(number)), [{}]
            number += 1
            changes = partial(_write_to, messages, folder, rng.randrange(2**32))
            if rng.random() < 0.5:
                status = killed_before(int(rng.triangular(0, 1500, 0)), changes, folder)
            else:
                status = killed_after(rng.uniform(0, 0.4), changes)
            assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), f"the process failed: {status}"
            counts.kills += status != 0
            sent = received(messages)
            counts.while_opening += not sent
            options = _possible(options, sent, counts)
            if rng.random() < 0.75 or number % 6 == 0:
                options = [check(folder, options)]
    return asdict(counts)


def _write_to(messages: Path, folder: Path, seed: int) -> None:
    write(sender(messages), folder, seed)


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


def learn_ann(messages: Path, home: Path, method: Method) -> None:
    """Learn a twin, and send the progress."""
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    learn._CHUNK = 32  # several commits
    send, model = sender(messages), scripted("wants the weather for a city")
    ann_recipe = recipe(method=method, embedder=EMBEDDER.name, candidates=1, max_traces=30, window=2)
    asyncio.run(
        alearn(
            "ann", long_log(), ann_recipe, embedder=EMBEDDER, model=model, scorer=FakeScorer(), home=home,
            progress=lambda stage, done, total: send((stage, done)),
        )
    )  # fmt: skip
    send(("complete", 0))


def learn_killed(home: str, method: Method) -> dict[str, Any]:
    """Learn a twin in processes that are killed, each at a later file operation than the one before, until one ends.

    After each kill, what was acknowledged must be in the memory, which must be clean. Run it in a `Child`.

    Returns:
        the number of kills, the largest acknowledged numbers by stage, the first message of the last process, and the contents
        of the memory of the killed twin and of one that was learned at once.
    """
    killed, whole, messages = Path(home, "killed"), Path(home, "whole"), Path(home, "messages")
    count = operations_of(lambda: learn_ann(messages, whole, method), whole)
    assert received(messages)[-1] == ("complete", 0)
    acknowledged, kills = {"memories": 0, "traces": 0}, 0
    work = killed / ".ann.partial"
    while killed_before(count * (kills + 1) // 8, lambda: learn_ann(messages, killed, method), killed):
        kills += 1
        for stage, done in received(messages):
            acknowledged[stage] = max(acknowledged[stage], done)
        if acknowledged["memories"]:
            learned = check(work, [known(work)])
            assert len(learned) >= acknowledged["memories"]
            assert sum(t.provenance is not None for t in learned.values()) >= acknowledged["traces"]
    sent = received(messages)
    assert sent[-1] == ("complete", 0)
    contents = {"killed": known(killed / "ann"), "whole": known(whole / "ann")}
    return {"kills": kills, "acknowledged": acknowledged, "first": sent[0], **contents}


def run_in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """Return the result of a function in a process of its own, which may fork; its error is raised here."""
    [message] = Child(_reply, function, arguments).rest(600)
    if isinstance(message, BaseException):
        raise message
    return message


def _reply(connection: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    try:
        connection.send(function(*arguments))
    except Exception as error:
        traceback.print_exc()
        connection.send(error)
