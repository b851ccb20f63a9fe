"""evals/replay/leak_checks.py: a leak is an error, near-duplicates are found exactly, and a text known by heart is told from a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.replay.leak_checks import check_split, known_by_heart, near_duplicates
from usertwin.memory import Triple, TripleStore, TwinRecord
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.record import HELD_OUT, kept_conversations, twin_folder
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.pairs import LEFT, pairs_of_log


def moment(action: str, *context: str, where: str = "talk", when: float = 0.0, goal: str = "") -> Pair:
    turns = tuple(Turn("desk", "agent", text) for text in context)
    return Pair("Ann", turns, action, goal, where, len(turns), when, ends=action == LEFT)


# The split -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(name: str) -> Iterator[tuple[TwinRecord, TripleStore, list[Pair]]]:
    """A learned twin: its record, its memory and its moments to measure on."""
    folder = twin_folder(name)
    record = TwinRecord.load(folder)
    groups = pairs_of_log(kept_conversations(folder / HELD_OUT), record.recipe.speaker)
    held_out = [pair for group in groups for pair in group if pair.conversation_id in set(record.test)]
    with TripleStore(folder, FakeEmbedder(), create=False) as store:
        yield record, store, held_out


def remembered(store: TripleStore) -> list[Pair]:
    return [triple.pair for triple in store.triples()]


def test_a_twin_as_it_was_learned_has_no_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        assert held_out
        assert remembered(store)
        check_split(record, remembered(store), held_out)


def test_a_conversation_to_measure_on_in_the_memory_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        store.add([Triple(replace(held_out[-1], when=0.0))])  # however old it says that it is
        with pytest.raises(
            TwinError, match=rf'ann: the memory knows the conversation "{held_out[-1].conversation_id}", which is'
        ):
            check_split(record, remembered(store), held_out)


def test_it_is_a_leak_even_if_other_turns_are_measured_just_now(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        elsewhere = moment("hi", where="elsewhere", when=held_out[0].when)
        for conversation in (record.test[0], record.validation[0]):
            known = [*remembered(store), moment("hi", where=conversation)]
            with pytest.raises(TwinError, match=rf'knows the conversation "{conversation}"'):
                check_split(record, known, [elsewhere])


def test_turns_of_another_log_that_are_known_are_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, _):
        known = remembered(store)
        with pytest.raises(TwinError, match=rf'knows the conversation "{known[0].conversation_id}"'):
            check_split(record, known, [replace(known[0], when=9e9)])


def test_a_memory_of_the_time_that_is_measured_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        first = min(pair.when for pair in held_out)
        for when in (first, first + 1e6):
            known = [*remembered(store), moment("hi", where="new", when=when)]
            with pytest.raises(
                TwinError, match=r'knows a moment of 2024-\d\d-\d\d \("new"\), and the first turn .* is of 2024'
            ):
                check_split(record, known, held_out)
            check_split(record, known, held_out, by_time=False)
            check_split(replace(record, dated=False), known, held_out)
        check_split(record, [*remembered(store), moment("hi", where="new", when=first - 1)], held_out)


def test_a_record_that_contradicts_itself_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, _, held_out):
        torn = replace(record, corpus=(*record.corpus, record.test[0]))
        with pytest.raises(TwinError, match=rf'"{record.test[0]}" was learned and is to be measured on.*--overwrite'):
            check_split(torn, [], held_out)


def test_a_moment_that_no_calendar_has_is_told_as_a_number(ann: str) -> None:
    with opened(ann) as (record, _, held_out), pytest.raises(TwinError, match=r"a moment of 1e\+300"):
        check_split(record, [moment("hi", where="new", when=1e300)], held_out)


# Near-duplicates -----------------------------------------------------------------------------------------------------

STORY = "the ferry to the island was late again so we had cold dumplings on pier nine"
WORDS = STORY.split()


def test_the_same_words_are_a_near_duplicate_whatever_their_case_and_points() -> None:
    held = moment("Yes, please: move it to Thursday!", "Shall we move your dentist, then?")
    known = [moment("what is new"), moment("yes please move it to thursday", "shall we move your dentist then")]
    assert near_duplicates([held], known) == {0: 1}


def test_a_moment_with_one_other_word_at_its_end_is_one_and_with_one_in_its_middle_is_not() -> None:
    end, middle = [*WORDS[:-1], "ten"], [*WORDS[:8], "seldom", *WORDS[9:]]
    assert near_duplicates([moment(" ".join(end)), moment(" ".join(middle))], [moment(STORY)]) == {0: 0}


def test_a_moment_within_a_longer_one_is_a_near_duplicate_but_not_the_longer_one_of_it() -> None:
    short, long = (
        moment(STORY),
        moment("and then we all went home", STORY, "what a long day that must have been"),
    )
    assert near_duplicates([short], [long]) == {0: 0}
    assert near_duplicates([long], [short]) == {}


def test_the_most_alike_is_named_and_the_first_of_equals() -> None:
    almost, same = moment(f"{STORY} then"), moment(STORY)
    assert near_duplicates([same], [almost, same, same]) == {0: 1}


def test_short_moments_never_count() -> None:
    seven, eight = moment("no thats all thank you", "anything else"), moment("no thats all thank you bye", "anything else")
    assert near_duplicates([seven, eight], [seven, eight]) == {1: 1}


def test_goals_and_who_speaks_do_not_count() -> None:
    task = "you want to find out what the weather is in the town of Lima tomorrow"
    assert near_duplicates([moment("rain or sun in Lima", goal=task)], [moment("is Lima wet", goal=task)]) == {}
    same = moment(STORY)
    assert near_duplicates([replace(same, speaker="Bob", conversation_id="b")], [same]) == {0: 0}


def test_only_the_turns_that_are_shown_count() -> None:
    held = moment(STORY, "good morning to you all in this house", "what happened")
    known = moment(STORY, "which of the two trains did you take", "what happened")
    assert near_duplicates([held], [known]) == {}
    assert near_duplicates([held], [known], turns=1) == near_duplicates([held], [known], turns=0) == {0: 0}


def test_a_silent_leaving_is_told_by_what_came_before_it() -> None:
    gone = moment(LEFT, STORY)
    assert near_duplicates([gone], [moment(LEFT, STORY)]) == {0: 0}
    assert near_duplicates([moment(LEFT, "one two three four five six seven")], [gone]) == {}


def test_nothing_is_like_nothing() -> None:
    pair = moment(STORY)
    assert near_duplicates([], [pair]) == near_duplicates([pair], []) == near_duplicates([moment("hi")], [pair]) == {}


def test_hundreds_of_moments_are_compared_in_parts() -> None:
    pairs = [moment(f"{' '.join(WORDS[:7])} number {number} and that was all for day {number}") for number in range(300)]
    assert near_duplicates(pairs, list(reversed(pairs))) == {number: 299 - number for number in range(300)}


_words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=14).map(" ".join)
_moments = st.lists(st.builds(moment, _words, _words), max_size=5)


@given(_moments, _moments)
def test_what_is_found_is_what_the_definition_says(held_out: list[Pair], known: list[Pair]) -> None:
    assert set(near_duplicates(held_out, known)) == {
        place for place, pair in enumerate(held_out) if any(_nearly_same(pair, other) for other in known)
    }


def _nearly_same(held: Pair, known: Pair) -> bool:
    ours, theirs = (word_tokens(f"{pair.context[0].text} {pair.action}") for pair in (held, known))
    if min(len(ours), len(theirs)) < 8:
        return False
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (ours, theirs))
    return len(a & b) / len(a | b) >= 0.7 or len(a & b) / len(a) >= 0.8


# What is known by heart ----------------------------------------------------------------------------------------------


class Knowing:
    """A scorer that is sure of a text after what stands before it there, and of nothing else."""

    name = "knowing"

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.asked: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.asked += items
        found: list[Likelihood] = []
        for prompt, continuation in items:
            sure = any(prompt.removeprefix("Me: ") + continuation in text for text in self._texts)
            each = [-0.1 if sure else -5.0] * len(continuation.split())
            found.append(Likelihood(sum(each), len(each), tuple(each)))
        return found


KNOWN = "we hold these truths to be self evident that all men are created equal"


def test_the_second_half_of_a_turn_is_asked_for_after_its_first_and_after_another() -> None:
    scorer = Knowing()
    known_by_heart(scorer, [moment("one two three four  five\nsix seven eight nine ten eleven", "context"), moment(KNOWN)])
    assert scorer.asked[0] == ("Me: one two three four five", " six seven eight nine ten eleven")
    assert scorer.asked[2] == ("Me: we hold these truths to be self", " six seven eight nine ten eleven")
    assert scorer.asked[3] == ("Me: one two three four five", " evident that all men are created equal")


def test_the_share_of_turns_that_a_model_says_by_heart_is_counted() -> None:
    pairs = [moment(KNOWN, where="a"), moment(STORY, where="b")]
    found = known_by_heart(Knowing(KNOWN), pairs)
    assert (found["value"], found["n"]) == (0.5, 2)
    assert (found["low"], found["high"]) == (0.0, 1.0)
    assert found["nats_per_token"] == pytest.approx((-0.1 - 5) / 2)
    assert found["reference"] == pytest.approx(-5)


def test_short_turns_leavings_and_what_was_said_before_do_not_count() -> None:
    pairs = [moment("only nine words are here and that is few"), moment(LEFT), moment(KNOWN), moment(KNOWN, where="again")]
    assert known_by_heart(Knowing(KNOWN), pairs)["n"] == 1


def test_a_single_turn_has_no_reference_and_none_no_value() -> None:
    found = known_by_heart(Knowing(KNOWN), [moment(KNOWN)])
    assert (found["value"], found["low"], found["reference"]) == (1.0, None, None)
    nothing = {"value": None, "low": None, "high": None, "n": 0, "nats_per_token": None, "reference": None}
    assert known_by_heart(Knowing(KNOWN), [moment("hi")]) == nothing


def test_at_most_so_many_turns_are_asked_and_of_a_long_one_the_beginning() -> None:
    scorer = Knowing()
    pairs = [moment(f"turn {number} " + "word " * 1000) for number in range(10)]
    assert known_by_heart(scorer, pairs, most=3)["n"] == 3
    assert [prompt.split()[2] for prompt, _ in scorer.asked[:3]] == ["0", "3", "6"]
    assert {len(continuation.split()) for _, continuation in scorer.asked} == {100}


def test_a_model_of_words_knows_nothing_by_heart() -> None:
    found = known_by_heart(FakeScorer(), [moment(KNOWN), moment(STORY)])
    assert (found["value"], found["n"]) == (0.0, 2)
    assert found["nats_per_token"] == pytest.approx(-log(2000))  # no word of the second halves stands in the first


@pytest.mark.slow
def test_the_tiny_model_knows_a_famous_text_by_heart_and_not_an_invented_one() -> None:
    from usertwin.simulator import load_scorer

    famous = [
        "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with "
        "certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.",
        "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and "
        "dedicated to the proposition that all men are created equal.",
    ]
    invented = [
        "the ferry to the island was late again so my cousin and I had cold dumplings on pier nine",
        "my neighbour keeps three goats in the cellar and says they like the radio at night",
    ]
    scorer = load_scorer("local")
    heard = known_by_heart(scorer, [moment(text, where=text) for text in famous])
    new = known_by_heart(scorer, [moment(text, where=text) for text in invented])
    assert heard["value"] >= 0.5
    assert new["value"] == 0
    assert heard["nats_per_token"] > new["nats_per_token"] + 2
    assert heard["nats_per_token"] - heard["reference"] > new["nats_per_token"] - new["reference"]
