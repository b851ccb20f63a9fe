"""memory/recon/synthesizer.py: the best trace is selected, and no leaking trace ever is."""

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
LEANING = "I wanted to be polite and there early."  # gains 0.2 on each of seven tokens by its reason, and 2.0 on one by copying


def writing(*traces: str, style: PromptStyle = "instruction", **facts: Any) -> tuple[ChatModel, FunctionChatModel]:
    """Return a model that writes these traces in turn, in any round."""
    model, chat = function_model(lambda *_: traces[(len(chat.requests) - 1) % len(traces)], style, **facts)
    return model, chat


def make(model: ChatModel | None, method: Method = "recon", *, seed: int = 0, pair: Pair = PAIR, **options: Any) -> Triple:
    options.setdefault("fidelity", LikelihoodGain(WordWeightScorer(WEIGHTS)))
    return asyncio.run(Synthesizer(method=method, model=model, **options).synthesize(pair, "Ann", seed=seed))


def provenance_of(triple: Triple) -> Provenance:
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
def test_every_method_ranks_only_passing_candidates_and_none_ranks_nothing(
    proposed: list[Candidate], method: Method, seed: int
) -> None:
    passing = [candidate for candidate in proposed if candidate.rejected_by is None]
    ordered = rank_candidates(proposed, method, seed=seed)
    assert sorted(map(id, ordered)) == sorted(map(id, [] if method == "none" else passing))
    assert select(proposed, method, seed=seed) is (ordered[0] if ordered else None)
    assert rank_candidates(proposed, method, seed=seed) == ordered


@given(candidates)
def test_methods_differ_in_order_and_ties_keep_the_first(proposed: list[Candidate]) -> None:
    passing = [candidate for candidate in proposed if candidate.rejected_by is None]
    assert rank_candidates(proposed, "backward") == passing
    for method in ("recon", "quality"):
        scored = sorted(
            (candidate for candidate in passing if candidate.score is not None),
            key=lambda candidate: -cast("float", candidate.score),
        )
        assert rank_candidates(proposed, cast("Method", method)) == [
            *scored,
            *(candidate for candidate in passing if candidate.score is None),
        ]
    assert rank_candidates(proposed, "longest") == sorted(passing, key=lambda candidate: -len(candidate.trace.split()))


@given(candidates)
def test_select_returns_the_best_passing_candidate(proposed: list[Candidate]) -> None:
    best = select(proposed)
    passing = [candidate for candidate in proposed if candidate.rejected_by is None]
    assert (best is None) == (not passing)
    if best is not None:
        assert best.score == max((candidate.score for candidate in passing if candidate.score is not None), default=None)
        assert best == next(candidate for candidate in passing if candidate.score == best.score)


def test_random_depends_on_the_seed_alone_and_reaches_every_candidate() -> None:
    proposed = [Candidate(letter, score, None) for score, letter in enumerate("abcd")]
    other = [Candidate(letter.upper(), -score, None) for score, letter in enumerate("abcd")]
    chosen = [cast("Candidate", select(proposed, "random", seed=seed)).trace for seed in range(60)]
    assert chosen == [cast("Candidate", select(other, "random", seed=seed)).trace.lower() for seed in range(60)]
    assert set(chosen) == {*"abcd"}


# The four steps together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[POOR, GOOD, FAIR], [GOOD, FAIR, POOR], [FAIR, POOR, GOOD]])
def test_trace_that_predicts_the_action_best_is_selected(order: list[str]) -> None:
    triple = make(writing(*order)[0], candidates=3)
    assert (triple.reasoning, triple.score) == (GOOD, pytest.approx(0.5))
    assert triple.pair is PAIR
    provenance = provenance_of(triple)
    assert [candidate.trace for candidate in provenance.proposals] == order
    assert {candidate.trace: candidate.score for candidate in provenance.proposals} == pytest.approx(
        {GOOD: 0.5, FAIR: 0.2, POOR: -0.5}
    )
    assert dict(provenance.rejected) == {"misleads": 1}


def test_methods_share_candidates_and_differ_only_in_the_selection() -> None:
    judge, _ = function_model(_likes_the_poor, "instruction")
    triples: dict[Method, Triple] = {}
    for method in METHODS:
        triples[method] = make(writing(FAIR, POOR, COPY, EVEN, GOOD)[0], method, candidates=4, judge=judge, seed=3)
    reasons = {method: triple.reasoning for method, triple in triples.items()}
    assert reasons.pop("random") in {FAIR, POOR, EVEN, GOOD}
    assert reasons == {"recon": GOOD, "longest": EVEN, "quality": POOR, "backward": FAIR, "none": None}
    proposed = {
        method: [candidate.trace for candidate in provenance_of(triples[method]).proposals]
        for method in METHODS
        if method != "none"
    }
    assert proposed.pop("backward") == [FAIR]
    assert {tuple(traces) for traces in proposed.values()} == {(FAIR, POOR, COPY, EVEN, GOOD)}
    assert triples["none"] == Triple(PAIR)
    assert {method for method, triple in triples.items() if triple.score is not None} == {"recon"}
    assert {method: provenance_of(triples[method]).rejected.get("misleads", 0) for method in proposed} == {
        "recon": 1,
        "random": 0,
        "longest": 0,
        "quality": 0,
    }
    assert {provenance_of(triples[method]).scorer for method in proposed if method != "recon"} == {None}


def _likes_the_poor(prompt: str, seed: int) -> str:
    notes = [line.removeprefix("Note ")[0] for line in prompt.splitlines() if line.startswith("Note ")]
    texts = dict(zip(notes, (prompt.split(f"Note {label}:\n")[1].split("\n")[0] for label in notes), strict=True))
    marks = dict.fromkeys(["plausible", "specific", "clear"], 5)
    return json.dumps({"scores": dict.fromkeys(notes, marks), "ranking": sorted(notes, key=lambda label: texts[label] != POOR)})


def test_random_selection_depends_on_seed_and_pair() -> None:
    def chosen(**options: Any) -> str | None:
        return make(writing(GOOD, FAIR, POOR, EVEN)[0], "random", **options).reasoning

    assert chosen(seed=1) == chosen(seed=1)
    assert {chosen(seed=seed) for seed in range(25)} == {GOOD, FAIR, POOR, EVEN}
    assert len({chosen(seed=1, pair=replace(PAIR, position=position)) for position in range(12)}) > 1


def test_a_copied_action_is_rejected_and_counted_and_never_scored() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    triple = make(writing(COPY, FAIR, "", POOR, EVEN)[0], candidates=3, fidelity=LikelihoodGain(scorer))
    assert triple.reasoning == FAIR
    assert dict(provenance_of(triple).rejected) == {"quotes_action": 1, "empty": 1, "misleads": 1}
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
        cost=provenance_of(make(writing(GOOD, POOR)[0], candidates=2)).cost,
    )
    versions = {
        provenance_of(make(writing(GOOD, style=style)[0], proposal_mode=mode, candidates=1)).prompt_version
        for style in get_args(PromptStyle)
        for mode in PROPOSAL_MODES
        if mode != "search"
    }
    assert {version.split("/")[0] for version in versions} == {
        "propose_transcript",
        "forward_transcript",
        "scaffold_transcript",
        "propose_instruction",
        "forward_instruction",
    }


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_best_trace_is_selected_in_every_proposal_mode(mode: ProposalMode) -> None:
    model, chat = writing(FAIR, GOOD)
    triple = make(model, proposal_mode=mode, candidates=2, max_calls=2)
    assert (triple.reasoning, provenance_of(triple).proposal_mode) == (GOOD, mode)
    assert ("The reply:" in chat.prompts[0]) == (mode != "forward")


def test_backward_takes_the_first_and_scores_nothing() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(POOR, GOOD)
    triple = make(model, "backward", fidelity=LikelihoodGain(scorer), candidates=4)
    assert (triple.reasoning, triple.score) == (POOR, None)
    provenance = provenance_of(triple)
    assert (provenance.method, provenance.scorer, provenance.candidates) == ("backward", None, 1)
    assert (len(chat.requests), scorer.calls) == (1, [])


def test_backward_needs_no_scorer_and_none_needs_no_model() -> None:
    assert make(writing(GOOD)[0], "backward", fidelity=None).reasoning == GOOD
    assert make(None, "none", fidelity=None) == Triple(PAIR)


def test_method_none_calls_no_model() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(GOOD)
    assert make(model, "none", fidelity=LikelihoodGain(scorer), scorer=scorer) == Triple(PAIR)
    assert (chat.requests, scorer.calls) == ([], [])


# Rounds ----------------------------------------------------------------------------------------------------------------


def test_later_rounds_replace_only_rejected_proposals_with_new_seeds() -> None:
    model, chat = writing(COPY, GOOD, "", FAIR, COPY, EVEN, POOR)
    triple = make(model, candidates=3, seed=11)
    assert [candidate.trace for candidate in provenance_of(triple).proposals] == [COPY, GOOD, "", FAIR, COPY, EVEN]
    seeds = [seed for _, seed in chat.requests]
    assert seeds[:3] == [11, 12, 13]
    assert len(set(seeds)) == len(seeds) == 6
    assert triple.reasoning == GOOD


@pytest.mark.parametrize(("method", "count"), [("recon", 3), ("longest", 3), ("backward", 1)])
def test_three_rounds_of_rejections_leave_a_triple_without_trace_and_with_counts(method: Method, count: int) -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, chat = writing(COPY)
    triple = make(model, method, candidates=3, fidelity=LikelihoodGain(scorer), scorer=scorer)
    assert (triple.reasoning, triple.score, scorer.calls) == (None, None, [])
    assert triple.pair is PAIR
    assert MAX_ROUNDS == 3
    provenance = provenance_of(triple)
    assert dict(provenance.rejected) == {"quotes_action": MAX_ROUNDS * count}
    assert (provenance.candidates, len(chat.requests), provenance.measured) == (MAX_ROUNDS * count, MAX_ROUNDS * count, {})


@given(st.lists(st.sampled_from([GOOD, FAIR, POOR, COPY, "", "ok " * 121]), min_size=1, max_size=5), st.integers(1, 5))
def test_rounds_and_passing_proposals_are_bounded(traces: list[str], wanted: int) -> None:
    model, chat = writing(*traces)
    proposals = provenance_of(make(model, "longest", candidates=wanted)).proposals
    passed = [candidate for candidate in proposals if candidate.rejected_by is None]
    assert wanted <= len(chat.requests) == len(proposals) <= MAX_ROUNDS * wanted
    assert len(passed) <= wanted
    if len(passed) < wanted:  # it gave up only after three rounds
        assert sum(candidate.rejected_by is not None for candidate in proposals[: 2 * wanted]) > 0


# What a trace may not do -----------------------------------------------------------------------------------------------


def test_trace_below_the_floor_is_rejected_and_neutral_trace_is_not() -> None:
    triple = make(writing(POOR)[0], candidates=2)
    assert (triple.reasoning, triple.score) == (None, None)
    assert dict(provenance_of(triple).rejected) == {"misleads": 2}
    triple = make(writing(POOR, EVEN)[0], candidates=2)
    assert (triple.reasoning, triple.score) == (EVEN, 0)
    assert make(writing(POOR)[0], "backward").reasoning == POOR  # never scored
    assert (
        make(writing(POOR)[0], fidelity=PriorCorrectedGain(WordWeightScorer(WEIGHTS))).reasoning == POOR
    )  # that score has no floor


def test_trace_that_gains_by_shared_words_is_replaced_by_the_next_best() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    assert rejection_reason(LEANING, PAIR) is None
    triple = make(writing(LEANING, EVEN, FAIR)[0], candidates=3, fidelity=LikelihoodGain(scorer, guarded=False), scorer=scorer)
    provenance = provenance_of(triple)
    assert provenance.proposals[0].score == pytest.approx(0.2 + 2 / 7)
    assert [candidate.rejected_by for candidate in provenance.proposals] == ["leans_on_words", None, None]
    assert dict(provenance.rejected) == {"leans_on_words": 1}
    assert (triple.reasoning, triple.score) == (FAIR, pytest.approx(0.2))
    assert provenance.measured == pytest.approx({"gain": 0.2, "guarded_gain": 0.2, "kept": 1.0, "reveals_action": 0.0})


def test_a_forward_trace_that_foresees_the_action_is_kept_and_its_words_count() -> None:
    scorer = WordWeightScorer(WEIGHTS)
    options: dict[str, Any] = {"candidates": 1, "scorer": scorer, "fidelity": LikelihoodGain(scorer, guarded=False)}
    for foreseeing in (COPY, LEANING):
        assert make(writing(foreseeing)[0], **options).reasoning is None
        triple = make(writing(foreseeing)[0], proposal_mode="forward", **options)
        assert triple.reasoning == foreseeing
        assert "kept" not in provenance_of(triple).measured


@pytest.mark.parametrize("method", ["recon", "random", "longest", "quality", "backward"])
def test_guard_on_shared_words_applies_to_every_method(method: Method) -> None:
    judge, _ = function_model(_likes_the_poor, "instruction")
    triple = make(writing(LEANING)[0], method, candidates=2, scorer=WordWeightScorer(WEIGHTS), judge=judge)
    assert triple.reasoning is None
    assert set(provenance_of(triple).rejected) == {"leans_on_words"}
    assert provenance_of(triple).measured == {}
    assert make(writing(LEANING)[0], method, candidates=2, judge=judge).reasoning == LEANING  # not checked without a scorer


def test_half_of_the_gain_is_enough() -> None:
    assert MIN_KEPT_SHARE == 0.5
    for weight, kept in ((2 / 7 + 0.01, True), (2 / 7 - 0.01, False)):
        scorer = WordWeightScorer({"polite": weight})
        triple = make(writing(LEANING)[0], candidates=1, fidelity=LikelihoodGain(scorer), scorer=scorer)
        assert (triple.reasoning is not None) == kept


def test_audit_is_stored_and_does_not_affect_the_selection() -> None:
    """A trace that alone picks the action out of the person's actions is stored, and marked as revealing it."""
    others = [replace(PAIR, action=text, conversation_id=text) for text in ("two coffees please", "not today", "no")]
    scorer = WordWeightScorer({"mornings": 0.5}, copied=0.1)
    distractors = Distractors(others, FakeEmbedder())
    for trace, reveals_action in (("I liked mornings with an early start.", 1.0), (FAIR, 0.0)):
        triple = make(writing(trace)[0], candidates=1, scorer=scorer, fidelity=LikelihoodGain(scorer), distractors=distractors)
        assert triple.reasoning == trace
        assert provenance_of(triple).measured["reveals_action"] == reveals_action


def test_paraphrase_is_rejected_if_there_is_an_embedder() -> None:
    same = "I thought, to Rome, the train, early, please."
    pair = replace(PAIR, context=(Turn("Bob", "agent", "Rome, early, by train? Say please."),))
    assert make(writing(same)[0], pair=pair).reasoning == same
    plain = replace(pair, context=(Turn("Bob", "agent", "Rome early train please " * 9 + "or what else " * 9),))
    triple = make(writing(same)[0], pair=plain, embedder=FakeEmbedder(), candidates=2)
    assert (triple.reasoning, dict(provenance_of(triple).rejected)) == (None, {"same_meaning": 6})


def test_a_kept_trace_never_shares_five_words_with_the_action() -> None:
    words = word_tokens(ACTION)
    pair = replace(PAIR, context=(Turn("Bob", "agent", " ".join(reversed(words))),))
    for length in range(1, len(words) + 1):
        kept = make(writing("I meant " + " ".join(words[:length]))[0], candidates=1, pair=pair).reasoning
        assert (kept is None) == (length >= 5)


@pytest.mark.parametrize("style", get_args(PromptStyle))
@pytest.mark.parametrize("mode", ["backward", "forward", "scaffolded"])
def test_a_trace_that_repeats_its_prompt_is_rejected(style: PromptStyle, mode: ProposalMode) -> None:
    examples = proposal_template(ChatModel("x", writing("")[1], style), mode).text
    echo = "I saw " + " ".join(word_tokens(examples.splitlines()[0])[:8])
    triple = make(writing(echo, style=style)[0], proposal_mode=mode, candidates=1)
    assert triple.reasoning is None
    assert dict(provenance_of(triple).rejected) == {"echoes_examples": MAX_ROUNDS}


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
@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_a_model_that_writes_no_trace_leaves_the_pair_without_one_and_a_reason(
    say: Callable[[str, int], str], style: PromptStyle, mode: ProposalMode
) -> None:
    triple = make(
        function_model(say, style)[0],
        proposal_mode=mode,
        candidates=2,
        max_calls=4,
        scorer=FakeScorer(),
        embedder=FakeEmbedder(),
    )
    assert (triple.pair, triple.reasoning, triple.score) == (PAIR, None, None)
    assert set(provenance_of(triple).rejected) <= {"empty", "too_long", "echoes_examples", "quotes_action"}
    assert sum(provenance_of(triple).rejected.values()) == provenance_of(triple).candidates > 0


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
@pytest.mark.parametrize("answer", ['{"noticed": "it', '{"answer": 42}'])
def test_a_broken_object_is_no_trace(answer: str, mode: ProposalMode) -> None:
    triple = make(writing(answer)[0], proposal_mode=mode, candidates=2, max_calls=4)
    assert (triple.reasoning, set(provenance_of(triple).rejected)) == (None, {"malformed"})


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
def test_any_pair_accepts_a_reason_and_rejects_a_copy(action: str, why: str, context: str) -> None:
    pair = replace(PAIR, action=action, context=(Turn("Bob", "agent", context),), goal="")
    scorer = FakeScorer()
    options: dict[str, Any] = {
        "fidelity": LikelihoodGain(scorer), "scorer": scorer, "embedder": FakeEmbedder(), "pair": pair, "candidates": 2,
        "distractors": Distractors([replace(pair, action="no", conversation_id="other")], FakeEmbedder()),
    }  # fmt: skip
    triple = make(writing("I was glad and wanted to be quick.")[0], **options)
    assert (triple.pair, triple.reasoning) == (pair, "I was glad and wanted to be quick.")
    copied = make(writing(action)[0], **options)
    assert (copied.pair, copied.reasoning, set(provenance_of(copied).rejected)) == (pair, None, {why})


# What is missing or fails ----------------------------------------------------------------------------------------------


def test_invalid_settings_are_refused() -> None:
    model, chat = writing(GOOD)
    with pytest.raises(UsageError, match=r'the method is "best"; it must be one of recon, random, longest, quality, back'):
        make(model, cast("Any", "best"))
    with pytest.raises(
        UsageError, match=r'the proposal mode is "sideways"; it must be one of backward, forward, scaffolded, s'
    ):
        make(model, proposal_mode="sideways")
    with pytest.raises(UsageError, match=r'"recon" needs a model and a fidelity$'):
        make(None)
    with pytest.raises(UsageError, match=r'"recon" needs a model and a fidelity$'):
        make(model, fidelity=None)
    for method in ("random", "longest", "backward"):
        with pytest.raises(UsageError, match=f'"{method}" needs a model$'):
            make(None, cast("Method", method))
    with pytest.raises(UsageError, match=r'"quality" needs a model and a judge$'):
        make(model, "quality")
    with pytest.raises(UsageError, match=r'"backward" needs a model and a fidelity$'):
        make(model, "backward", proposal_mode="search", fidelity=None)
    for candidates, calls in ((0, 12), (-1, 12), (4, 1)):
        with pytest.raises(UsageError, match=f"{candidates} candidates and {calls} calls: at least 1 candidate and 2 calls"):
            make(model, candidates=candidates, max_calls=calls)
    judged = JudgeFidelity(model, model)
    with pytest.raises(UsageError, match="a search compares scores of different steps"):
        make(model, proposal_mode="search", fidelity=judged)
    with pytest.raises(UsageError, match="27 proposals in one verdict of a judge: at most 26"):
        make(model, fidelity=judged, candidates=27)
    with pytest.raises(UsageError, match="27 proposals in one verdict of a judge: at most 26"):
        make(model, "quality", proposal_mode="search", judge=model, max_calls=27)
    assert chat.requests == []
    Synthesizer(method="none").check()
    Synthesizer(method="longest", model=model).check()
    assert (METHODS, DEFAULT_CANDIDATES) == (("recon", "random", "longest", "quality", "backward", "none"), 4)


def test_failures_of_model_and_scorer_are_raised() -> None:
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
    proposal_mode=st.sampled_from(PROPOSAL_MODES),
    proposals=st.lists(st.builds(Candidate, texts, st.none() | numbers, st.none() | texts), max_size=3).map(tuple),
    measured=st.dictionaries(texts, numbers, max_size=3),
    cost=st.dictionaries(texts, st.none() | numbers | st.integers(0, 10**9), max_size=3),
)


@given(provenances)
def test_a_provenance_survives_json(provenance: Provenance) -> None:
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance


def test_missing_fields_of_an_older_provenance_get_defaults() -> None:
    raw = {
        "method": "recon",
        "proposer": "m",
        "scorer": None,
        "prompt_version": "v",
        "seed": 0,
        "candidates": 1,
        "rejected": {},
    }
    assert Provenance.from_json(raw) == Provenance(
        method="recon", proposer="m", scorer=None, prompt_version="v", seed=0, candidates=1, rejected={}
    )


def test_a_synthesized_triple_survives_json_and_the_memory(tmp_path: Path) -> None:
    scorer = WordWeightScorer(WEIGHTS)
    model, _ = writing(COPY, GOOD, "", POOR, "a " * 130, FAIR, EVEN, price=Price(0.1, 0.4))
    triple = make(model, candidates=4, fidelity=LikelihoodGain(scorer), scorer=scorer)
    provenance = provenance_of(triple)
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance
    assert dict(provenance.rejected) == {"quotes_action": 1, "empty": 1, "too_long": 1, "misleads": 1}
    assert provenance.measured["kept"] == 1.0
    empty = make(writing(COPY)[0], pair=replace(PAIR, position=5))
    with TripleStore(tmp_path, FakeEmbedder()) as store:
        store.add([Triple(PAIR), Triple(empty.pair)])
        store.set_traces([triple, empty])
    with TripleStore(tmp_path, FakeEmbedder(), create=False) as store:
        assert list(store.triples()) == [triple, empty]


def test_cost_counts_completions_and_cache_hits(tmp_path: Path) -> None:
    answers = CompletionCache(tmp_path / "answers.sqlite")
    model, chat = writing(COPY, GOOD, FAIR, price=Price(1.0, 10.0), cache=answers)
    first = provenance_of(make(model, candidates=2)).cost
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
    assert (
        provenance_of(again).cost["calls"],
        provenance_of(again).cost["repeated"],
        provenance_of(again).cost["dollars"],
    ) == (0, 3, 0)
    assert again.reasoning == GOOD
    more = provenance_of(make(model, candidates=2, seed=1)).cost
    assert (more["calls"], more["repeated"]) == (3, 0)
    answers.close()


def test_one_model_of_unknown_price_makes_the_whole_cost_unknown() -> None:
    assert provenance_of(make(writing(GOOD)[0])).cost["dollars"] is None


# What backward synthesis would have had --------------------------------------------------------------------------------


def triple_of(*proposed: Candidate, reasoning: str | None = None) -> Triple:
    provenance = Provenance(
        method="recon",
        proposer="m",
        scorer=None,
        prompt_version="v",
        seed=0,
        candidates=len(proposed),
        rejected={},
        proposals=proposed,
    )
    return Triple(PAIR, reasoning, None, provenance)


def test_backward_trace_is_the_first_that_passes_the_lexical_guards() -> None:
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
        recon, backward = (make(writing(*traces)[0], cast("Method", method), candidates=3) for method in ("recon", "backward"))
        assert backward_trace(backward) == backward.reasoning
        if backward.reasoning is not None:
            assert backward_trace(recon) == backward.reasoning
