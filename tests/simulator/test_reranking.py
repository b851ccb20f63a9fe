"""simulator/reranking/: candidates for a reply, what speaks for each, and the choice of the best."""

from __future__ import annotations

import asyncio
import itertools
import json
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
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.reranking import DEFAULT_RERANKING, FEATURES, Feature, Reranking
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.style_card import count_style
from usertwin.simulator import Answer, SimulatedUser
from usertwin.simulator.reranking.details import details_of, said_again, usual_words
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
        ("call 555-123-4567 or me@example.org", ["digits 555-123-4567", "email me@example.org"]),
        ("It costs $20.50 on Friday at 17:30", ["money $20.50", "day Friday", "time 17:30"]), ("for four", ["number four"]),
        ("I live in New York City and I'm fine", ["name New York City"]),
        ("yes I'll do that, I think", []), ("Yes. No. Maybe", []), ("", []),
        ("see https://example.org/x?y=1 please", ["url https://example.org/x?y=1"]), ("the 3 of us", ["number 3"]),
    ],
)  # fmt: skip
def test_details_are_found_by_kind(text: str, found: list[str]) -> None:
    assert [f"{detail.kind} {detail.text}" for detail in details_of(text)] == found


USUAL = frozenset(word_tokens("for people please my name is at it i am to yes thanks a lot in the call and order with that"))


def again(action: str, query: Pair, source_goal: str = "") -> str | None:
    """Return a remembered answer said again by a person with these usual words."""
    return said_again(place(action=action, goal=source_goal), query, USUAL)


def test_a_remembered_answer_gets_the_details_of_the_present_goal() -> None:
    query = place(("bot", "For how many people, and when?"), goal="Book a table for 6 at 8 pm under the name Maria.")
    assert again("for 4 people, my name is Anna, at 7 pm", query) == "for 6 people, my name is Maria, at 8 pm"
    assert again("for 4, it is 4", query) == "for 6, it is 6"  # the same detail becomes the same one
    assert again("yes please", query) == "yes please"
    assert again("Yes please", query) == "Yes please"


@pytest.mark.parametrize(
    ("action", "goal"),
    [
        ("call 555-123-4567", "Book a table for 6."),  # nothing of this kind is known here
        ("4 people and 5 people", "Book a table for 6."),  # two become one
        ("for 4 people", "6 guests in the room 9"),  # which one?
        ("from Paris to Rome", "to Oslo from Lima"), ("Anna", "My name is Maria."), ("it is anna", "My name is Maria."),
        ("call me@example.org", "See https://shop.example.com"), ("order 0555-123-4567", "order 12345"),
        ("in cairo please", "the weather in Oslo"), ("меня зовут Анна", "Меня зовут Мария"), ("我叫王芳", "我叫李明"),
        ("for four people", "Book a table for 6."), ("yes " * 200, ""), ("", ""),
    ],
)  # fmt: skip
def test_in_doubt_there_is_no_quote(action: str, goal: str) -> None:
    assert again(action, place(("bot", "hello"), goal=goal)) is None


def test_words_of_the_other_goal_are_no_usual_words() -> None:
    query = place(("bot", "Which city?"), goal="You want the weather for Lisbon.")
    assert said_again(place(action="in cairo please", goal="the weather in Cairo"), query, {*USUAL, "cairo"}) is None
    assert said_again(place(action="in Cairo please", goal="the weather in Cairo"), query, USUAL) == "in Lisbon please"


def test_what_is_known_here_stays_and_what_was_told_is_not_told_again() -> None:
    asked = place(("bot", "Is 9:30 fine, or 10:15?"), goal="Fly to Oslo for 3 days.")
    assert again("at 9:30 please", asked) == "at 9:30 please"
    assert again("to Paris please", asked) == "to Oslo please"
    assert again("yes, Thanks a lot", asked) == "yes, Thanks a lot"
    told = place(("me", "for 6 people"), ("bot", "And when?"), goal="6 people, 2 rooms")
    assert again("with 3", told) == "with 2"
    assert again("for 4 people", place(("me", "at 4:30"), ("bot", "?"), goal="for 6")) == "for 6 people"


def test_usual_words_are_those_of_many_conversations() -> None:
    pairs = [place(action=f"yes {word}", conversation=str(number)) for number, word in enumerate(["a", "a", "b", "c"])]
    assert usual_words(pairs) == {"yes"}
    assert usual_words([*pairs, *pairs]) == {"yes"}  # one conversation counts once
    assert usual_words([]) == frozenset()


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_said_again_or_not(action: str, goal: str) -> None:
    assert again(action, place(goal=goal)) is None or action
    words = frozenset(word_tokens(action))
    assert said_again(place(action=action), place(goal=action), words) in {action or None, None}


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


def test_a_reply_that_was_written_twice_has_two_votes() -> None:
    other = Candidate("see you tomorrow then")
    once, twice = (table([Candidate("yes please", votes=votes), other], [])["agreement"] for votes in (1, 2))
    assert once[0] == pytest.approx(once[1])
    assert twice[0] > once[0]
    assert twice[1] == pytest.approx(once[1])


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
        reranker, query = Reranker(store), place(("bot", "Which city?"), goal="the weather in Oslo", when=float("inf"))
        answers = ["the weather in Cairo please", "hi", "thanks, at 9:15", "zz top", "hi"]
        triples = [Triple(place(action=text, conversation=text, goal="the weather in Cairo")) for text in answers]
        written = [Candidate("hm", votes=2), Candidate("ok")]
        assert reranker.candidates(["hm", "ok", "hm", ""], query, triples, quotes=False) == written
        quoted = reranker.candidates(["hm", "ok", "hm"], query, triples, quotes=True)
        assert quoted == [*written, Candidate("the weather in Oslo please", 0), Candidate("hi", 1)]
        assert reranker.candidates(["hm"], query, triples, quotes=True, is_usable=lambda text: text == "hi") == [
            Candidate("hi", 1)
        ]
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
    nothing = answered(ann, ["what?"], rule(1, True, quoted=1.0), goal="the weather in Oslo")
    assert (nothing.action, nothing.candidates) == ("what?", 1)  # the day is not known here


def test_a_quote_keeps_the_thought_and_the_leaving_of_the_model(ann: str) -> None:
    reply = {"noticed": "It is late.", "wants": "", "still_open": "", "reply": "what?", "done": True}
    model, _ = function_model(lambda prompt, seed: json.dumps(reply), style="instruction", structured=True)
    with SimulatedUser.load(ann, model=model, settings=Settings(traces="none", reranking=rule(3, True, quoted=1.0))) as user:
        user.last_turn = user.abandonment = None
        answer = user.respond(
            [*CHAT, {"role": "user", "content": "the weather"}, CHAT[1]], goal="the weather in Oslo on day 97"
        )
    assert (answer.action, answer.done, answer.reasoning) == ("tomorrow, day 97", True, "It is late.")


def test_of_several_defective_replies_the_least_bad_is_kept(ann: str) -> None:
    written = iter(["", CHAT[1]["content"], ""])
    model, _ = function_model(lambda prompt, seed: next(written, ""))
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False, reranking=rule(3))) as user:
        assert user.respond(CHAT).action == CHAT[1]["content"]


def test_turns_of_a_chat_have_different_seeds(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: f"tomorrow, day {seed}")
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False, reranking=rule(4))) as user:
        for turns in (
            CHAT,
            [*CHAT, {"role": "user", "content": "on Monday"}, {"role": "assistant", "content": "In the morning?"}],
        ):
            user.respond(turns, seed=3)
    seeds = [seed for _, seed in chat.requests]
    assert len(seeds) == len(set(seeds)) == 8


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
    assert sorted(seed for _, seed in chat.requests) == [*range(15, 21)]


def test_a_rule_is_kept_in_the_record(ann: str) -> None:
    folder = existing_twin(ann)
    settings = Settings(words=DEFAULT_WEIGHTS, reranking=DEFAULT_RERANKING)
    replace(TwinRecord.load(folder), settings=settings).save(folder)
    assert TwinRecord.load(folder).settings == settings
    assert set(DEFAULT_RERANKING.weights) <= set(FEATURES)
    raw = (folder / "twin.json").read_text("utf-8")
    assert '"samples": 4' in raw
    (folder / "twin.json").write_text(raw.replace('"samples": 4', '"samples": 0'), "utf-8")
    with pytest.raises(TwinError, match="is damaged"):
        TwinRecord.load(folder)
