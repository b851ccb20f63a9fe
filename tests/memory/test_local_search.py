"""memory/recon/local_search.py: a search writes as many texts as it may, and what it ends with is never worse than what it began with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import FunctionChatModel, WordWeightScorer, function_model
from usertwin.memory import ChatModel, LikelihoodGain, Synthesizer
from usertwin.memory.models.chat import Ledger, PromptStyle
from usertwin.memory.recon.fidelity import Fidelity, FidelityScore, PriorCorrectedGain
from usertwin.memory.recon.local_search import search
from usertwin.memory.recon.propose import clauses_of
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair, Turn, VerdictError

PAIR = Pair("Ann", (Turn("Bob", "agent", "When do you want to go?"),), "the early train to Rome please", "", "talk", 1, 1.0)
WEIGHTS = {"hurry": 0.5, "mornings": 0.3, "calm": 0.1, "bored": -0.2, "lost": -0.4, "sad": -0.9}
WORDS = (*WEIGHTS, "warm", "forbidden")
STYLES: list[PromptStyle] = ["transcript", "instruction"]


def guarded(trace: str) -> str | None:
    return "empty" if not re.search(r"\w{2}", trace) else "taboo" if "forbidden" in trace else None


def looked_at(
    model: ChatModel,
    *,
    calls: int,
    seed: int = 0,
    fidelity: Fidelity | None = None,
    ledger: Ledger | None = None,
) -> list[Candidate]:
    scorer = fidelity or LikelihoodGain(WordWeightScorer(WEIGHTS))
    return asyncio.run(search(model, scorer, PAIR, "Ann", guard=guarded, max_calls=calls, seed=seed, ledger=ledger))


def writer(style: PromptStyle, words: Sequence[str] = WORDS) -> tuple[ChatModel, FunctionChatModel]:
    """A model that drafts two clauses, writes one anew, or writes nothing, as its seed has it."""

    def say(prompt: str, seed: int) -> str:
        first, second = (words[(seed // k) % len(words)] for k in (1, len(words)))
        if style == "transcript":
            clause = f"felt {first} at once" if prompt.endswith(" I") else f"{first} again"
            return f" {clause}, and {second}." if "Before I wrote that, I felt" not in prompt.rsplit("\n", 1)[-1] else clause
        if seed % 11 == 0:
            return ""
        return f"and {first}," if "[[" in prompt else f"I felt {first}, and {second}."

    return function_model(say, style)


def best(found: Sequence[Candidate]) -> float:
    return max((one.score for one in found if one.score is not None), default=float("-inf"))


@given(st.sampled_from(STYLES), st.integers(2, 14), st.integers(0, 10**6))
def test_a_search_keeps_to_its_calls_and_its_best_is_never_worse_than_its_drafts(
    style: PromptStyle, calls: int, seed: int
) -> None:
    model, chat = writer(style)
    ledger = Ledger()
    found = looked_at(model, calls=calls, seed=seed, ledger=ledger)
    assert len(chat.requests) == ledger.calls == calls
    assert len(set(chat.requests)) == calls  # no question twice: it would have had the same answer
    drafts = looked_at(writer(style)[0], calls=2, seed=seed)
    assert found[: len(drafts)] == drafts
    assert best(found) >= best(drafts)
    traces = [one.trace for one in found]
    assert len(set(traces)) == len(traces) <= calls
    for one in found:
        score = sum(weight for word, weight in WEIGHTS.items() if word in one.trace)
        if (why := guarded(one.trace)) is not None:
            assert (one.score, one.rejected_by) == (None, why)
        else:
            assert one.score == pytest.approx(score, abs=1e-9)
            assert one.rejected_by == ("misleads" if cast("float", one.score) < 0 else None)


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_a_longer_search_has_looked_at_all_that_a_shorter_one_has(calls: int, seed: int) -> None:
    shorter, longer = (looked_at(writer("instruction")[0], calls=one, seed=seed) for one in (calls, calls + 2))
    if calls % 2 == 0:  # an odd budget ends with one variant instead of two
        assert longer[: len(shorter)] == shorter
    assert best(longer) >= best(shorter)


def better(prompt: str, seed: int) -> str:
    """Drafts that say little; each part written anew says more."""
    if "[[" not in prompt:
        return "I was warm, I felt bored, and I was lost." if seed % 2 else "I was sad, I felt bored, and I was lost."
    part = prompt.split("[[")[1].split("]]")[0]
    return part.replace("bored", "calm").replace("warm", "in a hurry").replace("lost", "fond of mornings") if seed % 2 else part


def test_the_parts_of_the_best_are_written_anew_in_turn_and_it_grows() -> None:
    model, chat = function_model(better, "instruction")
    found = looked_at(model, calls=8)
    assert clauses_of("I was warm, I felt bored, and I was lost.") == ["I was warm,", "I felt bored,", "and I was lost."]
    marked = [prompt.rsplit("The note:\n")[1] for prompt in chat.prompts[2::2]]
    assert marked == [
        "[[I was warm,]] I felt bored, and I was lost.",
        "I was in a hurry, [[I felt bored,]] and I was lost.",
        "I was in a hurry, I felt calm, [[and I was lost.]]",
    ]
    assert [one.trace for one in found if one.score == best(found)] == [
        "I was in a hurry, I felt calm, and I was fond of mornings."
    ]
    assert best(found) == pytest.approx(0.9)
    assert found[0].rejected_by == found[1].rejected_by == "misleads"  # and yet it began with them


def test_a_model_that_continues_text_goes_on_after_the_parts_before() -> None:
    def say(prompt: str, seed: int) -> str:
        last = prompt.rsplit("\n", 1)[-1]
        if last == "Before I wrote that, I":
            return " felt bored, and I was lost." if len(chat.requests) <= 2 else " felt calm, and so on"
        return " and I liked mornings. More"

    model, chat = function_model(say)
    found = looked_at(model, calls=6)
    lines = [prompt.rsplit("\n", 1)[-1] for prompt in chat.prompts]
    assert lines == ["Before I wrote that, I"] * 4 + ["Before I wrote that, I felt calm,"] * 2
    assert [one.trace for one in found] == [
        "I felt bored, and I was lost.",
        "I felt calm, and I was lost.",
        "I felt calm, and I liked mornings.",
    ]


def test_where_no_draft_can_be_scored_it_drafts_again() -> None:
    model, chat = function_model(
        lambda _, seed: "I felt forbidden." if len(chat.requests) < 5 else "I was in a hurry.", "instruction"
    )
    found = looked_at(model, calls=6)
    assert not [prompt for prompt in chat.prompts if "[[" in prompt]
    assert found == [Candidate("I felt forbidden.", None, "taboo"), Candidate("I was in a hurry.", pytest.approx(0.5), None)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answer", ["", " \n", "…", "<think>hm</think>"])
def test_a_model_that_writes_nothing_uses_up_its_calls_and_no_more(style: PromptStyle, answer: str) -> None:
    model, chat = function_model(lambda *_: answer, style)
    found = looked_at(model, calls=7)
    assert len(chat.requests) == 7
    assert {one.rejected_by for one in found} == {"empty"}


def test_a_rewriting_that_comes_to_nothing_leaves_the_trace_as_it_is() -> None:
    model, _ = function_model(lambda prompt, _: "" if "[[" in prompt else "I was in a hurry.", "instruction")
    assert [one.trace for one in looked_at(model, calls=9)] == ["I was in a hurry."]


def test_whatever_was_looked_at_before_is_not_scored_again() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, _ = function_model(lambda *_: "I was in a hurry.", "instruction")
    looked_at(model, calls=10, fidelity=LikelihoodGain(scorer))
    assert len(scorer.calls) == 1


def test_a_score_without_a_floor_misleads_nobody() -> None:
    model, _ = function_model(lambda *_: "I was lost.", "instruction")
    [one] = looked_at(model, calls=2, fidelity=PriorCorrectedGain(WordWeightScorer(WEIGHTS), 0.0))
    assert (one.rejected_by, one.score) == (None, pytest.approx(-0.4))


class Mute:
    """A judge that gives a verdict on some traces only."""

    name, floor = "mute", None

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        if any("lost" in trace for trace in traces):
            raise VerdictError("no verdict")
        return [FidelityScore(float(len(trace))) for trace in traces]


def test_what_gets_no_verdict_is_rejected_and_the_search_goes_on() -> None:
    model, chat = function_model(lambda *_: "I was lost." if len(chat.requests) <= 2 else "I was in a hurry.", "instruction")
    assert looked_at(model, calls=4, fidelity=cast("Fidelity", Mute())) == [
        Candidate("I was lost.", None, "no_verdict"),
        Candidate("I was in a hurry.", 17.0, None),
    ]


@pytest.mark.parametrize("calls", [2, 5, 12])
def test_a_synthesizer_that_searches_has_the_best_of_all_and_says_what_it_cost(calls: int) -> None:
    model, chat = function_model(better, "instruction")
    maker = Synthesizer("recon", model, LikelihoodGain(WordWeightScorer(WEIGHTS)), proposal_mode="search", max_calls=calls)
    triple = asyncio.run(maker.synthesize(PAIR, "Ann"))
    found = looked_at(function_model(better, "instruction")[0], calls=calls)
    assert triple.provenance is not None
    assert (triple.provenance.proposal_mode, triple.provenance.cost["calls"], len(chat.requests)) == ("search", calls, calls)
    assert triple.provenance.proposals == tuple(found)
    assert triple.score == (best(found) if best(found) > 0 else None)
    assert triple.provenance.candidates == len(found)


def test_a_judge_of_traces_chooses_among_what_a_search_has_found() -> None:
    def like_the_short(prompt: str, seed: int) -> str:
        labels = re.findall(r"^Note ([A-Z]):\n(.*)$", prompt, re.MULTILINE)
        ranking = ", ".join(f'"{label}"' for label, _ in sorted(labels, key=lambda one: len(one[1])))
        scores = ", ".join(f'"{label}": {{"plausible": 5, "specific": 5, "clear": 5}}' for label, _ in labels)
        return f'{{"scores": {{{scores}}}, "ranking": [{ranking}]}}'

    model, _ = function_model(better, "instruction")
    judge, chat = function_model(like_the_short, "instruction")
    maker = Synthesizer(
        "quality", model, LikelihoodGain(WordWeightScorer(WEIGHTS)), judge=judge, proposal_mode="search", max_calls=8
    )
    triple = asyncio.run(maker.synthesize(PAIR, "Ann"))
    assert len(chat.requests) == 1
    assert triple.reasoning == "I was in a hurry, I felt calm, and I was lost."  # not the best-scored
    assert triple.score is None
