"""memory/twin/learn.py: all of the corpus and nothing held out is learned, and a learning that was stopped loses nothing."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
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


class Steady(BaseChatModel):
    """Answers by the prompt and the seed alone; raises once it has given so many answers."""

    given: list[tuple[str, int]] = []  # noqa: RUF012 - a pydantic field
    left: int | None = None
    fail: Callable[[], None] | None = None
    running: int = 0
    peak: int = 0

    @property
    def _llm_type(self) -> str:
        return "steady"

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("learning is asynchronous")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, **options: Any
    ) -> ChatResult:
        self.running += 1
        self.peak = max(self.peak, self.running)
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        if self.left is not None and len(self.given) >= self.left and self.fail is not None:
            self.fail()
            await asyncio.sleep(0)  # where a cancellation arrives
        asked = (str(messages[-1].text), seed)
        self.given.append(asked)
        digest = hashlib.sha256(repr(asked).encode()).digest()
        text = f"felt {WORDS[digest[0] % 8]} and {WORDS[digest[1] % 8]}."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def steady(left: int | None = None, fail: Callable[[], None] | None = None) -> Steady:
    return Steady(left=left, fail=fail)


def run(name: str, log: ChatLog, how: Recipe, chat: BaseChatModel | None = None, **options: Any) -> TwinRecord:
    model = None if chat is None else ChatModel("scripted:test", chat, "transcript")
    options = {"embedder": FakeEmbedder(), "scorer": FakeScorer()} | options
    return asyncio.run(alearn(name, log, how, model=model, **options))


def memory(name: str) -> list[Triple]:
    with TripleStore(twin_folder(name), FakeEmbedder()) as store:
        return list(store.triples())


def free(triple: Triple) -> Triple:
    """The triple without what it cost."""
    return replace(triple, provenance=None if triple.provenance is None else replace(triple.provenance, cost={}))


def files(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(twin_folder(name).iterdir())}


def hidden() -> list[str]:
    return [path.name for path in twin_folder("x").parent.iterdir() if path.name.startswith(".")]


def no_answer() -> None:
    raise ModelError("nobody there")


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A test run in the background of a shell passes on that it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


# What is learned -----------------------------------------------------------------------------------------------------


def test_everything_in_the_corpus_is_in_the_memory_and_nothing_that_is_held_out(ann: str, log: ChatLog) -> None:
    split = split_pairs(log, "Ann", window=6)
    triples = memory(ann)
    assert [triple.pair for triple in triples] == list(split.corpus)
    held_out = {pair.conversation_id for pair in (*split.validation, *split.test)}
    assert held_out.isdisjoint(triple.pair.conversation_id for triple in triples)
    assert all(triple.pair.when < pair.when for triple in triples for pair in (*split.validation, *split.test))
    kept = read_conversations(twin_folder(ann) / "held_out.jsonl.gz")
    assert {c.conversation_id for c in kept.conversations} == held_out
    assert set(kept.conversations) <= set(log.conversations)


def test_no_text_that_is_held_out_is_in_the_memorys_files(ann: str, log: ChatLog) -> None:
    split = split_pairs(log, "Ann", window=6)
    days = [pair.action for pair in (*split.validation, *split.test) if pair.action.startswith("tomorrow")]
    assert days
    known = b"".join(files(ann)[name] for name in ("memory.sqlite", "memory.faiss", "ending.json", "twin.json"))
    assert split.corpus[1].action.encode() in known
    assert not any(day.encode() in known for day in days)


def test_the_record_says_how_the_twin_was_learned(ann: str, log: ChatLog) -> None:
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
    assert hidden() == []


def test_every_triple_has_a_trace_with_its_provenance(ann: str) -> None:
    triples = memory(ann)
    assert all(triple.provenance is not None and triple.provenance.candidates == 2 for triple in triples)
    assert all((triple.reasoning is None) == (triple.score is None) for triple in triples)
    assert any(triple.reasoning for triple in triples)


def test_the_ending_is_learned(ann: str, log: ChatLog) -> None:
    ending = LastTurnModel.load(twin_folder(ann) / "ending.json")
    assert ending is not None
    for pair in split_pairs(log, "Ann").test:
        assert ending.leaves(pair) == pair.ends_conversation


def test_equal_recipes_make_equal_twins(log: ChatLog) -> None:
    one, two = run("one", log, recipe(), steady()), run("two", log, recipe(), steady())
    assert replace(one, name="", learned_at="") == replace(two, name="", learned_at="")
    assert memory("one") == memory("two")
    assert any(triple.reasoning for triple in memory("one"))


@pytest.mark.parametrize(("method", "calls"), [("none", 0), ("backward", 1), ("recon", 3)])
def test_each_method_asks_for_as_many_traces_as_it_needs(log: ChatLog, method: str, calls: int) -> None:
    chat = steady()
    record = run("ann", log, recipe(method=method, candidates=3), chat)
    triples = memory("ann")
    assert record.state == "complete"
    assert len({prompt for prompt, _ in chat.given}) == (33 if calls else 0)  # of 42 moments, some that are alike
    assert len(chat.given) == len(set(chat.given)) == calls * (33 if calls else 0)
    assert sum(t.provenance.candidates for t in triples if t.provenance is not None) == calls * 42
    assert all((triple.provenance is None) == (method == "none") for triple in triples)
    assert all((triple.score is not None) == (method == "recon") for triple in triples)


def test_the_most_triples_are_the_latest_and_so_are_the_most_traces(log: ChatLog) -> None:
    chat = steady()
    run("ann", log, replace(ONE, max_triples=7, max_traces=3), chat)
    triples = memory("ann")
    assert [triple.pair for triple in triples] == list(split_pairs(log, "Ann").corpus[-7:])
    assert [triple.provenance is not None for triple in triples] == [False] * 4 + [True] * 3
    assert len(chat.given) == 3
    run("bob", log, replace(ONE, max_triples=7, max_traces=0), chat)
    assert len(chat.given) == 3
    run("all", log, replace(ONE, max_triples=10_000, method="none"))
    assert len(memory("all")) == len(split_pairs(log, "Ann").corpus)


def test_a_persona_that_is_given_is_the_twins(log: ChatLog) -> None:
    persona = Persona("Annie", "Likes the sea.")
    assert run("ann", log, recipe(method="none"), persona=persona).persona == persona
    assert TwinRecord.load(twin_folder("ann")).persona == persona


def test_a_long_identifier_is_shortened_for_a_name() -> None:
    log = ChatLog(tuple(renamed(small_conversation(i), "Ann", "user-1777b3e5-9e12-4a52-b1f0") for i in range(10)), "t")
    record = run("ann", log, recipe(method="none", speaker="user-1777b3e5-9e12-4a52-b1f0"))
    assert record.persona.name == "user"
    assert record.recipe.speaker == "user-1777b3e5-9e12-4a52-b1f0"


def test_a_log_without_dates_goes_by_its_order(log: ChatLog) -> None:
    undated = ChatLog(tuple(replace(c, started_at=None) for c in log.conversations), "test")
    record = run("ann", undated, recipe(method="none"))
    assert not record.dated
    assert [triple.pair for triple in memory("ann")] == list(split_pairs(undated, "Ann").corpus)


# The other person ----------------------------------------------------------------------------------------------------


def renamed(conversation: Conversation, old: str, new: str) -> Conversation:
    turns = tuple(replace(turn, speaker=new) if turn.speaker == old else turn for turn in conversation.turns)
    return replace(conversation, turns=turns)


def others(name: str) -> list[Conversation]:
    """The conversations kept of the other person; a reader refuses an empty file, which is what nobody else leaves."""
    path = twin_folder(name) / "other_person.jsonl.gz"
    return list(read_conversations(path).conversations) if gzip.decompress(path.read_bytes()) else []


def test_the_other_person_plays_the_same_part_even_if_somebody_else_says_more(ann: str, log: ChatLog) -> None:
    counts = log.turn_counts()
    assert counts["desk-0"] > counts["Bob"]
    assert TwinRecord.load(twin_folder(ann)).other_speaker == "Bob"
    assert [c.conversation_id for c in others(ann)] == [f"bob-{i:02d}" for i in range(10)]


def test_of_several_the_one_who_says_most_is_compared_with(log: ChatLog) -> None:
    cleo = (renamed(replace(other_conversation(i), conversation_id=f"cleo-{i}"), "Bob", "Cleo") for i in range(15))
    assert run("ann", ChatLog((*cleo, *log.conversations), "t"), recipe(method="none")).other_speaker == "Cleo"


def test_the_other_persons_conversations_are_none_that_are_held_out(log: ChatLog) -> None:
    def joined_by_bob(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(*conversation.turns, Turn("Bob", "user", "me too")))

    together = ChatLog(tuple(joined_by_bob(c) for c in log.conversations if c.conversation_id.startswith("talk")), "t")
    record = run("ann", together, recipe(method="none"))
    kept = {c.conversation_id for c in others("ann")}
    assert record.other_speaker == "Bob"
    assert kept == {pair.conversation_id for pair in split_pairs(together, "Ann").corpus}
    assert kept.isdisjoint((*record.validation, *record.test))


def test_an_instruction_that_a_person_was_given_in_their_own_name_is_not_their_part(log: ChatLog) -> None:
    def told(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(Turn("Ann", "instruction", "Be kind."), *conversation.turns))

    instructed = ChatLog(tuple(told(c) for c in log.conversations), "t")
    assert run("ann", instructed, recipe(method="none")).other_speaker == "Bob"


def test_where_nobody_else_plays_the_part_there_is_no_other_person(log: ChatLog) -> None:
    alone = ChatLog(tuple(c for c in log.conversations if "Ann" in c.speakers()), "t")
    assert run("ann", alone, recipe(method="none")).other_speaker is None
    assert others("ann") == []


# Stopped and continued -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "heard"), [(no_answer, ModelError), (stop, KeyboardInterrupt), (press_ctrl_c, KeyboardInterrupt)]
)
@pytest.mark.parametrize("answers", [0, 5])
def test_a_stopped_learning_goes_on_and_ends_as_if_it_had_not_been_stopped(
    log: ChatLog, fail: Callable[[], None], heard: type[BaseException], answers: int
) -> None:
    short = replace(ONE, max_triples=12)
    whole, first, second = steady(), steady(answers, fail), steady()
    expected = run("whole", log, short, whole)
    with pytest.raises(heard):
        run("ann", log, short, first)
    assert TwinRecord.load(twin_folder("ann")).state == "interrupted"
    assert len(memory("ann")) == 12  # a twin that can be used
    assert sum(triple.provenance is not None for triple in memory("ann")) == len(first.given) == answers
    found = run("ann", log, short, second)
    assert first.given + second.given == whole.given
    assert memory("ann") == memory("whole")
    assert replace(found, name="", learned_at="") == replace(expected, name="", learned_at="")
    apart = {"twin.json", "memory.sqlite", "memory.seal", "memory.faiss"}  # a name, a time, pages in another order
    assert {k: v for k, v in files("ann").items() if k not in apart} == {
        k: v for k, v in files("whole").items() if k not in apart
    }
    assert hidden() == []


def test_a_learning_may_be_stopped_again_and_again(log: ChatLog) -> None:
    short = replace(ONE, max_triples=9)
    given: list[tuple[str, int]] = []
    for _ in range(4):
        chat = steady(2, no_answer)
        with pytest.raises(ModelError):
            run("ann", log, short, chat)
        given += chat.given
    chat = steady()
    run("ann", log, short, chat)
    assert len(given) == 8
    assert len(chat.given) == 1
    assert len(set(given + chat.given)) == 9


def test_a_learning_that_is_stopped_while_it_embeds_embeds_nothing_twice(log: ChatLog) -> None:
    class Failing(FakeEmbedder):
        left = 1
        rows = 0

        def embed(self, texts: Sequence[str]) -> Any:
            if not self.left:
                raise ModelError("out of memory")
            self.left -= 1
            self.rows += len(texts)
            return super().embed(texts)

    embedder = Failing()
    with pytest.raises(ModelError, match="out of memory"):
        run("ann", log, NONE, embedder=embedder)
    assert 0 < len(memory("ann")) == embedder.rows
    embedder.left = 100
    run("ann", log, NONE, embedder=embedder)
    assert embedder.rows == len(memory("ann")) == len(split_pairs(log, "Ann").corpus)


def test_a_learning_that_was_killed_goes_on_in_its_hidden_folder(log: ChatLog) -> None:
    short = replace(ONE, max_triples=6)
    first, second = steady(4, no_answer), steady()
    with pytest.raises(ModelError):
        run("ann", log, short, first)
    twin_folder("ann").rename(twin_folder("ann").parent / ".ann.partial")  # what a kill leaves: nothing was tidied
    assert list_twins() == []
    run("ann", log, short, second)
    assert (len(first.given), len(second.given)) == (4, 2)
    assert (list_twins(), hidden()) == (["ann"], [])


def test_a_killed_learning_of_another_recipe_is_begun_anew(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, replace(ONE, max_triples=6), steady(4, no_answer))
    twin_folder("ann").rename(twin_folder("ann").parent / ".ann.partial")
    chat = steady()
    run("ann", log, replace(ONE, max_triples=6, seed=1), chat)
    assert len(chat.given) == 6
    assert {triple.provenance.seed for triple in memory("ann") if triple.provenance} == {1}


def test_a_stopped_learning_is_not_continued_with_another_recipe(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, ONE, steady(1, no_answer))
    before = files("ann")
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", log, replace(ONE, seed=1), steady())
    assert files("ann") == before


def test_a_stopped_learning_is_not_continued_with_a_log_that_holds_out_what_was_learned(log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, ONE, steady(1, no_answer))
    shorter = ChatLog(log.conversations[:20], "test")  # under the same name
    held_out = split_pairs(shorter, "Ann")
    assert {p.conversation_id for p in held_out.test} & {t.pair.conversation_id for t in memory("ann")}
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", shorter, ONE, steady())
    run("ann", shorter, ONE, steady(), overwrite=True)
    assert [triple.pair for triple in memory("ann")] == list(held_out.corpus)


# A twin that is there already ----------------------------------------------------------------------------------------


def test_a_twin_is_not_replaced_unless_that_is_asked_for(ann: str, log: ChatLog) -> None:
    before = files(ann)
    with pytest.raises(TwinError, match=r'there is a twin "ann" in .* already; choose another name, or pass --overwrite'):
        run("ann", log, recipe(), steady())
    with pytest.raises(TwinError, match="--overwrite"):
        run("ann", log, replace(ONE, seed=1), steady())
    assert files(ann) == before
    assert hidden() == []


def test_overwriting_replaces_all_of_a_twin(ann: str, log: ChatLog) -> None:
    (twin_folder(ann) / "notes.txt").write_text("old", "utf-8")
    record = run("ann", log, recipe(method="none", speaker="Bob"), overwrite=True)
    assert TwinRecord.load(twin_folder(ann)) == record
    assert {triple.pair.speaker for triple in memory(ann)} == {"Bob"}
    assert not (twin_folder(ann) / "notes.txt").exists()
    assert (list_twins(), hidden()) == (["ann"], [])


@pytest.mark.parametrize(("fail", "heard"), [(no_answer, ModelError), (press_ctrl_c, KeyboardInterrupt)])
def test_the_old_twin_stays_until_the_new_one_is_complete(
    ann: str, log: ChatLog, fail: Callable[[], None], heard: type[BaseException]
) -> None:
    before = files(ann)
    new = replace(ONE, max_triples=6, seed=9)
    first, second = steady(4, fail), steady()
    with pytest.raises(heard):
        run("ann", log, new, first, overwrite=True)
    assert files(ann) == before
    assert list_twins() == ["ann"]
    assert run("ann", log, new, second, overwrite=True).recipe.seed == 9
    assert (len(first.given), len(second.given)) == (4, 2)
    assert len(memory(ann)) == 6
    assert (list_twins(), hidden()) == (["ann"], [])


def test_overwriting_with_another_recipe_does_not_go_on_with_what_was_stopped(ann: str, log: ChatLog) -> None:
    with pytest.raises(ModelError):
        run("ann", log, replace(ONE, max_triples=6, seed=9), steady(4, no_answer), overwrite=True)
    chat = steady()
    run("ann", log, replace(ONE, max_triples=5, seed=8), chat, overwrite=True)
    assert len(chat.given) == len(memory(ann)) == 5
    assert hidden() == []


def test_a_damaged_twin_is_told_and_can_be_overwritten(ann: str, log: ChatLog) -> None:
    (twin_folder(ann) / "twin.json").write_text("{", "utf-8")
    with pytest.raises(TwinError, match=r"is damaged .*--overwrite"):
        run("ann", log, recipe(), steady())
    (twin_folder(ann) / "memory.sqlite").write_bytes(b"no database" * 99)
    run("ann", log, recipe(method="none"), overwrite=True)
    assert len(memory(ann)) == len(split_pairs(log, "Ann").corpus)


# Several at once, progress, and bad input ----------------------------------------------------------------------------


def test_several_pairs_wait_for_the_model_at_once_and_the_twin_is_the_same(log: ChatLog) -> None:
    short = replace(ONE, max_triples=12)
    one, four = steady(), steady()
    run("one", log, short, one, concurrency=1)
    run("four", log, short, four, concurrency=4)
    assert (one.peak, four.peak) == (1, 4)
    assert sorted(one.given) == sorted(four.given)
    assert memory("one") == memory("four")


def test_of_several_failures_at_once_one_is_heard_and_what_was_done_is_kept(log: ChatLog) -> None:
    short = replace(ONE, max_triples=12)
    with pytest.raises(ModelError, match=r"^nobody there$"):
        run("ann", log, short, steady(5, no_answer), concurrency=3)
    done = [triple for triple in memory("ann") if triple.provenance is not None]
    assert len(done) <= 5
    chat = steady()
    run("ann", log, short, chat, concurrency=3)
    assert len(chat.given) == 12 - 5  # an answer is kept, also where the triple it was for was not
    run("whole", log, short, steady())
    assert [free(t) for t in memory("ann")] == [free(t) for t in memory("whole")]  # an answer is paid for once


def test_progress_counts_up_to_all_and_goes_on_from_where_it_was(log: ChatLog) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    short = replace(ONE, max_triples=5)
    with pytest.raises(ModelError):
        run("ann", log, short, steady(3, no_answer), progress=tell)
    assert told == [("memories", 0, 5), ("memories", 5, 5), *(("traces", done, 5) for done in range(4))]
    told.clear()
    run("ann", log, short, steady(), progress=tell)
    assert told == [("memories", 5, 5), *(("traces", done, 5) for done in range(3, 6))]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (recipe(max_triples=0), UsageError, "0 triples at most: a twin needs at least one"),
        (recipe(max_traces=-1), UsageError, "-1 traces at most"),
        (recipe(speaker="Zoe"), LogError, 'nobody called "Zoe"'),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_written(
    log: ChatLog, how: Recipe, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run("ann", log, how, steady())
    assert not twin_folder("ann").parent.exists()


def test_a_name_that_is_none_is_refused(log: ChatLog) -> None:
    with pytest.raises(TwinError, match="cannot be a twin's name"):
        run("../ann", log, recipe(), steady())


def test_a_method_without_its_models_is_refused(log: ChatLog) -> None:
    with pytest.raises(UsageError, match="need a model and a scorer"):
        run("ann", log, recipe())
    with pytest.raises(UsageError, match='traces scored by "guarded_gain" need a scorer'):
        asyncio.run(alearn("eve", log, recipe(), embedder=FakeEmbedder(), model=scripted("was tired"), scorer=None))


def test_a_home_that_cannot_be_one_is_told_with_the_way_out(log: ChatLog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(TwinError, match=r"file: twins cannot be kept there .*--home"):
        run("ann", log, recipe(method="none"), home=tmp_path / "file")


@pytest.mark.parametrize("place", ["ann", ".ann.partial"])
def test_nothing_is_replaced_that_somebody_is_writing(log: ChatLog, place: str) -> None:
    asyncio.run(alearn("ann", log, NONE, embedder=FakeEmbedder()))
    folder = twin_folder("ann")
    if place != "ann":
        shutil.copytree(folder, folder.parent / place)
    with TripleStore(folder.parent / place, FakeEmbedder()) as store:
        store.delete([next(store.triples()).id])  # from here on it is the writer
        with pytest.raises(TwinError, match=r"process \d+ .* is writing in this memory"):
            asyncio.run(alearn("ann", log, replace(NONE, seed=5), embedder=FakeEmbedder(), overwrite=True))
        assert len(store) == 41
    asyncio.run(alearn("ann", log, replace(NONE, seed=5), embedder=FakeEmbedder(), overwrite=True))
    assert len(memory("ann")) == 42
