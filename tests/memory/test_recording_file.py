"""Recordings: content keys, the first answer counts, loud misses, failures, kills, and completions through `sample`."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kill_writer import Child

from conftest import function_model, scripted
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger, Price, Sample, Usage, sample
from usertwin.memory.models.completion_cache import CompletionCache, request_key
from usertwin.memory.models.recording import ModelRecording, Recording
from usertwin.memory.models.token_writer import WrittenTokens
from usertwin.personas import ModelError, ReplayMiss, UsageError

_TEXTS = st.text(max_size=6)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.recording"


@pytest.fixture
def recording(path: Path) -> Iterator[Recording]:
    with Recording(path, "record") as recording:
        yield recording


def replaying(path: Path) -> Recording:
    return Recording(path, "replay")


def taped(model: ChatModel, recording: Recording, **prompts: str) -> ChatModel:
    return replace(model, recording=ModelRecording(recording, prompts))


def complete(model: ChatModel, text: str = "hello there", **options: Any) -> list[Sample]:
    return asyncio.run(sample(model, [("system", "be kind"), ("user", text)], **options))


# Questions and answers ------------------------------------------------------------------------------------------------


def shuffled(value: Any) -> Any:
    """Return an equal JSON value whose objects have their keys in another order, and tuples for lists."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return tuple(map(shuffled, value)) if isinstance(value, list) else value


def typed(value: Any) -> Any:
    """Return a value that is equal to another one only if both are the same JSON: True is not 1, and -0.0 is not 0.0."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return list(map(typed, value)) if isinstance(value, list | tuple) else (type(value).__name__, repr(value))


@given(_JSON, _JSON)
def test_equal_content_has_an_equal_key_and_other_content_another(first: Any, second: Any) -> None:
    assert request_key(["kind", "name", first]) == request_key(["kind", "name", shuffled(first)])
    assert (request_key(["kind", "name", first]) == request_key(["kind", "name", second])) == (typed(first) == typed(second))
    assert request_key(["kind", "name", first]) != request_key(["other", "name", first]) != request_key(["kind", "", first])


def test_the_first_answer_to_a_question_counts_for_all(path: Path, recording: Recording) -> None:
    assert recording.find("kind", "m", ["q"]) is None
    assert recording.keep("kind", "m", ["q"], ["first"]) == ["first"]
    assert recording.keep("kind", "m", ["q"], ["second"]) == ["first"]
    with Recording(path, "record") as other:
        assert other.keep("kind", "m", ["q"], ["third"]) == ["first"]
    recording.replace("kind", "m", ["q"], ["last"])
    with replaying(path) as replay:
        assert replay.find("kind", "m", ["q"]) == replay.stored("kind", "m", ["q"]) == ["last"]


def test_concurrent_questions_all_get_the_first_answer(recording: Recording) -> None:
    count = iter(range(100))

    async def ask() -> Any:
        await asyncio.sleep(0)
        return next(count)

    async def all_at_once() -> list[tuple[Any, bool]]:
        return await asyncio.gather(*(recording.ask("kind", "m", "q", ask) for _ in range(8)))

    answers = asyncio.run(all_at_once())
    assert {answer for answer, _ in answers} == {0}
    assert next(count) == 8
    assert asyncio.run(recording.ask("kind", "m", "q", ask)) == (0, True)
    assert next(count) == 9


def test_a_miss_names_the_file_the_question_and_the_way_out_and_is_remembered(path: Path, recording: Recording) -> None:
    recording.keep("completion", "openai:m", "q", 1)
    with replaying(path) as replay:
        replay.check()
        digest = request_key(["completion", "openai:m", "other"]).hex()[:8]
        complaint = (
            rf'run\.recording: the recording has no completion of "openai:m" for this question \({digest}\); record .*--record'
        )
        with pytest.raises(ReplayMiss, match=complaint):
            replay.find("completion", "openai:m", "other")
        with pytest.raises(ReplayMiss):
            replay.find("completion", "openai:m2", "q")
        with pytest.raises(ReplayMiss, match=digest):  # the first of them
            replay.check()
        assert replay.stored("completion", "openai:m", "other") is None


def test_a_replay_writes_nothing_and_needs_a_recording(path: Path, recording: Recording) -> None:
    recording.keep("kind", "m", "q", 1)
    recording.close()
    before = path.read_bytes()
    path.chmod(0o400)
    with replaying(path) as replay:
        assert replay.find("kind", "m", "q") == 1
        with pytest.raises(ModelError, match=r"the recording cannot be used .*readonly"):
            replay.keep("kind", "m", "q2", 2)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match=r"none\.recording: there is no recording; make one with --record"):
        replaying(path.with_name("none.recording"))
    assert not path.with_name("none.recording").exists()
    with pytest.raises(UsageError, match='"both" is not a mode'):
        Recording(path, "both")  # pyright: ignore[reportArgumentType]


def test_a_closed_recording_is_one_file_that_any_folder_can_hold(path: Path, recording: Recording) -> None:
    """A write-ahead log would need a folder that can be written."""
    recording.keep("kind", "m", "q", 1)
    with Recording(path, "record") as other:
        other.keep("kind", "m", "q2", 2)
    recording.keep("kind", "m", "q3", 3)
    recording.close()
    recording.close()
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(path.name)] == [path.name]
    with replaying(path) as replay:
        assert [replay.find("kind", "m", question) for question in ("q", "q2", "q3")] == [1, 2, 3]
        assert [file.name for file in path.parent.iterdir() if file.name.startswith(path.name)] == [path.name]


def test_a_file_that_is_no_recording_is_one_sentence(path: Path) -> None:
    path.write_bytes(b"this is no database, but it is longer than a header" * 40)
    for mode in ("record", "replay"):
        with pytest.raises(ModelError, match=r"run\.recording: the recording cannot be used .*; name another file$"):
            Recording(path, mode).find("kind", "m", "q")


def test_a_failure_is_replayed_and_is_asked_again_while_recording(path: Path, recording: Recording) -> None:
    async def fail() -> Any:
        raise ModelError('the model "m" did not answer: it is busy')

    async def answer() -> Any:
        return "yes"

    for _ in range(2):
        with pytest.raises(ModelError, match="it is busy"):
            asyncio.run(recording.ask("kind", "m", "q", fail))
    with replaying(path) as replay, pytest.raises(ModelError, match="it is busy") as failure:
        asyncio.run(replay.ask("kind", "m", "q", answer))
    assert not isinstance(failure.value, ReplayMiss)
    assert asyncio.run(recording.ask("kind", "m", "q", answer)) == ("yes", False)
    assert asyncio.run(recording.ask("kind", "m", "q", fail)) == ("yes", True)


def test_other_exceptions_are_not_recorded(recording: Recording) -> None:
    async def cancel() -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(recording.ask("kind", "m", "q", cancel))
    assert recording.stored("kind", "m", "q") is None


def test_facts_that_changed_are_refused_with_their_names(path: Path, recording: Recording) -> None:
    facts = {"version": "act/1a2b", "identity": "", "tokens": 7}
    recording.require_equal("prompt", "act", None, facts)
    recording.require_equal("prompt", "act", None, dict(reversed(facts.items())))
    complaint = r'the prompt "act" was recorded with another tokens and another version \(act/1a2b, now act/3c4d\); record'
    for there in (recording, replaying(path)):
        with pytest.raises(UsageError, match=complaint):
            there.require_equal("prompt", "act", None, facts | {"version": "act/3c4d", "tokens": 8})
        there.require_equal("prompt", "act", None, facts)
    with pytest.raises(ReplayMiss, match='no prompt of "reason"'):
        there.require_equal("prompt", "reason", None, facts)


def keep_until_killed(there: Connection, path: str, name: str) -> None:
    """Store answers until killed, and report each one after it is stored."""
    recording, number = Recording(path, "record"), 0
    while True:
        there.send((number, recording.keep("kind", "m", number, [name, number])))
        number += 1


def test_no_answer_of_two_processes_is_lost_in_a_kill(path: Path) -> None:
    children = [Child(keep_until_killed, str(path), name) for name in ("a", "b")]
    reported = [child.hear() for child in children for _ in range(20)]
    reported += [answer for child in children for answer in child.kill()]
    assert {child.process.exitcode for child in children} == {-signal.SIGKILL}
    with replaying(path) as replay:
        assert all(replay.find("kind", "m", number) == answer for number, answer in reported)


# Completions ----------------------------------------------------------------------------------------------------------


def test_a_completion_is_asked_for_once_and_replayed_with_its_usage(path: Path, recording: Recording) -> None:
    model, chat = function_model(lambda prompt, seed: f"<think>hm</think>{len(chat.requests)};{seed}", price=Price(1.0, 1.0))
    own, ledger = Ledger(), Ledger()
    model = replace(model, ledger=own)
    first = complete(taped(model, recording), n=2, seed=3, stop=[";"], ledger=ledger)
    assert [item.text for item in first] == ["1", "2"]
    assert complete(taped(model, recording), n=2, seed=3, stop=[";"], ledger=ledger) == first
    assert (ledger.calls, ledger.cache_hits, ledger.usage) == (2, 2, first[0].usage + first[1].usage)
    assert own == ledger
    with replaying(path) as replay:
        again = Ledger()
        assert complete(taped(model, replay), n=2, seed=3, stop=[";"], ledger=again) == first
        assert again == Ledger(cache_hits=2)
        with pytest.raises(ReplayMiss):
            complete(taped(model, replay), n=2, seed=4, stop=[";"])
    assert len(chat.requests) == 2


_PARTS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["m", "m2"]),
    "identity": st.sampled_from(["", "weights"]),
    "style": st.sampled_from(["transcript", "instruction"]),
    "prompt": st.sampled_from(["act/1", "act/2"]),
    "text": st.sampled_from(["a", "b", "a "]),
    "n": st.integers(1, 2),
    "seed": st.integers(0, 1),
    "max_tokens": st.sampled_from([None, 5, 6]),
    "temperature": st.sampled_from([0.5, 0.8]),
    "stop": st.sampled_from([[], [";"]]),
    "bypass_cache": st.booleans(),
    "schema": st.sampled_from([None, {"type": "object"}]),
    "words": st.sampled_from([None, {"weights": [0.1]}, {"weights": [0.2]}]),
}


def _changed(part: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({part: _PARTS[part]})


class _Words:
    def __init__(self, content: Any) -> None:
        self.content = content

    def __call__(self, history: Sequence[int], model: Mapping[int, float]) -> Mapping[int, float]:
        raise AssertionError("the writer below writes without it")


class _Writer:
    """A token writer that counts its calls."""

    vocabulary_size = 1
    calls = 0

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """See `TokenWriter.encode`."""
        return [[0] for _ in turns]

    async def write(self, messages: Any, next_token: Any, *, n: int, **options: Any) -> list[WrittenTokens]:
        """See `TokenWriter.write`."""
        self.calls += n
        return [WrittenTokens("x", input_tokens=1, cached_tokens=0, output_tokens=1, at_limit=False)] * n


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.fixed_dictionaries(_PARTS), change=st.sampled_from(sorted(_PARTS)).flatmap(_changed))
def test_any_part_that_may_change_a_completion_is_part_of_its_key(
    first: dict[str, Any], change: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked, second = 0, first | change

    def ask(
        recording: Recording, *, name: str, identity: str, style: Any, prompt: str, text: str, words: Any, **options: Any
    ) -> int:
        """Return how many completions were generated."""
        nonlocal asked
        before = asked + writer.calls

        def reply(prompt: str, seed: int) -> str:
            nonlocal asked
            asked += 1
            return "x"

        model, _ = function_model(reply, style, identity=identity, structured=True, bypass_cache={"extra_body": {"c": 1}})
        model = replace(model, name=name, token_writer=writer)
        complete(taped(model, recording, act=prompt), text, next_token=None if words is None else _Words(words), **options)
        return asked + writer.calls - before

    writer = _Writer()
    with Recording(tmp_path_factory.mktemp("key") / "recording", "record") as recording:
        assert ask(recording, **first) == first["n"]
        assert ask(recording, **first) == 0
        assert ask(recording, **second) == (0 if first == second else second["n"])


def test_probabilities_that_do_not_say_what_they_are_cannot_be_recorded(recording: Recording) -> None:
    model = replace(taped(scripted("x"), recording), token_writer=_Writer())
    with pytest.raises(UsageError, match="have no `content`"):
        complete(model, next_token=lambda history, probabilities: probabilities)


def test_a_model_that_does_not_answer_is_recorded_with_its_sentence(path: Path, recording: Recording) -> None:
    def fail(prompt: str, seed: int) -> str:
        raise ValueError("no such key")

    model, _ = function_model(fail)
    with pytest.raises(ModelError) as recorded:
        complete(taped(model, recording))
    model, chat = function_model(lambda prompt, seed: "fine")
    with replaying(path) as replay, pytest.raises(ModelError) as replayed:
        complete(taped(model, replay))
    assert str(recorded.value) == str(replayed.value) == 'the model "telling" did not answer: ValueError: no such key'
    assert chat.requests == []


def test_unreadable_completions_are_recorded_though_no_cache_keeps_them(
    path: Path, recording: Recording, tmp_path: Path
) -> None:
    cache = CompletionCache(tmp_path / "cache.sqlite")
    model = replace(scripted("bad", "good"), cache=cache)
    assert [item.text for item in complete(taped(model, recording), readable=lambda text: text == "good")] == ["bad"]
    with replaying(path) as replay:
        assert [item.text for item in complete(taped(model, replay), readable=lambda text: text == "good")] == ["bad"]
    assert [item.text for item in complete(model)] == ["good"]
    cache.close()


def test_the_file_is_private_and_holds_no_question(path: Path, recording: Recording) -> None:
    complete(taped(scripted("an open answer"), recording), "a secret question")
    recording.close()
    held = path.read_bytes()
    assert b"an open answer" in held
    assert b"secret question" not in held
    assert path.stat().st_mode & 0o077 == 0 or os.name != "posix"


def test_a_damaged_answer_is_one_sentence(path: Path, recording: Recording) -> None:
    recording.keep("kind", "m", "q", 1)
    recording.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE answers SET answer = '{\"value\": '")
    database.close()
    with replaying(path) as replay, pytest.raises(ModelError, match="the recording cannot be used"):
        replay.find("kind", "m", "q")


def test_the_usage_of_all_models_of_a_run_is_summed_in_one_ledger() -> None:
    book = Ledger()
    for name, price in (("a", Price(1.0, 0.0)), ("b", Price(0.0, 2.0))):
        model, _ = function_model(lambda prompt, seed: "one two", price=price)
        complete(replace(model, name=name, ledger=book))
    assert (book.calls, book.usage) == (2, Usage(8, 0, 4))
    assert book.dollars == pytest.approx((4 * 1.0 + 2 * 2.0) / 1e6)
