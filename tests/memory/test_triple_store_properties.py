"""memory/store/triple_store.py: random operations against a model, a dictionary that is searched exhaustively."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from usertwin.memory import Provenance, Recalled, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.store.vector_index import INDEX_KINDS
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.pairs import ABANDONED, CONTEXT_KINDS

EMBEDDER = FakeEmbedder(16)
Vector = NDArray[np.float32]
LEAST_APPROXIMATE = 256  # fewer are always compared one by one

texts = st.sampled_from(["weather oslo", "a train?", "weather train monday", "music?", "order refund", "oslo"])
contexts = st.lists(st.builds(Turn, st.just("desk"), st.sampled_from(["agent", "user", ""]), texts), max_size=2).map(tuple)
conversations = st.sampled_from(["c0", "c1", "c2", "c3"])
moments = st.integers(0, 12).map(float)
pairs = st.builds(
    Pair, speaker=st.just("Ann"), context=contexts, action=st.sampled_from(["yes", "no", ABANDONED]), goal=st.just(""),
    conversation_id=conversations, position=st.integers(0, 9), when=moments, ends_conversation=st.booleans(),
)  # fmt: skip
traces = st.none() | st.sampled_from(["in a hurry", "likes trains"])
triples = st.builds(Triple, pairs, traces)
seeds = st.integers(0, 2**32 - 1)
limits = st.none() | st.integers(-1, 13).map(float)


@dataclass(frozen=True)
class Filters:
    """What a recall may be limited to."""

    before: float | None
    role: str | None
    kind: str | None
    abandoned: bool | None

    def admit(self, query: Pair, pair: Pair) -> bool:
        """Whether this query may recall that pair."""
        return (
            pair.conversation_id != query.conversation_id
            and (self.before is None or pair.when < self.before)
            and (self.role is None or (pair.context[-1].role if pair.context else "") == self.role)
            and (self.kind is None or pair.kind == self.kind)
            and (self.abandoned is None or pair.abandoned == self.abandoned)
        )


filters = st.builds(
    Filters, limits, st.none() | st.sampled_from(["agent", "user", ""]), st.none() | st.sampled_from(CONTEXT_KINDS),
    st.sampled_from([None, False, False, True]),
)  # fmt: skip


def unit(vector: Vector) -> Vector:
    """The same direction with length 1."""
    return vector / np.linalg.norm(vector)


class MemoryMachine(RuleBasedStateMachine):
    """A store that writes, at times another that reads, and the model of what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = TripleStore(self.folder, EMBEDDER)
        self.reader: TripleStore | None = None
        self.model: dict[str, tuple[Triple, Vector]] = {}
        self.kind = "auto"

    def teardown(self) -> None:
        for store in filter(None, (self.reader, self.store)):
            store.close()
        shutil.rmtree(self.folder)

    # Adding ----------------------------------------------------------------------------------------------------------

    @initialize(many=st.booleans())
    def start(self, many: bool) -> None:
        if many:
            self.add_many(0)

    def remember(self, store: TripleStore, new_triples: list[Triple], vectors: Vector | None) -> None:
        new = 0
        for place, triple in enumerate(new_triples):
            vector = EMBEDDER.embed([query_text(triple.pair)])[0] if vectors is None else unit(vectors[place])
            new += triple.id not in self.model
            self.model.setdefault(triple.id, (triple, vector))
        assert store.add(new_triples, vectors) == new

    @rule(new_triples=st.lists(triples, max_size=8))
    def add(self, new_triples: list[Triple]) -> None:
        assert {t.id for t in self.store.missing(new_triples)} == {t.id for t in new_triples} - set(self.model)
        self.remember(self.store, new_triples, None)

    @rule(new_triples=st.lists(triples, min_size=1, max_size=8), seed=seeds)
    def add_with_embeddings(self, new_triples: list[Triple], seed: int) -> None:
        vectors = np.random.default_rng(seed).normal(size=(len(new_triples), 16)).astype(np.float32)
        self.remember(self.store, new_triples, vectors)

    @precondition(lambda self: len(self.model) < LEAST_APPROXIMATE)
    @rule(seed=seeds)
    def add_many(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        asked = (Turn("desk", "agent", "a train?"),)
        new_triples = [
            Triple(
                Pair(
                    speaker="Ann",
                    context=asked,
                    action="yes",
                    goal="",
                    conversation_id=f"c{n % 5}",
                    position=int(rng.integers(10**6)),
                    when=float(n % 13),
                )
            )
            for n in range(LEAST_APPROXIMATE + 44)
        ]
        self.remember(self.store, new_triples, rng.normal(size=(len(new_triples), 16)).astype(np.float32))

    @rule(new_triples=st.lists(triples, min_size=1, max_size=4))
    def another_process_adds(self, new_triples: list[Triple]) -> None:
        self.store.save()  # lets others write
        other = self.reader or TripleStore(self.folder, EMBEDDER, wait=0)
        self.remember(other, new_triples, None)
        other.save() if self.reader else other.close()

    # Changing --------------------------------------------------------------------------------------------------------

    def some(self, data: random.Random, max_count: int) -> list[str]:
        known = sorted(self.model)
        return data.sample(known, min(max_count, len(known)))

    @rule(rng=st.randoms(use_true_random=False), trace=traces, unknown=triples)
    def set_traces(self, rng: random.Random, trace: str | None, unknown: Triple) -> None:
        provenance = (
            Provenance(method="recon", proposer="m", scorer=None, prompt_version="1", seed=0, candidates=1, rejected={})
            if trace
            else None
        )
        new = {name: replace(self.model[name][0], reasoning=trace, provenance=provenance) for name in self.some(rng, 3)}
        self.store.set_traces([*new.values(), *([] if unknown.id in self.model else [unknown])])
        self.model |= {name: (triple, self.model[name][1]) for name, triple in new.items()}

    @rule(rng=st.randoms(use_true_random=False), new=triples)
    def edit(self, rng: random.Random, new: Triple) -> None:
        for old in self.some(rng, 1):
            if new.id in self.model and new.id != old:
                with pytest.raises(TwinError, match="is in the memory already; nothing was changed"):
                    self.store.edit(old, new)
            else:
                self.store.edit(old, new)
                del self.model[old]
                self.model[new.id] = (new, EMBEDDER.embed([query_text(new.pair)])[0])

    @rule(new=triples)
    def edit_of_what_is_not_there_changes_nothing(self, new: Triple) -> None:
        with pytest.raises(TwinError, match="there is no triple"):
            self.store.edit("0" * 16, new)

    @rule(rng=st.randoms(use_true_random=False), max_count=st.integers(0, 5))
    def delete(self, rng: random.Random, max_count: int) -> None:
        gone = self.some(rng, max_count)
        assert self.store.delete([*gone, *gone[:1], "0" * 16]) == len(gone)
        for name in gone:
            del self.model[name]

    @rule(conversation=st.none() | conversations, before=limits, after=limits)
    def forget(self, conversation: str | None, before: float | None, after: float | None) -> None:
        if conversation is None and before is None and after is None:
            return
        gone = [
            name
            for name, (triple, _) in self.model.items()
            if (conversation is None or triple.pair.conversation_id == conversation)
            and (before is None or triple.pair.when < before)
            and (after is None or triple.pair.when > after)
        ]
        assert self.store.forget(conversation, before=before, after=after) == len(gone)
        for name in gone:
            del self.model[name]

    # The files -------------------------------------------------------------------------------------------------------

    @rule()
    def save(self) -> None:
        self.store.save()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.store = TripleStore(self.folder, EMBEDDER)

    @rule(kind=st.sampled_from([None, "auto", *INDEX_KINDS]))
    def rebuild(self, kind: str | None) -> None:
        self.store.rebuild(kind)  # pyright: ignore[reportArgumentType]
        self.kind = kind or self.kind
        stats = self.store.stats()
        assert stats.requested_kind == self.kind
        few = len(self.model) < LEAST_APPROXIMATE
        assert stats.tuning.kind == ("flat" if few or self.kind == "auto" else self.kind)
        assert (stats.tail, stats.triples) == (0, len(self.model))

    @rule()
    def lose_the_index(self) -> None:
        (self.folder / "memory.faiss").unlink(missing_ok=True)

    @rule()
    def a_reader_comes_or_goes(self) -> None:
        if self.reader:
            self.reader.close()
            self.reader = None
        else:
            self.reader = TripleStore(self.folder, EMBEDDER, create=False, wait=0)

    # What must hold --------------------------------------------------------------------------------------------------

    @property
    def stores(self) -> list[TripleStore]:
        return [self.store, *([self.reader] if self.reader else [])]

    @rule(query=pairs, k=st.integers(0, 12), limit=filters, rng=st.randoms(use_true_random=False))
    def recall(self, query: Pair, k: int, limit: Filters, rng: random.Random) -> None:
        vector = EMBEDDER.embed([query_text(query)])[0]
        allowed = {n: float(v @ vector) for n, (t, v) in self.model.items() if limit.admit(query, t.pair)}
        for store in self.stores:
            options = {"before": limit.before, "role": limit.role, "kind": limit.kind, "abandoned": limit.abandoned}
            results = store.recall(query, k, **options)
            self.check(store, results, allowed, k)
            self.check_with_trace(results, store.recall(query, k, with_trace=True, **options), allowed, k)
            sampled = store.sample(query, k, before=limit.before, rng=rng)
            admitted = [
                t for t, _ in self.model.values() if replace(limit, role=None, kind=None, abandoned=False).admit(query, t.pair)
            ]
            assert len({t.id for t in sampled}) == len(sampled) == min(k, len(admitted))
            assert all(triple in admitted for triple in sampled)

    def misses_nothing(self, store: TripleStore, allowed: dict[str, float]) -> bool:
        """Whether the store has to compare everything; an approximate kind may miss some where all of its base is allowed."""
        stats = store.stats()
        base = list(self.model)[: max(0, len(self.model) - stats.tail)]
        return stats.tuning.kind == "flat" or any(name not in allowed for name in base)

    def check(self, store: TripleStore, results: list[Recalled], allowed: dict[str, float], k: int) -> None:
        assert len({r.triple.id for r in results}) == len(results) == min(k, len(allowed))
        for recalled in results:
            assert recalled.triple == self.model[recalled.triple.id][0]
            assert abs(recalled.similarity - allowed[recalled.triple.id]) < 1e-5
        similarities = [r.similarity for r in results]
        assert similarities == sorted(similarities, reverse=True)
        if self.misses_nothing(store, allowed):
            np.testing.assert_allclose(similarities, sorted(allowed.values(), reverse=True)[:k], atol=1e-5)

    def check_with_trace(self, results: list[Recalled], other: list[Recalled], allowed: dict[str, float], k: int) -> None:
        traced = [similarity for name, similarity in allowed.items() if self.model[name][0].reasoning]
        if any(recalled.triple.reasoning for recalled in results) or not traced or not k:
            assert other == results
        else:
            assert other[:-1] == results[: k - 1]
            assert other[-1].triple.reasoning
            assert abs(other[-1].similarity - max(traced)) < 1e-5

    @rule(query=pairs)
    def everything_can_be_recalled(self, query: Pair) -> None:
        elsewhere = replace(query, conversation_id="now")
        for store in self.stores:
            if store.stats().tuning.kind == "flat":
                results = store.recall(elsewhere, len(self.model) + 3, abandoned=None)
                assert {r.triple.id: r.triple for r in results} == {name: triple for name, (triple, _) in self.model.items()}

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        for store in self.stores:
            assert len(store) == len(self.model)
            read = list(store.triples())
            assert {t.id: t for t in read} == {name: triple for name, (triple, _) in self.model.items()}
            order = [(t.pair.when, t.pair.conversation_id, t.pair.position) for t in read]
            assert order == sorted(order)

    @invariant()
    def it_has_no_problems(self) -> None:
        for store in self.stores:
            assert store.problems() == []

    @invariant()
    def its_figures_are_those_of_the_model(self) -> None:
        held = [triple for triple, _ in self.model.values()]
        for store in self.stores:
            stats = store.stats()
            assert stats.triples == len(held)
            assert stats.traced == sum(triple.reasoning is not None for triple in held)
            assert stats.abandoned == sum(triple.pair.abandoned for triple in held)
            assert stats.conversations == len({triple.pair.conversation_id for triple in held})
            assert stats.first == min((triple.pair.when for triple in held), default=None)
            assert stats.last == max((triple.pair.when for triple in held), default=None)


MemoryMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAMemoryIsAsItsModel = MemoryMachine.TestCase
