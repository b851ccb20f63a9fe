"""memory/recon/local_search.py: a search keeps its budget, and its best trace is never worse than its drafts."""

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

PAIR = Pair(
    speaker="Ann",
    context=(Turn("Bob", "agent", "When do you want to go?"),),
    action="the early train to Rome please",
    goal="",
    conversation_id="talk",
    position=1,
    when=1.0,
)
WEIGHTS = {"hurry": 0.5, "mornings": 0.3, "calm": 0.1, "bored": -0.2, "lost": -0.4, "sad": -0.9}
WORDS = (*WEIGHTS, "warm", "forbidden")
STYLES: list[PromptStyle] = ["transcript", "instruction"]


def guard(trace: str) -> str | None:
    return "empty" if not re.search(r"\w{2}", trace) else "taboo" if "forbidden" in trace else None


def run_search(
    model: ChatModel,
    *,
    calls: int,
    seed: int = 0,
    fidelity: Fidelity | None = None,
    ledger: Ledger | None = None,
) -> list[Candidate]:
    scorer = fidelity or LikelihoodGain(WordWeightScorer(WEIGHTS))
    return asyncio.run(search(model, scorer, PAIR, "Ann", guard=guard, max_calls=calls, seed=seed, ledger=ledger))


def writer(style: PromptStyle, words: Sequence[str] = WORDS) -> tuple[ChatModel, FunctionChatModel]:
    """Return a model that drafts two clauses, rewrites one, or writes nothing, depending on the seed."""

    def reply(prompt: str, seed: int) -> str:
        first, second = (words[(seed // k) % len(words)] for k in (1, len(words)))
        if style == "transcript":
            clause = f"felt {first} at once" if prompt.endswith(" I") else f"{first} again"
            return f" {clause}, and {second}." if "Before I wrote that, I felt" not in prompt.rsplit("\n", 1)[-1] else clause
        if seed % 11 == 0:
            return ""
        return f"and {first}," if "[[" in prompt else f"I felt {first}, and {second}."

    return function_model(reply, style)


def best(candidates: Sequence[Candidate]) -> float:
    return max((candidate.score for candidate in candidates if candidate.score is not None), default=float("-inf"))


@given(st.sampled_from(STYLES), st.integers(2, 14), st.integers(0, 10**6))
def test_a_search_keeps_to_its_calls_and_its_best_is_never_worse_than_its_drafts(
    style: PromptStyle, calls: int, seed: int
) -> None:
    model, chat = writer(style)
    ledger = Ledger()
    candidates = run_search(model, calls=calls, seed=seed, ledger=ledger)
    assert len(chat.requests) == ledger.calls == calls
    assert len(set(chat.requests)) == calls  # no request twice: it would give the same completion
    drafts = run_search(writer(style)[0], calls=2, seed=seed)
    assert candidates[: len(drafts)] == drafts
    assert best(candidates) >= best(drafts)
    traces = [candidate.trace for candidate in candidates]
    assert len(set(traces)) == len(traces) <= calls
    for candidate in candidates:
        score = sum(weight for word, weight in WEIGHTS.items() if word in candidate.trace)
        if (why := guard(candidate.trace)) is not None:
            assert (candidate.score, candidate.rejected_by) == (None, why)
        else:
            assert candidate.score == pytest.approx(score, abs=1e-9)
            assert candidate.rejected_by == ("misleads" if cast("float", candidate.score) < 0 else None)


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_longer_search_extends_a_shorter_one(calls: int, seed: int) -> None:
    shorter, longer = (run_search(writer("instruction")[0], calls=candidate, seed=seed) for candidate in (calls, calls + 2))
    if calls % 2 == 0:  # an odd budget ends with one variant instead of two
        assert longer[: len(shorter)] == shorter
    assert best(longer) >= best(shorter)


def better(prompt: str, seed: int) -> str:
    """Drafts with a low score; each rewritten clause raises it."""
    if "[[" not in prompt:
        return "I was warm, I felt bored, and I was lost." if seed % 2 else "I was sad, I felt bored, and I was lost."
    part = prompt.split("[[")[1].split("]]")[0]
    return part.replace("bored", "calm").replace("warm", "in a hurry").replace("lost", "fond of mornings") if seed % 2 else part


def test_clauses_of_the_best_trace_are_rewritten_in_turn() -> None:
    model, chat = function_model(better, "instruction")
    candidates = run_search(model, calls=8)
    assert clauses_of("I was warm, I felt bored, and I was lost.") == ["I was warm,", "I felt bored,", "and I was lost."]
    marked = [prompt.rsplit("The note:\n")[1] for prompt in chat.prompts[2::2]]
    assert marked == [
        "[[I was warm,]] I felt bored, and I was lost.",
        "I was in a hurry, [[I felt bored,]] and I was lost.",
        "I was in a hurry, I felt calm, [[and I was lost.]]",
    ]
    assert [candidate.trace for candidate in candidates if candidate.score == best(candidates)] == [
        "I was in a hurry, I felt calm, and I was fond of mornings."
    ]
    assert best(candidates) == pytest.approx(0.9)
    assert candidates[0].rejected_by == candidates[1].rejected_by == "misleads"  # the search still starts from them


def test_a_model_that_continues_text_goes_on_after_the_parts_before() -> None:
    def reply(prompt: str, seed: int) -> str:
        last = prompt.rsplit("\n", 1)[-1]
        if last == "Before I wrote that, I":
            return " felt bored, and I was lost." if len(chat.requests) <= 2 else " felt calm, and so on"
        return " and I liked mornings. More"

    model, chat = function_model(reply)
    candidates = run_search(model, calls=6)
    lines = [prompt.rsplit("\n", 1)[-1] for prompt in chat.prompts]
    assert lines == ["Before I wrote that, I"] * 4 + ["Before I wrote that, I felt calm,"] * 2
    assert [candidate.trace for candidate in candidates] == [
        "I felt bored, and I was lost.",
        "I felt calm, and I was lost.",
        "I felt calm, and I liked mornings.",
    ]


def test_new_drafts_are_sampled_if_none_can_be_scored() -> None:
    model, chat = function_model(
        lambda _, seed: "I felt forbidden." if len(chat.requests) < 5 else "I was in a hurry.", "instruction"
    )
    candidates = run_search(model, calls=6)
    assert not [prompt for prompt in chat.prompts if "[[" in prompt]
    assert candidates == [
        Candidate("I felt forbidden.", None, "taboo"),
        Candidate("I was in a hurry.", pytest.approx(0.5), None),
    ]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answer", ["", " \n", "…", "<think>hm</think>"])
def test_a_model_that_writes_nothing_uses_up_its_calls_and_no_more(style: PromptStyle, answer: str) -> None:
    model, chat = function_model(lambda *_: answer, style)
    candidates = run_search(model, calls=7)
    assert len(chat.requests) == 7
    assert {candidate.rejected_by for candidate in candidates} == {"empty"}


def test_a_rewriting_that_comes_to_nothing_leaves_the_trace_as_it_is() -> None:
    model, _ = function_model(lambda prompt, _: "" if "[[" in prompt else "I was in a hurry.", "instruction")
    assert [candidate.trace for candidate in run_search(model, calls=9)] == ["I was in a hurry."]


def test_known_trace_is_not_scored_again() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, _ = function_model(lambda *_: "I was in a hurry.", "instruction")
    run_search(model, calls=10, fidelity=LikelihoodGain(scorer))
    assert len(scorer.calls) == 1


def test_fidelity_without_floor_rejects_nothing() -> None:
    model, _ = function_model(lambda *_: "I was lost.", "instruction")
    [candidate] = run_search(model, calls=2, fidelity=PriorCorrectedGain(WordWeightScorer(WEIGHTS), 0.0))
    assert (candidate.rejected_by, candidate.score) == (None, pytest.approx(-0.4))


class Mute:
    """A fidelity that gives no verdict on some traces."""

    name, floor = "mute", None

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        if any("lost" in trace for trace in traces):
            raise VerdictError("no verdict")
        return [FidelityScore(float(len(trace))) for trace in traces]


def test_trace_without_verdict_is_rejected_and_the_search_continues() -> None:
    model, chat = function_model(lambda *_: "I was lost." if len(chat.requests) <= 2 else "I was in a hurry.", "instruction")
    assert run_search(model, calls=4, fidelity=cast("Fidelity", Mute())) == [
        Candidate("I was lost.", None, "no_verdict"),
        Candidate("I was in a hurry.", 17.0, None),
    ]


@pytest.mark.parametrize("calls", [2, 5, 12])
def test_a_synthesizer_that_searches_has_the_best_of_all_and_says_what_it_cost(calls: int) -> None:
    model, chat = function_model(better, "instruction")
    maker = Synthesizer(
        method="recon", model=model, fidelity=LikelihoodGain(WordWeightScorer(WEIGHTS)), proposal_mode="search", max_calls=calls
    )
    triple = asyncio.run(maker.synthesize(PAIR, "Ann"))
    candidates = run_search(function_model(better, "instruction")[0], calls=calls)
    assert triple.provenance is not None
    assert (triple.provenance.proposal_mode, triple.provenance.cost["calls"], len(chat.requests)) == ("search", calls, calls)
    assert triple.provenance.proposals == tuple(candidates)
    assert triple.score == (best(candidates) if best(candidates) > 0 else None)
    assert triple.provenance.candidates == len(candidates)


def test_quality_judge_selects_among_all_traces_of_a_search() -> None:
    def like_the_short(prompt: str, seed: int) -> str:
        labels = re.findall(r"^Note ([A-Z]):\n(.*)$", prompt, re.MULTILINE)
        ranking = ", ".join(f'"{label}"' for label, _ in sorted(labels, key=lambda candidate: len(candidate[1])))
        scores = ", ".join(f'"{label}": {{"plausible": 5, "specific": 5, "clear": 5}}' for label, _ in labels)
        return f'{{"scores": {{{scores}}}, "ranking": [{ranking}]}}'

    model, _ = function_model(better, "instruction")
    judge, chat = function_model(like_the_short, "instruction")
    maker = Synthesizer(
        method="quality",
        model=model,
        fidelity=LikelihoodGain(WordWeightScorer(WEIGHTS)),
        judge=judge,
        proposal_mode="search",
        max_calls=8,
    )
    triple = asyncio.run(maker.synthesize(PAIR, "Ann"))
    assert len(chat.requests) == 1
    assert triple.reasoning == "I was in a hurry, I felt calm, and I was lost."  # not the best-scored
    assert triple.score is None
