"""memory/recon/judged_fidelity.py: the judge sees reconstructions only, and an unreadable verdict is no score."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_replies import judge_reply, shown_attempts

from conftest import ACTION, PAIR, FunctionChatModel, function_model
from usertwin.memory import ChatModel, LikelihoodGain, Synthesizer
from usertwin.memory.models.chat import Ledger, PromptStyle, sample
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import Fidelity, FidelityScore, ForcedChoice, PriorCorrectedGain
from usertwin.memory.recon.judged_fidelity import (
    FIDELITIES,
    EmbeddingRankFidelity,
    JudgeFidelity,
    fidelity_by_name,
    judge_quality,
    listwise_verdict,
    reconstruct_actions,
)
from usertwin.personas import ModelError, Pair, UsageError, VerdictError

TRACES = ("I was in a hurry", "I was bored", "I liked mornings", "I felt worn")


def judge(liking: Callable[[str], float], marks: Callable[[str], int] = lambda _: 5) -> tuple[ChatModel, FunctionChatModel]:
    """Return a judge that ranks texts by `liking` and gives marks."""

    def reply(prompt: str, seed: int) -> str:
        texts = shown_attempts(prompt)
        return judge_reply(sorted(texts, key=lambda label: -liking(texts[label])), lambda label: marks(texts[label]))

    return function_model(reply, "instruction")


def actor(style: PromptStyle = "transcript") -> tuple[ChatModel, FunctionChatModel]:
    """Return a model that writes the last word of the trace in its prompt backwards."""

    def reply(prompt: str, seed: int) -> str:
        return next((f"doing {trace.split()[-1][::-1]}" for trace in TRACES if trace in prompt), "doing nothing")

    return function_model(reply, style)


def scored(
    fidelity: Fidelity, traces: Sequence[str] = TRACES, *, seed: int = 0, ledger: Ledger | None = None
) -> list[FidelityScore]:
    return asyncio.run(fidelity.score(PAIR, traces, seed=seed, ledger=ledger))


def judged(model: ChatModel, attempts: Sequence[str], *, seed: int = 0, pair: Pair = PAIR) -> list[FidelityScore]:
    return asyncio.run(listwise_verdict(model, "judge_traces", pair, attempts, seed=seed))


# Reconstructions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_each_trace_is_turned_into_words_once_and_the_model_never_sees_the_action(style: PromptStyle) -> None:
    model, chat = actor(style)
    written = asyncio.run(reconstruct_actions(model, PAIR, TRACES, seed=7))
    assert written == ["doing yrruh", "doing derob", "doing sgninrom", "doing nrow"]
    assert [seed for _, seed in chat.requests] == [7] * 4
    for trace, prompt in zip(TRACES, chat.prompts, strict=True):
        assert trace in prompt
        assert "You want to see the sea." in prompt
        assert "Them: When do you want to go?" in prompt
        assert ACTION not in prompt


def test_a_reconstruction_is_one_turn() -> None:
    model, _ = function_model(lambda *_: " the  early one\nThem: fine")
    assert asyncio.run(reconstruct_actions(model, PAIR, ["I was bored"])) == ["the early one"]
    model, _ = function_model(lambda *_: "the early one\n\nplease", "instruction")
    assert asyncio.run(reconstruct_actions(model, PAIR, ["I was bored"])) == ["the early one please"]


# The verdict -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True), st.integers(0, 2**31), st.randoms())
def test_ranks_and_marks_belong_to_the_attempt_in_any_order(numbers: list[int], seed: int, chance: random.Random) -> None:
    liked = {f"text {number}": index for index, number in enumerate(chance.sample(numbers, len(numbers)))}
    model, chat = judge(lambda text: -liked[text], lambda text: liked[text])
    attempts = [f"text {number}" for number in numbers]
    scores = judged(model, attempts, seed=seed)
    assert sorted(shown_attempts(chat.prompts[0]).values()) == sorted(attempts)
    last = max(1, len(numbers) - 1)
    assert [score.value for score in scores] == pytest.approx([1 - liked[text] / last for text in attempts])
    assert [score.parts["intent"] for score in scores] == pytest.approx([liked[text] / 10 for text in attempts])


def test_an_unreadable_verdict_is_not_cached_and_a_readable_one_is(tmp_path: Path) -> None:
    cache = CompletionCache(tmp_path / "completions")

    def verdict(reply: Callable[[str, int], str]) -> tuple[list[float] | None, list[int]]:
        """Return the ranks, if the verdict is readable, and the seeds of the requests."""
        model, chat = function_model(reply, "instruction")
        try:
            scores = judged(replace(model, cache=cache), ["one", "three"])
        except VerdictError:
            return None, [seed for _, seed in chat.requests]
        return [score.value for score in scores], [seed for _, seed in chat.requests]

    def by_length(prompt: str, seed: int) -> str:
        texts = shown_attempts(prompt)
        return judge_reply(sorted(texts, key=lambda label: len(texts[label])))

    assert verdict(lambda *_: "hard to say") == (None, [0, 1, 2])
    assert verdict(lambda prompt, seed: by_length(prompt, seed) if seed else "hard to say") == ([1.0, 0.0], [0, 1])
    assert verdict(lambda *_: "hard to say") == ([1.0, 0.0], [0])  # the second attempt was paid for
    assert verdict(by_length) == ([1.0, 0.0], [0])
    assert verdict(lambda *_: "hard to say") == ([1.0, 0.0], [])


def test_an_unreadable_verdict_of_an_older_cache_is_asked_for_again(tmp_path: Path) -> None:
    model, _ = function_model(lambda *_: "hard to say", "instruction")
    old, chat = judge(len)
    with closing(CompletionCache(tmp_path / "completions")) as cache:
        ask = partial(sample, messages=[("user", "x")], seed=0, max_tokens=9)
        asyncio.run(ask(replace(model, cache=cache)))
        [kept] = asyncio.run(ask(replace(old, cache=cache)))
        [anew] = asyncio.run(ask(replace(old, cache=cache), readable=lambda text: "ranking" in text))
        [again] = asyncio.run(ask(replace(model, cache=cache)))
    assert (kept.text, len(chat.requests)) == ("hard to say", 1)
    assert again.text == anew.text != kept.text


def test_order_depends_on_seed_and_pair() -> None:
    def order(seed: int, pair: Pair = PAIR) -> tuple[str, ...]:
        model, chat = judge(len)
        judged(model, ["one", "two", "three"], seed=seed, pair=pair)
        return tuple(shown_attempts(chat.prompts[0]).values())

    assert order(3) == order(3)
    assert {order(seed) for seed in range(60)} == {*permutations(["one", "two", "three"])}
    assert len({order(3, replace(PAIR, position=position)) for position in range(20)}) > 1
    assert len({order(3, replace(PAIR, conversation_id=f"talk {number}")) for number in range(20)}) > 1


def test_judge_prompt_has_context_action_and_every_attempt_under_a_letter() -> None:
    model, chat = judge(len)
    judged(model, ["one", ""])
    (prompt,) = chat.prompts
    assert "The real reply:\nthe early train to Rome please\n" in prompt
    assert "Me: hi\nThem: When do you want to go?\n" in prompt
    assert "style" in prompt
    assert sorted(shown_attempts(prompt)) == ["A", "B"]
    assert sorted(shown_attempts(prompt).values()) == ["(nothing)", "one"]


GOOD = {"scores": {label: {"style": 1, "intent": 2, "values": 3} for label in "AB"}, "ranking": ["A", "B"]}
MALFORMED = {
    "nothing": "",
    "blank": " \n",
    "prose": "A is best, then B.",
    "no scores": '{"ranking": ["A", "B"]}',
    "no ranking": json.dumps({"scores": GOOD["scores"]}),
    "an empty object": "{}",
    "a list": json.dumps([GOOD["ranking"]]),
    "null": '{"scores": null, "ranking": null}',
    "cut off": json.dumps(GOOD)[:-3],
    "a letter twice": json.dumps(GOOD | {"ranking": ["A", "A"]}),
    "a letter too few": json.dumps(GOOD | {"ranking": ["A"]}),
    "a letter too many": json.dumps(GOOD | {"ranking": ["A", "B", "C"]}),
    "small letters": json.dumps(GOOD | {"ranking": ["a", "b"]}),
    "a number for a ranking": json.dumps(GOOD | {"ranking": 1}),
    "scores of one": json.dumps(GOOD | {"scores": {"A": {"style": 1, "intent": 2, "values": 3}}}),
    "scores in a list": json.dumps(GOOD | {"scores": [1, 2]}),
    "a mark that is missing": json.dumps(GOOD).replace('"intent"', '"content"', 1),
    "a mark over ten": json.dumps(GOOD).replace("3", "11", 1),
    "a mark below none": json.dumps(GOOD).replace("3", "-1", 1),
    "a mark in words": json.dumps(GOOD).replace("3", '"ten"', 1),
    "a mark that is no number": json.dumps(GOOD).replace("3", "NaN", 1),
    "a mark without end": json.dumps(GOOD).replace("3", "1" + "0" * 400, 1),
    "brackets without end": '{"scores": ' + "[" * 100_000 + "}",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_unreadable_verdict_is_retried_and_then_an_error(answer: str) -> None:
    model, chat = function_model(lambda *_: answer, "instruction")
    with pytest.raises(VerdictError, match=r'the judge "telling" returned no readable verdict, 3 times in a row'):
        judged(model, ["one", "two"], seed=5)
    assert [seed for _, seed in chat.requests] == [5, 6, 7]  # the same seed would give the same answer
    assert len(set(chat.prompts)) == 1


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_readable_verdict_after_an_unreadable_one_counts(answer: str) -> None:
    model, chat = function_model(lambda _, seed: answer if seed == 5 else json.dumps(GOOD), "instruction")
    scores = judged(model, ["one", "two"], seed=5)
    assert sorted(score.value for score in scores) == [0, 1]
    assert len(chat.requests) == 2


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Gladly. {} I hope that helps.", "\n\n{}\n"])
def test_words_around_a_verdict_do_not_matter(around: str) -> None:
    model, chat = function_model(lambda *_: around.replace("{}", json.dumps(GOOD, indent=1)), "instruction")
    assert all(dict(score.parts) == {"style": 0.1, "intent": 0.2, "values": 0.3} for score in judged(model, ["one", "two"]))
    assert len(chat.requests) == 1


def test_more_attempts_than_letters_are_refused_before_any_call() -> None:
    model, chat = judge(len)
    assert len(judged(model, [f"text {number}" for number in range(26)])) == 26
    with pytest.raises(UsageError, match="27 attempts in one verdict of a judge: at most 26 are possible"):
        judged(model, [f"text {number}" for number in range(27)])
    assert len(chat.requests) == 1


# Judged: S1 ------------------------------------------------------------------------------------------------------------


def test_the_judge_sees_the_reconstructions_and_never_a_trace() -> None:
    (act, _), (jury, chat) = actor(), judge(len)
    scored(JudgeFidelity(act, jury))
    prompt, reverse = chat.prompts  # two orders, unless another number is named
    assert [*shown_attempts(prompt).values()] == [*shown_attempts(reverse).values()][::-1]
    assert sorted(shown_attempts(prompt).values()) == sorted(f"doing {trace.split()[-1][::-1]}" for trace in TRACES)
    assert not [trace for trace in TRACES if trace in prompt or trace.split()[-1] in prompt.split()]


@pytest.mark.parametrize("orders", [1, 2, 3])
def test_score_follows_the_ranking_of_the_judge_for_any_seed(orders: int) -> None:
    liked = ["doing derob", "doing nrow", "doing sgninrom", "doing yrruh"]  # the least first
    for seed in range(8):
        (act, _), (jury, chat) = actor(), judge(liked.index)
        scores = scored(JudgeFidelity(act, jury, orders=orders), seed=seed)
        assert [score.value for score in scores] == pytest.approx([1.0005, 0.0005, 2 / 3 + 0.0005, 1 / 3 + 0.0005])
        assert {score.parts["flips"] for score in scores} == {None if orders == 1 else 0}
        assert len(chat.requests) == orders


def test_marks_break_ties_and_never_outweigh_a_rank() -> None:
    (act, _), (jury, _) = actor(), judge(lambda text: -len(text), lambda text: 10 if "sgninrom" in text else 0)
    scores = scored(JudgeFidelity(act, jury))
    assert scores[2].value == pytest.approx(0.001)  # the longest is the last, whatever its marks
    assert min(score.value for index, score in enumerate(scores) if index != 2) > 0.3
    first_wins, _ = function_model(
        lambda prompt, _: judge_reply("AB", lambda label: 9 if shown_attempts(prompt)[label] == "doing nrow" else 1)
    )
    tied = next(
        scores
        for seed in range(12)
        for scores in [scored(JudgeFidelity(act, first_wins, orders=2), ("I was bored", "I felt worn"), seed=seed)]
        if scores[0].parts["flips"]
    )
    assert tied[1].value == pytest.approx(tied[0].value + 0.0008)


def test_contradicting_verdicts_are_counted_as_flips() -> None:
    first_wins, _ = function_model(
        lambda prompt, _: judge_reply(list(shown_attempts(prompt))), "instruction"
    )  # the first shown wins
    act, _ = actor()
    scores = [scored(JudgeFidelity(act, first_wins, orders=2), TRACES[:2], seed=seed) for seed in range(12)]
    for score, other in scores:  # the second verdict sees the first one's order turned round
        assert score.parts["flips"] == other.parts["flips"] == 1
        assert score.value == pytest.approx(other.value)


def test_a_judge_may_call_attempts_tied() -> None:
    tied = GOOD | {"scores": {label: {"style": 1, "intent": 2, "values": 3} for label in "ABC"}, "ranking": ["B", ["A", "C"]]}
    model, _ = function_model(lambda *_: json.dumps(tied), "instruction")
    assert sorted(score.value for score in judged(model, ["one", "two", "three"])) == [0.25, 0.25, 1.0]
    act, _ = actor()
    all_tied, _ = function_model(lambda prompt, _: json.dumps(tied | {"ranking": [[*"ABC"]]}), "instruction")
    scores = scored(JudgeFidelity(act, all_tied), TRACES[:3])
    assert {(score.parts["flips"], round(score.value, 3)) for score in scores} == {(None, 0.5)}  # nothing was decided


def test_equal_reconstructions_are_shown_once_and_tied() -> None:
    model, _ = function_model(lambda prompt, _: "the late one" if "bored" in prompt else "the early one")
    jury, chat = judge(len)
    scores = scored(JudgeFidelity(model, jury))
    assert [sorted(shown_attempts(prompt).values()) for prompt in chat.prompts] == [["the early one", "the late one"]] * 2
    assert scores[0].value == scores[2].value == scores[3].value > scores[1].value


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("orders", [1, 2])
def test_n_proposals_take_2n_texts_and_one_for_each_verdict(n: int, orders: int) -> None:
    kinds = ["tired", "glad", "curious", "calm", "hungry", "cold", "proud", "shy"]
    model, proposer = function_model(lambda _, seed: f"felt {kinds[seed % 8]} then")
    act, reconstructor = function_model(lambda prompt, _: f"so {prompt.split('I felt ')[1].split()[0]}")
    jury, bench = judge(len)
    maker = Synthesizer(method="recon", model=model, fidelity=JudgeFidelity(act, jury, orders=orders), candidates=n)
    triple = asyncio.run(maker.synthesize(PAIR, "Ann"))
    assert [len(chat.requests) for chat in (proposer, reconstructor, bench)] == [n, n, orders]
    assert triple.provenance is not None
    assert triple.provenance.cost["calls"] == 2 * n + orders
    assert triple.provenance.scorer == "judged by telling, reconstructed by telling"
    best = max(kinds[:n], key=len)
    assert len(str(triple.reasoning)) == len(f"I felt {best} then")
    assert not [trace for trace in (score.trace for score in triple.provenance.proposals) if trace in bench.prompts[0]]


def test_a_pair_whose_verdict_cannot_be_read_is_kept_without_a_trace_and_says_so() -> None:
    model, _ = function_model(lambda _, seed: f"felt {['tired', 'glad'][seed % 2]} then")
    (act, _), (mute, chat) = actor(), function_model(lambda *_: "I would rather not say", "instruction")
    triple = asyncio.run(
        Synthesizer(method="recon", model=model, fidelity=JudgeFidelity(act, mute), candidates=2).synthesize(PAIR, "Ann")
    )
    assert triple.pair is PAIR
    assert (triple.reasoning, triple.score) == (None, None)
    assert triple.provenance is not None
    assert dict(triple.provenance.rejected) == {"no_verdict": 2}
    assert {score.score for score in triple.provenance.proposals} == {None}
    assert triple.provenance.cost["calls"] == 2 + 2 + 3
    assert len(chat.requests) == 3


def test_judge_that_fails_raises_model_error() -> None:
    def fail(prompt: str, seed: int) -> str:
        raise ConnectionError("nobody there")

    model, _ = function_model(lambda *_: "felt glad then")
    act, _ = actor()
    mute, _ = function_model(fail, "instruction")
    with pytest.raises(ModelError, match='"telling" did not answer: ConnectionError') as failed:
        asyncio.run(Synthesizer(method="recon", model=model, fidelity=JudgeFidelity(act, mute)).synthesize(PAIR, "Ann"))
    assert not isinstance(failed.value, VerdictError)


def test_judged_fidelity_names_its_models_and_has_no_floor() -> None:
    (act, _), (jury, _) = actor(), judge(len)
    fidelity = JudgeFidelity(replace(act, name="small"), replace(jury, name="large"))
    assert (fidelity.name, fidelity.floor) == ("judged by large, reconstructed by small", None)


# Ranked: S3 ------------------------------------------------------------------------------------------------------------

OTHERS = ("the late bus to Milan thanks", "two coffees without milk", "is the sea warm there")


def distractors(*actions: str) -> Distractors:
    pairs = [replace(PAIR, action=action, conversation_id=f"talk {index}") for index, action in enumerate(actions)]
    return Distractors(pairs, FakeEmbedder())


def ranked(written: str, *others: str) -> FidelityScore:
    model, _ = function_model(lambda *_: written)
    [scores] = scored(EmbeddingRankFidelity(model, FakeEmbedder(), distractors(*others)), ["I was bored"])
    return scores


@pytest.mark.parametrize(
    ("written", "share"),
    [
        ("early train to Rome", 1.0),
        ("two coffees please", 2 / 3),
        ("the late bus to Milan please", 2 / 3),
        ("nothing at all, goodbye", 0.5),  # as unlike the action as the others
    ],
)
def test_the_rank_is_the_share_of_other_actions_that_are_less_alike(written: str, share: float) -> None:
    assert ranked(written, *OTHERS).value == pytest.approx(share)


def test_without_other_actions_every_rank_is_a_half() -> None:
    scores = ranked(ACTION)
    assert scores.value == 0.5
    assert scores.parts["similarity"] == pytest.approx(1)


def test_a_model_that_writes_the_same_for_each_trace_ranks_them_alike() -> None:
    model, _ = function_model(lambda *_: "the early train")
    scores = scored(EmbeddingRankFidelity(model, FakeEmbedder(), distractors(*OTHERS)))
    assert len({score.value for score in scores}) == 1
    fidelity = EmbeddingRankFidelity(model, FakeEmbedder(), distractors(*OTHERS), choices=3)
    assert (fidelity.name, fidelity.floor) == ("rank among 3 by fake:256, reconstructed by telling", None)


# Plausibility, and all by name -----------------------------------------------------------------------------------------


def test_judge_quality_shows_traces_and_action() -> None:
    jury, chat = judge(TRACES.index)
    scores = asyncio.run(judge_quality(jury, PAIR, TRACES, seed=1))
    (prompt,) = chat.prompts
    assert sorted(shown_attempts(prompt).values()) == sorted(TRACES)
    assert ACTION in prompt
    assert [score.value for score in scores] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert set(scores[0].parts) == {"plausible", "specific", "clear"}


def test_every_name_makes_its_fidelity_from_its_models_alone() -> None:
    (act, _), (jury, _), others = actor(), judge(len), distractors(*OTHERS)
    fidelities: dict[str, tuple[type[object], dict[str, Any]]] = {
        "guarded_gain": (LikelihoodGain, {"scorer": FakeScorer()}),
        "gain": (LikelihoodGain, {"scorer": FakeScorer()}),
        "judge": (JudgeFidelity, {"actor": act, "judge": jury}),
        "choice": (ForcedChoice, {"scorer": FakeScorer(), "distractors": others}),
        "rank": (EmbeddingRankFidelity, {"actor": act, "embedder": FakeEmbedder(), "distractors": others}),
        "prior": (PriorCorrectedGain, {"scorer": FakeScorer()}),
    }
    assert set(fidelities) == set(FIDELITIES)
    names: set[str] = set()
    for name, (kind, models) in fidelities.items():
        fidelity = fidelity_by_name(cast("Any", name), **models)
        assert type(fidelity) is kind
        names.add(fidelity.name)
        assert len(scored(fidelity)) == len(TRACES)
        for left_out in models:
            with pytest.raises(UsageError, match=f'the fidelity "{name}" needs an? '):
                fidelity_by_name(cast("Any", name), **{score: model for score, model in models.items() if score != left_out})
    assert len(names) == len(fidelities)  # names in a provenance are unambiguous


def test_the_guarded_gain_of_forward_traces_is_the_gain_since_they_copy_nothing() -> None:
    forward = fidelity_by_name("guarded_gain", scorer=FakeScorer(), proposal_mode="forward")
    assert forward.name == fidelity_by_name("gain", scorer=FakeScorer()).name


def test_missing_model_or_unknown_fidelity_is_named() -> None:
    with pytest.raises(
        UsageError, match=r'the fidelity is "magic"; it must be one of guarded_gain, gain, judge, choice, rank, prior$'
    ):
        fidelity_by_name(cast("Any", "magic"), scorer=FakeScorer())
    with pytest.raises(UsageError, match='the fidelity "guarded_gain" needs a scorer'):
        fidelity_by_name("guarded_gain")
    with pytest.raises(UsageError, match='the fidelity "judge" needs an actor and a judge'):
        fidelity_by_name("judge", actor=actor()[0])
    with pytest.raises(UsageError, match='the fidelity "rank" needs an actor'):
        fidelity_by_name("rank", embedder=FakeEmbedder(), distractors=distractors())
