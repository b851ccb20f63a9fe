"""memory/training/candidate_pool.py: sampling resumes anywhere, keeps to its budget, and teaches no rejected trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import PAIR, FunctionChatModel, function_model, scripted
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.fidelity import LikelihoodGain
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.recon.propose import MALFORMED, parse_trace
from usertwin.memory.training.candidate_pool import (
    MIN_MARGIN,
    ScoredCandidates,
    completion_of,
    dpo_rows,
    sample_candidates,
    sft_rows,
)
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.policy import completion_text, policy_prompt
from usertwin.memory.training.rewards import Reward, RewardWeights
from usertwin.personas import ModelError, UsageError, VerdictError

EXAMPLES = [TrainingExample("log/Ann", replace(PAIR, conversation_id=f"talk-{i}", position=i)) for i in range(5)]
#: Completions of the model: useless, a leak, useful, empty, and with multi-byte letters.
COMPLETIONS = (" was there", " want the early train to Rome please", " wanted to go early", "", " fühlte mich wohl 🙂")
WEIGHTS = RewardWeights()


def proposer() -> tuple[Any, FunctionChatModel]:
    return function_model(lambda prompt, seed: COMPLETIONS[seed % len(COMPLETIONS)])


def sample(
    path: Path, model: Any, token_budget: int = 10_000, examples: Sequence[TrainingExample] = EXAMPLES, **options: Any
) -> list[ScoredCandidates]:
    options = {"weights": WEIGHTS, "proposal_mode": "backward", "group_size": 3, "seed": 0} | options
    return asyncio.run(
        sample_candidates(
            path, examples, model, options.pop("fidelity", LikelihoodGain(FakeScorer())), rejection_reason,
            token_budget=token_budget, count_tokens=lambda text: len(text.split()), **options,
        )
    )  # fmt: skip


def whole_pool() -> tuple[bytes, list[ScoredCandidates]]:
    """The file and the content of an uninterrupted pool."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        pool = sample(path, proposer()[0])
        return path.read_bytes(), pool


RAW, POOL = whole_pool()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of an uninterrupted pool."""
    path = tmp_path / "pool.jsonl"
    path.write_bytes(RAW)
    return path


# The file ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, len(RAW)))
@example(RAW.index("ü".encode()) + 1)
@example(RAW.index(b"\n"))
@example(len(RAW) - 1)
def test_a_pool_cut_off_at_any_byte_is_completed_to_the_same_pool(length: int) -> None:
    model, chat = proposer()
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        path.write_bytes(RAW[:length])
        assert sample(path, model) == POOL
        assert path.read_bytes() == RAW
    assert len(chat.requests) == 3 * (len(EXAMPLES) - RAW[:length].count(b"\n"))  # complete lines are not sampled again


@settings(max_examples=50)
@given(st.integers(0, len(RAW) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_pool_is_read_or_refused_in_one_sentence(place: int, damage: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "pool.jsonl")
        path.write_bytes(RAW[:place] + damage + RAW[place + len(damage) :])
        pool, message = list[ScoredCandidates](), ""
        try:
            pool = sample(path, proposer()[0])
        except UsageError as error:
            message = str(error)
        assert ("pool.jsonl:" in message and "delete the file to sample the candidates again" in message) == (not pool)
        assert [candidates.example for candidates in pool] in ([], EXAMPLES)
        assert all(len(candidates.traces) == len(candidates.rewards) for candidates in pool)


@pytest.mark.parametrize(
    "line",
    ["{}", "[]", "1", '"text"', "null", '{"pair": ["talk-1", 1], "traces": [], "rewards": [], "tokens": 1}',
     '{"pair": ["talk-0", 0], "traces": ["a"], "rewards": [], "tokens": 1}',
     '{"pair": ["talk-0", 0], "traces": [], "rewards": [], "tokens": "x"}',
     '{"pair": ["talk-0", 0], "traces": ["a"], "rewards": [{"worth": 1}], "tokens": 1}'],
)  # fmt: skip
def test_a_line_of_another_shape_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(line + "\n", "utf-8")
    with pytest.raises(UsageError, match=r"pool\.jsonl:1: damaged"):
        sample(path, proposer()[0])


def test_more_lines_than_pairs_belong_to_another_run(path: Path) -> None:
    with pytest.raises(UsageError, match=":4: damaged"):
        sample(path, proposer()[0], examples=EXAMPLES[:3])


def test_a_pool_of_the_same_pairs_in_another_order_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match=r":1: damaged \(of another pair\); delete the file"):
        sample(path, proposer()[0], examples=EXAMPLES[::-1])


def test_a_model_error_keeps_the_finished_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"

    def reply(prompt: str, seed: int) -> str:
        if seed > 5:
            raise ModelError("gone")
        return COMPLETIONS[seed % len(COMPLETIONS)]

    with pytest.raises(ModelError, match="gone"):
        sample(path, function_model(reply)[0])
    assert path.read_bytes() == b"".join(RAW.splitlines(keepends=True)[:2])


def test_rewards_are_stored_as_they_are() -> None:
    rows = [json.loads(line) for line in RAW.splitlines()]
    assert [row["rewards"] for row in rows] == [[asdict(reward) for reward in candidates.rewards] for candidates in POOL]


def test_a_pool_read_from_its_file_teaches_the_same(path: Path) -> None:
    pool = sample(path, proposer()[0])
    for make_rows in (sft_rows, dpo_rows):
        assert make_rows(pool, WEIGHTS, "transcript", "backward") == make_rows(POOL, WEIGHTS, "transcript", "backward")
    assert dpo_rows(pool, WEIGHTS, "transcript", "backward")


# Sampling ------------------------------------------------------------------------------------------------------------


def test_every_pair_has_its_own_seeds(tmp_path: Path) -> None:
    model, chat = proposer()
    sample(tmp_path / "pool.jsonl", model, seed=40)
    assert [seed for _, seed in chat.requests] == list(range(40, 55))


def test_every_trace_is_rewarded_and_its_tokens_are_counted() -> None:
    for candidates in POOL:
        pair = candidates.example.pair
        assert len(candidates.traces) == len(candidates.rewards) == 3
        assert candidates.tokens == sum(len(trace.split()) + 1 for trace in candidates.traces)
        assert [reward.rejected for reward in candidates.rewards] == [
            rejection_reason(trace, pair) for trace in candidates.traces
        ]


@settings(max_examples=25)
@given(st.integers(1, sum(candidates.tokens for candidates in POOL) + 9))
def test_no_pair_is_started_once_the_budget_is_spent(budget: int) -> None:
    with TemporaryDirectory() as folder:
        path, (model, chat) = Path(folder, "pool.jsonl"), proposer()
        pool = sample(path, model, budget)
        assert pool == POOL[: len(pool)]
        assert sum(candidates.tokens for candidates in pool[:-1]) < budget
        assert len(pool) == len(POOL) or sum(candidates.tokens for candidates in pool) >= budget
        requests = len(chat.requests)
        assert sample(path, model, budget) == pool
        assert len(chat.requests) == requests  # a second run finds the budget spent


def test_progress_ends_at_the_budget(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    sample(tmp_path / "pool.jsonl", proposer()[0], 20, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[0] == ("proposals", 0, 20)
    assert calls[-1] == ("proposals", 20, 20)


# Rows ----------------------------------------------------------------------------------------------------------------


def candidates_of(*rows: tuple[str, Reward]) -> ScoredCandidates:
    return ScoredCandidates(EXAMPLES[0], tuple(trace for trace, _ in rows), tuple(reward for _, reward in rows), 9)


def good(fidelity: float, score: float) -> Reward:
    return Reward(fidelity=fidelity, leak=1.0, length=1.0, format=1.0, score=score)


LEAK = Reward(rejected="quotes_action")
REWARDS = st.one_of(
    st.builds(Reward, **dict.fromkeys(("fidelity", "leak", "length", "format"), st.floats(0, 1)), score=st.floats(-5, 5)),
    st.sampled_from(["new_words", "empty"]).map(lambda name: Reward(rejected=name)),
)
CANDIDATES = st.dictionaries(st.sampled_from(["", "I felt", "I was.", "I'd go, yes", "I am", "I 7"]), REWARDS, min_size=1)
STYLES: tuple[PromptStyle, ...] = ("transcript", "instruction")


@settings(max_examples=50)
@given(st.lists(CANDIDATES, max_size=4), st.sampled_from(STYLES))
def test_no_rejected_trace_is_learned_or_preferred(groups: list[dict[str, Reward]], style: PromptStyle) -> None:
    pool = [candidates_of(*group.items()) for group in groups]
    rewards = [(json.dumps(completion_of(trace, style)), reward) for group in groups for trace, reward in group.items()]
    accepted = {completion for completion, reward in rewards if reward.rejected is None}
    useful = {completion for completion, reward in rewards if reward.rejected is None and (reward.score or 0) > 0}
    completions = {json.dumps(row["completion"]) for row in sft_rows(pool, WEIGHTS, style, "backward")}
    preferences = dpo_rows(pool, WEIGHTS, style, "backward")
    assert completions <= useful
    assert {json.dumps(row["chosen"]) for row in preferences} <= accepted
    assert all(row["chosen"] != row["rejected"] for row in preferences)
    empty = {json.dumps(completion_of("", style))}
    assert not empty & {json.dumps(row[name]) for row in preferences for name in ("chosen", "rejected")}


@given(CANDIDATES)
def test_a_rejected_trace_never_ranks_above_an_accepted_one(group: dict[str, Reward]) -> None:
    totals = [(total, group[trace].rejected is None) for total, trace in candidates_of(*group.items()).ranked(WEIGHTS)]
    assert all(total == 0 for total, accepted in totals if not accepted)
    assert all(total >= 0 for total, accepted in totals if accepted)


def test_the_best_trace_is_learned_and_preferred_to_the_worst() -> None:
    pool = [candidates_of(("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4)), ("I say: yes.", LEAK))]
    prompt = policy_prompt(EXAMPLES[0].pair, "transcript", "backward")
    assert sft_rows(pool, WEIGHTS, "transcript", "backward") == [{"prompt": prompt, "completion": " felt.\n"}]
    [row] = dpo_rows(pool, WEIGHTS, "transcript", "backward")
    assert row == {"prompt": prompt, "chosen": " felt.\n", "rejected": " say: yes.\n"}


def test_rows_of_instructions_are_messages() -> None:
    pool = [candidates_of(("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4)))]
    [row] = dpo_rows(pool, WEIGHTS, "instruction", "backward")
    assert row["chosen"] == [{"role": "assistant", "content": "I felt."}]
    assert row["prompt"][0]["role"] == "user"


def test_every_second_group_with_a_leak_uses_it_as_the_rejected_trace() -> None:
    was, felt = ("I was.", good(0.4, 0.1)), ("I felt.", good(0.9, 0.4))
    leaking = candidates_of(was, felt, ("I say: yes.", LEAK), ("I am.", good(0.6, 0.2)))
    clean = candidates_of(was, felt, ("I echo.", Reward(rejected="echoes_examples")))
    rejected = candidates_of(("I say: yes.", LEAK), ("I quote.", LEAK))  # has nothing to prefer, and does not count

    def rejected_of(*pool: ScoredCandidates) -> list[str]:
        return [row["rejected"] for row in dpo_rows(pool, WEIGHTS, "transcript", "backward")]

    assert rejected_of(*[leaking] * 4) == [" say: yes.\n", " was.\n"] * 2
    assert rejected_of(clean, leaking, rejected, clean, leaking, clean) == [" was.\n", " say: yes.\n", *[" was.\n"] * 3]


def test_a_single_accepted_trace_is_preferred_only_to_a_leak() -> None:
    candidates = candidates_of(("I felt.", good(0.9, 0.4)), ("I say: yes.", LEAK))
    rows = dpo_rows([candidates] * 4, WEIGHTS, "transcript", "backward")
    assert [row["rejected"] for row in rows] == [" say: yes.\n"] * 2


def test_equal_traces_rank_in_the_order_of_proposal() -> None:
    ranked = candidates_of(("I was.", good(0.5, 0.1)), ("I felt.", good(0.5, 0.1))).ranked(WEIGHTS)
    assert [trace for _, trace in ranked] == ["I was.", "I felt."]


def test_a_pair_without_a_useful_or_clearly_better_trace_gives_no_row() -> None:
    misleading = candidates_of(("I was.", good(0.4, -0.1)), ("I felt.", good(0.4 + MIN_MARGIN / 2, 0.0)))
    rejected, single = candidates_of(("I was.", LEAK), ("I felt.", LEAK)), candidates_of(("I was.", good(0.4, -0.1)))
    pool = [misleading, rejected, single]
    assert sft_rows(pool, WEIGHTS, "transcript", "backward") == []
    assert dpo_rows(pool, WEIGHTS, "transcript", "backward") == []


@pytest.mark.parametrize("make_rows", [sft_rows, dpo_rows])
def test_traces_of_equal_fidelity_teach_no_length(make_rows: Any) -> None:
    short, long = Reward(fidelity=0.5, leak=1, length=0.2, score=0.3), good(0.5, 0.3)
    assert make_rows([candidates_of(("I was.", short), ("I felt.", long))], WEIGHTS, "transcript", "backward") == []
    assert make_rows([candidates_of(("I was.", short), ("I felt.", good(0.6, 0.4)))], WEIGHTS, "transcript", "backward")


@pytest.mark.parametrize("make_rows", [sft_rows, dpo_rows])
def test_a_pair_without_a_verdict_teaches_nothing(make_rows: Any) -> None:
    unread = Reward(rejected="no_verdict")
    pool = [candidates_of(("I was.", unread), ("I felt.", unread), ("I say: yes.", LEAK))] * 2
    assert make_rows(pool, WEIGHTS, "transcript", "backward") == []


def test_sampling_ends_when_no_verdict_of_the_judge_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    model, _ = proposer()
    fidelity = JudgeFidelity(scripted("a cake"), scripted("I cannot decide."))
    for rows in (4, 4):  # the same command fails in the same way, without asking again
        with pytest.raises(VerdictError, match="no readable verdict for any of 4 pairs"):
            sample(path, model, fidelity=fidelity)
        assert len(path.read_text("utf-8").splitlines()) == rows


# Completions ---------------------------------------------------------------------------------------------------------


@given(st.text())
@example(" felt tired, sad, and bl")
@example("'m tired, very")
@example(" saw it. And then, wh")
def test_a_transcript_completion_parses_to_the_scored_trace_apart_from_a_full_stop(text: str) -> None:
    trace = parse_trace("transcript", text)
    parsed = parse_trace("transcript", completion_of(trace, "transcript")) if trace else ""
    if any(letter.isalnum() for letter in trace.removeprefix("I ")):  # other traces teach nothing
        assert parsed in {trace, f"{trace}."}
    assert completion_of(trace, "transcript").count("\n") == 1


@given(st.text())
@example("{")
def test_a_message_parses_to_the_scored_trace(text: str) -> None:
    trace = parse_trace("instruction", text)
    assert parse_trace("instruction", completion_text(completion_of(trace, "instruction"))) == trace


def test_a_malformed_object_stays_malformed() -> None:
    assert parse_trace("instruction", completion_text(completion_of(MALFORMED, "instruction"))) == MALFORMED
