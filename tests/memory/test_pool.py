"""memory/training/candidate_pool.py: a pool goes on wherever it was cut off, keeps to its budget, and teaches nothing that a guard rejects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import PAIR, FunctionChatModel, function_model
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.fidelity import LikelihoodGain
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.propose import MALFORMED, parse_trace
from usertwin.memory.training.candidate_pool import (
    LEAST_MARGIN,
    ScoredCandidates,
    completion_of,
    dpo_rows,
    sample_candidates,
    sft_rows,
)
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import policy_prompt, completion_text
from usertwin.memory.training.rewards import Reward, RewardWeights
from usertwin.personas import ModelError, UsageError

LESSONS = [TrainingExample("log/Ann", replace(PAIR, conversation_id=f"talk-{place}", position=place)) for place in range(5)]
#: What the model writes: of no use, a leak, good, nothing, and letters of several bytes.
SAID = (" was there", " want the early train to Rome please", " wanted to go early", "", " fühlte mich wohl 🙂")
WEIGHTS = RewardWeights()


def writer() -> tuple[Any, FunctionChatModel]:
    return function_model(lambda prompt, seed: SAID[seed % len(SAID)])


def filled(
    path: Path, model: Any, budget: int = 10_000, lessons: Sequence[TrainingExample] = LESSONS, **options: Any
) -> list[ScoredCandidates]:
    told: dict[str, Any] = {"weights": WEIGHTS, "how": "backward", "group": 3, "seed": 0} | options
    return asyncio.run(
        sample_candidates(
            path, lessons, model, LikelihoodGain(FakeScorer()), rejection_reason, budget=budget, count=lambda text: len(text.split()), **told
        )
    )  # fmt: skip


def whole_pool() -> tuple[bytes, list[ScoredCandidates]]:
    """A pool that nobody stopped, and what stands in its file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        found = filled(path, writer()[0])
        return path.read_bytes(), found


RAW, POOL = whole_pool()


# The file ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, len(RAW)))
@example(RAW.index("ü".encode()) + 1)
@example(RAW.index(b"\n"))
@example(len(RAW) - 1)
def test_a_pool_that_was_cut_off_at_any_byte_goes_on_to_the_same(kept: int) -> None:
    model, chat = writer()
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        path.write_bytes(RAW[:kept])
        assert filled(path, model) == POOL
        assert path.read_bytes() == RAW
    assert len(chat.requests) == 3 * (len(LESSONS) - RAW[:kept].count(b"\n"))  # what was whole is not asked for again


@given(st.integers(0, len(RAW) - 1), st.binary(min_size=1, max_size=4))
def test_a_pool_that_is_damaged_is_read_as_it_may_be_or_refused_in_a_sentence(place: int, wrong: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        path.write_bytes(RAW[:place] + wrong + RAW[place + len(wrong) :])
        found, refused = list[ScoredCandidates](), ""
        try:
            found = filled(path, writer()[0])
        except UsageError as error:
            refused = str(error)
        assert ("pool.jsonl, line " in refused and "delete the file to have it written again" in refused) == (not found)
        assert [one.lesson for one in found] in ([], LESSONS)
        assert all(len(one.traces) == len(one.rewards) for one in found)


@pytest.mark.parametrize(
    "line",
    ["{}", "[]", "1", '"text"', "null", '{"pair": ["talk-1", 1], "traces": [], "rewards": [], "tokens": 1}',
     '{"pair": ["talk-0", 0], "traces": ["a"], "rewards": [], "tokens": 1}',
     '{"pair": ["talk-0", 0], "traces": [], "rewards": [], "tokens": "x"}',
     '{"pair": ["talk-0", 0], "traces": ["a"], "rewards": [{"worth": 1}], "tokens": 1}'],
)  # fmt: skip
def test_a_line_that_is_no_pair_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(line + "\n", "utf-8")
    with pytest.raises(UsageError, match=r"pool\.jsonl, line 1: is damaged"):
        filled(path, writer()[0])


def test_more_lines_than_there_are_pairs_are_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(RAW)
    with pytest.raises(UsageError, match="line 4: is damaged"):
        filled(path, writer()[0], lessons=LESSONS[:3])


def test_a_pool_of_the_same_pairs_in_another_order_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(RAW)
    with pytest.raises(UsageError, match=r"line 1: is damaged \(of another pair\); delete the file"):
        filled(path, writer()[0], lessons=LESSONS[::-1])


def test_a_model_that_falls_silent_loses_no_pair_that_was_done(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"

    def say(prompt: str, seed: int) -> str:
        if seed > 5:
            raise ModelError("gone")
        return SAID[seed % len(SAID)]

    with pytest.raises(ModelError, match="gone"):
        filled(path, function_model(say)[0])
    assert path.read_bytes() == b"".join(RAW.splitlines(keepends=True)[:2])


# What is proposed ----------------------------------------------------------------------------------------------------


def test_each_pair_is_proposed_for_with_a_seed_of_its_own() -> None:
    model, chat = writer()
    with TemporaryDirectory() as folder:
        filled(Path(folder, "pool.jsonl"), model, seed=40)
    assert [seed for _, seed in chat.requests] == list(range(40, 55))


def test_every_trace_is_rewarded_and_its_tokens_counted() -> None:
    for one in POOL:
        assert len(one.traces) == len(one.rewards) == 3
        assert one.tokens == sum(len(trace.split()) + 1 for trace in one.traces)
        assert [reward.rejected for reward in one.rewards] == [rejection_reason(trace, one.lesson.pair) for trace in one.traces]


@given(st.integers(1, sum(one.tokens for one in POOL) + 9))
def test_no_pair_is_begun_once_the_budget_is_spent(budget: int) -> None:
    with TemporaryDirectory() as folder:
        path, (model, chat) = Path(folder, "pool.jsonl"), writer()
        found = filled(path, model, budget)
        assert found == POOL[: len(found)]
        assert sum(one.tokens for one in found[:-1]) < budget
        assert len(found) == len(POOL) or sum(one.tokens for one in found) >= budget
        asked = len(chat.requests)
        assert filled(path, model, budget) == found
        assert len(chat.requests) == asked  # asked again, it knows that it is done


def test_progress_goes_up_to_the_budget_and_not_beyond(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    filled(tmp_path / "pool.jsonl", writer()[0], 20, progress=lambda *one: told.append(one))
    assert told == sorted(told)
    assert told[0] == ("proposals", 0, 20)
    assert told[-1] == ("proposals", 20, 20)


# What is learned -----------------------------------------------------------------------------------------------------


def proposed(*told: tuple[str, Reward]) -> ScoredCandidates:
    return ScoredCandidates(LESSONS[0], tuple(trace for trace, _ in told), tuple(reward for _, reward in told), 9)


def good(fidelity: float, score: float) -> Reward:
    return Reward(fidelity, 1.0, 1.0, 1.0, score)


BAD = Reward(rejected="quotes_action")
REWARDS = st.one_of(
    st.builds(Reward, *[st.floats(0, 1)] * 4, score=st.floats(-5, 5), nearness=st.floats(0, 1)),
    st.sampled_from(["new_words", "empty"]).map(lambda name: Reward(rejected=name)),
)
TOLD = st.dictionaries(st.sampled_from(["", "I felt", "I was.", "I'd go, yes", "I am", "I 7"]), REWARDS, min_size=1)
STYLES: tuple[PromptStyle, ...] = ("transcript", "instruction")


@given(st.lists(TOLD, max_size=4), st.sampled_from(STYLES))
def test_what_is_learned_by_heart_or_preferred_was_rejected_by_no_guard(told: list[dict[str, Reward]], style: PromptStyle) -> None:
    pool = [proposed(*one.items()) for one in told]
    allowed = {json.dumps(completion_of(t, style)) for one in told for t, r in one.items() if r.rejected is None}
    helping = {
        json.dumps(completion_of(t, style)) for one in told for t, r in one.items() if r.rejected is None and (r.score or 0) > 0
    }
    chosen = sft_rows(pool, WEIGHTS, style, "backward")
    preferred = dpo_rows(pool, WEIGHTS, style, "backward")
    assert {json.dumps(row["completion"]) for row in chosen} <= helping
    assert {json.dumps(row["chosen"]) for row in preferred} <= allowed
    assert all(row["chosen"] != row["rejected"] for row in preferred)
    empty = {json.dumps(completion_of("", style))}
    assert not empty & {json.dumps(row[name]) for row in preferred for name in ("chosen", "rejected")}


def test_the_best_of_a_pair_is_learned_and_preferred_to_the_worst() -> None:
    pool = [proposed(("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4)), ("I say: yes.", BAD))]
    prompt = policy_prompt(LESSONS[0].pair, "transcript", "backward")
    assert sft_rows(pool, WEIGHTS, "transcript", "backward") == [{"prompt": prompt, "completion": " felt.\n"}]
    [row] = dpo_rows(pool, WEIGHTS, "transcript", "backward")
    assert row == {"prompt": prompt, "chosen": " felt.\n", "rejected": " say: yes.\n"}


def test_a_trace_that_leaks_is_the_worst_in_every_other_group_that_holds_one() -> None:
    leaking = proposed(("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4)), ("I say: yes.", BAD), ("I am.", good(0.6, 0.2)))
    clean = proposed(("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4)), ("I echo.", Reward(rejected="echoes_examples")))
    refused = proposed(("I say: yes.", BAD), ("I quote.", BAD))  # nothing is preferred to these, and they count for no turn

    def worst(*pool: ScoredCandidates) -> list[str]:
        return [row["rejected"] for row in dpo_rows(pool, WEIGHTS, "transcript", "backward")]

    assert worst(*[leaking] * 4) == [" say: yes.\n", " was.\n"] * 2
    assert worst(clean, leaking, refused, clean, leaking, clean) == [" was.\n", " say: yes.\n", *[" was.\n"] * 3]


def test_one_trace_that_is_allowed_is_preferred_to_one_that_leaks_and_to_nothing_else() -> None:
    one = proposed(("I felt.", good(0.9, 0.4)), ("I say: yes.", BAD))
    rows = dpo_rows([one] * 4, WEIGHTS, "transcript", "backward")
    assert [row["rejected"] for row in rows] == [" say: yes.\n"] * 2


def near(fidelity: float, nearness: float) -> Reward:
    return replace(good(fidelity, 0.1), nearness=nearness)


def test_a_lean_counts_nearness_for_a_trace_or_against_it_and_then_what_leaks_is_always_the_worst() -> None:
    group = proposed(("I was.", near(0.5, 0.9)), ("I felt.", near(0.65, 0.3)), ("I am.", near(0.7, 0.1)), ("I say: yes.", BAD))
    told = {lean: [trace for _, trace in group.ranked(WEIGHTS, lean)] for lean in (-0.3, 0.0, 0.3)}
    assert told[0.0] == told[-0.3] == ["I am.", "I felt.", "I was.", "I say: yes."]
    assert told[0.3] == ["I was.", "I felt.", "I am.", "I say: yes."]
    for lean, best in ((0.3, " was.\n"), (-0.3, " am.\n")):
        rows = dpo_rows([group] * 3, WEIGHTS, "transcript", "backward", lean)
        assert [(row["chosen"], row["rejected"]) for row in rows] == [(best, " say: yes.\n")] * 3


@given(TOLD, st.floats(-5, 5))
def test_no_lean_makes_a_rejected_trace_worth_more_than_one_that_is_allowed(told: dict[str, Reward], lean: float) -> None:
    ranked = proposed(*told.items()).ranked(WEIGHTS, lean)
    worths = {kind: [worth for worth, trace in ranked if (told[trace].rejected is None) is kind] for kind in (True, False)}
    assert all(worth == 0 for worth in worths[False])
    assert all(worth >= 0 for worth in worths[True])


def test_of_equals_the_first_that_was_proposed_is_the_best() -> None:
    ranked = proposed(("I was.", good(0.5, 0.1)), ("I felt.", good(0.5, 0.1))).ranked(WEIGHTS)
    assert [trace for _, trace in ranked] == ["I was.", "I felt."]


def test_where_no_trace_helps_or_none_is_clearly_better_nothing_is_learned() -> None:
    misleading = proposed(("I was.", good(0.4, -0.1)), ("I felt.", good(0.4 + LEAST_MARGIN / 2, 0.0)))
    rejected, alone = proposed(("I was.", BAD), ("I felt.", BAD)), proposed(("I was.", good(0.4, -0.1)))
    pool = [misleading, rejected, alone]
    assert sft_rows(pool, WEIGHTS, "transcript", "backward") == []
    assert dpo_rows(pool, WEIGHTS, "transcript", "backward") == []


def test_a_pool_that_was_read_teaches_what_one_that_was_made_does(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(RAW)
    read = filled(path, writer()[0])
    for rows in (sft_rows, dpo_rows):
        assert rows(read, WEIGHTS, "transcript", "backward") == rows(POOL, WEIGHTS, "transcript", "backward")
    assert dpo_rows(read, WEIGHTS, "transcript", "backward")


def test_rewards_stand_in_the_file_as_they_are() -> None:
    rows = [json.loads(line) for line in RAW.splitlines()]
    assert [row["rewards"] for row in rows] == [[asdict(reward) for reward in one.rewards] for one in POOL]


# Completions ---------------------------------------------------------------------------------------------------------


@given(st.text())
@example(" felt tired, sad, and bl")
@example("'m tired, very")
@example(" saw it. And then, wh")
def test_what_is_learned_is_read_as_the_trace_that_was_scored_but_for_a_full_stop(written: str) -> None:
    trace = parse_trace("transcript", written)
    again = parse_trace("transcript", completion_of(trace, "transcript")) if trace else ""
    if any(letter.isalnum() for letter in trace.removeprefix("I ")):  # else there is nothing in it to be learned
        assert again in {trace, f"{trace}."}
    assert completion_of(trace, "transcript").count("\n") == 1


@given(st.text())
@example("{")
def test_a_message_that_is_learned_is_read_as_the_trace_that_was_scored(written: str) -> None:
    trace = parse_trace("instruction", written)
    assert parse_trace("instruction", completion_text(completion_of(trace, "instruction"))) == trace


def test_an_object_that_is_broken_stays_so() -> None:
    assert parse_trace("instruction", completion_text(completion_of(MALFORMED, "instruction"))) == MALFORMED
