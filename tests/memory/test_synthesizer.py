"""memory/recon/synthesizer.py: of several traces the one from which the action follows is kept, and never one that gives it away."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ACTION, PAIR, FunctionChatModel, WordWeightScorer, function_model
from usertwin.memory import ChatModel, LikelihoodGain, Provenance, Synthesizer, Triple, TripleStore
from usertwin.memory.models.chat import Price, PromptStyle
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import PriorCorrectedGain, gains
from usertwin.memory.recon.guards import MAX_TRACE_WORDS, MIN_KEPT_SHARE, REASONS, rejection_reason
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.recon.propose import PROPOSAL_MODES, ProposalMode, proposal_template
from usertwin.memory.recon.synthesizer import (
    DEFAULT_CANDIDATES,
    MAX_ROUNDS,
    METHODS,
    Method,
    backward_trace,
    rank_candidates,
    select,
)
from usertwin.memory.text.words import word_tokens
from usertwin.memory.triples import Candidate
from usertwin.personas import ModelError, Pair, Turn, UsageError

WEIGHTS = {"mornings": 0.5, "polite": 0.2, "bored": -0.5, "lost": -0.1}
GOOD = "I liked mornings and had no time."
FAIR = "I felt polite today."
EVEN = "I thought of nothing much at all, as one does on such days."
POOR = "I was bored."
COPY = f"I will say {ACTION}"
LEANING = "I wanted to be polite and there early."  # 0.2 on each of seven tokens by its reason, and 2.0 on one by copying


def writing(*traces: str, style: PromptStyle = "instruction", **facts: Any) -> tuple[ChatModel, FunctionChatModel]:
    """A model whose traces are these, one for each seed, whatever round it is asked in."""
    model, chat = function_model(lambda *_: traces[(len(chat.requests) - 1) % len(traces)], style, **facts)
    return model, chat


def make(model: ChatModel | None, method: Method = "recon", *, seed: int = 0, pair: Pair = PAIR, **options: Any) -> Triple:
    options.setdefault("fidelity", LikelihoodGain(WordWeightScorer(WEIGHTS)))
    return asyncio.run(Synthesizer(method, model, **options).synthesize(pair, "Ann", seed=seed))


def told(triple: Triple) -> Provenance:
    assert triple.provenance is not None
    return triple.provenance


# Select ----------------------------------------------------------------------------------------------------------------

candidates = st.lists(
    st.builds(
        Candidate,
        st.lists(st.sampled_from("abc"), max_size=4).map(" ".join),
        st.none() | st.floats(-2, 2),
        st.sampled_from([None, None, "empty", "quotes_action", "misleads", "leans_on_words"]),
    ),
    max_size=7,
)


@given(candidates, st.sampled_from(METHODS), st.integers())
def test_every_way_takes_only_what_no_guard_rejects_and_none_takes_nothing(
    found: list[Candidate], method: Method, seed: int
) -> None:
    allowed = [one for one in found if one.rejected_by is None]
    ordered = rank_candidates(found, method, seed=seed)
    assert sorted(map(id, ordered)) == sorted(map(id, [] if method == "none" else allowed))
    assert select(found, method, seed=seed) is (ordered[0] if ordered else None)
    assert rank_candidates(found, method, seed=seed) == ordered


@given(candidates)
def test_the_ways_differ_in_the_order_and_ties_go_to_the_first(found: list[Candidate]) -> None:
    allowed = [one for one in found if one.rejected_by is None]
    assert rank_candidates(found, "backward") == allowed
    for method in ("recon", "quality"):
        scored = sorted((one for one in allowed if one.score is not None), key=lambda one: -cast("float", one.score))
        assert rank_candidates(found, cast("Method", method)) == [*scored, *(one for one in allowed if one.score is None)]
    assert rank_candidates(found, "longest") == sorted(allowed, key=lambda one: -len(one.trace.split()))


@given(candidates)
def test_the_selected_is_the_best_of_those_that_no_guard_rejects(found: list[Candidate]) -> None:
    best = select(found)
    allowed = [one for one in found if one.rejected_by is None]
    assert (best is None) == (not allowed)
    if best is not None:
        assert best.score == max((one.score for one in allowed if one.score is not None), default=None)
        assert best == next(one for one in allowed if one.score == best.score)


def test_random_goes_by_the_seed_alone_and_takes_each_at_times() -> None:
    found = [Candidate(letter, score, None) for score, letter in enumerate("abcd")]
    other = [Candidate(letter.upper(), -score, None) for score, letter in enumerate("abcd")]
    chosen = [cast("Candidate", select(found, "random", seed=seed)).trace for seed in range(60)]
    assert chosen == [cast("Candidate", select(other, "random", seed=seed)).trace.lower() for seed in range(60)]
    assert set(chosen) == {*"abcd"}


# The four steps together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[POOR, GOOD, FAIR], [GOOD, FAIR, POOR], [FAIR, POOR, GOOD]])
def test_the_trace_with_which_the_action_is_better_predicted_wins(order: list[str]) -> None:
    triple = make(writing(*order)[0], candidates=3)
    assert (triple.reasoning, triple.score) == (GOOD, pytest.approx(0.5))
    assert triple.pair is PAIR
    provenance = told(triple)
    assert [one.trace for one in provenance.proposals] == order
    assert {one.trace: one.score for one in provenance.proposals} == pytest.approx({GOOD: 0.5, FAIR: 0.2, POOR: -0.5})
    assert dict(provenance.rejected) == {"misleads": 1}


def test_the_ways_of_choosing_differ_in_nothing_but_the_choice() -> None:
    judge, _ = function_model(_likes_the_poor, "instruction")
    made: dict[Method, Triple] = {}
    for method in METHODS:
        made[method] = make(writing(FAIR, POOR, COPY, EVEN, GOOD)[0], method, candidates=4, judge=judge, seed=3)
    reasons = {method: triple.reasoning for method, triple in made.items()}
    assert reasons.pop("random") in {FAIR, POOR, EVEN, GOOD}
    assert reasons == {"recon": GOOD, "longest": EVEN, "quality": POOR, "backward": FAIR, "none": None}
    proposed = {method: [one.trace for one in told(made[method]).proposals] for method in METHODS if method != "none"}
    assert proposed.pop("backward") == [FAIR]
    assert {tuple(traces) for traces in proposed.values()} == {(FAIR, POOR, COPY, EVEN, GOOD)}
    assert made["none"] == Triple(PAIR)
    assert {method for method, triple in made.items() if triple.score is not None} == {"recon"}
    assert {method: told(made[method]).rejected.get("misleads", 0) for method in proposed} == {
        "recon": 1,
        "random": 0,
        "longest": 0,
        "quality": 0,
    }
    assert {told(made[method]).scorer for method in proposed if method != "recon"} == {None}


def _likes_the_poor(prompt: str, seed: int) -> str:
    notes = [line.removeprefix("Note ")[0] for line in prompt.splitlines() if line.startswith("Note ")]
    texts = dict(zip(notes, (prompt.split(f"Note {label}:\n")[1].split("\n")[0] for label in notes), strict=True))
    marks = dict.fromkeys(["plausible", "specific", "clear"], 5)
    return json.dumps({"scores": dict.fromkeys(notes, marks), "ranking": sorted(notes, key=lambda one: texts[one] != POOR)})


def test_a_random_choice_goes_by_the_seed_and_the_pair() -> None:
    def chosen(**options: Any) -> str | None:
        return make(writing(GOOD, FAIR, POOR, EVEN)[0], "random", **options).reasoning

    assert chosen(seed=1) == chosen(seed=1)
    assert {chosen(seed=seed) for seed in range(25)} == {GOOD, FAIR, POOR, EVEN}
    assert len({chosen(seed=1, pair=replace(PAIR, position=position)) for position in range(12)}) > 1


def test_a_copied_action_is_rejected_and_counted_and_never_scored() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    triple = make(writing(COPY, FAIR, "", POOR, EVEN)[0], candidates=3, fidelity=LikelihoodGain(scorer))
    assert triple.reasoning == FAIR
    assert dict(told(triple).rejected) == {"quotes_action": 1, "empty": 1, "misleads": 1}
    assert not any(COPY in prompt for call in scorer.calls for prompt, _ in call)
    [copy], [fair] = (gains(scorer, PAIR, [trace]) for trace in (COPY, FAIR))
    assert copy["gain"] > fair["gain"]  # it would have won
    assert copy["guarded_gain"] < fair["guarded_gain"]


def test_the_provenance_says_where_the_trace_came_from() -> None:
    model, _ = writing(GOOD, POOR)
    assert make(model, candidates=2, seed=5).provenance == Provenance(
        method="recon",
        proposer="telling",
        scorer="guarded gain under weighing",
        prompt_version=proposal_template(model).version,
        seed=5,
        candidates=2,
        rejected={"misleads": 1},
        proposal_mode="backward",
        proposals=(Candidate(GOOD, pytest.approx(0.5), None), Candidate(POOR, pytest.approx(-0.5), "misleads")),
        measured={},
        cost=told(make(writing(GOOD, POOR)[0], candidates=2)).cost,
    )
    versions = {
        told(make(writing(GOOD, style=style)[0], how=how, candidates=1)).prompt_version
        for style in get_args(PromptStyle)
        for how in PROPOSAL_MODES
        if how != "search"
    }
    assert {version.split("/")[0] for version in versions} == {
        "propose_transcript",
        "forward_transcript",
        "scaffold_transcript",
        "propose_instruction",
        "forward_instruction",
    }


@pytest.mark.parametrize("how", PROPOSAL_MODES)
def test_whichever_way_traces_are_proposed_the_best_is_kept(how: ProposalMode) -> None:
    model, chat = writing(FAIR, GOOD)
    triple = make(model, how=how, candidates=2, calls=2)
    assert (triple.reasoning, told(triple).proposal_mode) == (GOOD, how)
    assert ("The reply:" in chat.prompts[0]) == (how != "forward")


def test_backward_takes_the_first_and_scores_nothing() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(POOR, GOOD)
    triple = make(model, "backward", fidelity=LikelihoodGain(scorer), candidates=4)
    assert (triple.reasoning, triple.score) == (POOR, None)
    provenance = told(triple)
    assert (provenance.method, provenance.scorer, provenance.candidates) == ("backward", None, 1)
    assert (len(chat.requests), scorer.calls) == (1, [])


def test_backward_needs_no_scorer_and_none_needs_no_model() -> None:
    assert make(writing(GOOD)[0], "backward", fidelity=None).reasoning == GOOD
    assert make(None, "none", fidelity=None) == Triple(PAIR)


def test_no_traces_asks_nobody() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(GOOD)
    assert make(model, "none", fidelity=LikelihoodGain(scorer), scorer=scorer) == Triple(PAIR)
    assert (chat.requests, scorer.calls) == ([], [])


# Rounds ----------------------------------------------------------------------------------------------------------------


def test_only_what_the_guards_left_open_is_asked_for_again_and_with_another_seed() -> None:
    model, chat = writing(COPY, GOOD, "", FAIR, COPY, EVEN, POOR)
    triple = make(model, candidates=3, seed=11)
    assert [one.trace for one in told(triple).proposals] == [COPY, GOOD, "", FAIR, COPY, EVEN]
    seeds = [seed for _, seed in chat.requests]
    assert seeds[:3] == [11, 12, 13]
    assert len(set(seeds)) == len(seeds) == 6
    assert triple.reasoning == GOOD


@pytest.mark.parametrize(("method", "count"), [("recon", 3), ("longest", 3), ("backward", 1)])
def test_where_all_are_rejected_it_is_tried_three_times_and_the_triple_says_why_it_has_no_trace(
    method: Method, count: int
) -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(COPY)
    triple = make(model, method, candidates=3, fidelity=LikelihoodGain(scorer), scorer=scorer)
    assert (triple.reasoning, triple.score, scorer.calls) == (None, None, [])
    assert triple.pair is PAIR
    assert MAX_ROUNDS == 3
    provenance = told(triple)
    assert dict(provenance.rejected) == {"quotes_action": MAX_ROUNDS * count}
    assert (provenance.candidates, len(chat.requests), provenance.measured) == (MAX_ROUNDS * count, MAX_ROUNDS * count, {})


@given(st.lists(st.sampled_from([GOOD, FAIR, POOR, COPY, "", "ok " * 121]), min_size=1, max_size=5), st.integers(1, 5))
def test_never_more_rounds_than_three_and_never_more_good_proposals_than_asked_for(traces: list[str], wanted: int) -> None:
    model, chat = writing(*traces)
    proposals = told(make(model, "longest", candidates=wanted)).proposals
    passed = [one for one in proposals if one.rejected_by is None]
    assert wanted <= len(chat.requests) == len(proposals) <= MAX_ROUNDS * wanted
    assert len(passed) <= wanted
    if len(passed) < wanted:  # it gave up only after three rounds
        assert sum(one.rejected_by is not None for one in proposals[: 2 * wanted]) > 0


# What a trace may not do -----------------------------------------------------------------------------------------------


def test_a_trace_that_predicts_the_action_worse_than_none_is_rejected_and_one_that_changes_nothing_is_not() -> None:
    triple = make(writing(POOR)[0], candidates=2)
    assert (triple.reasoning, triple.score) == (None, None)
    assert dict(told(triple).rejected) == {"misleads": 2}
    triple = make(writing(POOR, EVEN)[0], candidates=2)
    assert (triple.reasoning, triple.score) == (EVEN, 0)
    assert make(writing(POOR)[0], "backward").reasoning == POOR  # nobody looked
    assert (
        make(writing(POOR)[0], fidelity=PriorCorrectedGain(WordWeightScorer(WEIGHTS))).reasoning == POOR
    )  # that score has no floor


def test_a_trace_that_leans_on_the_words_of_the_action_gives_way_to_the_next_best() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    assert rejection_reason(LEANING, PAIR) is None
    triple = make(writing(LEANING, EVEN, FAIR)[0], candidates=3, fidelity=LikelihoodGain(scorer, guarded=False), scorer=scorer)
    provenance = told(triple)
    assert provenance.proposals[0].score == pytest.approx(0.2 + 2 / 7)
    assert [one.rejected_by for one in provenance.proposals] == ["leans_on_words", None, None]
    assert dict(provenance.rejected) == {"leans_on_words": 1}
    assert (triple.reasoning, triple.score) == (FAIR, pytest.approx(0.2))
    assert provenance.measured == pytest.approx({"gain": 0.2, "guarded_gain": 0.2, "kept": 1.0, "gives_away": 0.0})


@pytest.mark.parametrize("method", ["recon", "random", "longest", "quality", "backward"])
def test_whichever_way_it_was_chosen_no_trace_may_lean_on_words(method: Method) -> None:
    judge, _ = function_model(_likes_the_poor, "instruction")
    triple = make(writing(LEANING)[0], method, candidates=2, scorer=WordWeightScorer(WEIGHTS), judge=judge)
    assert triple.reasoning is None
    assert set(told(triple).rejected) == {"leans_on_words"}
    assert told(triple).measured == {}
    assert make(writing(LEANING)[0], method, candidates=2, judge=judge).reasoning == LEANING  # no scorer, nobody looked


def test_half_of_the_gain_is_enough() -> None:
    assert MIN_KEPT_SHARE == 0.5
    for weight, kept in ((2 / 7 + 0.01, True), (2 / 7 - 0.01, False)):
        scorer = WordWeightScorer({"polite": weight})
        triple = make(writing(LEANING)[0], candidates=1, fidelity=LikelihoodGain(scorer), scorer=scorer)
        assert (triple.reasoning is not None) == kept


def test_what_is_measured_takes_no_part_in_the_choice_and_tells_the_audit() -> None:
    """A trace with which alone the action is told from the person's others is stored, and said to give the action away."""
    others = [replace(PAIR, action=text, conversation_id=text) for text in ("two coffees please", "not today", "no")]
    scorer = WordWeightScorer({"mornings": 0.5}, copied=0.1)
    distractors = Distractors(others, FakeEmbedder())
    for trace, gives_away in (("I liked mornings with an early start.", 1.0), (FAIR, 0.0)):
        triple = make(writing(trace)[0], candidates=1, scorer=scorer, fidelity=LikelihoodGain(scorer), distractors=distractors)
        assert triple.reasoning == trace
        assert told(triple).measured["gives_away"] == gives_away


def test_a_trace_that_says_the_same_in_other_words_is_rejected_where_somebody_can_tell() -> None:
    same = "I thought, to Rome, the train, early, please."
    pair = replace(PAIR, context=(Turn("Bob", "agent", "Rome, early, by train? Say please."),))
    assert make(writing(same)[0], pair=pair).reasoning == same
    plain = replace(pair, context=(Turn("Bob", "agent", "Rome early train please " * 9 + "or what else " * 9),))
    triple = make(writing(same)[0], pair=plain, embedder=FakeEmbedder(), candidates=2)
    assert (triple.reasoning, dict(told(triple).rejected)) == (None, {"same_meaning": 6})


def test_a_kept_trace_never_shares_five_words_with_the_action() -> None:
    words = word_tokens(ACTION)
    pair = replace(PAIR, context=(Turn("Bob", "agent", " ".join(reversed(words))),))
    for length in range(1, len(words) + 1):
        kept = make(writing("I meant " + " ".join(words[:length]))[0], candidates=1, pair=pair).reasoning
        assert (kept is None) == (length >= 5)


@pytest.mark.parametrize("style", get_args(PromptStyle))
@pytest.mark.parametrize("how", ["backward", "forward", "scaffolded"])
def test_a_trace_that_repeats_its_prompt_is_rejected(style: PromptStyle, how: ProposalMode) -> None:
    examples = proposal_template(ChatModel("x", writing("")[1], style), how).text
    echo = "I saw " + " ".join(word_tokens(examples.splitlines()[0])[:8])
    triple = make(writing(echo, style=style)[0], how=how, candidates=1)
    assert triple.reasoning is None
    assert dict(told(triple).rejected) == {"echoes_examples": MAX_ROUNDS}


# Bad input -------------------------------------------------------------------------------------------------------------

STRANGE: dict[str, Callable[[str, int], str]] = {
    "nothing": lambda *_: "",
    "blanks": lambda *_: " \n\t ",
    "the prompt": lambda prompt, _: prompt,
    "ten thousand tokens": lambda *_: "well " * 10_000,
    "dots": lambda *_: "…",
}


@pytest.mark.parametrize("say", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("style", get_args(PromptStyle))
@pytest.mark.parametrize("how", PROPOSAL_MODES)
def test_a_model_that_writes_no_trace_leaves_the_pair_without_one_and_a_reason(
    say: Callable[[str, int], str], style: PromptStyle, how: ProposalMode
) -> None:
    triple = make(function_model(say, style)[0], how=how, candidates=2, calls=4, scorer=FakeScorer(), embedder=FakeEmbedder())
    assert (triple.pair, triple.reasoning, triple.score) == (PAIR, None, None)
    assert set(told(triple).rejected) <= {"empty", "too_long", "echoes_examples", "quotes_action"}
    assert sum(told(triple).rejected.values()) == told(triple).candidates > 0


@pytest.mark.parametrize("how", PROPOSAL_MODES)
@pytest.mark.parametrize("answer", ['{"noticed": "it', '{"answer": 42}'])
def test_a_broken_object_is_no_trace(answer: str, how: ProposalMode) -> None:
    triple = make(writing(answer)[0], how=how, candidates=2, calls=4)
    assert (triple.reasoning, set(told(triple).rejected)) == (None, {"malformed"})


MOMENTS = {  # an action, and what a copy of it is rejected by
    "one word": ("yes", "new_words"),
    "an emoji": ("👍", "empty"),
    "a link": ("https://example.org/a?b=c", "quotes_action"),
    "3,000 words": ("and then some more of it " * 500, "too_long"),
    "another script": ("Да, конечно, завтра утром", "quotes_action"),
    "no spaces": ("はい、明日の朝で大丈夫です", "quotes_action"),
    "blanks": (" \n ", "empty"),
}


@pytest.mark.parametrize(("action", "why"), MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("context", ["When?", "", "Когда вы хотите ехать?", "いつ行きますか", "🙂"])
def test_any_moment_is_kept_with_a_reason_and_never_with_a_copy(action: str, why: str, context: str) -> None:
    pair = replace(PAIR, action=action, context=(Turn("Bob", "agent", context),), goal="")
    scorer = FakeScorer()
    options: dict[str, Any] = {
        "fidelity": LikelihoodGain(scorer), "scorer": scorer, "embedder": FakeEmbedder(), "pair": pair, "candidates": 2,
        "distractors": Distractors([replace(pair, action="no", conversation_id="other")], FakeEmbedder()),
    }  # fmt: skip
    triple = make(writing("I was glad and wanted to be quick.")[0], **options)
    assert (triple.pair, triple.reasoning) == (pair, "I was glad and wanted to be quick.")
    copied = make(writing(action)[0], **options)
    assert (copied.pair, copied.reasoning, set(told(copied).rejected)) == (pair, None, {why})


# What is missing or fails ----------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    model, chat = writing(GOOD)
    with pytest.raises(UsageError, match=r'"best" is no way to make traces; there are recon, random, longest, quality, back'):
        make(model, cast("Any", "best"))
    with pytest.raises(UsageError, match=r'"sideways" is no way to propose traces; there are backward, forward, scaffolded, s'):
        make(model, how="sideways")
    with pytest.raises(UsageError, match=r'"recon" need a model and a scorer$'):
        make(None)
    with pytest.raises(UsageError, match=r'"recon" need a model and a scorer$'):
        make(model, fidelity=None)
    for method in ("random", "longest", "backward"):
        with pytest.raises(UsageError, match=f'"{method}" need a model$'):
            make(None, cast("Method", method))
    with pytest.raises(UsageError, match=r'"quality" need a model and a judge$'):
        make(model, "quality")
    with pytest.raises(UsageError, match=r'"backward" need a model and a scorer$'):
        make(model, "backward", how="search", fidelity=None)
    for candidates, calls in ((0, 12), (-1, 12), (4, 1)):
        with pytest.raises(UsageError, match=f"{candidates} candidates and {calls} calls: at least one candidate, and two"):
            make(model, candidates=candidates, calls=calls)
    judged = JudgeFidelity(model, model)
    with pytest.raises(UsageError, match="a search compares scores of different steps"):
        make(model, how="search", fidelity=judged)
    with pytest.raises(UsageError, match="27 proposals for a judge to compare: at most 26"):
        make(model, fidelity=judged, candidates=27)
    with pytest.raises(UsageError, match="27 proposals for a judge to compare: at most 26"):
        make(model, "quality", how="search", judge=model, calls=27)
    assert chat.requests == []
    Synthesizer("none").check()
    Synthesizer("longest", model).check()
    assert (METHODS, DEFAULT_CANDIDATES) == (("recon", "random", "longest", "quality", "backward", "none"), 4)


def test_a_model_that_does_not_answer_and_a_scorer_that_fails_are_heard() -> None:
    class Broken(FakeScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            raise ModelError("no weights here")

    def fail(prompt: str, seed: int) -> str:
        raise ConnectionError("nobody there")

    with pytest.raises(ModelError, match="no weights here"):
        make(writing(GOOD)[0], fidelity=LikelihoodGain(Broken()))
    with pytest.raises(ModelError, match="no weights here"):
        make(writing(GOOD)[0], "longest", scorer=Broken())
    with pytest.raises(ModelError, match='"telling" did not answer: ConnectionError: nobody there'):
        make(function_model(fail)[0])


# Provenance and cost ---------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
provenances = st.builds(
    Provenance,
    method=st.sampled_from(METHODS),
    proposer=texts,
    scorer=st.none() | texts,
    prompt_version=texts,
    seed=st.integers(-(2**53), 2**53),
    candidates=st.integers(0, 99),
    rejected=st.dictionaries(st.sampled_from(sorted(REASONS)), st.integers(1, 99)),
    how=st.sampled_from(PROPOSAL_MODES),
    proposals=st.lists(st.builds(Candidate, texts, st.none() | numbers, st.none() | texts), max_size=3).map(tuple),
    measured=st.dictionaries(texts, numbers, max_size=3),
    cost=st.dictionaries(texts, st.none() | numbers | st.integers(0, 10**9), max_size=3),
)


@given(provenances)
def test_a_provenance_survives_json(provenance: Provenance) -> None:
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance


def test_what_an_earlier_version_did_not_write_is_empty() -> None:
    raw = {
        "method": "recon",
        "proposer": "m",
        "scorer": None,
        "prompt_version": "v",
        "seed": 0,
        "candidates": 1,
        "rejected": {},
    }
    assert Provenance.from_json(raw) == Provenance("recon", "m", None, "v", 0, 1, {})


def test_a_synthesized_triple_survives_json_and_the_memory(tmp_path: Path) -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, _ = writing(COPY, GOOD, "", POOR, "a " * 130, FAIR, EVEN, price=Price(0.1, 0.4))
    triple = make(model, candidates=4, fidelity=LikelihoodGain(scorer), scorer=scorer)
    provenance = told(triple)
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance
    assert dict(provenance.rejected) == {"quotes_action": 1, "empty": 1, "too_long": 1, "misleads": 1}
    assert provenance.measured["kept"] == 1.0
    empty = make(writing(COPY)[0], pair=replace(PAIR, position=5))
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        store.add([Triple(PAIR), Triple(empty.pair)])
        store.set_traces([triple, empty])
    with TripleStore(tmp_path, FakeEmbedder(), create=False) as store:
        assert list(store.triples()) == [triple, empty]


def test_the_cost_counts_what_was_written_and_what_was_known(tmp_path: Path) -> None:
    answers = CompletionCache(tmp_path / "answers.sqlite")
    model, chat = writing(COPY, GOOD, FAIR, price=Price(1.0, 10.0), answers=answers)
    first = told(make(model, candidates=2)).cost
    read = sum(len(prompt.split()) for prompt in chat.prompts)
    wrote = sum(len(trace.split()) for trace in (COPY, GOOD, FAIR))
    assert dict(first) == {
        "calls": 3,
        "repeated": 0,
        "input_tokens": read,
        "cached_tokens": 0,
        "output_tokens": wrote,
        "dollars": pytest.approx((read * 1.0 + wrote * 10.0) / 1e6),
    }
    again = make(model, candidates=2)
    assert len(chat.requests) == 3
    assert (told(again).cost["calls"], told(again).cost["repeated"], told(again).cost["dollars"]) == (0, 3, 0)
    assert again.reasoning == GOOD
    more = told(make(model, candidates=2, seed=1)).cost
    assert (more["calls"], more["repeated"]) == (3, 0)
    answers.close()


def test_one_model_of_unknown_price_makes_the_whole_cost_unknown() -> None:
    assert told(make(writing(GOOD)[0])).cost["dollars"] is None


# What backward synthesis would have had --------------------------------------------------------------------------------


def triple_of(*found: Candidate, reasoning: str | None = None) -> Triple:
    provenance = Provenance("recon", "m", None, "v", 0, len(found), {}, proposals=found)
    return Triple(PAIR, reasoning, None, provenance)


def test_the_backward_trace_is_the_first_that_no_guard_rejected_by_its_words() -> None:
    empty, copy = Candidate("", None, "empty"), Candidate(COPY, None, "quotes_action")
    poor, good = Candidate(POOR, -0.5, "misleads"), Candidate(GOOD, 0.5, None)
    assert backward_trace(triple_of(empty, copy, poor, good)) == POOR
    assert backward_trace(triple_of(good, poor)) == GOOD
    assert backward_trace(triple_of(Candidate(FAIR, None, "no_verdict"), good)) == FAIR
    assert backward_trace(triple_of(Candidate(LEANING, 0.5, "leans_on_words"), good)) == GOOD
    assert backward_trace(triple_of(empty, copy)) is None
    assert backward_trace(Triple(PAIR)) is None


def test_backward_synthesis_has_the_backward_trace_of_recon() -> None:
    chance = random.Random(0)
    for _ in range(30):
        traces = chance.choices([GOOD, FAIR, POOR, EVEN, COPY, "", "so " * (MAX_TRACE_WORDS + 1)], k=9)
        recon, backward = (make(writing(*traces)[0], cast("Method", one), candidates=3) for one in ("recon", "backward"))
        assert backward_trace(backward) == backward.reasoning
        if backward.reasoning is not None:
            assert backward_trace(recon) == backward.reasoning
