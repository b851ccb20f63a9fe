"""Evaluation of a twin: the result, and arms that differ in the shown turns only."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import other_conversation, recipe, scripted, small_conversation
from usertwin.evals import CONTRASTS, MEASURES, ReplayConfig, evaluate
from usertwin.evals.arm_names import DEFAULT_ARMS
from usertwin.evals.metrics.arm_discriminators import DISCRIMINATORS
from usertwin.evals.replay.arms import Arms, HeldOutTurn
from usertwin.memory import alearn
from usertwin.memory.models.embedding import FakeEmbedder, query_text
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.twin.record import default_home
from usertwin.personas import ChatLog, Conversation, LogError, Turn, UsageError, write_conversations
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

pytestmark = pytest.mark.usefixtures("repeats_count")

#: Measures of a few replies; discriminators and diversity need more, and choice needs choices.
WRITTEN = {measure.name for measure in MEASURES} - {"choice", *DISCRIMINATORS, "diversity"}
#: The twin's arm with every other arm, and the fixed contrasts.
PAIRED = [
    *((DEFAULT_ARMS[-1], arm) for arm in DEFAULT_ARMS[:-1]),
    *(pair for pair in CONTRASTS if set(pair) <= set(DEFAULT_ARMS)),
]
#: The number in "tomorrow, day 7", which identifies the conversation.
DAY = re.compile(r"day (\d+)")


class RecordingScorer:
    """A fake scorer that records its items."""

    name = "fake:"

    def __init__(self) -> None:
        self.items: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.items += items
        return FakeScorer().score(items)


def measure(name: str = "ann", **options: Any) -> dict[str, Any]:
    """Measure a twin of the test's home."""
    scorer = options.pop("scorer", FakeScorer())
    model = scripted("hi, the weather in Rome please", "no", "tomorrow, day 3", "thank you so much, bye")
    how = {key: options.pop(key) for key in ("arms", "limit", "generate", "samples", "choices", "seed") if key in options}
    protocol = ReplayConfig(**{"generate": 4, **how})
    with SimulatedUser.load(name, model=model, k=4) as user:
        return asyncio.run(
            evaluate(user, scorer, FakeEmbedder(), folder=default_home() / name, config=protocol, **options)
        )  # fmt: skip


def learn_from(conversations: Sequence[Conversation], name: str = "ann", **changes: Any) -> None:
    log = ChatLog(tuple(conversations), "test")
    model = scripted("wants the weather for a city", "is in a hurry")
    asyncio.run(alearn(name, log, recipe(**changes), embedder=FakeEmbedder(), model=model, scorer=FakeScorer()))


def undated() -> list[Conversation]:
    """The shared log without its dates: time is the order."""
    both = [talk for number in range(20) for talk in (small_conversation(number), other_conversation(number))]
    return [replace(conversation, started_at=None) for conversation in both]


def again(number: int, day: int, **changes: Any) -> Conversation:
    """A talk the twin has never seen, on a day of the month it was learned from."""
    turns = tuple(
        replace(t, text=t.text.replace(f"day {number}", f"day {900 + number}")) for t in small_conversation(number).turns
    )
    return replace(Conversation(f"again-{number:02d}", turns, f"2024-03-{day:02d}T09:00:00+00:00"), **changes)


def write(conversations: Sequence[Conversation], path: Path) -> Path:
    write_conversations(conversations, path)
    return path


# The result ---------------------------------------------------------------------------------------------------------


def test_the_result_has_exactly_the_documented_keys(ann: str) -> None:
    result = measure(ann)
    promised = {"twin", "arms", "paired", "question", "family", "discriminator", "turns", "conversations", "models", "seed"}
    more = {"leakage", "ending", "k", "twin_arm", "triples", "against", "dropped_conversations", "measured_at", "traces"}
    more |= {"intervals_over"}
    assert set(result) == promised | more
    assert DEFAULT_ARMS == ("no_memory", "other_person", "random_own", "recalled_pairs", "recon")
    assert tuple(result["arms"]) == DEFAULT_ARMS
    assert list(result["paired"]) == list(dict.fromkeys(f"{a} - {b}" for a, b in PAIRED))
    for measures in (*result["arms"].values(), *result["paired"].values()):
        assert set(measures) == WRITTEN
    figures = [figure for measures in result["arms"].values() for figure in measures.values()]
    paired = [figure for measures in result["paired"].values() for figure in measures.values()]
    for figure in [*figures, *paired, result["ending"]["f1"]]:
        assert list(figure)[:4] == ["value", "low", "high", "n"]
        assert figure["low"] is figure["high"] is None  # of four conversations
    assert all(list(figure)[4:] == ["p", "visible"] for figure in paired if "p_holm" not in figure)
    assert [name for name, found in result["paired"].items() if "p_holm" in found["bits_per_char"]] == result["family"][
        "contrasts"
    ]


def test_the_result_is_plain_json_without_nan(ann: str) -> None:
    result = measure(ann)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_result_names_the_models(ann: str) -> None:
    result = measure(ann, seed=3)
    assert result["twin"] == "ann"
    assert result["models"] == {
        "action": "scripted:test", "scorer": "fake:", "embedder": "fake:256", "proposer": "scripted:test",
    }  # fmt: skip
    assert (result["seed"], result["triples"], result["against"]) == (3, 42, None)


def test_all_turns_of_the_test_conversations_are_measured(ann: str) -> None:
    result = measure(ann, limit=None)
    assert (result["turns"], result["conversations"], result["dropped_conversations"]) == (12, 4, 0)
    assert {arm["bits_per_char"]["n"] for arm in result["arms"].values()} == {12}


def test_one_seed_gives_one_result(ann: str) -> None:
    first, second = measure(ann, seed=5), measure(ann, seed=5)
    del first["measured_at"], second["measured_at"]
    assert first == second


def test_another_seed_changes_random_pairs_but_not_recalled_ones(ann: str) -> None:
    first, second = RecordingScorer(), RecordingScorer()
    one, other = measure(ann, scorer=first, seed=1), measure(ann, scorer=second, seed=2)
    random_first, random_second = first.items[2::5], second.items[2::5]
    assert random_first != random_second
    assert first.items[3::5] == second.items[3::5]
    for arm in ("no_memory", "recalled_pairs"):
        assert one["arms"][arm]["bits_per_char"]["value"] == other["arms"][arm]["bits_per_char"]["value"]


@pytest.mark.parametrize("measure_name", sorted(WRITTEN))
def test_a_paired_difference_is_the_difference_of_the_arms(ann: str, measure_name: str) -> None:
    result = measure(ann)
    [kind] = [kind for kind in MEASURES if kind.name == measure_name]
    for first, second in PAIRED:
        difference = result["paired"][f"{first} - {second}"][measure_name]
        one, other = result["arms"][first][measure_name], result["arms"][second][measure_name]
        away = kind.distance(np.array([one["value"], other["value"]]))  # in terms of how far from the person
        assert difference["value"] == pytest.approx(away[0] - away[1], abs=1e-9)
        assert difference["n"] == one["n"] == other["n"]


def test_a_scorer_that_likes_known_words_prefers_memory(ann: str) -> None:
    """The fake scorer prefers words that were shown, and Ann repeats herself: the whole chain must see it."""
    difference = measure(ann)["paired"]["recalled_pairs - no_memory"]["bits_per_char"]
    assert difference["value"] < -0.1


def test_endings_are_measured_on_real_turns(ann: str) -> None:
    """Ann always leaves with the same words, so a model of leaving is always right."""
    assert measure(ann)["ending"] == {"f1": {"value": 1.0, "low": None, "high": None, "n": 12}}


def test_bits_per_character_are_bits_divided_by_characters(ann: str) -> None:
    scorer = RecordingScorer()
    result = measure(ann, scorer=scorer)
    actions = [continuation for _, continuation in scorer.items[0::5]]
    bits = sum(likelihood.bits for likelihood in FakeScorer().score(scorer.items[0::5]))
    characters = sum(len(action.strip()) + 1 for action in actions)  # the end of the line counts as one
    assert result["arms"]["no_memory"]["bits_per_char"]["value"] == pytest.approx(bits / characters)


# Shown turns --------------------------------------------------------------------------------------------------------


def recalled_for(user: SimulatedUser, conversations: Sequence[Conversation]) -> list[HeldOutTurn]:
    pairs = [pair for conversation in conversations for pair in extract_pairs(conversation, "Ann")]
    return Arms(user, names=DEFAULT_ARMS).held_out_turns(pairs)


def test_no_arm_shows_the_same_conversation_or_later_pairs(ann: str) -> None:
    """The query pairs are in the memory, where the most similar triple is the query itself."""
    with SimulatedUser.load(ann, model=scripted("hi")) as user:
        corpus = [small_conversation(number) for number in range(14)]
        turns = recalled_for(user, corpus)
        assert sum(bool(turn.shown["recalled_pairs"]) for turn in turns) == 13 * 3  # all but those of the first day
    for turn in turns:
        for triple in (triple for shown in turn.shown.values() for triple in shown):
            assert triple.pair.conversation_id != turn.pair.conversation_id
            assert triple.pair.when < turn.pair.when


def test_traces_do_not_change_the_recalled_pairs(ann: str) -> None:
    with SimulatedUser.load(ann, model=scripted("hi")) as user:
        turns = recalled_for(user, [small_conversation(number) for number in range(16, 20)])
        for turn in turns:
            pairs, triples = turn.shown["recalled_pairs"], turn.shown["recon"]
            assert [triple.pair for triple in pairs] == [triple.pair for triple in triples]
            assert len(triples) == user.k
            assert all(triple.reasoning is None for triple in [*pairs, *turn.shown["random_own"]])
            assert all(triple.reasoning for triple in triples)
            assert turn.shown["no_memory"] == []
            assert len(turn.shown["random_own"]) == user.k


def test_recalled_pairs_are_the_most_similar_ones(ann: str) -> None:
    embedder = FakeEmbedder()
    with SimulatedUser.load(ann, model=scripted("hi")) as user:
        everything = list(user.store.triples())
        for turn in recalled_for(user, [small_conversation(18)]):
            texts = [query_text(turn.pair), *(query_text(triple.pair) for triple in everything)]
            query, *rest = embedder.embed(texts)
            best = sorted((float(vector @ query) for vector in rest), reverse=True)[: user.k]
            shown = embedder.embed([query_text(triple.pair) for triple in turn.shown["recalled_pairs"]])
            assert [float(vector @ query) for vector in shown] == pytest.approx(best, abs=1e-5)


def test_prompts_never_hold_a_later_day(ann: str, tmp_path: Path) -> None:
    """Past conversations are measured: only earlier pairs of Ann's memory may be shown."""
    against = write([again(number, day=number + 1) for number in (3, 7, 11)], tmp_path / "again.jsonl")
    scorer = RecordingScorer()
    assert measure(ann, against=against, scorer=scorer, generate=0)["turns"] == 9
    seen: dict[int, set[int]] = defaultdict(set)
    for index, (prompt, _) in enumerate(scorer.items):
        number = (3, 7, 11)[index // (3 * len(DEFAULT_ARMS))]
        shown = re.sub(r"\(Me thinking: .*\)\nMe:$", "", prompt)  # without the thought for this turn, which is scripted
        seen[number] |= {int(day) for day in DAY.findall(shown)} - {900 + number}
    assert {number: max(days) < number for number, days in seen.items()} == {3: True, 7: True, 11: True}
    assert max(seen[11]) > 3  # and the later talk was shown more of the past than the first


def test_prompts_of_all_arms_end_alike(ann: str) -> None:
    scorer = RecordingScorer()
    measure(ann, scorer=scorer)
    assert len(scorer.items) == 12 * len(DEFAULT_ARMS)
    for start in range(0, len(scorer.items), len(DEFAULT_ARMS)):
        by_arm = dict(zip(DEFAULT_ARMS, scorer.items[start : start + len(DEFAULT_ARMS)], strict=True))
        present, action = by_arm["no_memory"]
        assert present.endswith("Me:")
        assert {continuation for _, continuation in by_arm.values()} == {action}
        for arm in DEFAULT_ARMS[1:]:
            prompt = by_arm[arm][0]
            # The trace that the twin writes for the turn is in the bits, as it is in the prompt of its reply.
            own = r"\(Me thinking: .+\)\n" if arm == "recon" else ""
            assert re.search("\n\n" + re.escape(present.removesuffix("Me:")) + own + "Me:$", prompt)
            assert prompt.count("\n\n") == 4  # four moments, whoever's they are
        thoughts = re.compile(r"\(Me thinking: .*\)\n")
        assert thoughts.search(by_arm["recon"][0])
        assert thoughts.sub("", by_arm["recon"][0]) == by_arm["recalled_pairs"][0]


def test_other_person_shows_the_other_speaker(ann: str) -> None:
    scorer = RecordingScorer()
    measure(ann, scorer=scorer)
    assert all("refund" in prompt or "Order" in prompt for prompt, _ in scorer.items[1::5])
    assert not any("refund" in prompt for arm in (0, 2, 3, 4) for prompt, _ in scorer.items[arm::5])


def test_without_another_person_there_is_no_such_arm() -> None:
    learn_from([small_conversation(number) for number in range(20)])
    result = measure()
    assert set(result["arms"]) == set(DEFAULT_ARMS) - {"other_person"}
    assert not [name for name in result["paired"] if "other_person" in name]


def test_the_twin_reasons_only_with_traces(ann: str) -> None:
    model = scripted("thinks of rain)", rules=[("\nMe:", "hello")])
    with SimulatedUser.load(ann, model=model, k=4) as user:
        two = ReplayConfig(generate=2)
        asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=default_home() / ann, config=two))
    prompts: list[str] = model.chat.prompts  # pyright: ignore[reportAttributeAccessIssue]
    assert len(prompts) == 2 * len(DEFAULT_ARMS) + 12
    assert sum(prompt.endswith("(Me thinking:") for prompt in prompts) == 12  # once at each scored turn


# Held-out turns -------------------------------------------------------------------------------------------------------


def test_a_limit_spreads_the_turns_over_the_conversations(ann: str) -> None:
    scorer = RecordingScorer()
    result = measure(ann, limit=4, scorer=scorer)
    assert (result["turns"], result["conversations"]) == (4, 4)
    assert len(scorer.items) == 4 * len(DEFAULT_ARMS)


def test_a_large_limit_takes_all_turns(ann: str) -> None:
    assert measure(ann, limit=1000)["turns"] == 12


def test_one_turn_has_values_but_no_interval(ann: str) -> None:
    figure = measure(ann, limit=1)["arms"]["recon"]["bits_per_char"]
    assert (figure["low"], figure["high"], figure["n"]) == (None, None, 1)


def test_replies_are_written_for_generate_turns(ann: str) -> None:
    result = measure(ann, generate=3)
    assert {arm["chrf"]["n"] for arm in result["arms"].values()} == {3}
    assert {arm["bits_per_char"]["n"] for arm in result["arms"].values()} == {12}


def test_without_written_replies_only_bits_are_measured(ann: str) -> None:
    result = measure(ann, generate=0)
    for measures in (*result["arms"].values(), *result["paired"].values()):
        assert set(measures) == {"bits_per_char"}


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": -1}, {"generate": -1}, {"samples": 0}, {"choices": 1}, {"choices": -1}]
)
def test_a_number_out_of_range_is_an_error(ann: str, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least"):
        measure(ann, **wrong)


def test_progress_reaches_the_end_of_both_stages(ann: str) -> None:
    updates: list[tuple[str, int, int]] = []
    measure(ann, generate=2, progress=lambda *what: updates.append(what))
    assert ("scoring", 12, 12) in updates
    assert updates[-1] == ("writing", 2, 2)
    assert all(done <= total for _, done, total in updates)


# Another log ---------------------------------------------------------------------------------------------------------


def test_conversations_that_the_twin_was_learned_or_tuned_on_are_dropped_and_counted(ann: str, log_file: Path) -> None:
    result = measure(ann, against=log_file, limit=None)
    assert (result["dropped_conversations"], result["conversations"], result["turns"]) == (16, 4, 12)
    assert result["against"] == str(log_file)


def test_a_log_of_nothing_new_is_refused(ann: str, tmp_path: Path) -> None:
    known = write([small_conversation(number) for number in range(5)], tmp_path / "known.jsonl")
    with pytest.raises(LogError, match="learned from every conversation of Ann"):
        measure(ann, against=known)


def test_a_log_without_the_person_is_refused(ann: str, tmp_path: Path) -> None:
    strangers = write([other_conversation(number) for number in range(5)], tmp_path / "bob.jsonl")
    with pytest.raises(LogError, match=r'no turns by "Ann".*"Bob"'):
        measure(ann, against=strangers)


def test_a_log_without_dates_is_refused_for_a_twin_that_has_some(ann: str, tmp_path: Path) -> None:
    dateless = write([again(1, day=20, started_at=None)], tmp_path / "dateless.jsonl")
    with pytest.raises(LogError, match="started_at"):
        measure(ann, against=dateless)


def test_a_missing_log_is_refused(ann: str, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        measure(ann, against=tmp_path / "nowhere.jsonl")


# Undated logs --------------------------------------------------------------------------------------------------------


def test_a_log_without_dates_is_measured_like_any_other() -> None:
    learn_from(undated())
    scorer = RecordingScorer()
    result = measure(limit=None, scorer=scorer)
    assert set(result["arms"]) == set(DEFAULT_ARMS)
    assert (result["turns"], result["conversations"]) == (12, 4)
    for arm in range(1, len(DEFAULT_ARMS)):  # all of the memory is past: no arm is empty
        assert all(prompt.count("\n\n") == 4 for prompt, _ in scorer.items[arm::5])


def test_a_twin_without_dates_takes_another_log_as_later_than_its_past(tmp_path: Path) -> None:
    learn_from(undated())
    for started_at in (None, "1999-01-01T00:00:00+00:00"):
        scorer = RecordingScorer()
        against = write([again(1, day=1, started_at=started_at)], tmp_path / "again.jsonl")
        assert measure(against=against, scorer=scorer, generate=0)["turns"] == 3
        assert all(prompt.count("\n\n") == 4 for prompt, _ in scorer.items[3::5])


def test_without_traces_recon_equals_recalled_pairs() -> None:
    learn_from(undated(), method="none", model=None, scorer=None)
    result = measure(generate=0)
    assert result["arms"]["recon"] == result["arms"]["recalled_pairs"]
    assert result["models"]["proposer"] is None


def test_goals_of_recalled_conversations_are_not_shown(ann: str) -> None:
    """A goal is in the present context and in no recalled pair."""
    scorer = RecordingScorer()
    measure(ann, scorer=scorer)
    for prompt, _ in scorer.items:
        assert prompt.count("My goal:") == 1
        assert "(My goal:" in prompt.split("\n\n")[-1]


def test_a_log_with_turns_that_have_a_time_of_their_own_keeps_to_it(tmp_path: Path) -> None:
    """Two simultaneous conversations: a turn at ten past is later than a turn of the other at five past."""

    def at(minute: int, speaker: str, text: str) -> Turn:
        return Turn(speaker, "agent" if speaker == "desk" else "user", text, time=f"2024-03-01T10:{minute:02d}:00+00:00")

    turns = [
        turn for i in range(0, 40, 4)
        for turn in (at(i, "desk", f"question {i}"), at(i + 2, "Ann", f"answer {i} day {i + 2}"))
    ]  # fmt: skip
    memory = Conversation("long", tuple(turns), "2024-03-01T10:00:00+00:00")
    later = [replace(small_conversation(number), started_at=f"2024-04-{number + 1:02d}") for number in range(8)]
    learn_from([memory, *later])
    present = Conversation("new", (at(20, "desk", "question 20"), at(21, "Ann", "fine")), "2024-03-01T10:20:00+00:00")
    scorer = RecordingScorer()
    measure(against=write([present], tmp_path / "new.jsonl"), scorer=scorer, generate=0)
    shown = {int(day) for prompt, _ in scorer.items for day in DAY.findall(prompt)}
    assert shown
    assert max(shown) <= 20
