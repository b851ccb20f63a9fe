"""simulator/reranking/: candidates for a reply, what speaks for each, and the choice of the best."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import function_model
from usertwin.memory import Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.twin.reranking import DEFAULT_RERANKING, FEATURES, Feature, Reranking
from usertwin.personas import Pair, Turn
from usertwin.personas.style_card import count_style
from usertwin.simulator import Answer, SimulatedUser
from usertwin.simulator.reranking.details import details_of, habitual_details, said_again
from usertwin.simulator.reranking.features import Candidate, WordModel, feature_table
from usertwin.simulator.reranking.reranker import BestOf, Reranker

CHAT = [
    {"role": "user", "content": "hi, the weather in Oslo please"},
    {"role": "assistant", "content": "Which day do you mean for your trip to Oslo?"},
]


def place(*turns: tuple[str, str], goal: str = "", when: float = 0.0, action: str = "", conversation: str = "now") -> Pair:
    """Return a pair of the person "me"; the other side is "bot"."""
    context = tuple(Turn(speaker, "user" if speaker == "me" else "assistant", text) for speaker, text in turns)
    return Pair(
        speaker="me", context=context, action=action, goal=goal, conversation_id=conversation, position=len(turns), when=when
    )


# Details ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a table for 4 at 7 pm, for Anna", ["number 4", "time 7 pm", "name Anna"]),
        ("order A12B9 of May 3rd", ["code A12B9", "date May 3rd"]),
        ("call 555-123-4567 or me@example.org", ["digits 555-123-4567", "address me@example.org"]),
        ("It costs $20.50 on Friday at 17:30", ["money $20.50", "day Friday", "time 17:30"]),
        ("I live in New York City and I'm fine", ["name New York City"]),
        ("yes I'll do that, I think", []), ("Yes. No. Maybe", []), ("", []),
        ("see https://example.org/x?y=1 please", ["address https://example.org/x?y=1"]), ("the 3 of us", ["number 3"]),
    ],
)  # fmt: skip
def test_details_are_found_by_kind(text: str, found: list[str]) -> None:
    assert [f"{detail.kind} {detail.text}" for detail in details_of(text)] == found


def test_a_remembered_answer_gets_the_details_of_the_present_goal() -> None:
    query = place(("bot", "For how many people, and when?"), goal="Book a table for 6 at 8 pm under the name Maria.")
    assert said_again("for 4 people, my name is Anna, at 7 pm", query) == "for 6 people, my name is Maria, at 8 pm"
    assert said_again("for 4, I said 4", query) == "for 6, I said 6"  # the same detail becomes the same one
    assert said_again("call 555-123-4567", query) is None  # nothing of this kind is known here
    assert said_again("4 people and 5 cars", query) is None  # only one number is
    assert said_again("yes please", query) == "yes please"


def test_details_that_are_known_here_or_habits_stay() -> None:
    query = place(("bot", "Is 9:30 fine, or 10:15?"), goal="Fly to Oslo.")
    assert said_again("9:30 is fine", query) == "9:30 is fine"
    assert said_again("to Paris please", query) == "to Oslo please"
    assert said_again("to Paris, I am Bob", query, habits={"bob"}) == "to Oslo, I am Bob"


def test_what_was_told_is_not_told_again_as_another_detail() -> None:
    query = place(("me", "for 6 people"), ("bot", "And when?"), goal="6 people, 2 children")
    assert said_again("with 3 children", query) == "with 2 children"


def test_habits_are_details_of_at_least_two_conversations() -> None:
    told = {"I am Bob": "a", "to Oslo": "b", "by Bob": "a", "in Oslo": "b"}
    answers = [place(action=text, conversation=conversation) for text, conversation in told.items()]
    assert habitual_details([*answers, place(action="it is Bob", conversation="other")]) == {"bob"}


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_said_again_or_not(action: str, goal: str) -> None:
    again = said_again(action, place(goal=goal))
    assert again is None or bool(again) == bool(action)
    assert said_again(action, place(goal=action)) == action


# Features --------------------------------------------------------------------------------------------------------------


def table(candidates: Sequence[Candidate], recalled: Sequence[str], query: Pair | None = None) -> dict[str, list[float]]:
    """Return the features of candidates by name; the person's turns are the recalled answers."""
    triples = [Triple(place(action=text, conversation=str(number))) for number, text in enumerate(recalled)]
    found = feature_table(
        candidates, query or place(("bot", "hello")), triples, card=count_style(recalled), words=WordModel(recalled),
        embedder=FakeEmbedder(),
    )  # fmt: skip
    assert found.shape == (len(candidates), len(FEATURES))
    assert np.isfinite(found).all()
    return {name: found[:, place].tolist() for place, name in enumerate(FEATURES)}


def test_features_tell_what_speaks_for_a_candidate() -> None:
    recalled = ["yes please", "yes please do", "no thanks", "ok then"]
    long = Candidate("Certainly, I would be delighted to receive all of the information you have about it!")
    features = table([Candidate("yes please"), Candidate("yes please now"), long, Candidate("no thanks", 2)], recalled)
    assert features["length"][0] == 0 > features["length"][2]
    assert features["style"][0] > features["style"][2]
    assert features["words"][0] > features["words"][1] > features["words"][2]
    assert features["words"][3] == pytest.approx(sum(features["words"][:3]) / 3)
    assert features["recalled"][0] > features["recalled"][2]
    assert features["agreement"][0] > features["agreement"][2]
    assert [value > 0 for value in features["quoted"]] == [False, False, False, True]
    assert features["nearness"][:3] == [0, 0, 0] > [features["nearness"][3]]


def test_a_quote_is_not_compared_with_itself() -> None:
    alone = table([Candidate("see you", 0)], ["see you"])
    assert alone["recalled"] == [0.0]
    assert table([Candidate("see you")], ["see you"])["recalled"][0] > 0
    assert table([Candidate("see you")], ["see you"])["agreement"] == [0.0]


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5), st.lists(st.text(max_size=30), max_size=4))
def test_any_texts_have_features(texts: list[str], recalled: list[str]) -> None:
    table([Candidate(text) for text in texts], recalled)


# The choice ------------------------------------------------------------------------------------------------------------


def rule(samples: int = 3, quotes: bool = False, **weights: float) -> Reranking:
    """Return a rule with these weights."""
    named: dict[Feature, float] = {name: weights[name] for name in FEATURES if name in weights}
    return Reranking(samples=samples, quotes=quotes, weights=named)


def test_candidates_are_written_replies_and_recalled_answers_with_present_details(ann: str) -> None:
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        reranker, query = Reranker(store), place(("bot", "Which city?"), goal="the weather in Oslo")
        triples = [Triple(place(action=text, conversation=text)) for text in ("in Cairo please", "yes", "at 9:15", "yes")]
        written = [Candidate("yes"), Candidate("hm")]
        assert reranker.candidates(["yes", "hm"], query, triples, quotes=False) == written
        assert reranker.candidates(["yes", "hm"], query, triples, quotes=True) == [*written, Candidate("in Oslo please", 0)]
        abandoned = replace(triples[1].pair, action="")
        assert reranker.candidates([], query, [Triple(abandoned)], quotes=True) == []


def test_the_best_has_the_largest_weighted_sum(ann: str) -> None:
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        candidates = [Candidate(text) for text in ("a very long reply with a great many words in it, indeed", "ok", "ok!")]
        query, recalled = place(("bot", "hello")), [Triple(place(action="fine"))]
        shortest = BestOf(Reranker(store), rule(length=1.0)).best(candidates, query, recalled)
        longest = BestOf(Reranker(store), rule(length=-1.0)).best(candidates, query, recalled)
        assert (shortest, longest) == (candidates[1], candidates[0])
        assert BestOf(Reranker(store), rule()).best(candidates, query, recalled) == candidates[0]


def test_only_turns_before_the_query_count(ann: str) -> None:
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        reranker, candidates = Reranker(store), [Candidate("hi, the weather in Oslo please"), Candidate("qq zz")]
        first = min(triple.pair.when for triple in store.triples())
        late = reranker.features(candidates, place(("bot", "x"), when=float("inf")), [])
        early = reranker.features(candidates, place(("bot", "x"), when=first), [])
        words = FEATURES.index("words")
        assert late[0, words] > late[1, words]
        assert early[:, words].std() < 1e-9 or early[0, words] < late[0, words]


# The twin --------------------------------------------------------------------------------------------------------------


def answered(name: str, replies: Sequence[str], reranking: Reranking | None, goal: str = "weather in Oslo") -> Answer:
    """Return the answer of a twin whose model writes these replies, one after the other."""
    written = itertools.cycle(replies)
    model, _ = function_model(lambda prompt, seed: next(written))
    with SimulatedUser.load(name, model=model, settings=Settings(reasons=False, reranking=reranking)) as user:
        return user.respond(CHAT, goal=goal)


def test_a_twin_sends_the_best_of_several_replies(ann: str) -> None:
    replies = ["a long reply of a great many words, which nobody would ever send here at all", "tomorrow, day 9", "tomorrow ok"]
    first, best = answered(ann, replies, None), answered(ann, replies, rule(length=1.0))
    assert (first.action, first.candidates) == (replies[0], 0)
    assert (best.action in replies[1:], best.candidates, best.discarded) == (True, 3, 0)


def test_a_twin_may_repeat_what_the_person_answered(ann: str) -> None:
    quote = answered(ann, ["what?"], rule(1, True, quoted=1.0), goal="the weather in Oslo on day 97")
    assert quote.action == "tomorrow, day 97"
    assert quote.candidates == 2


def test_replies_with_a_defect_are_no_candidates(ann: str) -> None:
    echo = CHAT[1]["content"]
    answer = answered(ann, [echo, "tomorrow, day 9"], rule(2, length=-1.0))
    assert (answer.action, answer.candidates) == ("tomorrow, day 9", 1)


def test_without_a_candidate_the_model_writes_again(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: CHAT[1]["content"] if len(chat.prompts) < 4 else "tomorrow")
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False, reranking=rule(2))) as user:
        answer = user.respond(CHAT)
    assert (answer.action, answer.candidates) == ("tomorrow", 0)
    assert answer.discarded > 1


def test_the_usage_counts_all_replies(ann: str) -> None:
    def used(reranking: Reranking | None) -> int:
        model, _ = function_model(lambda prompt, seed: f"tomorrow, day {seed % 7}")
        with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False, reranking=reranking)) as user:
            return user.respond(CHAT).usage.output_tokens

    assert used(rule(4)) == 4 * used(None)


def test_samples_of_the_evaluation_are_each_the_best_of_several(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: f"day {seed}")
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False)) as user:
        writer = user.writer_with(None, rule(3))
        drafts = asyncio.run(user.sample_action(place(("bot", "when?")), [], "", seed=5, n=2, writer=writer))
    assert len(drafts) == 2
    assert sorted(seed for _, seed in chat.requests) == [*range(5, 11)]


def test_a_rule_is_kept_in_the_record(ann: str) -> None:
    folder = existing_twin(ann)
    settings = Settings(words=DEFAULT_WEIGHTS, reranking=DEFAULT_RERANKING)
    replace(TwinRecord.load(folder), settings=settings).save(folder)
    assert TwinRecord.load(folder).settings == settings
    assert set(DEFAULT_RERANKING.weights) <= set(FEATURES)
