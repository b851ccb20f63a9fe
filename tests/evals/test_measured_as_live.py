"""What is measured is what lives: the same recall, reasoning and attempts; and nothing held out is in the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invented_suite import learned_twin, talk

from conftest import function_model, scripted
from usertwin.evals.replay.endings import measure_endings
from usertwin.evals.replay.evaluate import evaluate
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.peers import write_persona
from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.tuning.tune import tune, validation_pairs
from usertwin.memory import Settings, Triple, TripleStore, TwinRecord
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.append import aappend
from usertwin.personas import ChatLog, Conversation, ModelError, Pair, Turn, TwinError, UsageError
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import SimulatedUser

EMBEDDER = FakeEmbedder(64)


@pytest.fixture
def cid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Cid's twin, none of whose conversations resembles another."""
    monkeypatch.setenv("USERTWIN_HOME", str(tmp_path / "twins"))
    return learned_twin(tmp_path)


def opened(model: Any = None, **options: Any) -> SimulatedUser:
    return SimulatedUser.load("cid", model=model or scripted("sonata"), embedder=EMBEDDER, **options)


def add(*conversations: Conversation) -> int:
    """Add conversations to the twin's memory, and return the number of new pairs."""
    return asyncio.run(aappend("cid", ChatLog(conversations, "more"), embedder=EMBEDDER))[1]


def measured(folder: Path, model: Any = None, arms: Sequence[str] = ("recalled_pairs",), **how: Any) -> dict[str, Any]:
    config = ReplayConfig(**dict[str, Any](arms=tuple(arms), limit=None, generate=0) | how)
    with opened(model) as user:
        return asyncio.run(evaluate(user, FakeScorer(), EMBEDDER, folder=folder, config=config))


def held_out_numbers(folder: Path) -> list[int]:
    return [int(name.removeprefix("cid-")) for name in TwinRecord.load(folder).test]


def remember_copy(folder: Path, number: int) -> int:
    """Put an earlier copy of a held-out conversation into the memory, which `memory add` would refuse; return its pairs."""
    copy = replace(talk("Cid", number), conversation_id=f"copy-{number}", started_at="2023-01-01")
    window = TwinRecord.load(folder).recipe.window
    pairs = [pair for group in group_pairs([copy], "Cid", window=window) for pair in group]
    with TripleStore(folder, EMBEDDER) as store:
        store.add(list(map(Triple, pairs)))
    return len(pairs)


# Nothing held out is known --------------------------------------------------------------------------------------------


def test_eval_drops_turns_that_the_memory_nearly_holds_and_probes_memorization(cid: Path) -> None:
    before = measured(cid)
    number = held_out_numbers(cid)[0]
    assert remember_copy(cid, number) > 0
    after = measured(cid)
    assert before["leakage"]["near_duplicates"] == 0
    assert after["leakage"]["near_duplicates"] > 0
    assert after["turns"] == before["turns"] - sum(not p.abandoned for p in duplicates(cid, number))
    assert set(after["leakage"]["memorized"]) >= {"value", "n", "nats_per_token"}


def duplicates(folder: Path, number: int) -> list[Pair]:
    with opened() as user:
        return [pair for pair in held_out_pairs(user, folder)[0] if pair.conversation_id == f"cid-{number:02d}"]


def test_eval_of_nothing_but_near_duplicates_is_an_error(cid: Path) -> None:
    for number in held_out_numbers(cid):
        remember_copy(cid, number)
    with pytest.raises(UsageError, match="every held-out turn is nearly the same as one in the memory"):
        measured(cid)


def test_tuning_uses_no_validation_turn_that_the_memory_nearly_holds(cid: Path) -> None:
    with opened() as user:
        before = validation_pairs(user, cid, 100)
    number = int(TwinRecord.load(cid).validation[0].removeprefix("cid-"))
    remember_copy(cid, number)
    with opened() as user:
        after = validation_pairs(user, cid, 100)
        settings = asyncio.run(tune(user, FakeScorer(), folder=cid))
    assert {pair.conversation_id for pair in before} - {pair.conversation_id for pair in after} == {f"cid-{number:02d}"}
    assert settings.measured is None or "memorized" in settings.measured


def test_tuning_refuses_a_memory_that_holds_a_held_out_conversation(cid: Path) -> None:
    with opened() as user, TripleStore(cid, EMBEDDER) as store:
        store.add([Triple(held_out_pairs(user, cid)[0][0])])
    with opened() as user, pytest.raises(TwinError, match="the memory holds the held-out conversation"):
        validation_pairs(user, cid, 10)


def test_a_copy_of_a_held_out_conversation_is_not_added(cid: Path) -> None:
    copies = [replace(talk("Cid", number), conversation_id=f"copy-{number}") for number in held_out_numbers(cid)]
    assert add(*copies, replace(talk("Cid", 90), started_at="2024-06-01")) == len(talk("Cid", 90).turns) // 2


def leaving(number: int, *, gone: bool) -> Conversation:
    """Cid leaves with thanks, or without a word, on a day after all others."""
    turns = [Turn("desk", "agent", f"which chord {number}"), Turn("Cid", "user", f"octave {number} please")]
    turns += (
        [Turn("desk", "agent", "booked goodbye")] if gone else [Turn("desk", "agent", "ok"), Turn("Cid", "user", "thanks bye")]
    )
    return Conversation(f"later-{number}", tuple(turns), f"2025-{1 + number // 28:02d}-{number % 28 + 1:02d}T10:00:00+00:00")


def test_endings_are_not_learned_from_after_the_held_out_turns(cid: Path) -> None:
    with opened() as user:
        pairs = held_out_pairs(user, cid)[0]
        before = measure_endings(user, cid, pairs)
        models = (user.last_turn, user.abandonment)
    add(*(leaving(number, gone=bool(number % 2)) for number in range(40)))
    with opened() as user:
        later = (user.last_turn, user.abandonment)
        assert measure_endings(user, cid, pairs) == before
    assert later != models  # the twin itself has learned from them


# What is measured lives -----------------------------------------------------------------------------------------------


def test_a_measured_reply_has_the_attempts_of_a_live_one(cid: Path) -> None:
    """A model that first repeats an earlier turn, then loops, then answers."""
    context = (Turn("Cid", "user", "one two three four five"), Turn("desk", "agent", "and then?"))
    loop = "la la la la la la la la la la la la"

    def say(prompt: str, seed: int) -> str:
        attempt = seed // 1_000_003
        return ("one two three four five", loop, "a new turn")[min(attempt, 2)]

    model, chat = function_model(say)
    messages = [{"role": "user", "content": context[0].text}, {"role": "assistant", "content": context[1].text}]
    with opened(model) as user:
        live = user.respond(messages)
        query = Pair(speaker="Cid", context=context, action="", goal="", conversation_id="new", position=2, when=float("inf"))
        lived = list(chat.prompts)
        [recalled] = user.recall_many([query])
        shown = [match.triple for match in recalled]
        _, [reply] = asyncio.run(user.sample_reply(query, shown, seed=0))
    assert live.action == reply.text == "a new turn"
    assert chat.prompts == [*lived, *lived]


def test_a_peer_has_the_attempts_of_the_twin(cid: Path) -> None:
    spoken = {turn.text for number in held_out_numbers(cid) for turn in talk("Cid", number).turns if turn.speaker == "Cid"}
    repeated = max(spoken, key=len)
    model, _ = function_model(lambda prompt, seed: repeated if seed < 1_000_003 else "another turn")
    folder, texts = cid, list[str]()
    with opened(model) as user:
        for pair in held_out_pairs(user, folder)[0]:
            if any(turn.text == repeated for turn in pair.context):
                [answer] = asyncio.run(user.writer.complete([("user", "x")], n=1, seed=0, query=pair))
                texts.append(answer.text)
    assert texts
    assert set(texts) == {"another turn"}


@pytest.mark.parametrize(("style", "reasons"), [("transcript", False), ("instruction", True)])
def test_one_rule_says_whether_a_twin_reasons(cid: Path, style: Any, reasons: bool) -> None:
    """Without examples of traces only a model that takes instructions reasons, live and measured."""
    model, chat = function_model(lambda prompt, seed: "melody fugue", style)
    with opened(model, settings=Settings(traces="recon", reasons=True)) as user:
        answer = user.respond([{"role": "assistant", "content": "parcel invoice?"}])
        live = len(chat.prompts)
        pair = held_out_pairs(user, cid)[0][0]
        [recalled] = user.recall_many([pair], before=[pair.when])
        thought, _ = asyncio.run(user.sample_reply(pair, [match.triple for match in recalled], seed=0))
    assert bool(answer.reasoning) is bool(thought) is reasons
    assert len(chat.prompts) == 2 * live == 2 * (1 + reasons)


# Peers' personas ------------------------------------------------------------------------------------------------------


def test_a_model_writes_the_persona_from_the_log(cid: Path) -> None:
    model, chat = function_model(lambda prompt, seed: "Likes music.\nIs brief.\n\nMe: more")
    with opened(model) as user:
        persona = asyncio.run(write_persona(user))
        spoken = [triple.pair.action for triple in user.store.triples()]
        held_out = [pair.action for pair in held_out_pairs(user, cid)[0]]
    assert persona == replace(user.persona, description="Likes music. Is brief.")
    [prompt] = chat.prompts
    assert sum(text in prompt for text in spoken) >= 30
    assert not [text for text in held_out if f"- {text}\n" in prompt and text not in spoken]


def test_the_written_persona_is_an_arm(cid: Path) -> None:
    model, chat = function_model(lambda prompt, seed: "Likes music.")
    result = measured(cid, model, ("recalled_pairs", "openevals", "openevals_written"), limit=4, generate=2)
    assert list(result["arms"]) == ["recalled_pairs", "openevals", "openevals_written"]
    assert sum("Likes music." in prompt for prompt in chat.prompts) == 2


def test_a_model_that_writes_no_persona_is_an_error(cid: Path) -> None:
    model, _ = function_model(lambda prompt, seed: "  ")
    with opened(model) as user, pytest.raises(ModelError, match="wrote no description of the person"):
        asyncio.run(write_persona(user))
