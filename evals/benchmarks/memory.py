"""Benchmarks of the memory: `make bench ONLY=memory`. A million triples are in large_memory.py, kills in crash_safety.py.

Embedding and generating triples happen before the clock starts, so each ratio compares the memory with a bare library.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory import Embedder, Provenance, Triple, TripleStore, TwinRecord, alearn, existing_twin, list_twins
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.store import schema
from usertwin.personas import ChatLog, ModelError, Pair, Turn
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import load_embedder
from usertwin.simulator.backends.downloads import cache_folder

from .crash_safety import killed, killed_in_save, killed_in_save_langchain, quiet, small_log, small_recipe
from .figures import Figure, figure, ratios, run_alternately, run_in_subprocess, single_figure, timed
from .large_memory import Prepared, kinds_part, large_part, units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
K = 8
_LANGCHAIN = "LangChain's FAISS vector store (langchain-community), the same embeddings"


@dataclass(kw_only=True, frozen=True, slots=True)
class Sizes:
    """Sizes of the benchmark; the test uses small ones, which only show that it runs."""

    dimension: int = 384
    flat: int = 100_000
    appended: int = 1000
    recalls: int = 40
    opens: int = 15
    appends: int = 9
    saves: int = 5
    kinds: int = 200_000
    large: int = 1_000_000
    chunk: int = 20_000
    real: int = 19_000
    queries: int = 500
    timed_queries: int = 100
    resident_recalls: int = 200
    kills: int = 200
    save_kills: int = 10
    twins: int = 10_000


def memory_part(sizes: Sizes | None = None, real: Callable[[int], Vectors] | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield all figures of the memory.

    Args:
        sizes: the sizes; None for the full ones.
        real: returns that many different embeddings of real contexts.
    """
    try:
        import langchain_community.vectorstores  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError:
        message = "memory.search_vs_langchain compares with LangChain's vector store; run: pip install langchain-community"
        raise ModelError(message) from None
    sizes = sizes or Sizes()
    with quiet(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        yield from _flat_part(folder / "flat", sizes)
        shutil.rmtree(folder / "flat")
        yield from _twins_part(folder / "twins", sizes)
        yield from _kills_part(folder / "kills", sizes)
        embeddings = (real or real_embeddings)(sizes.real + sizes.queries)
        yield from kinds_part(folder / "kinds", embeddings, sizes)
        yield from large_part(folder / "real", embeddings, sizes)
        yield from large_part(folder / "random", None, sizes)


def real_embeddings(count: int, embedder: Embedder | None = None, log: ChatLog | None = None) -> Vectors:
    """Return embeddings of different contexts of a log (default: the built-in one); they are cached in the user's cache."""
    import numpy as np

    embedder = embedder or load_embedder()
    path = cache_folder() / "bench" / f"chitchat-{embedder.name.replace(':', '-')}-{count}.npy"
    if not path.is_file():
        speakers = [
            (conversation, speaker)
            for conversation in (log or load_chitchat()).conversations
            for speaker in dict.fromkeys(turn.speaker for turn in conversation.turns)
        ]
        pairs = (pair for conversation, speaker in speakers for pair in extract_pairs(conversation, speaker))
        texts = list(dict.fromkeys(map(query_text, pairs)))
        random.Random(0).shuffle(texts)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial.npy")
        np.save(unfinished, embedder.embed(texts[:count]))
        unfinished.replace(path)
    return np.load(path)


# 100,000 triples -----------------------------------------------------------------------------------------------------


def generate_triples(start: int, count: int) -> list[Triple]:
    """Return triples of realistic length: six turns of about twelve words, an action of about ten, and a trace."""
    rng = random.Random(start)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 8))) for _ in range(3000)]
    provenance = Provenance(method="recon", proposer="b", scorer="b", prompt_version="1", seed=0, candidates=4, rejected={})

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length + rng.randint(-4, 4)))

    def triple(number: int) -> Triple:
        turns = tuple(Turn(f"speaker {n % 2}", "user", text(12)) for n in range(6))
        pair = Pair(
            speaker="speaker 0",
            context=turns,
            action=text(10),
            goal="",
            conversation_id=f"talk-{number // 10}",
            position=number % 10,
            when=float(number),
        )
        return Triple(pair, text(15), 0.1, provenance)

    return [triple(number) for number in range(start, start + count)]


@dataclass(kw_only=True, frozen=True, slots=True)
class _Flat:
    """The memory of 100,000 triples, and its triples and embeddings."""

    folder: Path
    sizes: Sizes
    rng: np.random.Generator
    embedder: Prepared
    triples: list[Triple]
    vectors: Vectors

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    def open(self) -> TripleStore:
        return TripleStore(self.memory, self.embedder, create=False)

    def query(self) -> Pair:
        """Return a new query, whose vector is prepared in the embedder."""
        self.embedder.vector = units(self.rng, 1, self.sizes.dimension)[0]
        return Pair(
            speaker="speaker 0",
            context=(Turn("speaker 1", "user", "and now?"),),
            action="",
            goal="",
            conversation_id="now",
            position=0,
            when=0.0,
        )

    def more(self, number: int) -> tuple[list[Triple], Vectors]:
        """Return new triples with embeddings; each `number` gives different ones."""
        sizes = self.sizes
        triples = generate_triples(sizes.flat + (number + 1) * sizes.appended, sizes.appended)
        return triples, units(self.rng, sizes.appended, sizes.dimension)


def _flat_part(folder: Path, sizes: Sizes) -> Iterator[tuple[str, Figure]]:
    import numpy as np

    rng = np.random.default_rng(0)
    vectors = units(rng, sizes.flat, sizes.dimension)
    triples, embedder = generate_triples(0, sizes.flat), Prepared(sizes.dimension)
    flat = _Flat(folder=folder, sizes=sizes, rng=rng, embedder=embedder, triples=triples, vectors=vectors)
    with TripleStore(flat.memory, flat.embedder) as store:
        store.add(flat.triples, vectors)
    yield from _recall(flat)
    yield from _open(flat)
    yield from _append(flat)
    yield from _langchain(flat)


def _recall(flat: _Flat) -> Iterator[tuple[str, Figure]]:
    """Yield the time of a whole recall against a search of the same index that returns positions only."""
    import faiss

    index: Any = faiss.read_index(str(flat.memory / "memory.faiss"))
    threads, half = faiss.omp_get_max_threads(), flat.sizes.flat / 2
    with flat.open() as store:

        def recall(before: float | None) -> float:
            query = flat.query()
            return timed(lambda: store.recall(query, K, before=before))

        def search(threads: int, _: int) -> float:
            vector = flat.embedder.vector[None]
            faiss.omp_set_num_threads(threads)
            return timed(lambda: index.search(vector, K))

        # Two rounds: FAISS's threads still spin for a while after a search, and would slow the next measurement.
        rounds: list[list[list[float]]] = []
        for number in (threads, 1):
            sides: list[Callable[[int], float]] = [lambda _: recall(None), lambda _: recall(half), partial(search, number)]
            run_alternately(3, *sides)
            rounds.append(run_alternately(flat.sizes.recalls, *sides))
        faiss.omp_set_num_threads(threads)
    yield "memory.recall_100k_ms", figure([1000 * s for s in rounds[0][0]], "ms", f"{flat.sizes.flat} triples, k = {K}")
    for (whole, past, bare), end, threading in zip(rounds, ("", "_one_thread"), ("default threads", "one thread"), strict=True):
        against = f"bare FAISS search, {threading}"
        yield f"memory.recall_100k_vs_faiss{end}", figure(ratios(whole, bare), "ratio", f"{against} (limit: 1.3)")
        yield (
            f"memory.recall_100k_before_vs_faiss{end}",
            figure(ratios(past, bare), "ratio", f"{against}; ours is filtered to half"),
        )


def _open(flat: _Flat) -> Iterator[tuple[str, Figure]]:
    """Yield the time to open a memory, also against reading its index file."""
    import faiss

    def ours(_: int) -> float:
        opened: list[TripleStore] = []
        seconds = timed(lambda: opened.append(flat.open()))
        opened[0].close()
        return seconds

    file = str(flat.memory / "memory.faiss")
    mine, read = run_alternately(flat.sizes.opens, ours, lambda _: timed(lambda: faiss.read_index(file)))
    yield "memory.open_100k_s", figure(mine, "s", "limit: 1 s")
    yield "memory.open_100k_vs_read", figure(ratios(mine, read), "ratio", "faiss.read_index of its index file (limit: 2)")


def _append(flat: _Flat) -> Iterator[tuple[str, Figure]]:
    """Yield the time to add triples, also against inserting the same rows into a plain table of the same size."""
    plain = _plain_table(flat.folder / "plain.sqlite", flat.memory / "memory.sqlite")
    with flat.open() as store:
        rounds = [flat.more(number) for number in range(flat.sizes.appends)]

        def ours(number: int) -> float:
            return timed(lambda: store.add(*rounds[number]))

        def theirs(number: int) -> float:
            rows = [
                (None, *schema.encode(0, triple, vector.tobytes())[1:]) for triple, vector in zip(*rounds[number], strict=True)
            ]
            return timed(lambda: _insert(plain, rows))

        def single(number: int) -> float:
            triples, vectors = flat.more(100 + number)
            return 1000 * timed(lambda: store.add(triples[:1], vectors[:1]))

        mine, inserted = run_alternately(flat.sizes.appends, ours, theirs)
        [singles] = run_alternately(flat.sizes.appends, single)
    plain.close()
    against = f"the same {flat.sizes.appended} rows inserted into SQLite in one transaction (limit: 2)"
    yield "memory.append_vs_sqlite", figure(ratios(mine, inserted), "ratio", against)
    yield "memory.append_1k_ms", figure([1000 * s for s in mine], "ms", f"{flat.sizes.appended} triples, embeddings given")
    yield "memory.append_commit_ms", figure(singles, "ms", "one triple, on disk when acknowledged")


def _plain_table(path: Path, memory: Path) -> sqlite3.Connection:
    """Return a table with the same columns and rows, and nothing else."""
    plain = sqlite3.connect(path, isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("PRAGMA synchronous=FULL")
    plain.execute("ATTACH ? AS memory", (str(memory),))
    columns = [f"{name} {kind}" for _, name, kind, *_ in plain.execute("PRAGMA memory.table_info(triples)")]
    plain.execute(f"CREATE TABLE triples ({columns[0]} PRIMARY KEY, {columns[1]} UNIQUE, {', '.join(columns[2:])})")
    plain.execute("INSERT INTO main.triples SELECT * FROM memory.triples")
    plain.execute("DETACH memory")
    return plain


def _insert(plain: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    plain.execute("BEGIN")
    plain.executemany(schema.INSERT, rows)
    plain.execute("COMMIT")


# Against LangChain's vector store -----------------------------------------------------------------------------------


def langchain_row(triple: Triple) -> tuple[str, dict[str, Any]]:
    """Return a triple as a text and its metadata."""
    return query_text(triple.pair), asdict(triple)


def _langchain(flat: _Flat) -> Iterator[tuple[str, Figure]]:
    """Yield the times to search, open and append against LangChain's vector store; both sides get the embeddings."""
    from langchain_community.vectorstores import FAISS
    from langchain_core.embeddings import FakeEmbeddings

    embedding = FakeEmbeddings(size=flat.sizes.dimension)  # never used: all embeddings are given
    documents = [langchain_row(triple) for triple in flat.triples]
    texts, metadata = [text for text, _ in documents], [values for _, values in documents]
    theirs: Any = FAISS.from_embeddings(list(zip(texts, flat.vectors, strict=True)), embedding, metadata)
    saved = str(flat.folder / "langchain")
    theirs.save_local(saved)

    def search(_: int) -> float:
        return timed(lambda: theirs.similarity_search_with_score_by_vector(flat.embedder.vector, k=K))

    def load(_: int) -> float:
        return timed(lambda: FAISS.load_local(saved, embedding, allow_dangerous_deserialization=True))

    def opened(_: int) -> float:
        stores: list[TripleStore] = []
        seconds = timed(lambda: stores.append(flat.open()))
        stores[0].close()
        return seconds

    def append(number: int) -> float:
        triples, vectors = flat.more(1000 + number)
        rows = [langchain_row(triple) for triple in triples]
        pairs, new_metadata = list(zip([text for text, _ in rows], vectors, strict=True)), [values for _, values in rows]
        return timed(lambda: (theirs.add_embeddings(pairs, new_metadata), theirs.save_local(saved)))

    with flat.open() as store:

        def recall(_: int) -> float:
            query = flat.query()
            return timed(lambda: store.recall(query, K))

        ours_search, their_search = run_alternately(flat.sizes.recalls, recall, search)
    ours_open, their_open = run_alternately(flat.sizes.saves, opened, load)
    with flat.open() as store:

        def add(number: int) -> float:
            triples, vectors = flat.more(1000 + number)
            return timed(lambda: store.add(triples, vectors))

        ours_add, their_add = run_alternately(flat.sizes.saves, add, append)
    yield "memory.search_vs_langchain", figure(ratios(ours_search, their_search), "ratio", _LANGCHAIN)
    yield "memory.open_vs_langchain", figure(ratios(ours_open, their_open), "ratio", f"{_LANGCHAIN}, load_local")
    against = f"{_LANGCHAIN}; {flat.sizes.appended} triples made durable, theirs by save_local"
    yield "memory.append_vs_langchain", figure(ratios(ours_add, their_add), "ratio", against)
    yield "memory.langchain_search_ms", figure([1000 * s for s in their_search], "ms", "LangChain's, for comparison")
    yield "memory.langchain_open_s", figure(their_open, "s", "LangChain's, for comparison")
    yield "memory.langchain_append_s", figure(their_add, "s", "LangChain's, for comparison")


# Kills, and many twins -----------------------------------------------------------------------------------------------


def _kills_part(folder: Path, sizes: Sizes) -> Iterator[tuple[str, Figure]]:
    result = run_in_subprocess(killed, str(folder / "learning"), sizes.kills, 0)
    against = f"{sizes.kills} SIGKILLs while learning and appending"
    yield "memory.lost_in_200_kills", single_figure(result["lost"], "triples", f"{against} (limit: 0)", result["acknowledged"])
    unclean = result["unclean"]
    against += "".join(f"; {sentence}" for sentence in unclean[:3])
    yield "memory.unclean_opens_after_200_kills", single_figure(len(unclean), "opens", against, sizes.kills)
    against = f"share of {sizes.flat} acknowledged triples, killed at a random time of a save"
    for name, work in (("", killed_in_save), ("_langchain", killed_in_save_langchain)):
        place = folder / f"saving{name}"
        shares: list[float] = run_in_subprocess(work, str(place), sizes.flat, sizes.dimension, sizes.save_kills)
        mean = sum(shares) / len(shares)
        yield (
            f"memory.lost_when_killed_in_save{name}",
            Figure(value=mean, unit="share", low=min(shares), high=max(shares), n=len(shares), against=against),
        )
        shutil.rmtree(place)


def _twins_part(home: Path, sizes: Sizes) -> Iterator[tuple[str, Figure]]:
    """Yield the time to list many twins, and to open one of them against the same twin in a home of its own."""
    embedder, alone = FakeEmbedder(sizes.dimension), home / "alone"
    asyncio.run(alearn("twin", small_log(), small_recipe("none", sizes.dimension), embedder=embedder, home=alone))
    crowd = home / "crowd"
    shutil.copytree(alone, crowd)
    for number in range(sizes.twins - 1):
        folder = crowd / f"twin-{number}"
        folder.mkdir()
        shutil.copyfile(alone / "twin" / "twin.json", folder / "twin.json")

    def open_in(where: Path) -> float:
        stores: list[TripleStore] = []

        def work() -> None:
            folder = existing_twin("twin", where)
            TwinRecord.load(folder)
            stores.append(TripleStore(folder, embedder, create=False))

        seconds = timed(work)
        stores[0].close()
        return seconds

    listed = [timed(lambda: list_twins(crowd)) for _ in range(sizes.opens)]
    yield "memory.list_10k_s", figure(listed, "s", f"{sizes.twins} twins")
    in_crowd, by_itself = run_alternately(sizes.opens, lambda _: open_in(crowd), lambda _: open_in(alone))
    yield "memory.open_among_10k_vs_alone", figure(ratios(in_crowd, by_itself), "ratio", "the same twin in a home of its own")
