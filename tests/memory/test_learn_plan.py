"""Tests of memory/twin/learn_plan.py: the estimate equals the completions and tokens that learning then uses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FunctionChatModel, function_model, recipe, small_conversation, small_log
from usertwin.memory import ChatModel, Recipe, Triple, TripleStore, alearn, existing_twin
from usertwin.memory.models.chat import FREE, Price
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.propose import CONTEXT_TURNS, proposal_prompt
from usertwin.memory.twin.learn_plan import CostEstimate, estimate_cost
from usertwin.personas import ChatLog, LogError, UsageError, split_pairs

WORDS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary", "mild")


def estimated(made: Recipe, log: ChatLog | None = None, **options: Any) -> CostEstimate:
    """Return the estimate for a free model of transcript style that gives one completion a call."""
    return estimate_cost(log or small_log(), made, **({"style": "transcript", "shares_prompt": False, "price": FREE} | options))


def reply_with_trace(prompt: str, seed: int) -> str:
    """Return a trace that no guard rejects and that depends on the seed, or a verdict if the prompt asks for a ranking."""
    if '"ranking"' in prompt:
        labels = [letter for letter in "ABCDEFGH" if f" {letter}:" in prompt]
        marks = '{"style": 5, "intent": 5, "values": 5, "plausible": 5, "specific": 5, "clear": 5}'
        scores = ", ".join(f'"{label}": {marks}' for label in labels)
        ranking = ", ".join(f'"{label}"' for label in labels)
        return f'{{"scores": {{{scores}}}, "ranking": [{ranking}]}}'
    digest = crc32(f"{seed}{prompt}".encode())
    return f"was {WORDS[digest % 14]} and {WORDS[digest // 14 % 14]} and {WORDS[digest // 196 % 14]}"


def learned(made: Recipe, model: ChatModel) -> list[Triple]:
    """Return the triples of a twin; one model plays every part."""
    judge = ChatModel("telling", model.chat, "instruction")
    asyncio.run(
        alearn("x", small_log(), made, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), actor=model, judge=judge)
    )
    with TripleStore(existing_twin("x"), FakeEmbedder(), create=False) as store:
        return list(store.triples())


# Completions and tokens -----------------------------------------------------------------------------------------------


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
def test_the_estimate_equals_the_completions_used(changes: dict[str, Any]) -> None:
    made = recipe(**({"max_traces": 4, "max_triples": 9} | changes))
    chat = FunctionChatModel(reply=reply_with_trace)
    triples = learned(made, ChatModel("telling", chat, "transcript", price=FREE))
    estimate = estimated(made)
    assert estimate.triples == len(triples)
    assert estimate.traces == sum(triple.provenance is not None for triple in triples)
    assert estimate.calls == len(chat.requests)
    assert estimate.calls == sum(triple.provenance.cost["calls"] or 0 for triple in triples if triple.provenance)
    assert estimate.calls <= estimate.max_calls


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "recon", "candidates": 3},
        {"method": "backward"},
        {"method": "recon", "proposal_mode": "search", "max_calls": 5},
    ],
)
def test_max_calls_is_reached_when_guards_reject_everything(changes: dict[str, Any]) -> None:
    made = recipe(**({"max_traces": 4} | changes))
    chat = FunctionChatModel(reply=lambda *_: "well " * 10_000)
    learned(made, ChatModel("telling", chat, "transcript"))
    assert len(chat.requests) == estimated(made).max_calls


@pytest.mark.parametrize("how", ["backward", "forward", "scaffolded"])
def test_input_tokens_follow_the_length_of_the_prompts(how: Any) -> None:
    """Four characters count as a token; only the few words of each sample's lens are unknown in advance."""
    made = recipe(method="recon", proposal_mode=how, candidates=3, max_traces=6)
    chat = FunctionChatModel(reply=reply_with_trace)
    learned(made, ChatModel("telling", chat, "transcript"))
    tokens = sum(map(len, chat.prompts)) / 4
    assert estimated(made).usage.input_tokens == pytest.approx(tokens, rel=0.02 if how == "scaffolded" else 1e-3)


def test_completions_that_share_a_prompt_count_its_tokens_once() -> None:
    made = recipe(candidates=4)
    separate, shared = estimated(made), estimated(made, shares_prompt=True)
    assert shared.usage.input_tokens == pytest.approx(separate.usage.input_tokens / 4, abs=4)
    assert (shared.calls, shared.usage.output_tokens) == (separate.calls, separate.usage.output_tokens)


def test_prompts_have_the_style_of_the_model() -> None:
    made = recipe(method="backward", max_traces=3)
    pairs = [pair for pair in split_pairs(small_log(), "Ann", window=6).corpus if not pair.abandoned][-3:]
    for style in ("transcript", "instruction"):
        length = sum(len(proposal_prompt(style, pair, "Ann", "backward")) for pair in pairs)
        assert estimated(made, style=style).usage.input_tokens == length // 4
    assert CONTEXT_TURNS < 6  # so that a longer window makes no longer prompt
    assert estimated(replace(made, window=30)).usage == estimated(made).usage


def test_an_estimate_loads_no_model_and_writes_nothing(tmp_path: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    estimated(recipe(model="openai:nobody", scorer="nonsense"))
    assert sorted(tmp_path.rglob("*")) == before


# Numbers of triples and traces ----------------------------------------------------------------------------------------


def test_without_limits_the_estimate_covers_the_corpus() -> None:
    corpus = split_pairs(small_log(), "Ann", window=6).corpus
    assert estimated(recipe()).triples == estimated(recipe()).traces == len(corpus) == 42


def test_a_silent_leaving_is_a_triple_without_a_trace() -> None:
    talks = [replace(talk, turns=talk.turns[:-1]) for talk in map(small_conversation, range(20))]
    estimate = estimated(recipe(), ChatLog(tuple(talks), "test"))
    assert estimate.triples == estimate.traces * 3 / 2


def test_without_traces_there_are_no_calls_and_no_cost_at_any_price() -> None:
    for made in (recipe(method="none"), recipe(max_traces=0)):
        estimate = estimated(made, price=None)
        assert (estimate.triples, estimate.traces, estimate.calls, estimate.max_calls, estimate.dollars) == (42, 0, 0, 0, 0.0)
        assert (estimate.usage.input_tokens, estimate.usage.output_tokens) == (0, 0)


@settings(max_examples=30)
@given(
    st.integers(1, 60) | st.none(),
    st.integers(0, 60) | st.none(),
    st.integers(1, 9),
    st.sampled_from(["recon", "random", "longest", "quality", "backward", "none"]),
    st.sampled_from(["guarded_gain", "judge", "rank"]),
)
def test_an_estimate_is_bounded_by_its_limits_and_grows_with_candidates(
    max_triples: int | None, max_traces: int | None, candidates: int, method: Any, fidelity: Any
) -> None:
    made = recipe(max_triples=max_triples, max_traces=max_traces, candidates=candidates, method=method, fidelity=fidelity)
    estimate = estimated(made)
    assert estimate.triples == min(42, 42 if max_triples is None else max_triples)
    traced = 0 if method == "none" else min(estimate.triples, 42 if max_traces is None else max_traces)
    assert estimate.traces == traced
    assert traced <= estimate.calls <= estimate.max_calls
    assert (estimate.calls == 0) == (traced == 0) == (estimate.usage.input_tokens == 0)
    larger = estimated(replace(made, candidates=candidates + 1))
    assert larger.calls >= estimate.calls
    assert larger.usage.output_tokens >= estimate.usage.output_tokens


# Price ----------------------------------------------------------------------------------------------------------------


def test_the_price_covers_input_and_output_tokens() -> None:
    estimate = estimated(recipe(), price=Price(2.0, 10.0))
    assert estimate.dollars == pytest.approx((estimate.usage.input_tokens * 2 + estimate.usage.output_tokens * 10) / 1e6)
    assert estimate.dollars > 0


def test_an_unknown_price_gives_no_dollars() -> None:
    assert estimated(recipe(), price=None).dollars is None
    assert estimated(recipe(), price=FREE).dollars == 0


# Invalid recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_triples": 0}, "max_triples is 0; it must be at least 1"),
        ({"max_traces": -1}, "max_traces is -1; it must be at least 0"),
        ({"window": 0}, "the window is 0 turns"),
        ({"candidates": 0}, "0 candidates and 12 calls: at least 1 candidate"),
        ({"max_calls": 1}, "2 candidates and 1 calls: at least 1 candidate and 2 calls"),
        ({"proposal_mode": "search", "fidelity": "judge"}, "gives no scores that a search can compare"),
    ],
)
def test_an_invalid_recipe_is_refused_by_the_estimate_and_by_learning(changes: dict[str, object], message: str) -> None:
    made = recipe(**changes)
    with pytest.raises(UsageError, match=message):
        estimated(made)
    model, chat = function_model(reply_with_trace)
    with pytest.raises(UsageError, match=message):
        learned(made, model)
    assert chat.requests == []
    with pytest.raises(Exception, match="there is no twin"):
        existing_twin("x")


def test_an_unknown_speaker_is_refused() -> None:
    with pytest.raises(LogError, match='no turns by "Zoe"'):
        estimated(recipe(speaker="Zoe"))
