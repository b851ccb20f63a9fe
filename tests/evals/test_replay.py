"""Replay: the records of held-out turns, and resuming an interrupted measurement."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import FunctionChatModel, function_model
from usertwin.evals.arm_names import DEFAULT_ARMS, QUOTING_ARMS
from usertwin.evals.records.measured_turns import MeasuredTurn, read_turn_file
from usertwin.evals.replay.arms import Arms
from usertwin.evals.replay.context_fit import context_fits
from usertwin.evals.replay.evaluate import evaluate
from usertwin.evals.replay.held_out import held_out_pairs, other_person_store
from usertwin.evals.replay.replay import Replay, ReplayConfig
from usertwin.memory import Triple
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.text.transcript import ME, action_completion
from usertwin.memory.twin.record import default_home
from usertwin.personas import ModelError, Pair, TwinError, UsageError
from usertwin.simulator import SimulatedUser

WORDS = ["hi", "no", "yes", "tomorrow", "please", "the", "weather", "in", "Rome", "Oslo", "thanks", "bye"]
#: The default arms without another person, each of which writes a reply at a turn.
FOUR = tuple(arm for arm in DEFAULT_ARMS if arm != "other_person")
#: Held-out turns of Ann; the twin writes a trace at each.
TURNS = 12


def by_prompt(prompt: str, seed: int) -> str:
    """Return a reply that depends on the prompt alone."""
    number = zlib.crc32(f"{prompt}{seed}".encode())
    return " ".join(WORDS[(number >> shift) % len(WORDS)] for shift in (0, 4, 8))


class RecordingScorer:
    """A scorer that computes nats by a function and records the prompts."""

    name = "recording"

    def __init__(self, nats: Callable[[str, str], float]) -> None:
        self.nats, self.prompts = nats, list[str]()

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.prompts += [prompt for prompt, _ in items]
        return [Likelihood(self.nats(*item), 1, (self.nats(*item),), (len(item[1]),)) for item in items]


def measured(
    say: Callable[[str, int], str] = by_prompt,
    *,
    pairs: Callable[[list[Pair]], list[Pair]] = lambda all_of_them: all_of_them,
    scorer: Any = None,
    keep: Path | None = None,
    arms: tuple[str, ...] = FOUR,
    **how: Any,
) -> tuple[list[MeasuredTurn], FunctionChatModel]:
    """Measure Ann; return the records and her chat model."""
    model, chat = function_model(say)
    config = ReplayConfig(**dict[str, Any](arms=arms, generate=4, seed=5) | how)
    folder = default_home() / "ann"
    with SimulatedUser.load("ann", model=model, k=3) as user:
        replay = Replay(
            user=user, scorer=scorer or FakeScorer(), embedder=FakeEmbedder(), arms=Arms(user, names=arms, seed=5),
            config=config, person="small/Ann",
        )  # fmt: skip
        result = asyncio.run(replay.run(pairs(held_out_pairs(user, folder)[0]), path=keep))
    return result, chat


def failing_at(number: int) -> Callable[[str, int], str]:
    """Return a model that fails from this call on."""
    left = iter(range(number - 1))

    def say(prompt: str, seed: int) -> str:
        if next(left, None) is None:
            raise ConnectionError("the server went away")
        return by_prompt(prompt, seed)

    return say


# Records ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ann")
def test_a_record_holds_person_and_context() -> None:
    result, _ = measured(generate=0)
    assert len(result) == 12
    turn = result[4]
    assert (turn.person, turn.conversation_id, turn.position) == ("small/Ann", "talk-17", 3)
    assert turn.cluster == ("small/Ann", "talk-17")
    assert turn.action == "tomorrow, day 17"
    assert turn.context[-2:] == ((ME, "hi, the weather in Lima please"), ("desk-1", "Which day do you mean for Lima?"))
    assert turn.goal == "You want the weather for Lima."
    assert turn.characters == len(action_completion(turn.action)) - 1 == len("tomorrow, day 17") + 1
    assert set(turn.bits) == set(FOUR)
    assert not turn.replies


@pytest.mark.usefixtures("ann")
def test_a_record_holds_the_recalled_turns_with_their_traces() -> None:
    scorer = RecordingScorer(lambda prompt, action: -1.0)
    result, _ = measured(scorer=scorer, generate=0)
    shown = scorer.prompts[FOUR.index("recon") :: len(FOUR)]
    for turn, prompt in zip(result, shown, strict=True):
        assert len(turn.recalled) == 3
        assert [one.similarity for one in turn.recalled] == sorted((one.similarity for one in turn.recalled), reverse=True)
        blocks = prompt.split("\n---\n\n")[:-1]  # the most similar one last
        for memory, block in zip(turn.recalled, reversed(blocks), strict=True):
            assert block.endswith(f"(Me thinking: {memory.reasoning})\nMe: {memory.action}")
            assert memory.conversation_id != turn.conversation_id
            assert memory.context[-1][1] in block


@pytest.mark.usefixtures("ann")
def test_a_past_turn_is_one_of_the_memory_with_its_own_context() -> None:
    result, _ = measured(generate=0)
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0]) as user:
        known = {(triple.pair.conversation_id, triple.pair.position): triple.pair for triple in user.store.triples()}
    for turn in result:
        assert turn.past is not None
        pair = known[turn.past.conversation_id, turn.past.position]
        assert (turn.past.action, turn.past.goal) == (pair.action, pair.goal)
        assert [text for _, text in turn.past.context] == [shown.text for shown in pair.context]


@pytest.mark.usefixtures("ann")
def test_fits_are_cosines_with_parts_of_the_context() -> None:
    """The vectors of the fake embedder are word counts, so the fit can be counted by hand."""
    [turn], _ = measured(pairs=lambda every: [every[4]], generate=1, arms=("no_memory", "verbatim"))
    assert turn.real_fit is not None
    assert turn.past is not None
    assert set(turn.fit) == {"no_memory", "verbatim"}
    embed = FakeEmbedder().embed
    real, past, reply, latest, own, goal = embed(
        [turn.action, turn.past.action, turn.replies["verbatim"][0], turn.context[-1][1], turn.context[-2][1], turn.goal]
    )
    assert turn.context[-2][0] == ME
    for fit, vector in ((turn.real_fit, real), (turn.past.misplaced_fit, past), (turn.fit["verbatim"], reply)):
        cosines = [float(vector @ part) for part in (latest, own, goal)]
        assert [fit.latest, fit.own, fit.goal] == [pytest.approx(cosine, abs=1e-4) for cosine in cosines]
    mean = embed([text for _, text in turn.context]).mean(axis=0)
    assert turn.real_fit.context == pytest.approx(float(real @ mean) / float((mean @ mean) ** 0.5), abs=1e-4)


def test_a_part_of_the_context_that_is_not_there_has_the_fit_0() -> None:
    [fit] = context_fits(FakeEmbedder(), [("hello", ((ME, "hello"),), "")])
    assert (fit.latest, fit.context, fit.own, fit.goal) == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.usefixtures("ann")
def test_other_action_is_recorded_if_there_is_another_person() -> None:
    model, _ = function_model(by_prompt)
    with SimulatedUser.load("ann", model=model, k=3) as user, ExitStack() as stack:
        folder = default_home() / "ann"
        other = other_person_store(user, folder, FakeEmbedder(), stack)
        arms = Arms(user, names=DEFAULT_ARMS, other=other)
        replay = Replay(
            user=user, scorer=FakeScorer(), embedder=FakeEmbedder(), arms=arms, config=ReplayConfig(generate=0), person="x"
        )
        result = asyncio.run(replay.run(held_out_pairs(user, folder)[0]))
    assert all("order" in turn.other_action.lower() for turn in result)
    assert all(not turn.other_action for turn in measured(generate=0)[0])


@pytest.mark.usefixtures("ann")
def test_every_arm_writes_n_replies_and_only_the_twin_reasons() -> None:
    result, chat = measured(samples=3, generate=2)
    wrote = [turn for turn in result if turn.replies]
    assert len(wrote) == 2
    for turn in wrote:
        assert set(turn.replies) == set(FOUR)
        assert all(len(said) == 3 for part in (turn.replies, turn.similarity, turn.rank) for said in part.values())
        assert set(turn.reasoning) == {"recon"}
        assert len(set(turn.replies["no_memory"])) > 1  # each with a seed of its own
    assert len(chat.prompts) == TURNS + 2 * 3 * len(FOUR)


@pytest.mark.usefixtures("ann")
def test_the_real_action_as_reply_has_similarity_1_and_rank_1() -> None:
    def say(prompt: str, seed: int) -> str:
        return "tomorrow, day 17"

    [turn], _ = measured(say, pairs=lambda every: [every[4]], generate=1)
    assert turn.similarity["no_memory"] == (pytest.approx(1.0, abs=1e-5),)
    assert turn.rank["no_memory"] == (1.0,)


@pytest.mark.usefixtures("ann")
def test_similarity_and_rank_equal_their_definitions() -> None:
    """Counted by hand from the vectors; ties count a half."""
    [turn], _ = measured(pairs=lambda every: [every[0]], generate=1, choices=6)
    embedder = FakeEmbedder()
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0]) as user:
        pair = held_out_pairs(user, default_home() / "ann")[0][0]
        others = Distractors([triple.pair for triple in user.store.triples()], embedder).nearest(pair, 5)
    assert len(others) == 5
    real, *rest = embedder.embed([pair.action, *others])
    for arm, (reply,) in turn.replies.items():
        [said] = embedder.embed([reply])
        near = float(said @ real)
        assert turn.similarity[arm] == (pytest.approx(near, abs=1e-5),)
        share = [1.0 if said @ one < said @ real else 0.5 if said @ one == said @ real else 0.0 for one in rest]
        assert turn.rank[arm] == (pytest.approx(sum(share) / 5),)


@pytest.mark.usefixtures("ann")
def test_quoting_arms_reply_with_what_the_person_said_and_call_no_model() -> None:
    scorer = RecordingScorer(lambda prompt, action: -1.0)
    [turn], chat = measured(pairs=lambda every: [every[4]], generate=1, arms=QUOTING_ARMS, samples=3, choices=4, scorer=scorer)
    assert not turn.bits
    assert not turn.choice
    assert not chat.prompts
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0]) as user:
        pair = held_out_pairs(user, default_home() / "ann")[0][4]
        said = [memory.triple.pair.action for memory in user.store.recall(pair, 16, before=pair.when)]
    vectors = FakeEmbedder().embed(said)
    likeness = [float(sum(vector @ other for other in vectors)) for vector in vectors]
    assert turn.replies == {"verbatim": (said[0],), "medoid": (said[likeness.index(max(likeness))],)}
    assert set(turn.similarity) == set(turn.rank) == set(QUOTING_ARMS)


# Forced choice -------------------------------------------------------------------------------------------------------


def chosen(nats: Callable[[bool, str, str], float], place: int = 4, **how: Any) -> dict[str, float]:
    """Return each arm's mean choice under a scorer of (is it real, prompt, completion)."""
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0]) as user:
        pair = held_out_pairs(user, default_home() / "ann")[0][place]
    real = action_completion(pair.action)
    scorer = RecordingScorer(lambda prompt, action: nats(action == real, prompt, action))
    [turn], _ = measured(pairs=lambda every: [every[place]], scorer=scorer, generate=1, **dict[str, Any](choices=4) | how)
    return dict(turn.choice)


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("place", [0, 4, 11])
def test_a_scorer_that_prefers_the_real_action_gives_choice_1(place: int) -> None:
    assert chosen(lambda real, prompt, action: 0.0 if real and prompt != "Me:" else -9.0, place) == dict.fromkeys(FOUR, 1.0)


@pytest.mark.usefixtures("ann")
def test_a_scorer_that_prefers_other_actions_gives_choice_0() -> None:
    assert chosen(lambda real, prompt, action: -9.0 if real and prompt != "Me:" else -1.0) == dict.fromkeys(FOUR, 0.0)


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("choices", [2, 4])
def test_ties_share_the_choice(choices: int) -> None:
    assert chosen(lambda real, prompt, action: -1.0, choices=choices) == dict.fromkeys(FOUR, 1 / choices)


@pytest.mark.usefixtures("ann")
def test_choice_subtracts_the_prior() -> None:
    """The scorer prefers the real action with and without a prompt, so the prompt adds nothing."""
    assert chosen(lambda real, prompt, action: 0.0 if real else -9.0) == dict.fromkeys(FOUR, 0.25)


@pytest.mark.usefixtures("ann")
def test_only_an_arm_with_the_action_in_its_prompt_has_choice_1() -> None:
    result = chosen(lambda real, prompt, action: 0.0 if real and "(Me thinking:" in prompt else -9.0)
    assert result == dict.fromkeys(FOUR, 0.25) | {"recon": 1.0}


@pytest.mark.usefixtures("ann")
def test_without_choices_there_is_no_choice() -> None:
    result, _ = measured(generate=2)
    assert not any(turn.choice for turn in result)


# Resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("number", [1, 2, TURNS + 1, TURNS + len(FOUR), TURNS + 2 * len(FOUR) + 3, TURNS + 4 * len(FOUR)])
def test_an_interrupted_measurement_resumes_to_the_same_records(tmp_path: Path, number: int) -> None:
    whole, chat = measured()
    assert len(chat.prompts) == TURNS + 4 * len(FOUR)
    keep = tmp_path / "0.jsonl"
    with pytest.raises(ModelError, match="the server went away"):
        measured(failing_at(number), keep=keep)
    kept = read_turn_file(keep)
    assert kept == whole[: len(kept)]
    written = sum(bool(turn.replies) for turn in kept)
    assert written == max(0, number - 1 - TURNS) // len(FOUR)  # every turn whose replies had all come
    rest, again = measured(keep=keep)
    assert rest == whole
    assert read_turn_file(keep) == whole
    # Nothing is asked again about what was kept: the thoughts of the other turns, and then their replies.
    assert again.prompts == chat.prompts[len(kept) : TURNS] + chat.prompts[TURNS + written * len(FOUR) :]


@pytest.mark.usefixtures("ann")
def test_recorded_turns_are_not_scored_again(tmp_path: Path) -> None:
    keep = tmp_path / "0.jsonl"
    whole, _ = measured(keep=keep, generate=0)
    lines = keep.read_text("utf-8").splitlines(keepends=True)
    keep.write_text("".join(lines[:5] + lines[9:]), "utf-8")
    scorer = RecordingScorer(lambda prompt, action: -1.0)
    result, _ = measured(keep=keep, generate=0, scorer=scorer)
    assert len(scorer.prompts) == 4 * len(FOUR)
    assert result[:5] + result[9:] == whole[:5] + whole[9:]
    assert [(turn.conversation_id, turn.position) for turn in result] == [(t.conversation_id, t.position) for t in whole]


@pytest.mark.usefixtures("ann")
def test_a_finished_measurement_calls_no_model(tmp_path: Path) -> None:
    keep = tmp_path / "0.jsonl"
    whole, _ = measured(keep=keep)
    scorer = RecordingScorer(lambda prompt, action: -1.0)
    result, chat = measured(keep=keep, scorer=scorer)
    assert result == whole
    assert not chat.prompts
    assert not scorer.prompts


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_truncated_file_is_resumed(tmp_path: Path, left: int) -> None:
    """Within the last line, after its first letter, and of a line that lacks only its end."""
    keep = tmp_path / "0.jsonl"
    whole, _ = measured(keep=keep)
    lines = keep.read_bytes().splitlines(keepends=True)
    keep.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    assert read_turn_file(keep) == whole[:-1]
    assert measured(keep=keep)[0] == whole
    assert read_turn_file(keep) == whole


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize(
    "line", ["{broken", "[]", "3", '{"person": "Ann"}', '{"replies": [], "similarity": [], "rank": []}', ""]
)
def test_a_broken_line_is_an_error_with_file_and_line(tmp_path: Path, line: str) -> None:
    keep = tmp_path / "0.jsonl"
    measured(keep=keep, generate=0)
    lines = keep.read_text("utf-8").splitlines()
    keep.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n", "utf-8")
    before = keep.read_bytes()
    with pytest.raises(UsageError, match=r"0\.jsonl:4: not a valid measured turn"):
        measured(keep=keep)
    assert keep.read_bytes() == before


@pytest.mark.usefixtures("ann")
def test_concurrency_does_not_change_the_records() -> None:
    assert measured(concurrency=4)[0] == measured()[0]


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ann")
def test_only_absent_arms_are_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to show for other_person, trained"):
        measured(arms=("other_person", "trained"))


def test_a_held_out_conversation_in_the_memory_is_an_error(ann: str) -> None:
    folder = default_home() / ann
    with SimulatedUser.load(ann, model=function_model(by_prompt)[0]) as user:
        user.store.add([Triple(held_out_pairs(user, folder)[0][0])])
        with pytest.raises(TwinError, match='holds the held-out conversation "talk-16"'):
            asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=folder))


@pytest.mark.usefixtures("ann")
def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    keep = tmp_path / "0.jsonl"
    result, _ = measured(keep=keep, generate=1)
    lines = keep.read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert [MeasuredTurn.from_json(json.loads(line)) for line in lines] == result
