"""memory/twin/learn_plan.py: what learning will take is what it then takes, reckoned without asking or loading anything."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FunctionChatModel, recipe, small_conversation, small_log, function_model
from usertwin.memory import ChatModel, Recipe, Triple, TripleStore, alearn, existing_twin
from usertwin.memory.models.chat import FREE, Price
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.propose import CONTEXT_TURNS, proposal_prompt
from usertwin.memory.twin.learn_plan import CostEstimate, estimate_cost
from usertwin.personas import ChatLog, LogError, UsageError, split_pairs

WORDS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary", "mild")


def reckoned(made: Recipe, log: ChatLog | None = None, **options: Any) -> CostEstimate:
    """The plan of a learning of Ann by a model that continues text, one text a call, for nothing."""
    return estimate_cost(log or small_log(), made, **({"style": "transcript", "together": False, "price": FREE} | options))


def honest(prompt: str, seed: int) -> str:
    """A thought that no guard rejects, another one for another seed; a verdict where one is asked for."""
    if '"ranking"' in prompt:
        labels = [letter for letter in "ABCDEFGH" if f" {letter}:" in prompt]
        marks = '{"style": 5, "intent": 5, "values": 5, "plausible": 5, "specific": 5, "clear": 5}'
        scores = ", ".join(f'"{label}": {marks}' for label in labels)
        ranking = ", ".join(f'"{label}"' for label in labels)
        return f'{{"scores": {{{scores}}}, "ranking": [{ranking}]}}'
    place = crc32(f"{seed}{prompt}".encode())
    return f"was {WORDS[place % 14]} and {WORDS[place // 14 % 14]} and {WORDS[place // 196 % 14]}"


def learned(made: Recipe, model: ChatModel) -> list[Triple]:
    """The triples of a twin that was learned so; one model does everything."""
    judge = ChatModel("telling", model.chat, "instruction")
    asyncio.run(
        alearn("x", small_log(), made, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), actor=model, judge=judge)
    )
    with TripleStore(existing_twin("x"), FakeEmbedder(), create=False) as store:
        return list(store.triples())


# What it then takes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "recon", "candidates": 3},
        {"method": "recon", "candidates": 3, "proposal_mode": "forward"},
        {"method": "recon", "candidates": 5, "proposal_mode": "scaffolded"},
        {"method": "recon", "fidelity": "rank", "actor": "x"},
        {"method": "recon", "fidelity": "judge", "actor": "x", "judge": "x"},
        {"method": "recon", "fidelity": "choice"},
        {"method": "recon", "fidelity": "prior"},
        {"method": "random", "candidates": 3},
        {"method": "longest", "max_triples": 5, "max_traces": None},
        {"method": "quality", "judge": "x"},
        {"method": "backward", "candidates": 9},
        {"method": "none"},
        {"method": "recon", "proposal_mode": "search", "max_calls": 5},
        {"method": "random", "proposal_mode": "search", "max_calls": 5, "fidelity": "rank", "actor": "x"},
        {"method": "quality", "proposal_mode": "search", "max_calls": 6, "fidelity": "rank", "actor": "x", "judge": "x"},
    ],
    ids=lambda changes: " ".join(str(value) for value in changes.values()),
)
def test_as_many_texts_are_written_as_planned(changes: dict[str, Any]) -> None:
    made = recipe(**({"max_traces": 4, "max_triples": 9} | changes))
    chat = FunctionChatModel(say=honest)
    triples = learned(made, ChatModel("telling", chat, "transcript", price=FREE))
    planned = reckoned(made)
    assert planned.triples == len(triples)
    assert planned.traces == sum(triple.provenance is not None for triple in triples)
    assert planned.calls == len(chat.requests)
    assert planned.calls == sum(triple.provenance.cost["calls"] or 0 for triple in triples if triple.provenance)
    assert planned.calls <= planned.most_calls


@pytest.mark.parametrize(
    "changes", [{"method": "recon", "candidates": 3}, {"method": "backward"}, {"method": "recon", "proposal_mode": "search", "max_calls": 5}]
)
def test_where_guards_reject_everything_no_more_is_written_than_planned_at_most(changes: dict[str, Any]) -> None:
    made = recipe(**({"max_traces": 4} | changes))
    chat = FunctionChatModel(say=lambda *_: "")
    learned(made, ChatModel("telling", chat, "transcript"))
    assert len(chat.requests) == reckoned(made).most_calls


@pytest.mark.parametrize("how", ["backward", "forward", "scaffolded"])
def test_as_much_is_read_as_the_prompts_are_long(how: Any) -> None:
    """Four characters to a token; what is not known beforehand is the lens of each sample, a few words of it."""
    made = recipe(method="recon", proposal_mode=how, candidates=3, max_traces=6)
    chat = FunctionChatModel(say=honest)
    learned(made, ChatModel("telling", chat, "transcript"))
    read = sum(map(len, chat.prompts)) / 4
    assert reckoned(made).usage.input_tokens == pytest.approx(read, rel=0.02 if how == "scaffolded" else 1e-3)


def test_a_model_that_writes_several_texts_for_one_reading_reads_once() -> None:
    made = recipe(candidates=4)
    apart, together = reckoned(made), reckoned(made, together=True)
    assert together.usage.input_tokens == pytest.approx(apart.usage.input_tokens / 4, abs=4)
    assert (together.calls, together.usage.output_tokens) == (apart.calls, apart.usage.output_tokens)


def test_the_prompts_are_those_of_the_models_style() -> None:
    made = recipe(method="backward", max_traces=3)
    pairs = [pair for pair in split_pairs(small_log(), "Ann", window=6).corpus if not pair.abandoned][-3:]
    for style in ("transcript", "instruction"):
        length = sum(len(proposal_prompt(style, pair, "Ann", "backward")) for pair in pairs)
        assert reckoned(made, style=style).usage.input_tokens == length // 4
    assert CONTEXT_TURNS < 6  # so that a longer window makes no longer prompt
    assert reckoned(replace(made, window=30)).usage == reckoned(made).usage


def test_nobody_is_asked_and_nothing_is_written(tmp_path: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    reckoned(recipe(model="openai:nobody", scorer="nonsense"))
    assert sorted(tmp_path.rglob("*")) == before


# For how many moments --------------------------------------------------------------------------------------------------


def test_a_plan_without_limits_is_for_the_whole_corpus() -> None:
    corpus = split_pairs(small_log(), "Ann", window=6).corpus
    assert reckoned(recipe()).triples == reckoned(recipe()).traces == len(corpus) == 42


def test_a_silent_leaving_is_remembered_and_gets_no_trace() -> None:
    talks = [replace(one, turns=one.turns[:-1]) for one in map(small_conversation, range(20))]
    found = reckoned(recipe(), ChatLog(tuple(talks), "test"))
    assert found.triples == found.traces * 3 / 2


def test_without_traces_nothing_is_written_and_it_costs_nothing_whatever_the_price() -> None:
    for made in (recipe(method="none"), recipe(max_traces=0)):
        found = reckoned(made, price=None)
        assert (found.triples, found.traces, found.calls, found.most_calls, found.dollars) == (42, 0, 0, 0, 0.0)
        assert (found.usage.input_tokens, found.usage.output_tokens) == (0, 0)


@settings(max_examples=30)
@given(
    st.integers(1, 60) | st.none(),
    st.integers(0, 60) | st.none(),
    st.integers(1, 9),
    st.sampled_from(["recon", "random", "longest", "quality", "backward", "none"]),
    st.sampled_from(["guarded_gain", "judge", "rank"]),
)
def test_a_plan_is_bounded_by_its_limits_and_grows_with_them(
    most_triples: int | None, most_traces: int | None, candidates: int, method: Any, fidelity: Any
) -> None:
    made = recipe(max_triples=most_triples, max_traces=most_traces, candidates=candidates, method=method, fidelity=fidelity)
    found = reckoned(made)
    assert found.triples == min(42, 42 if most_triples is None else most_triples)
    traced = 0 if method == "none" else min(found.triples, 42 if most_traces is None else most_traces)
    assert found.traces == traced
    assert traced <= found.calls <= found.most_calls
    assert (found.calls == 0) == (traced == 0) == (found.usage.input_tokens == 0)
    more = reckoned(replace(made, candidates=candidates + 1))
    assert more.calls >= found.calls
    assert more.usage.output_tokens >= found.usage.output_tokens


# What it costs ---------------------------------------------------------------------------------------------------------


def test_the_price_is_that_of_what_is_read_and_written() -> None:
    found = reckoned(recipe(), price=Price(2.0, 10.0))
    assert found.dollars == pytest.approx((found.usage.input_tokens * 2 + found.usage.output_tokens * 10) / 1e6)
    assert found.dollars > 0


def test_a_price_that_is_not_known_is_none() -> None:
    assert reckoned(recipe(), price=None).dollars is None
    assert reckoned(recipe(), price=FREE).dollars == 0


# What makes no sense ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_triples": 0}, "0 triples at most: a twin needs at least one"),
        ({"max_traces": -1}, "-1 traces at most"),
        ({"window": 0}, "a window of 0 turns"),
        ({"candidates": 0}, "0 candidates and 12 calls: at least one candidate"),
        ({"max_calls": 1}, "2 candidates and 1 calls: at least one candidate, and two calls"),
        ({"proposal_mode": "search", "fidelity": "judge"}, "a search compares scores of different steps"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_the_plan_and_by_learning_alike(
    changes: dict[str, object], says: str
) -> None:
    made = recipe(**changes)
    with pytest.raises(UsageError, match=says):
        reckoned(made)
    model, chat = function_model(honest)
    with pytest.raises(UsageError, match=says):
        learned(made, model)
    assert chat.requests == []
    with pytest.raises(Exception, match="there is no twin"):
        existing_twin("x")


def test_a_person_who_is_not_there_is_refused() -> None:
    with pytest.raises(LogError, match='nobody called "Zoe"'):
        reckoned(recipe(speaker="Zoe"))
