"""memory/store/database.py: damaged, truncated and exchanged files, full disks, read-only folders, and upgrades."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_writer import (
    EMBEDDER,
    QUERY,
    Child,
    assert_one_sentence,
    assert_recalls,
    brute_force,
    check,
    contents,
    create,
    hold,
    known,
    look,
    make,
    triple,
    triples,
    upgrade,
)

from usertwin.memory import Provenance, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.store import seal
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import TwinError

FILES = ("memory.sqlite", "memory.faiss", "memory.seal")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A memory of sixty triples, some with a trace, saved and closed."""
    make(tmp_path / "memory")
    return tmp_path / "memory"


# Damage ------------------------------------------------------------------------------------------------------------------


def flip_bits(expected: Connection, whole: str, work: str, name: str, places: list[tuple[int, int]]) -> None:
    """For each position flip one bit of a file of a memory, and send the result of opening it."""
    for at, bit in places:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        data = bytearray((Path(work) / name).read_bytes())
        data[at] ^= 1 << bit
        (Path(work) / name).write_bytes(data)
        expected.send((at, bit))
        expected.send(look(Path(work)))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_a_file_is_noticed_and_never_changes_a_recall(
    folder: Path, tmp_path: Path, name: str
) -> None:
    _, triples_there, expected, logged = look(folder)
    assert not logged
    rng, size = random.Random(name), (folder / name).stat().st_size
    some = {*range(0, min(100, size), 3), *range(size - 30, size), *rng.sample(range(size), min(90, size))}
    places = [(at, rng.randrange(8)) for at in sorted(some)]
    messages = Child(flip_bits, str(folder), str(tmp_path / "work"), name, places).end()
    assert messages[0::2] == places, f"the process was ended by the bit {messages[-1]}"
    for place, (ended, triples_found, recalled, logged) in zip(places, messages[1::2], strict=True):
        assert ended != "opened" or logged, f"{place} was not noticed"
        assert ended != "opened" or (triples_found, recalled) == (triples_there, expected), f"{place} changed what is recalled"
        assert ended == "opened" or "damaged" in ended or "has format" in ended, ended
        assert ended == "opened" or name == "memory.sqlite", ended


def read_damaged(expected: Connection, whole: str, work: str, places: list[tuple[int, int]]) -> None:
    """Flip bits of a database that is too large to be compared with its seal on opening."""
    seal.MAX_BYTES_HASHED_ON_OPEN = 0
    for at, bit in places:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        data = bytearray((Path(work) / "memory.sqlite").read_bytes())
        data[at] ^= 1 << bit
        (Path(work) / "memory.sqlite").write_bytes(data)
        expected.send((at, bit))
        ended, triples_found, recalled, _ = look(Path(work))
        problems = [ended]
        if ended == "opened":
            with TripleStore(work, EMBEDDER) as store:
                problems = store.problems()
        expected.send((ended, triples_found, recalled, problems))


def test_flipped_bit_in_a_large_database_is_noticed_by_check_and_read(folder: Path, tmp_path: Path) -> None:
    _, triples_there, expected, _ = look(folder)
    rng, size = random.Random(5), (folder / "memory.sqlite").stat().st_size
    places = [(at, rng.randrange(8)) for at in sorted({*range(0, 100, 5), *rng.sample(range(size), 100)})]
    messages = Child(read_damaged, str(folder), str(tmp_path / "work"), places).end()
    assert messages[0::2] == places, f"the process was ended by the bit {messages[-1]}"
    for place, (ended, triples_found, recalled, problems) in zip(places, messages[1::2], strict=True):
        assert problems, f"{place} was not noticed"
        assert ended != "opened" or (triples_found, recalled) == (triples_there, expected), f"{place} changed what is recalled"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_noticed(folder: Path, name: str, share: float) -> None:
    _, triples_found, recalled, _ = look(folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    ended, *after, logged = look(folder)
    if name == "memory.sqlite":
        assert f"{folder}: the memory is damaged" in ended
        assert ended.endswith("learn the twin again with --overwrite")
    else:
        assert (ended, *after) == ("opened", triples_found, recalled)
        assert logged
        assert look(folder) == ("opened", triples_found, recalled, [])  # mended


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("changes", ["as many", "more"])
def test_a_file_of_another_memory_is_noticed(folder: Path, tmp_path: Path, name: str, changes: str) -> None:
    _, triples_found, recalled, _ = look(folder)
    with TripleStore(tmp_path / "other", EMBEDDER) as store:
        store.add(triples(*range(100, 160)))
        if changes == "more":
            store.add(triples(160))
    other = known(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, folder / name)
    ended, expected, recalls, logged = look(folder)
    assert ended != "opened" or logged
    if name == "memory.sqlite":
        assert ended != "opened" or (expected, recalls) == (other, brute_force(other, QUERY, 20))
    elif name == "memory.faiss":
        assert (ended, expected, recalls) == ("opened", triples_found, recalled)
    else:  # as if memory.sqlite was exchanged
        assert ended != "opened" or (expected, recalls) == (triples_found, recalled)


@pytest.mark.parametrize(
    "names", [(name,) for name in FILES] + [("memory.sqlite", "memory.seal"), ("memory.faiss", "memory.seal")]
)
@pytest.mark.parametrize("since", ["added", "deleted", "edited", "traced"])
def test_older_copy_of_a_file_is_noticed_or_restores_the_older_memory(
    folder: Path, tmp_path: Path, names: tuple[str, ...], since: str
) -> None:
    shutil.copytree(folder, tmp_path / "older")
    with TripleStore(folder, EMBEDDER) as store:
        if since == "added":
            store.add(triples(60, 61))
        elif since == "deleted":
            store.delete([triple(3).id, triple(4).id])
        elif since == "edited":
            store.edit(triple(3).id, triple(99))
        else:
            store.set_traces([triple(3, "was late")])
    now = known(folder)
    for name in names:
        shutil.copy(tmp_path / "older" / name, folder / name)
    ended, triples_found, recalls, logged = look(folder)
    if names == ("memory.sqlite",):  # does not match the seal, like a damaged file
        assert "memory.sqlite differs from its seal" in ended
        return
    assert ended == "opened"
    expected = known(tmp_path / "older") if "memory.sqlite" in names else now
    assert (triples_found, recalls) == (expected, brute_force(expected, QUERY, 20))
    consistent = names == ("memory.sqlite", "memory.seal") or names == ("memory.faiss",)
    assert logged or (since in ("added", "traced") and consistent)
    check(folder, [expected])


# Bad input, full disks, read-only folders --------------------------------------------------------------------------------


def vector(value: float, at: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    matrix = np.ones((2, EMBEDDER.dimension), np.float32)
    matrix[1, at:] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 31), np.float32), "do not fit 2 triples of dimension 32; nothing was added"),
        (np.ones((1, 32), np.float32), "do not fit 2 triples of dimension 32; nothing was added"),
        (vector(np.nan, 31), "a value that is not finite; nothing was added"),
        (vector(np.inf, 31), "a value that is not finite; nothing was added"),
        (vector(-np.inf, 31), "a value that is not finite; nothing was added"),
        (vector(0.0), "is all zeros, so it has no direction; nothing was added"),
        (vector(3e38), "nothing was added"),
        (vector(1e-45), "nothing was added"),
    ],
    ids=["too short", "too few", "NaN", "inf", "-inf", "zero", "too large", "too small"],
)
def test_invalid_embeddings_change_no_byte(folder: Path, matrix: Any, message: str) -> None:
    before = contents(folder)
    with TripleStore(folder, EMBEDDER) as store:
        with pytest.raises(TwinError, match=message) as error:
            store.add(triples(60, 61), matrix)
        assert_one_sentence(error.value, folder)
        assert contents(folder) == before
        assert store.add(triples(3, 4), vector(1.0)) == 0  # nothing new, so nothing is written
    assert contents(folder) == before


def newer_format(folder: Path) -> None:
    with sqlite3.connect(folder / "memory.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '3' WHERE key = 'format'")
    connection.close()


def no_database(folder: Path) -> None:
    (folder / "memory.sqlite").write_bytes(b"Dear diary, " * 1000)


def another_database(folder: Path) -> None:
    (folder / "memory.sqlite").unlink()
    with sqlite3.connect(folder / "memory.sqlite") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "embedder", "message"),
    [
        (lambda _: None, FakeEmbedder(64), r'made with the embedding model "fake:32", not "fake:64"; open it with that model'),
        (newer_format, EMBEDDER, r"has format 3, and this version of usertwin reads 2; upgrade usertwin, or learn"),
        (no_database, EMBEDDER, r"the memory is damaged or cannot be used \(file is not a database\); list the damage"),
        (another_database, EMBEDDER, r"the memory is damaged or cannot be used \(no such table: meta\); list the damage"),
    ],
    ids=["another model", "newer format", "no database", "another database"],
)
def test_a_memory_that_cannot_be_opened_is_left_as_it_is(
    folder: Path, spoil: Callable[[Path], None], embedder: FakeEmbedder, message: str
) -> None:
    spoil(folder)
    before = contents(folder)
    with pytest.raises(TwinError, match=message) as error:
        TripleStore(folder, embedder)
    assert_one_sentence(error.value, folder)
    assert contents(folder) == before


FULL = "the disk is full(, or a quota is used up)?, and nothing was changed; make room and do it again"
FULL_AFTER_CHANGES = FULL.replace("nothing was changed", "changes made before are kept")


@pytest.mark.parametrize("change", ["add", "edit", "set_traces"])
def test_change_without_disk_space_is_not_made(folder: Path, change: str) -> None:
    long = "long " * 100_000
    values: dict[str, tuple[Any, ...]] = {
        "add": ([Triple(replace(triple(60).pair, goal=long))],),
        "edit": (triple(3).id, Triple(replace(triple(60).pair, goal=long))),
        "set_traces": ([triple(3, long)],),
    }
    before, expected = contents(folder), known(folder)
    with TripleStore(folder, EMBEDDER) as store:
        inner: Any = store
        connection = inner._memory.database.connection
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + 2}")
        with pytest.raises(TwinError, match=FULL) as error:
            getattr(store, change)(*values[change])
        assert_one_sentence(error.value, folder)
        assert {t.id: t for t in store.triples()} == expected
        assert_recalls(store, expected)
    assert contents(folder) == before


def fill_the_disk(expected: Connection, folder: str, room: int) -> None:
    """Add triples until no file can grow; send the number of acknowledged triples and the errors."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store, added = TripleStore(folder, EMBEDDER), 0
    largest = max(path.stat().st_size for path in Path(folder).iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, largest + room))
    messages: list[str] = []  # of adding, and of closing
    try:
        while True:
            store.add(triples(*range(1000 + 5 * added, 1005 + 5 * added)))
            added += 1
    except TwinError as error:
        messages.append(str(error))
    held = len(store)
    try:
        store.close()
    except TwinError as error:
        messages.append(str(error))
    expected.send((5 * added, held, messages))


@pytest.mark.parametrize("room", [0, 10_000, 40_000])
def test_full_disk_keeps_acknowledged_triples_and_refuses_the_rest(folder: Path, room: int) -> None:
    before = len(known(folder))
    [(added, held, messages)] = Child(fill_the_disk, str(folder), room).end()
    assert held == before + added
    assert messages
    assert [
        sentence
        for sentence, expected in zip(messages, (FULL, FULL_AFTER_CHANGES), strict=False)
        if not re.fullmatch(rf"{folder}: {expected}", sentence)
    ] == []
    expected = check(folder, [known(folder)])
    assert len(expected) == held


def test_index_without_disk_space_is_written_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = known(folder)
    store = TripleStore(folder, EMBEDDER)
    store.add(triples(60))
    old = (folder / "memory.faiss").read_bytes()

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_room)
        with pytest.raises(TwinError, match="the disk is full") as error:
            store.close()
    assert_one_sentence(error.value, folder)
    assert (folder / "memory.faiss").read_bytes() == old
    assert not (folder / "memory.faiss.partial").exists()
    check(folder, [expected | {triple(60).id: triple(60)}])


def test_memory_with_lost_index_is_usable_on_a_full_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = known(folder)
    (folder / "memory.faiss").unlink()

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_room)
        assert look(folder)[:3] == ("opened", expected, brute_force(expected, QUERY, 20))
    assert "could not be written" in caplog.text
    assert not (folder / "memory.faiss").exists()
    check(folder, [expected])
    assert (folder / "memory.faiss").exists()


def test_index_of_a_diverged_copy_is_rebuilt(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for place, number in ((folder, 60), (copy, 77)):
        with TripleStore(place, EMBEDDER) as store:
            store.add(triples(number))
    expected = known(folder)
    shutil.copy(copy / "memory.faiss", folder / "memory.faiss")
    with TripleStore(folder, EMBEDDER) as store:
        assert "is of another copy of this memory; it was rebuilt" in caplog.text
        assert_recalls(store, expected)


def stay(expected: Connection, folder: str, whole: str) -> None:
    """Keep a memory open without write permission; send its content, and again for each message."""
    TripleStore(whole, EMBEDDER).close()
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with TripleStore(folder, EMBEDDER) as store:
        while True:
            expected.send((len(store), {t.id: t for t in store.triples()}, [r.triple.id for r in store.recall(QUERY, 99)]))
            expected.recv()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as a user without write permission")
def test_read_only_user_sees_the_writes_of_the_owner(folder: Path, readable: Path) -> None:
    copy = Path(shutil.copytree(folder, readable / "memory"))
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    reader = Child(stay, str(copy), str(folder))
    expected = known(folder)
    assert reader.hear()[:2] == (len(expected), expected)
    with TripleStore(copy, EMBEDDER) as owner:
        for number in (70, 71):
            owner.add(triples(number))
            expected |= {triple(number).id: triple(number)}
            reader.connection.send("again")
            count, seen, recalled = reader.hear()
            assert (count, seen) == (len(expected), expected)
            assert triple(number).id in recalled
        owner.delete([triple(70).id])
    del expected[triple(70).id]
    reader.connection.send("again")
    count, seen, recalled = reader.hear()
    assert (count, seen) == (len(expected), expected)
    assert triple(70).id not in recalled
    reader.kill()


def only_read(expected: Connection, folder: str, whole: str) -> None:
    """Use a memory without write permission."""
    TripleStore(whole, EMBEDDER).close()  # imports everything that Python needs while it may read
    if os.getuid() == 0:  # root may write everywhere
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    expected.send(look(Path(folder)))
    message: list[str] = []
    try:
        with TripleStore(folder, EMBEDDER) as store:
            for change in (lambda: store.add(triples(99)), lambda: store.forget("c1"), lambda: store.rebuild()):
                try:
                    change()
                except TwinError as error:
                    message.append(str(error))
            expected.send((message, len(store)))
    except TwinError as error:
        expected.send(str(error))


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user may read."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)
        for path in Path(place).rglob("*"):
            path.chmod(0o755)


def forbid_writing(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


@pytest.mark.parametrize("state", ["closed", "killed", "without index"])
def test_a_read_only_memory_is_read_and_refuses_to_be_changed(folder: Path, readable: Path, state: str) -> None:
    if state == "killed":
        writer = Child(hold, str(folder))
        writer.hear()
        writer.kill()
    copy = Path(shutil.copytree(folder, readable / "memory"))
    if state == "without index":
        (copy / "memory.faiss").unlink()
    forbid_writing(copy)
    before = contents(copy)
    opened, (message, length) = Child(only_read, str(copy), str(folder)).end()
    expected = known(folder)
    assert opened[:3] == ("opened", expected, brute_force(expected, QUERY, 20))
    refused = "the memory is read-only, and nothing was changed; get write permission there, or copy the memory elsewhere"
    assert message == [f"{copy}: {refused}"] * 3
    assert length == len(expected)
    assert contents(copy) == before


# From format 1 -----------------------------------------------------------------------------------------------------------


def make_format_1(folder: Path, known: list[Triple]) -> None:
    """Make a memory in format 1."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "memory.sqlite")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript("""
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        CREATE TABLE triples (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, speaker TEXT NOT NULL, conversation TEXT NOT NULL,
            position INTEGER NOT NULL, moment REAL NOT NULL, context TEXT NOT NULL, action TEXT NOT NULL, goal TEXT NOT NULL,
            ends INTEGER NOT NULL, reasoning TEXT, score REAL, provenance TEXT, embedding BLOB NOT NULL) STRICT;
        CREATE INDEX triples_by_moment ON triples (moment, conversation);
        INSERT INTO meta VALUES ('format', '1'), ('embedder', 'fake:32'), ('dimension', '32'), ('index_checksum', 'old');
    """)
    for number, t in enumerate(known, 1):
        pair, embedding = t.pair, EMBEDDER.embed([t.pair.context[0].text])[0].tobytes()
        context = json.dumps([[turn.speaker, turn.role, turn.text, turn.time] for turn in pair.context])
        provenance = json.dumps(t.provenance.to_json()) if t.provenance else None
        connection.execute(
            f"INSERT INTO triples VALUES (?{', ?' * 13})",
            (number, t.id, pair.speaker, pair.conversation_id, pair.position, pair.when, context, pair.action, pair.goal,
             int(pair.ends_conversation), t.reasoning, t.score, provenance, embedding),
        )  # fmt: skip
    connection.commit()
    connection.close()
    (folder / "memory.faiss").write_bytes(b"an index as the first version wrote it")


TOLD = Provenance(
    method="recon", proposer="scripted:test", scorer=None, prompt_version="1", seed=0, candidates=4, rejected={"too_long": 1}
)
OLD = [replace(triple(number, "was late"), provenance=TOLD) if number % 2 else triple(number) for number in range(40)]


def test_a_memory_of_format_1_is_upgraded_with_a_notice_and_loses_nothing(tmp_path: Path) -> None:
    make_format_1(tmp_path / "memory", OLD)
    expected = {t.id: t for t in OLD}
    ended, triples_found, recalled, logged = look(tmp_path / "memory")
    assert (ended, triples_found, recalled) == ("opened", expected, brute_force(expected, QUERY, 20))
    assert f"{tmp_path / 'memory'}: the memory was upgraded to format 2 (40 triples)" in logged
    check(tmp_path / "memory", [expected])
    assert look(tmp_path / "memory") == (ended, triples_found, recalled, [])


def test_an_upgrade_that_is_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    killed = 0
    for step in range(1, 130, 9):
        make_format_1(tmp_path / str(step), OLD)
        child = Child(upgrade, str(tmp_path / str(step)), step)
        child.end()
        killed += child.process.exitcode == -signal.SIGKILL
        check(tmp_path / str(step), [{t.id: t for t in OLD}])
        assert not list((tmp_path / str(step)).glob("*partial*"))
    assert killed > 5


def test_concurrent_upgrades_lose_no_triple(tmp_path: Path) -> None:
    make_format_1(tmp_path / "memory", OLD)
    lock = WriterLock(tmp_path / "memory", 0)
    lock.acquire()  # so that all have read the old format before the first upgrade
    children = [Child(create, str(tmp_path / "memory"), number) for number in (100, 101, 102)]
    for child in children:
        child.connection.send("now")
        assert child.rest(0.5) == []
    lock.release()
    assert [(child.end(), child.process.exitcode) for child in children] == [([], 0)] * 3
    check(tmp_path / "memory", [{t.id: t for t in (*OLD, *triples(100, 101, 102))}])


def test_a_read_only_memory_of_format_1_is_refused_in_one_sentence(folder: Path, readable: Path) -> None:
    make_format_1(readable / "memory", OLD)
    forbid_writing(readable / "memory")
    before = contents(readable / "memory")
    (ended, *_), message = Child(only_read, str(readable / "memory"), str(folder)).end()
    assert ended == message
    assert message.startswith(f"{readable / 'memory'}: the memory is read-only, and nothing was changed; get write permission")
    assert contents(readable / "memory") == before
