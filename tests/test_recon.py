"""memory/recon.py: of several traces the one from which the action follows is kept, and never one that quotes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import scripted
from usertwin.memory import METHODS, ChatModel, FakeScorer, Likelihood, Method, Provenance, Style, Triple, synthesize
from usertwin.memory.guards import word_tokens
from usertwin.memory.recon import CONTEXT_TURNS, Candidate, proposal_template, propose, reconstruct, score, select
from usertwin.memory.transcript import action_line
from usertwin.personas import ModelError, Pair, Turn, UsageError
from usertwin.simulator.scripted import ScriptedChatModel

ACTION = "the early train to Rome please"
PAIR = Pair(
    speaker="Ann",
    context=(Turn("Bob", "agent", "Hello there"), Turn("Ann", "user", "hi"), Turn("Bob", "agent", "When do you want to go?")),
    action=ACTION,
    goal="You want to see the sea.",
    conversation_id="talk",
    position=3,
    when=1.0,
)
GOOD = "I liked mornings so early and rome and train fit"
FAIR = "I was polite and wrote please"
POOR = "I thought of nothing much"
COPY = f"I will say {ACTION}"


class Listening(FakeScorer):
    """A fake scorer that remembers each call."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.calls.append(list(items))
        return super().score(items)


def writing(*traces: str) -> ChatModel:
    """A model that goes on after the "I" with which its prompt ends, so that these are its traces."""
    return scripted(*(trace.removeprefix("I ") for trace in traces))


def make(model: ChatModel | None, method: Method = "recon", **options: Any) -> Triple:
    options.setdefault("scorer", FakeScorer())
    return asyncio.run(synthesize(PAIR, "Ann", method=method, model=model, **options))


def asked(model: ChatModel) -> list[str]:
    assert isinstance(model.chat, ScriptedChatModel)
    return model.chat.prompts


# Propose -------------------------------------------------------------------------------------------------------------


def test_a_transcript_model_is_shown_the_moment_with_its_action_and_writes_one_line() -> None:
    model = scripted("  wanted the  sea \nThem: more")
    assert asyncio.run(propose(model, PAIR, "Ann", n=2, seed=0)) == ["I wanted the sea"] * 2
    for prompt in asked(model):
        moment = f"\n\nThem: Hello there\nMe: hi\nThem: When do you want to go?\nMe: {ACTION}\n"
        assert moment in prompt
        assert prompt.split(moment)[1].endswith(" I")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("felt tired. I wanted to sle", "I felt tired."),
        ("felt tired, wanted tea, and was about", "I felt tired, wanted tea"),
        ("felt tired and was about", "I felt tired and was about"),
        ("felt tired.", "I felt tired."),
        ("", ""),
        (" \nfelt tired.", ""),
    ],
)
def test_a_clause_that_was_cut_off_is_left_out(written: str, kept: str) -> None:
    assert asyncio.run(propose(scripted(written), PAIR, "Ann", n=1, seed=0)) == [kept]


def test_an_instructed_model_is_told_who_what_and_why_and_may_write_several_lines() -> None:
    model = replace(scripted("wants the sea\n\nand  is in a hurry"), style="instruction")
    assert asyncio.run(propose(model, PAIR, "Ann Smith", n=1, seed=0)) == ["wants the sea and is in a hurry"]
    (prompt,) = asked(model)
    for told in ("Ann Smith", "You want to see the sea.", "Them: When do you want to go?", ACTION):
        assert told in prompt


def test_an_instructed_model_is_told_of_a_first_turn() -> None:
    model = replace(scripted("wants the sea"), style="instruction")
    asyncio.run(propose(model, replace(PAIR, context=(), goal=""), "Ann", n=1, seed=0))
    assert "(Ann speaks first.)" in asked(model)[0]
    assert "What only" not in asked(model)[0]


# Reconstruct ---------------------------------------------------------------------------------------------------------

texts = st.text(max_size=60)
contexts = st.lists(st.builds(Turn, st.sampled_from(["Ann", "Bob", "Cleo"]), st.just("any"), texts), max_size=6).map(tuple)


@given(contexts, texts, st.none() | texts, texts, texts)
def test_the_reconstruction_does_not_depend_on_the_action(
    context: tuple[Turn, ...], goal: str, trace: str | None, one: str, other: str
) -> None:
    pair = replace(PAIR, context=context, goal=goal)
    assert reconstruct(replace(pair, action=one, ends=True), trace) == reconstruct(replace(pair, action=other), trace)


@given(contexts, texts, st.none() | texts, texts.map(lambda text: f"⟦{text}⟧"))
def test_the_action_never_appears_in_the_reconstruct_prompt(
    context: tuple[Turn, ...], goal: str, trace: str | None, action: str
) -> None:
    prompt = reconstruct(replace(PAIR, context=context, goal=goal, action=action), trace)
    assert "⟦" not in prompt
    assert prompt.endswith("Me:")


def test_the_reconstruction_shows_goal_context_and_trace() -> None:
    prompt = reconstruct(PAIR, GOOD)
    assert prompt == (
        "(My goal: You want to see the sea.)\nThem: Hello there\nMe: hi\nThem: When do you want to go?\n"
        f"(Me thinking: {GOOD})\nMe:"
    )
    assert "thinking" not in reconstruct(PAIR, None)
    longer = replace(PAIR, context=tuple(Turn("Bob", "agent", f"line {i}") for i in range(CONTEXT_TURNS + 1)))
    assert "line 0" not in reconstruct(longer, None)
    assert "line 1" in reconstruct(longer, None)


# Score ---------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_gain_per_token_over_the_context_alone() -> None:
    scorer = Listening()
    good, poor = score(scorer, PAIR, [GOOD, POOR])
    (call,) = scorer.calls
    assert call == [(reconstruct(PAIR, trace), action_line(ACTION)) for trace in (None, GOOD, POOR)]
    alone, told, _ = FakeScorer().score(call)
    assert good == pytest.approx((told.nats - alone.nats) / told.tokens)
    assert good > 0
    assert poor == 0


def test_no_traces_have_no_scores() -> None:
    assert score(FakeScorer(), PAIR, []) == []


# Select --------------------------------------------------------------------------------------------------------------

candidates = st.builds(
    Candidate, st.text(max_size=3), st.none() | st.floats(-2, 2), st.sampled_from([None, None, "empty", "quotes_action"])
)


@given(st.lists(candidates, max_size=6))
def test_the_selected_is_the_best_of_those_that_no_guard_rejects(found: list[Candidate]) -> None:
    best = select(found)
    allowed = [candidate for candidate in found if candidate.rejected is None]
    assert (best is None) == (not allowed)
    if best is not None:
        assert best in allowed
        assert best.score == max((c.score for c in allowed if c.score is not None), default=None)
        assert best == next(c for c in allowed if c.score == best.score)  # the first of equals


# Synthesize ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[POOR, GOOD, FAIR], [GOOD, FAIR, POOR], [FAIR, POOR, GOOD]])
def test_the_trace_with_which_the_action_is_better_predicted_wins(order: list[str]) -> None:
    triple = make(writing(*order), candidates=3)
    assert triple.reasoning == GOOD
    assert triple.score == score(FakeScorer(), PAIR, [GOOD])[0]
    assert triple.pair is PAIR


def test_a_copied_action_is_rejected_and_counted_and_never_scored() -> None:
    scorer = Listening()
    triple = make(writing(COPY, FAIR, "", POOR), candidates=4, scorer=scorer)
    assert triple.reasoning == FAIR
    assert triple.provenance is not None
    assert dict(triple.provenance.rejected) == {"quotes_action": 1, "empty": 1}
    assert not any(COPY in prompt for call in scorer.calls for prompt, _ in call)
    assert score(FakeScorer(), PAIR, [COPY])[0] > score(FakeScorer(), PAIR, [FAIR])[0]  # it would have won


def test_the_provenance_says_where_the_trace_came_from() -> None:
    model = writing(GOOD, POOR)
    assert make(model, candidates=2, seed=5).provenance == Provenance(
        method="recon",
        proposer="scripted:test",
        scorer="fake:",
        prompt_version=proposal_template(model).version,
        seed=5,
        candidates=2,
        rejected={},
    )
    instructed = replace(model, style="instruction")
    assert proposal_template(model).version.startswith("propose_transcript/")
    assert proposal_template(instructed).version.startswith("propose_instruction/")
    provenance = make(instructed).provenance
    assert provenance is not None
    assert provenance.prompt_version == proposal_template(instructed).version


def test_backward_takes_the_first_and_scores_nothing() -> None:
    scorer, model = Listening(), writing(POOR, GOOD)
    triple = make(model, "backward", scorer=scorer, candidates=4)
    assert (triple.reasoning, triple.score) == (POOR, None)
    assert triple.provenance is not None
    assert (triple.provenance.method, triple.provenance.scorer, triple.provenance.candidates) == ("backward", None, 1)
    assert (len(asked(model)), scorer.calls) == (1, [])


def test_backward_needs_no_scorer_and_none_needs_no_model() -> None:
    assert make(writing(GOOD), "backward", scorer=None).reasoning == GOOD
    assert make(None, "none", scorer=None) == Triple(PAIR)


def test_no_traces_asks_nobody() -> None:
    scorer, model = Listening(), writing(GOOD)
    assert make(model, "none", scorer=scorer) == Triple(PAIR)
    assert (asked(model), scorer.calls) == ([], [])


@pytest.mark.parametrize(("method", "count"), [("recon", 3), ("backward", 1)])
def test_where_all_are_rejected_the_triple_has_no_trace_but_says_why(method: Method, count: int) -> None:
    scorer = Listening()
    triple = make(writing(COPY), method, candidates=3, scorer=scorer)
    assert (triple.reasoning, triple.score, scorer.calls) == (None, None, [])
    assert triple.provenance is not None
    assert dict(triple.provenance.rejected) == {"quotes_action": count}
    assert triple.provenance.candidates == count


def test_a_kept_trace_never_shares_five_words_with_the_action() -> None:
    words = word_tokens(ACTION)
    for length in range(1, len(words) + 1):
        kept = make(writing("I meant " + " ".join(words[:length])), candidates=1).reasoning
        assert (kept is None) == (length >= 5)


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_a_trace_that_repeats_its_prompt_is_rejected(style: Style) -> None:
    examples = proposal_template(replace(scripted(), style=style)).text
    echo = " ".join(word_tokens(examples.splitlines()[0])[:8])
    triple = make(replace(scripted(echo), style=style), candidates=2)
    assert triple.reasoning is None
    assert triple.provenance is not None
    assert dict(triple.provenance.rejected) == {"echoes_examples": 2}


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match=r'"best" is no way to make traces; there are recon, backward, none'):
        make(writing(GOOD), "best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match='"recon" need a model and a scorer'):
        make(None)
    with pytest.raises(UsageError, match='"recon" need a model and a scorer'):
        make(writing(GOOD), scorer=None)
    with pytest.raises(UsageError, match=r'"backward" need a model$'):
        make(None, "backward")
    with pytest.raises(UsageError, match="0 candidates: at least one"):
        make(writing(GOOD), candidates=0)
    assert METHODS == ("recon", "backward", "none")


class Doubting(FakeScorer):
    """Finds an action less likely after a trace with "nothing" in it."""

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        found = zip(items, super().score(items), strict=True)
        return [replace(one, nats=one.nats - 1) if "nothing" in prompt else one for (prompt, _), one in found]


def test_a_trace_that_predicts_the_action_worse_than_none_is_rejected_and_one_that_changes_nothing_is_not() -> None:
    same = "I wondered about it"
    assert score(Doubting(), PAIR, [POOR])[0] < 0 == score(Doubting(), PAIR, [same])[0]
    triple = make(writing(POOR), candidates=2, scorer=Doubting())
    assert (triple.reasoning, triple.score) == (None, None)
    assert triple.provenance is not None
    assert dict(triple.provenance.rejected) == {"misleads": 2}
    triple = make(writing(POOR, same), candidates=2, scorer=Doubting())
    assert (triple.reasoning, triple.score) == (same, 0)
    assert make(writing(POOR), "backward", scorer=Doubting()).reasoning == POOR  # nobody looked


def test_a_model_that_does_not_answer_and_a_scorer_that_fails_are_heard() -> None:
    class Broken(FakeScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            raise ModelError("no weights here")

    class Silent(ScriptedChatModel):
        def _generate(self, *args: Any, **options: Any) -> Any:
            raise ConnectionError("nobody there")

    with pytest.raises(ModelError, match="no weights here"):
        make(writing(GOOD), scorer=Broken())
    with pytest.raises(ModelError, match='"quiet" did not answer: ConnectionError: nobody there'):
        make(ChatModel("quiet", Silent(answers=[GOOD])))
