"""Tests of memory/twin/learn.py and staging.py: the corpus is stored, held-out turns are not, an interrupted run is resumed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from conftest import other_conversation, recipe, scripted, small_conversation
from usertwin.memory import ChatModel, Recipe, Triple, TripleStore, TwinRecord, alearn, list_twins
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin import learn
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import (
    ChatLog,
    Conversation,
    LogError,
    ModelError,
    Persona,
    Turn,
    TwinError,
    UsageError,
    read_conversations,
    split_pairs,
)

WORDS = ("tired", "happy", "curious", "in a hurry", "unsure", "polite", "cold", "hungry")
ONE = recipe(candidates=1)  # one call a triple
NONE = recipe(method="none", model=None, scorer=None)


class SteadyModel(BaseChatModel):
    """A model whose reply depends on prompt and seed only; after `limit` replies it calls `fail`."""

    requests: list[tuple[str, int]] = []  # noqa: RUF012 - a pydantic field
    limit: int | None = None
    fail: Callable[[], None] | None = None
    running: int = 0
    peak: int = 0

    @property
    def _llm_type(self) -> str:
        return "steady"

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("models are called asynchronously")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, **options: Any
    ) -> ChatResult:
        self.running += 1
        self.peak = max(self.peak, self.running)
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        if self.limit is not None and len(self.requests) >= self.limit and self.fail is not None:
            self.fail()
            await asyncio.sleep(0)  # where a cancellation arrives
        request = (str(messages[-1].text), seed)
        self.requests.append(request)
        digest = hashlib.sha256(repr(request).encode()).digest()
        text = f"felt {WORDS[digest[0] % 8]} and {WORDS[digest[1] % 8]}."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def steady(limit: int | None = None, fail: Callable[[], None] | None = None) -> SteadyModel:
    return SteadyModel(limit=limit, fail=fail)


def run(name: str, log: ChatLog, recipe_: Recipe, chat: BaseChatModel | None = None, **options: Any) -> TwinRecord:
    model = None if chat is None else ChatModel("scripted:test", chat, "transcript")
    options = {"embedder": FakeEmbedder(), "scorer": FakeScorer()} | options
    return asyncio.run(alearn(name, log, recipe_, model=model, **options))


def memory(name: str) -> list[Triple]:
    with TripleStore(twin_folder(name), FakeEmbedder()) as store:
        return list(store.triples())


def without_cost(triple: Triple) -> Triple:
    """Return the triple without its cost."""
    return replace(triple, provenance=None if triple.provenance is None else replace(triple.provenance, cost={}))


def files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(twin_folder(name).iterdir())}


def hidden_folders() -> list[str]:
    return [path.name for path in twin_folder("x").parent.iterdir() if path.name.startswith(".")]


def fail_to_reply() -> None:
    raise ModelError("no connection")


def interrupt() -> None:
    raise KeyboardInterrupt


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


# Memory and record ----------------------------------------------------------------------------------------------------


def test_the_memory_holds_the_corpus_and_no_held_out_turn(ann: str, log: ChatLog) -> None:
    split = split_pairs(log, "Ann", window=6)
    triples = memory(ann)
    assert [triple.pair for triple in triples] == list(split.corpus)
    held_out = {pair.conversation_id for pair in (*split.validation, *split.test)}
    assert held_out.isdisjoint(triple.pair.conversation_id for triple in triples)
    assert all(triple.pair.when < pair.when for triple in triples for pair in (*split.validation, *split.test))
    stored = read_conversations(twin_folder(ann) / "held_out.jsonl.gz")
    assert {c.conversation_id for c in stored.conversations} == held_out
    assert set(stored.conversations) <= set(log.conversations)


def test_no_held_out_text_is_in_the_files_of_the_memory(ann: str, log: ChatLog) -> None:
    split = split_pairs(log, "Ann", window=6)
    days = [pair.action for pair in (*split.validation, *split.test) if pair.action.startswith("tomorrow")]
    assert days
    content = b"".join(files(ann)[name] for name in ("memory.sqlite", "memory.faiss", "ending.json", "twin.json"))
    assert split.corpus[1].action.encode() in content
    assert not any(day.encode() in content for day in days)


def test_the_record_describes_the_twin(ann: str, log: ChatLog) -> None:
    split = split_pairs(log, "Ann", window=6)
    record = TwinRecord.load(twin_folder(ann))
    assert (record.name, record.state, record.recipe, record.dated) == ("ann", "complete", recipe(), True)
    assert record.persona.name == "Ann"
    assert record.corpus_ends == split.corpus[-1].when
    assert record.validation == tuple(dict.fromkeys(pair.conversation_id for pair in split.validation))
    assert record.test == tuple(dict.fromkeys(pair.conversation_id for pair in split.test))
    assert {"usertwin", "torch", "faiss-cpu"} <= set(record.versions)
    assert record.closeness is None
    assert list_twins() == ["ann"]
    assert hidden_folders() == []


def test_every_triple_has_a_trace_with_its_provenance(ann: str) -> None:
    triples = memory(ann)
    assert all(triple.provenance is not None and triple.provenance.candidates == 2 for triple in triples)
    assert all((triple.reasoning is None) == (triple.score is None) for triple in triples)
    assert any(triple.reasoning for triple in triples)


def test_the_last_turn_model_predicts_the_endings(ann: str, log: ChatLog) -> None:
    model = LastTurnModel.load(twin_folder(ann) / "ending.json")
    assert model is not None
    for pair in split_pairs(log, "Ann").test:
        assert model.leaves(pair) == pair.ends_conversation


def test_equal_recipes_give_equal_twins(log: ChatLog) -> None:
    one, two = run("one", log, recipe(), steady()), run("two", log, recipe(), steady())
    assert replace(one, name="", learned_at="") == replace(two, name="", learned_at="")
    assert memory("one") == memory("two")
    assert any(triple.reasoning for triple in memory("one"))


@pytest.mark.parametrize(("method", "calls"), [("none", 0), ("backward", 1), ("recon", 3)])
def test_each_method_makes_as_many_calls_as_it_needs(log: ChatLog, method: str, calls: int) -> None:
    chat = steady()
    record = run("ann", log, recipe(method=method, candidates=3), chat)
    triples = memory("ann")
    assert record.state == "complete"
    assert len({prompt for prompt, _ in chat.requests}) == (33 if calls else 0)  # 42 pairs, some with equal prompts
    assert len(chat.requests) == len(set(chat.requests)) == calls * (33 if calls else 0)
    assert sum(t.provenance.candidates for t in triples if t.provenance is not None) == calls * 42
    assert all((triple.provenance is None) == (method == "none") for triple in triples)
    assert all((triple.score is not None) == (method == "recon") for triple in triples)


def test_limits_keep_the_latest_triples_and_traces(log: ChatLog) -> None:
    chat = steady()
    run("ann", log, replace(ONE, max_triples=7, max_traces=3), chat)
    triples = memory("ann")
    assert [triple.pair for triple in triples] == list(split_pairs(log, "Ann").corpus[-7:])
    assert [triple.provenance is not None for triple in triples] == [False] * 4 + [True] * 3
    assert len(chat.requests) == 3
    run("bob", log, replace(ONE, max_triples=7, max_traces=0), chat)
    assert len(chat.requests) == 3
    run("all", log, replace(ONE, max_triples=10_000, method="none"))
    assert len(memory("all")) == len(split_pairs(log, "Ann").corpus)


def test_a_given_persona_is_the_twins(log: ChatLog) -> None:
    persona = Persona("Annie", "Likes the sea.", 9, ("hi",))
    assert run("ann", log, recipe(method="none"), persona=persona).persona == persona
    assert TwinRecord.load(twin_folder("ann")).persona == persona


def test_a_given_persona_without_counts_gets_those_of_the_log(log: ChatLog) -> None:
    derived = run("bob", log, recipe(method="none")).persona
    given = run("ann", log, recipe(method="none"), persona=Persona("Annie", "Likes the sea.")).persona
    assert given == replace(derived, name="Annie", description="Likes the sea.")
    assert given.typical_words > 0  # a limit of tokens follows from it
    assert (derived.derived, given.derived) == (True, False)


def test_a_long_identifier_is_shortened_for_a_name() -> None:
    log = ChatLog(tuple(renamed(small_conversation(i), "Ann", "user-1777b3e5-9e12-4a52-b1f0") for i in range(10)), "t")
    record = run("ann", log, recipe(method="none", speaker="user-1777b3e5-9e12-4a52-b1f0"))
    assert record.persona.name == "user"
    assert record.recipe.speaker == "user-1777b3e5-9e12-4a52-b1f0"


def test_a_log_without_dates_is_split_by_its_order(log: ChatLog) -> None:
    undated = ChatLog(tuple(replace(c, started_at=None) for c in log.conversations), "test")
    record = run("ann", undated, recipe(method="none"))
    assert not record.dated
    assert [triple.pair for triple in memory("ann")] == list(split_pairs(undated, "Ann").corpus)


# The other person -----------------------------------------------------------------------------------------------------


def renamed(conversation: Conversation, old: str, new: str) -> Conversation:
    turns = tuple(replace(turn, speaker=new) if turn.speaker == old else turn for turn in conversation.turns)
    return replace(conversation, turns=turns)


def others(name: str) -> list[Conversation]:
    """Return the stored conversations of the other person; the file is empty if there is none."""
    path = twin_folder(name) / "other_person.jsonl.gz"
    return list(read_conversations(path).conversations) if gzip.decompress(path.read_bytes()) else []


def test_the_other_person_has_the_same_role_even_if_another_speaker_is_more_frequent(ann: str, log: ChatLog) -> None:
    counts = log.turn_counts()
    assert counts["desk-0"] > counts["Bob"]
    assert TwinRecord.load(twin_folder(ann)).other_speaker == "Bob"
    assert [c.conversation_id for c in others(ann)] == [f"bob-{i:02d}" for i in range(10)]


def test_the_other_person_is_the_most_frequent_one_of_the_role(log: ChatLog) -> None:
    cleo = (renamed(replace(other_conversation(i), conversation_id=f"cleo-{i}"), "Bob", "Cleo") for i in range(15))
    assert run("ann", ChatLog((*cleo, *log.conversations), "t"), recipe(method="none")).other_speaker == "Cleo"


def test_no_conversation_of_the_other_person_is_held_out(log: ChatLog) -> None:
    def joined_by_bob(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(*conversation.turns, Turn("Bob", "user", "me too")))

    together = ChatLog(tuple(joined_by_bob(c) for c in log.conversations if c.conversation_id.startswith("talk")), "t")
    record = run("ann", together, recipe(method="none"))
    stored = {c.conversation_id for c in others("ann")}
    assert record.other_speaker == "Bob"
    assert stored == {pair.conversation_id for pair in split_pairs(together, "Ann").corpus}
    assert stored.isdisjoint((*record.validation, *record.test))


def test_a_private_turn_does_not_define_the_role_of_its_speaker(log: ChatLog) -> None:
    def with_instruction(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(Turn("Ann", "instruction", "Be kind."), *conversation.turns))

    instructed = ChatLog(tuple(with_instruction(c) for c in log.conversations), "t")
    assert run("ann", instructed, recipe(method="none")).other_speaker == "Bob"


def test_a_log_without_another_speaker_of_the_role_has_no_other_person(log: ChatLog) -> None:
    alone = ChatLog(tuple(c for c in log.conversations if "Ann" in c.speakers()), "t")
    assert run("ann", alone, recipe(method="none")).other_speaker is None
    assert others("ann") == []


# Interrupted and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "error"), [(fail_to_reply, ModelError), (interrupt, KeyboardInterrupt), (press_ctrl_c, KeyboardInterrupt)]
)
@pytest.mark.parametrize("replies", [0, 5])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    log: ChatLog, fail: Callable[[], None], error: type[BaseException], replies: int
) -> None:
    short = replace(ONE, max_triples=12)
    whole, first, second = steady(), steady(replies, fail), steady()
    expected = run("whole", log, short, whole)
    with pytest.raises(error):
        run("ann", log, short, first)
    assert TwinRecord.load(twin_folder("ann")).state == "interrupted"
    assert len(memory("ann")) == 12  # a usable twin
    assert sum(triple.provenance is not None for triple in memory("ann")) == len(first.requests) == replies
    resumed = run("ann", log, short, second)
    assert first.requests + second.requests == whole.requests
    assert memory("ann") == memory("whole")
    assert replace(resumed, name="", learned_at="") == replace(expected, name="", learned_at="")
    differing = {"twin.json", "memory.sqlite", "memory.seal", "memory.faiss"}  # a name, a time, the order of pages
    assert {k: v for k, v in files("ann").items() if k not in differing} == {
        k: v for k, v in files("whole").items() if k not in differing
    }
    assert hidden_folders() == []


def test_a_run_may_be_interrupted_repeatedly(log: ChatLog) -> None:
    short = replace(ONE, max_triples=9)
    requests: list[tuple[str, int]] = []
    for _ in range(4):
        chat = steady(2, fail_to_reply)
        with pytest.raises(ModelError):
            run("ann", log, short, chat)
        requests += chat.requests
    chat = steady()
    run("ann", log, short, chat)
    assert len(requests) == 8
    assert len(chat.requests) == 1
    assert len(set(requests + chat.requests)) == 9


def test_a_run_interrupted_while_embedding_embeds_nothing_twice(log: ChatLog, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingEmbedder(FakeEmbedder):
        calls = 1
        rows = 0

        def embed(self, texts: Sequence[str]) -> Any:
            if not self.calls:
                raise ModelError("out of memory")
            self.calls -= 1
            self.rows += len(texts)
            return super().embed(texts)

    monkeypatch.setattr(learn, "_CHUNK", 16)
    embedder = FailingEmbedder()
    with pytest.raises(ModelError, match="out of memory"):
        run("ann", log, NONE, embedder=embedder)
    assert 0 < len(memory("ann")) == embedder.rows
    embedder.calls = 100
    run("ann", log, NONE, embedder=embedder)
    assert embedder.rows == len(memory("ann")) == len(split_pairs(log, "Ann").corpus)


def test_a_killed_run_is_resumed_in_its_hidden_folder(log: ChatLog) -> None:
    short = replace(ONE, max_triples=6)
    first, second = steady(4, fail_to_reply), steady()
    with pytest.raises(ModelError):
        run("ann", log, short, first)
    twin_folder("ann").rename(twin_folder("ann").parent / ".ann.partial")  # as a killed process leaves it
    assert list_twins() == []
    run("ann", log, short, second)
    assert (len(first.requests), len(second.requests)) == (4, 2)
    assert (list_twins(), hidden_folders()) == (["ann"], [])


def test_a_killed_run_of_another_recipe_starts_again(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, replace(ONE, max_triples=6), steady(4, fail_to_reply))
    twin_folder("ann").rename(twin_folder("ann").parent / ".ann.partial")
    chat = steady()
    run("ann", log, replace(ONE, max_triples=6, seed=1), chat)
    assert len(chat.requests) == 6
    assert {triple.provenance.seed for triple in memory("ann") if triple.provenance} == {1}


def test_an_interrupted_run_is_not_resumed_with_another_recipe(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, ONE, steady(1, fail_to_reply))
    before = files("ann")
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", log, replace(ONE, seed=1), steady())
    assert files("ann") == before


def test_an_interrupted_run_is_not_resumed_if_its_memory_would_be_held_out(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, ONE, steady(1, fail_to_reply))
    shorter = ChatLog(log.conversations[:20], "test")  # under the same name
    held_out = split_pairs(shorter, "Ann")
    assert {p.conversation_id for p in held_out.test} & {t.pair.conversation_id for t in memory("ann")}
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", shorter, ONE, steady())
    run("ann", shorter, ONE, steady(), overwrite=True)
    assert [triple.pair for triple in memory("ann")] == list(held_out.corpus)


# Existing twins -------------------------------------------------------------------------------------------------------


def test_a_twin_is_not_replaced_without_overwrite(ann: str, log: ChatLog) -> None:
    before = files(ann)
    with pytest.raises(TwinError, match=r'there is a twin "ann" in .* already; choose another name, or pass --overwrite'):
        run("ann", log, recipe(), steady())
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", log, replace(ONE, seed=1), steady())
    assert files(ann) == before
    assert hidden_folders() == []


def test_overwriting_replaces_the_whole_folder(ann: str, log: ChatLog) -> None:
    (twin_folder(ann) / "notes.txt").write_text("old", "utf-8")
    record = run("ann", log, recipe(method="none", speaker="Bob"), overwrite=True)
    assert TwinRecord.load(twin_folder(ann)) == record
    assert {triple.pair.speaker for triple in memory(ann)} == {"Bob"}
    assert not (twin_folder(ann) / "notes.txt").exists()
    assert (list_twins(), hidden_folders()) == (["ann"], [])


@pytest.mark.parametrize(("fail", "error"), [(fail_to_reply, ModelError), (press_ctrl_c, KeyboardInterrupt)])
def test_the_old_twin_stays_until_the_new_one_is_complete(
    ann: str, log: ChatLog, fail: Callable[[], None], error: type[BaseException]
) -> None:
    before = files(ann)
    new = replace(ONE, max_triples=6, seed=9)
    first, second = steady(4, fail), steady()
    with pytest.raises(error):
        run("ann", log, new, first, overwrite=True)
    assert files(ann) == before
    assert list_twins() == ["ann"]
    assert run("ann", log, new, second, overwrite=True).recipe.seed == 9
    assert (len(first.requests), len(second.requests)) == (4, 2)
    assert len(memory(ann)) == 6
    assert (list_twins(), hidden_folders()) == (["ann"], [])


def test_overwriting_with_another_recipe_does_not_resume(ann: str, log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, replace(ONE, max_triples=6, seed=9), steady(4, fail_to_reply), overwrite=True)
    chat = steady()
    run("ann", log, replace(ONE, max_triples=5, seed=8), chat, overwrite=True)
    assert len(chat.requests) == len(memory(ann)) == 5
    assert hidden_folders() == []


def test_a_damaged_twin_is_an_error_and_can_be_overwritten(ann: str, log: ChatLog) -> None:
    (twin_folder(ann) / "twin.json").write_text("{", "utf-8")
    with pytest.raises(TwinError, match=r"is damaged .*--overwrite"):
        run("ann", log, recipe(), steady())
    (twin_folder(ann) / "memory.sqlite").write_bytes(b"no database" * 99)
    run("ann", log, recipe(method="none"), overwrite=True)
    assert len(memory(ann)) == len(split_pairs(log, "Ann").corpus)


# Concurrency, progress and invalid input ------------------------------------------------------------------------------


def test_concurrent_calls_give_the_same_twin(log: ChatLog) -> None:
    short = replace(ONE, max_triples=12)
    one, four = steady(), steady()
    run("one", log, short, one, concurrency=1)
    run("four", log, short, four, concurrency=4)
    assert (one.peak, four.peak) == (1, 4)
    assert sorted(one.requests) == sorted(four.requests)
    assert memory("one") == memory("four")


def test_the_first_of_several_failures_is_raised_and_finished_work_is_kept(log: ChatLog) -> None:
    short = replace(ONE, max_triples=12)
    with pytest.raises(ModelError, match=r"^no connection$"):
        run("ann", log, short, steady(5, fail_to_reply), concurrency=3)
    done = [triple for triple in memory("ann") if triple.provenance is not None]
    assert len(done) <= 5
    chat = steady()
    run("ann", log, short, chat, concurrency=3)
    assert len(chat.requests) == 12 - 5  # completions are cached even if their triple was not stored
    run("whole", log, short, steady())
    assert [without_cost(t) for t in memory("ann")] == [
        without_cost(t) for t in memory("whole")
    ]  # the cached completions are free


def test_progress_counts_to_the_total_and_resumes(log: ChatLog) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))

    short = replace(ONE, max_triples=5)
    with pytest.raises(ModelError):
        run("ann", log, short, steady(3, fail_to_reply), progress=progress)
    assert calls == [("memories", 0, 5), ("memories", 5, 5), *(("traces", done, 5) for done in range(4))]
    calls.clear()
    run("ann", log, short, steady(), progress=progress)
    assert calls == [("memories", 5, 5), *(("traces", done, 5) for done in range(3, 6))]


@pytest.mark.parametrize(
    ("recipe_", "error", "message"),
    [
        (recipe(max_triples=0), UsageError, "max_triples is 0; it must be at least 1"),
        (recipe(max_traces=-1), UsageError, "max_traces is -1"),
        (recipe(speaker="Zoe"), LogError, 'no turns by "Zoe"'),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(
    log: ChatLog, recipe_: Recipe, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run("ann", log, recipe_, steady())
    assert not twin_folder("ann").parent.exists()


def test_an_invalid_name_is_refused(log: ChatLog) -> None:
    with pytest.raises(TwinError, match="cannot be a twin's name"):
        run("../ann", log, recipe(), steady())


def test_a_method_without_its_models_is_refused(log: ChatLog) -> None:
    with pytest.raises(UsageError, match="needs a model and a fidelity"):
        run("ann", log, recipe())
    with pytest.raises(UsageError, match='the fidelity "guarded_gain" needs a scorer'):
        asyncio.run(alearn("eve", log, recipe(), embedder=FakeEmbedder(), model=scripted("was tired"), scorer=None))


def test_a_home_that_is_a_file_is_an_error_with_a_way_out(log: ChatLog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(TwinError, match=r"file: cannot hold twins .*--home"):
        run("ann", log, recipe(method="none"), home=tmp_path / "file")


@pytest.mark.parametrize("place", ["ann", ".ann.partial"])
def test_a_twin_that_another_process_is_writing_is_not_replaced(log: ChatLog, place: str) -> None:
    asyncio.run(alearn("ann", log, NONE, embedder=FakeEmbedder()))
    folder = twin_folder("ann")
    if place != "ann":
        shutil.copytree(folder, folder.parent / place)
    with TripleStore(folder.parent / place, FakeEmbedder()) as store:
        store.delete([next(store.triples()).id])  # takes the writer lock
        with pytest.raises(TwinError, match=r"process \d+ .* is writing in this memory"):
            asyncio.run(alearn("ann", log, replace(NONE, seed=5), embedder=FakeEmbedder(), overwrite=True))
        assert len(store) == 41
    asyncio.run(alearn("ann", log, replace(NONE, seed=5), embedder=FakeEmbedder(), overwrite=True))
    assert len(memory("ann")) == 42
