"""Leak checks: leaks are errors, near-duplicates are exact, memorization is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.replay.leak_checks import check_split, measure_memorization, near_duplicates
from usertwin.memory import Triple, TripleStore, TwinRecord
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.record import HELD_OUT_FILE, read_stored_conversations, twin_folder
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.pairs import ABANDONED, group_pairs


def moment(action: str, *context: str, where: str = "talk", when: float = 0.0, goal: str = "") -> Pair:
    turns = tuple(Turn("desk", "agent", text) for text in context)
    return Pair(
        speaker="Ann",
        context=turns,
        action=action,
        goal=goal,
        conversation_id=where,
        position=len(turns),
        when=when,
        ends_conversation=action == ABANDONED,
    )


# The split -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(name: str) -> Iterator[tuple[TwinRecord, TripleStore, list[Pair]]]:
    """Open a twin: its record, its memory and its held-out pairs."""
    folder = twin_folder(name)
    record = TwinRecord.load(folder)
    groups = group_pairs(read_stored_conversations(folder / HELD_OUT_FILE), record.recipe.speaker)
    held_out = [pair for group in groups for pair in group if pair.conversation_id in set(record.test)]
    with TripleStore(folder, FakeEmbedder(), create=False) as store:
        yield record, store, held_out


def remembered(store: TripleStore) -> list[Pair]:
    return [triple.pair for triple in store.triples()]


def test_a_learned_twin_has_no_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        assert held_out
        assert remembered(store)
        check_split(record, remembered(store), held_out)


def test_a_held_out_conversation_in_the_memory_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        store.add([Triple(replace(held_out[-1], when=0.0))])  # however old it says that it is
        with pytest.raises(
            TwinError, match=rf'ann: the memory holds the held-out conversation "{held_out[-1].conversation_id}"'
        ):
            check_split(record, remembered(store), held_out)


def test_a_reserved_conversation_in_the_memory_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        elsewhere = moment("hi", where="elsewhere", when=held_out[0].when)
        for conversation in (record.test[0], record.validation[0]):
            known = [*remembered(store), moment("hi", where=conversation)]
            with pytest.raises(TwinError, match=rf'holds the held-out conversation "{conversation}"'):
                check_split(record, known, [elsewhere])


def test_known_turns_of_another_log_are_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, _):
        known = remembered(store)
        with pytest.raises(TwinError, match=rf'holds the held-out conversation "{known[0].conversation_id}"'):
            check_split(record, known, [replace(known[0], when=9e9)])


def test_a_memory_later_than_the_held_out_turns_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, store, held_out):
        first = min(pair.when for pair in held_out)
        for when in (first, first + 1e6):
            known = [*remembered(store), moment("hi", where="new", when=when)]
            with pytest.raises(
                TwinError, match=r'holds a turn of 2024-\d\d-\d\d \("new"\), but the first held-out turn is of 2024'
            ):
                check_split(record, known, held_out)
            check_split(record, known, held_out, by_time=False)
            check_split(replace(record, dated=False), known, held_out)
        check_split(record, [*remembered(store), moment("hi", where="new", when=first - 1)], held_out)


def test_a_record_that_contradicts_itself_is_a_leak(ann: str) -> None:
    with opened(ann) as (record, _, held_out):
        torn = replace(record, corpus=(*record.corpus, record.test[0]))
        with pytest.raises(TwinError, match=rf'"{record.test[0]}" was learned and is also held out.*--overwrite'):
            check_split(torn, [], held_out)


def test_a_time_outside_the_calendar_is_printed_as_a_number(ann: str) -> None:
    with opened(ann) as (record, _, held_out), pytest.raises(TwinError, match=r"a turn of 1e\+300"):
        check_split(record, [moment("hi", where="new", when=1e300)], held_out)


# Near-duplicates -----------------------------------------------------------------------------------------------------

STORY = "the ferry to the island was late again so we had cold dumplings on pier nine"
WORDS = STORY.split()


def test_near_duplicates_ignore_case_and_punctuation() -> None:
    held = moment("Yes, please: move it to Thursday!", "Shall we move your dentist, then?")
    known = [moment("what is new"), moment("yes please move it to thursday", "shall we move your dentist then")]
    assert near_duplicates([held], known) == {0: 1}


def test_one_changed_word_matters_in_the_middle_only() -> None:
    end, middle = [*WORDS[:-1], "ten"], [*WORDS[:8], "seldom", *WORDS[9:]]
    assert near_duplicates([moment(" ".join(end)), moment(" ".join(middle))], [moment(STORY)]) == {0: 0}


def test_containment_is_not_symmetric() -> None:
    short, long = (
        moment(STORY),
        moment("and then we all went home", STORY, "what a long day that must have been"),
    )
    assert near_duplicates([short], [long]) == {0: 0}
    assert near_duplicates([long], [short]) == {}


def test_the_most_similar_pair_is_returned_and_the_first_of_equals() -> None:
    almost, same = moment(f"{STORY} then"), moment(STORY)
    assert near_duplicates([same], [almost, same, same]) == {0: 1}


def test_short_pairs_are_never_near_duplicates() -> None:
    seven, eight = moment("no thats all thank you", "anything else"), moment("no thats all thank you bye", "anything else")
    assert near_duplicates([seven, eight], [seven, eight]) == {1: 1}


def test_goals_and_speakers_do_not_count() -> None:
    task = "you want to find out what the weather is in the town of Lima tomorrow"
    assert near_duplicates([moment("rain or sun in Lima", goal=task)], [moment("is Lima wet", goal=task)]) == {}
    same = moment(STORY)
    assert near_duplicates([replace(same, speaker="Bob", conversation_id="b")], [same]) == {0: 0}


def test_only_the_latest_turns_count() -> None:
    held = moment(STORY, "good morning to you all in this house", "what happened")
    known = moment(STORY, "which of the two trains did you take", "what happened")
    assert near_duplicates([held], [known]) == {}
    assert near_duplicates([held], [known], turns=1) == near_duplicates([held], [known], turns=0) == {0: 0}


def test_an_abandoned_pair_is_compared_by_its_context() -> None:
    gone = moment(ABANDONED, STORY)
    assert near_duplicates([gone], [moment(ABANDONED, STORY)]) == {0: 0}
    assert near_duplicates([moment(ABANDONED, "one two three four five six seven")], [gone]) == {}


def test_empty_pairs_are_not_near_duplicates() -> None:
    pair = moment(STORY)
    assert near_duplicates([], [pair]) == near_duplicates([pair], []) == near_duplicates([moment("hi")], [pair]) == {}


def test_many_pairs_are_compared_in_batches() -> None:
    pairs = [moment(f"{' '.join(WORDS[:7])} number {number} and that was all for day {number}") for number in range(300)]
    assert near_duplicates(pairs, list(reversed(pairs))) == {number: 299 - number for number in range(300)}


_words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=14).map(" ".join)
_moments = st.lists(st.builds(moment, _words, _words), max_size=5)


@given(_moments, _moments)
def test_near_duplicates_equal_the_definition(held_out: list[Pair], known: list[Pair]) -> None:
    assert set(near_duplicates(held_out, known)) == {
        place for place, pair in enumerate(held_out) if any(_nearly_same(pair, other) for other in known)
    }


def _nearly_same(held: Pair, known: Pair) -> bool:
    ours, theirs = (word_tokens(f"{pair.context[0].text} {pair.action}") for pair in (held, known))
    if min(len(ours), len(theirs)) < 8:
        return False
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (ours, theirs))
    return len(a & b) / len(a | b) >= 0.7 or len(a & b) / len(a) >= 0.8


# Memorization --------------------------------------------------------------------------------------------------------


class MemorizingScorer:
    """A scorer that is certain of its texts after their beginnings, and of nothing else."""

    name = "knowing"

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.asked: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.asked += items
        result: list[Likelihood] = []
        for prompt, continuation in items:
            sure = any(prompt.removeprefix("Me: ") + continuation in text for text in self._texts)
            each = [-0.1 if sure else -5.0] * len(continuation.split())
            result.append(Likelihood(sum(each), len(each), tuple(each)))
        return result


KNOWN = "we hold these truths to be self evident that all men are created equal"


def test_the_second_half_is_scored_after_its_own_and_another_first_half() -> None:
    scorer = MemorizingScorer()
    measure_memorization(
        scorer, [moment("one two three four  five\nsix seven eight nine ten eleven", "context"), moment(KNOWN)]
    )
    assert scorer.asked[0] == ("Me: one two three four five", " six seven eight nine ten eleven")
    assert scorer.asked[2] == ("Me: we hold these truths to be self", " six seven eight nine ten eleven")
    assert scorer.asked[3] == ("Me: one two three four five", " evident that all men are created equal")


def test_the_share_of_memorized_turns_is_returned() -> None:
    pairs = [moment(KNOWN, where="a"), moment(STORY, where="b")]
    result = measure_memorization(MemorizingScorer(KNOWN), pairs)
    assert (result["value"], result["n"]) == (0.5, 2)
    assert result["low"] is result["high"] is None  # of two conversations
    assert result["nats_per_token"] == pytest.approx((-0.1 - 5) / 2)
    assert result["reference"] == pytest.approx(-5)


def test_short_abandoned_and_repeated_turns_do_not_count() -> None:
    pairs = [moment("only nine words are here and that is few"), moment(ABANDONED), moment(KNOWN), moment(KNOWN, where="again")]
    assert measure_memorization(MemorizingScorer(KNOWN), pairs)["n"] == 1


def test_one_turn_has_no_reference_and_no_turn_has_no_value() -> None:
    result = measure_memorization(MemorizingScorer(KNOWN), [moment(KNOWN)])
    assert (result["value"], result["low"], result["reference"]) == (1.0, None, None)
    nothing = {"value": None, "low": None, "high": None, "n": 0, "nats_per_token": None, "reference": None}
    assert measure_memorization(MemorizingScorer(KNOWN), [moment("hi")]) == nothing


def test_turns_and_their_words_are_limited() -> None:
    scorer = MemorizingScorer()
    pairs = [moment(f"turn {number} " + "word " * 1000) for number in range(10)]
    assert measure_memorization(scorer, pairs, max_turns=3)["n"] == 3
    assert [prompt.split()[2] for prompt, _ in scorer.asked[:3]] == ["0", "3", "6"]
    assert {len(continuation.split()) for _, continuation in scorer.asked} == {100}


def test_a_unigram_model_has_memorized_nothing() -> None:
    result = measure_memorization(FakeScorer(), [moment(KNOWN), moment(STORY)])
    assert (result["value"], result["n"]) == (0.0, 2)
    assert result["nats_per_token"] == pytest.approx(-log(2000))  # no word of the second halves stands in the first


@pytest.mark.slow
def test_the_tiny_model_has_memorized_a_famous_text_but_not_an_invented_one() -> None:
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
    heard = measure_memorization(scorer, [moment(text, where=text) for text in famous])
    new = measure_memorization(scorer, [moment(text, where=text) for text in invented])
    assert heard["value"] >= 0.5
    assert new["value"] == 0
    assert heard["nats_per_token"] > new["nats_per_token"] + 2
    assert heard["nats_per_token"] - heard["reference"] > new["nats_per_token"] - new["reference"]
