"""memory/recon/fidelity.py: gain, guarded gain, forced choice and prior; no prompt contains the action."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ACTION, PAIR, WordWeightScorer
from usertwin.memory import LikelihoodGain, Scorer
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import (
    CHOICES,
    Fidelity,
    FidelityScore,
    ForcedChoice,
    PriorCorrectedGain,
    gains,
    reconstruction_prompt,
)
from usertwin.memory.recon.propose import CONTEXT_TURNS
from usertwin.memory.text.transcript import action_completion, filler_text
from usertwin.personas import Pair, Turn


def scored(fidelity: Fidelity, *traces: str, pair: Pair = PAIR) -> list[FidelityScore]:
    return asyncio.run(fidelity.score(pair, traces))


@dataclass
class Scripted:
    """A scorer that returns a function of prompt and continuation, as a single token."""

    nats: Callable[[str, str], float]
    name: str = "scripted"

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        return [Likelihood(self.nats(*item), 1, (self.nats(*item),), (len(item[1]),)) for item in items]


# Reconstruction prompts ------------------------------------------------------------------------------------------------

texts = st.text(max_size=60)
contexts = st.lists(st.builds(Turn, st.sampled_from(["Ann", "Bob", "Cleo"]), st.just("any"), texts), max_size=6).map(tuple)


@given(contexts, texts, st.none() | texts, texts, texts)
def test_the_reconstruction_does_not_depend_on_the_action(
    context: tuple[Turn, ...], goal: str, trace: str | None, first: str, second: str
) -> None:
    pair = replace(PAIR, context=context, goal=goal)
    assert reconstruction_prompt(replace(pair, action=first, ends_conversation=True), trace) == reconstruction_prompt(
        replace(pair, action=second), trace
    )


@given(contexts, texts, st.none() | texts, texts.map(lambda text: f"⟦{text}⟧"))
def test_the_action_never_appears_in_the_reconstruct_prompt(
    context: tuple[Turn, ...], goal: str, trace: str | None, action: str
) -> None:
    prompt = reconstruction_prompt(replace(PAIR, context=context, goal=goal, action=action), trace)
    assert "⟦" not in prompt
    assert prompt.endswith("Me:")


def test_the_reconstruction_shows_goal_context_and_trace() -> None:
    assert reconstruction_prompt(PAIR, "I was in a hurry") == (
        "(My goal: You want to see the sea.)\nThem: Hello there\nMe: hi\nThem: When do you want to go?\n"
        "(Me thinking: I was in a hurry)\nMe:"
    )
    assert "thinking" not in reconstruction_prompt(PAIR, None)
    longer = replace(PAIR, context=tuple(Turn("Bob", "agent", f"line {i}") for i in range(CONTEXT_TURNS + 1)))
    assert "line 0" not in reconstruction_prompt(longer, None)
    assert "line 1" in reconstruction_prompt(longer, None)


# Gain: S2 and G2 -------------------------------------------------------------------------------------------------------

STEMS = {"book": "book", "booked": "book", "Booking": "book", "train": "train", "trains": "train", "sea": "sea", "the": "the"}
words = st.lists(st.sampled_from(sorted(STEMS)), max_size=6)


@dataclass(frozen=True)
class Tokens:
    """A scorer that tokenizes every continuation at the same positions, and has nats for each prompt and token.

    The rows are for the context alone, with filler text, and with the trace.
    """

    ends: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    name: str = "tokens"

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        return [Likelihood(fsum(row), len(row), row, self.ends) for row, _ in zip(self.rows, items, strict=True)]


@st.composite
def scored_pairs(draw: st.DrawFn) -> tuple[Pair, str, Tokens]:
    """A pair, a trace, and token likelihoods of the action alone, after filler text and after the trace."""
    pair = replace(
        PAIR,
        context=(Turn("Bob", "agent", " ".join(draw(words))),),
        goal=" ".join(draw(words)),
        action=" ".join(draw(words)) or "sea",
    )
    line = action_completion(pair.action)
    ends = (*sorted(draw(st.sets(st.integers(1, len(line) - 1)))), len(line))
    nats = st.lists(st.floats(-20, 0), min_size=len(ends), max_size=len(ends)).map(tuple)
    return pair, " ".join(draw(words)), Tokens(ends, (draw(nats), draw(nats), draw(nats)))


def copied_tokens(pair: Pair, trace: str, ends: Sequence[int]) -> list[bool]:
    """Return for each token whether it holds a letter of a word that is in the trace and not in context or goal."""
    known = {STEMS[word] for text in (pair.context[0].text, pair.goal) for word in text.split()}
    fresh = {STEMS[word] for word in trace.split()} - known
    letters = "".join(
        ("x" if STEMS.get(word) in fresh else "-") * len(word) for word in re.split(r"(\s)", action_completion(pair.action))
    )
    return ["x" in letters[start:end] for start, end in zip((0, *ends), ends, strict=False)]


@given(scored_pairs())
def test_gain_is_guarded_gain_plus_copied(case: tuple[Pair, str, Tokens]) -> None:
    pair, trace, scorer = case
    alone, nothing, after = scorer.rows
    [score] = gains(scorer, pair, [trace])
    assert score["gain"] == pytest.approx((fsum(after) - fsum(nothing)) / len(after), abs=1e-9)
    assert score["slot"] == pytest.approx((fsum(nothing) - fsum(alone)) / len(after), abs=1e-9)
    assert score["gain"] == pytest.approx(score["guarded_gain"] + score["copied"], abs=1e-9)
    copied = copied_tokens(pair, trace, scorer.ends)
    expected = fsum(b - a for a, b, of_copied in zip(nothing, after, copied, strict=True) if of_copied)
    assert score["copied"] == pytest.approx(expected / len(after), abs=1e-9)


@given(scored_pairs(), st.floats(-50, 50))
def test_guarded_gain_ignores_the_gain_on_copied_words(case: tuple[Pair, str, Tokens], extra: float) -> None:
    pair, trace, scorer = case
    *others, after = scorer.rows
    copied = copied_tokens(pair, trace, scorer.ends)
    shifted = tuple(nats + extra * of_copied for nats, of_copied in zip(after, copied, strict=True))
    [before], [after] = gains(scorer, pair, [trace]), gains(replace(scorer, rows=(*others, shifted)), pair, [trace])
    assert after["guarded_gain"] == pytest.approx(before["guarded_gain"], abs=1e-9)
    assert after["gain"] == pytest.approx(before["gain"] + extra * sum(copied) / len(copied), abs=1e-9)


def test_pure_copy_has_gain_but_no_guarded_gain() -> None:
    copy, after = scored(LikelihoodGain(FakeScorer(), guarded=False), f"{ACTION} !", "I thought of nothing much")
    assert copy.value == pytest.approx(4 * log(100) / 6)  # "the" and "to" were said before
    assert after.value == 0
    [copy] = scored(LikelihoodGain(FakeScorer()), f"{ACTION} !")
    assert copy.value == 0  # exactly: it does not mislead either
    assert copy.parts["copied"] == pytest.approx(copy.parts["gain"])


def test_inflected_word_counts_as_copied_and_context_word_does_not() -> None:
    pair = replace(PAIR, action="booked trains", goal="", context=(Turn("Bob", "agent", "A train?"),))
    even = Scripted(lambda prompt, _: -1.0 if "liked" in prompt else -2.0)
    assert gains(even, pair, ["I liked booking"]) == [{"gain": 1.0, "guarded_gain": 0.0, "copied": 1.0, "slot": 0.0}]
    assert gains(even, pair, ["I liked the train"]) == [{"gain": 1.0, "guarded_gain": 1.0, "copied": 0.0, "slot": 0.0}]


def test_gain_is_measured_against_filler_text() -> None:
    """Any text in place of the trace makes the action likelier; only what the trace adds counts."""
    scorer = Scripted(
        lambda prompt, _: -5.0 + 2.0 * ("thinking" in prompt) + 0.5 * ("hurry" in prompt) - 1.0 * ("lost" in prompt)
    )
    hurry, lost, idle = gains(scorer, PAIR, ["I was in a hurry", "I was lost", "I was here"])
    assert hurry == {"gain": 0.5, "guarded_gain": 0.5, "copied": 0.0, "slot": 2.0}
    assert lost == {
        "gain": -1.0,
        "guarded_gain": -1.0,
        "copied": 0.0,
        "slot": 2.0,
    }  # though the action is likelier than without it
    assert idle == {"gain": 0.0, "guarded_gain": 0.0, "copied": 0.0, "slot": 2.0}


def test_reasons_gain_on_every_token_that_is_not_copied() -> None:
    scorer = WordWeightScorer({"hurry": 0.5, "bored": -0.25}, copied=2.0)
    hurry, bored, both = scored(LikelihoodGain(scorer), "I was in a hurry", "I was bored", "I was in a hurry and liked Rome")
    assert hurry.parts == pytest.approx({"gain": 0.5, "guarded_gain": 0.5, "copied": 0.0, "slot": 0.0})
    assert bored.parts == pytest.approx({"gain": -0.25, "guarded_gain": -0.25, "copied": 0.0, "slot": 0.0})
    assert both.parts == pytest.approx({"gain": 0.5 + 2 / 7, "guarded_gain": 0.5 * 6 / 7, "copied": 2.5 / 7, "slot": 0.0})
    assert [first.value for first in (hurry, bored, both)] == [first.parts["guarded_gain"] for first in (hurry, bored, both)]


def test_all_traces_of_a_pair_are_scored_in_one_call_that_never_holds_the_action_in_a_prompt() -> None:
    scorer = WordWeightScorer({})
    traces = ("I was in a hurry", "I was bored", "I was in a hurry and liked being early there")
    scored(LikelihoodGain(scorer), *traces)
    thoughts = [None, filler_text(5), filler_text(10), *traces]  # the first two are about as long
    assert scorer.calls == [[(reconstruction_prompt(PAIR, thought), action_completion(ACTION)) for thought in thoughts]]
    assert gains(scorer, PAIR, []) == []


def test_gain_has_its_name_and_floor_0() -> None:
    assert LikelihoodGain(FakeScorer()).name == "guarded gain under fake:"
    assert LikelihoodGain(FakeScorer(), guarded=False).name == "gain under fake:"
    assert LikelihoodGain(FakeScorer()).floor == 0.0


# Choice: S4 ------------------------------------------------------------------------------------------------------------

OTHERS = ("two coffees please", "nothing at all today", "is the sea warm there")


def distractors(*actions: str) -> Distractors:
    pairs = [replace(PAIR, action=action, conversation_id=f"talk {place}") for place, action in enumerate(actions)]
    return Distractors(pairs, FakeEmbedder())


def favouring(liked: str, by: float) -> Scorer:
    """Return a scorer under which a thought of an action makes that action likelier."""
    return Scripted(lambda prompt, action: -5 + by * (liked in action and f"thinking: {liked}" in prompt))


def test_a_trace_that_favours_the_real_action_is_chosen_and_one_that_favours_another_misleads() -> None:
    [score] = scored(ForcedChoice(favouring("the early train", 2), distractors(*OTHERS)), "the early train")
    assert score.parts == pytest.approx({"chosen": exp(2) / (exp(2) + 3), "before": 1 / 4})
    assert score.value == pytest.approx(log(score.parts["chosen"] / score.parts["before"]))
    [score] = scored(ForcedChoice(favouring("coffees", 2), distractors("two coffees please", *OTHERS[1:])), "coffees")
    assert score.parts == pytest.approx({"chosen": 1 / (exp(2) + 3), "before": 1 / 4})
    assert score.value < 0 == ForcedChoice(FakeScorer(), distractors()).floor


def test_a_trace_that_says_nothing_about_the_action_changes_no_choice() -> None:
    [score] = scored(ForcedChoice(favouring("train", 2), distractors(*OTHERS)), "the weather")
    assert score.value == 0


def test_without_another_action_there_is_nothing_to_choose() -> None:
    for none in (distractors(), distractors(ACTION)):
        score = scored(ForcedChoice(favouring("the early train", 2), none), "the early train", "the weather")
        assert [first.value for first in score] == [0, 0]


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.lists(st.floats(-30, 0), min_size=4, max_size=4))
def test_unconditional_likelihood_of_an_action_cancels(after: list[float], usual: list[float]) -> None:
    actions = [action_completion(action) for action in (ACTION, *OTHERS)]

    def nats(common: Sequence[float]) -> Scorer:
        table = {action: (own, often) for action, own, often in zip(actions, after, common, strict=True)}
        return Scripted(lambda prompt, action: table[action][1] + table[action][0] * ("hurry" in prompt))

    [score] = scored(ForcedChoice(nats(usual), distractors(*OTHERS)), "I was in a hurry")
    [even] = scored(ForcedChoice(nats([0, 0, 0, 0]), distractors(*OTHERS)), "I was in a hurry")
    assert score.value == pytest.approx(even.value, abs=1e-6)
    assert score.parts["before"] == pytest.approx(1 / 4)
    assert score.parts["chosen"] == pytest.approx(exp(after[0]) / fsum(map(exp, after)))


def test_a_choice_is_among_as_many_as_asked_for_and_its_prompts_hold_none_of_them() -> None:
    scorer = WordWeightScorer({})
    many = distractors(*(f"{letter} tea {letter}" for letter in "bcdfghjklm"))
    scored(ForcedChoice(scorer, many), "I was in a hurry")
    assert [len(call) for call in scorer.calls] == [CHOICES] * 3
    actions = {action.strip() for _, action in scorer.calls[0]}
    assert len(actions) == CHOICES
    assert not [prompt for call in scorer.calls for prompt, _ in call for action in actions if action in prompt]
    scorer.calls.clear()
    scored(ForcedChoice(scorer, many, choices=3), "I was in a hurry", "I was bored")
    assert [len(call) for call in scorer.calls] == [3] * 4
    assert ForcedChoice(scorer, many, choices=3).name == "choice of 3 under weighing"


# Prior: S5 -------------------------------------------------------------------------------------------------------------

traces = st.lists(st.sampled_from(["early", "Rome", "please", "tired", "sea", "quick"]), min_size=1, max_size=5).map(" ".join)


@given(st.lists(traces, min_size=1, max_size=3), st.floats(0, 3))
def test_the_prior_is_the_gain_plus_its_weight_times_how_honest_the_trace_is(score: list[str], weight: float) -> None:
    gain = scored(LikelihoodGain(FakeScorer(), guarded=False), *score)
    unweighed, weighed = (scored(PriorCorrectedGain(FakeScorer(), first), *score) for first in (0.0, weight))
    for first, plain, second in zip(gain, unweighed, weighed, strict=True):
        assert plain.value == pytest.approx(first.value)
        assert second.value == pytest.approx(first.value + weight * second.parts["prior"])


def test_prior_penalises_a_copy_and_not_a_reason() -> None:
    copy, reason = scored(PriorCorrectedGain(FakeScorer()), ACTION, "I wanted more time for the sea")
    assert copy.parts["prior"] < 0 == reason.parts["prior"]
    heavy = scored(PriorCorrectedGain(FakeScorer(), 3.0), ACTION, "I wanted more time for the sea")
    assert copy.value > reason.value
    assert heavy[0].value < heavy[1].value


def test_prior_prompt_lacks_the_action_and_posterior_prompt_has_it() -> None:
    scorer = WordWeightScorer({})
    scored(PriorCorrectedGain(scorer), "I was in\na hurry")
    posterior, prior, _ = scorer.calls
    assert [line for _, line in posterior] == [line for _, line in prior] == [" I was in a hurry\n"]
    [(before, _)], [(after, _)] = prior, posterior
    assert ACTION in after
    assert ACTION not in before
    assert "When do you want to go?" in before
    assert not before.endswith(" I")  # the trace brings its own
    assert not after.endswith(" I")


def test_prior_has_its_weight_in_the_name_and_no_floor() -> None:
    assert PriorCorrectedGain(FakeScorer(), 0.25).name == "gain with prior 0.25 under fake:"
    assert PriorCorrectedGain(FakeScorer()).floor is None
