"""Drift: free-running and teacher-forced replies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import pytest

from conftest import FunctionChatModel, function_model
from usertwin.evals.metrics.writing_style import style_distance
from usertwin.evals.records.older_results import upgrade
from usertwin.evals.records.result_shapes import DriftTurn
from usertwin.evals.replay.drift import DEPTHS, drift, drift_result, length_result
from usertwin.memory import Recalled, Settings
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.abandonment import AbandonmentModel
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.personas import Conversation, Pair, Turn
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")

PLAIN = Settings(k=2, window=6, traces="none", reasons=False)


def long_talk(turns: int = 12, name: str = "long") -> Conversation:
    """A talk in which Ann says "yes" twice, and otherwise something else each time."""
    said: list[Turn] = []
    for number in range(1, turns + 1):
        answer = "yes" if number in {2, 3} else f"answer {number} of {name}"
        said += [Turn("desk", "agent", f"question {number} of {name}"), Turn("Ann", "user", answer)]
    return Conversation(name, tuple(said), "2024-06-01T10:00:00+00:00")


@pytest.fixture
def opened(ann: str) -> Iterator[tuple[SimulatedUser, FunctionChatModel]]:
    """Ann's twin, which never says the same twice, and its model."""
    numbers = itertools.count(1)
    model, chat = function_model(lambda prompt, seed: f"twin {next(numbers)}")
    with SimulatedUser.load(ann, model=model, settings=PLAIN) as user:
        yield user, chat


def run_drift(user: SimulatedUser, *talks: Conversation, most: int = 9) -> list[DriftTurn]:
    pairs = [pair for talk in talks for pair in extract_pairs(talk, "Ann")]
    return asyncio.run(drift(user, FakeEmbedder(), pairs, "small/Ann", max_conversations=most))


def chats(chat: FunctionChatModel) -> list[list[str]]:
    """The present chat in each prompt, the line to be continued left out."""
    return [prompt.split("\n\n")[-1].splitlines()[:-1] for prompt in chat.prompts]


def test_drift_is_measured_at_the_depths_a_conversation_reaches(opened: tuple[SimulatedUser, FunctionChatModel]) -> None:
    result = run_drift(opened[0], long_talk(12), long_talk(4, "short"))
    assert [(one.conversation_id, one.depth) for one in result] == [
        *(("long", depth) for depth in DEPTHS), ("short", 1), ("short", 3),
    ]  # fmt: skip
    assert [one.action for one in result[:4]] == ["answer 1 of long", "yes", "answer 5 of long", "answer 10 of long"]
    assert {one.person for one in result} == {"small/Ann"}


def test_at_the_first_turn_one_reply_serves_both_histories(
    opened: tuple[SimulatedUser, FunctionChatModel],
) -> None:
    user, chat = opened
    [first] = run_drift(user, long_talk(1))
    assert first.free == first.forced == "twin 1"
    assert first.free_similarity == first.forced_similarity
    assert chats(chat) == [["Them: question 1 of long"]]


def test_later_contexts_hold_the_twins_replies_and_the_partners_real_turns(
    opened: tuple[SimulatedUser, FunctionChatModel],
) -> None:
    user, chat = opened
    run_drift(user, long_talk(12))
    asked = chats(chat)
    assert len(asked) == 10 + 3  # a free turn each, and three more after the real history
    led = [lines for lines in asked if any(line.startswith(("Me: answer", "Me: yes")) for line in lines)]
    assert len(led) == 3
    free = [lines for lines in asked if lines not in led]
    said: dict[int, str] = {}  # what the twin said at each turn: the third, fifth and tenth are followed by another reply
    numbers = itertools.count(1)
    for depth in range(1, 11):
        said[depth] = f"Me: twin {next(numbers)}"
        if depth in DEPTHS[1:]:
            next(numbers)
    for depth, lines in enumerate(free, 1):
        past = [line for before in range(1, depth) for line in (f"Them: question {before} of long", said[before])]
        assert lines == [*past, f"Them: question {depth} of long"][-6:]


def test_the_forced_context_holds_real_turns_only(opened: tuple[SimulatedUser, FunctionChatModel]) -> None:
    user, chat = opened
    result = run_drift(user, long_talk(12))
    led = [lines for lines in chats(chat) if any(line.startswith(("Me: answer", "Me: yes")) for line in lines)]
    assert [lines[-1] for lines in led] == [f"Them: question {depth} of long" for depth in DEPTHS[1:]]
    assert not [line for lines in led for line in lines if line.startswith("Me: twin")]
    assert led[0][-2] == "Me: yes"
    assert all(one.free != one.forced for one in result[1:])


def test_a_repeated_text_is_replaced_by_position(
    opened: tuple[SimulatedUser, FunctionChatModel],
) -> None:
    user, chat = opened
    run_drift(user, long_talk(4))
    [*_, last] = [lines for lines in chats(chat) if lines[-1] == "Them: question 4 of long"]
    assert [line for line in last if line.startswith("Me:")] == ["Me: twin 1", "Me: twin 2", "Me: twin 3"]


def test_an_empty_reply_keeps_the_real_turn(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: "")
    with SimulatedUser.load(ann, model=model, settings=PLAIN) as user:
        result = run_drift(user, long_talk(3))
    assert [one.free for one in result] == ["", ""]
    assert "Me: answer 1 of long" in chats(chat)[-1]


def test_a_reasoning_twin_reasons_in_drift_too(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: "wants it now" if prompt.endswith("(Me thinking:") else "soon")
    with SimulatedUser.load(ann, model=model, settings=Settings(k=2, window=6, traces="recon", reasons=True)) as user:
        [one] = run_drift(user, long_talk(1))
    assert one.free == "soon"
    assert chat.prompts[1].endswith("(Me thinking: wants it now)\nMe:")


def test_conversations_are_limited_and_long_ones_preferred(opened: tuple[SimulatedUser, FunctionChatModel]) -> None:
    talks = [long_talk(length, f"talk {length}") for length in (1, 2, 3, 11, 5)]
    assert {one.conversation_id for one in run_drift(opened[0], *talks, most=1)} == {"talk 11"}
    assert len({one.conversation_id for one in run_drift(opened[0], *talks, most=2)}) == 2


def test_abandoned_pairs_are_not_simulated(opened: tuple[SimulatedUser, FunctionChatModel]) -> None:
    talk = long_talk(1)
    pairs: list[Pair] = extract_pairs(Conversation("x", (*talk.turns, Turn("desk", "agent", "bye")), talk.started_at), "Ann")
    assert pairs[-1].abandoned
    result = asyncio.run(drift(opened[0], FakeEmbedder(), pairs, "x", max_conversations=1))
    assert [one.depth for one in result] == [1]


class LeavesAfter(LastTurnModel):
    """Leaves with the replies that are given."""

    texts: tuple[str, ...] = ()

    def leaves(self, pair: Pair) -> bool:
        return pair.action in LeavesAfter.texts


class LeavesSilentlyAfter(AbandonmentModel):
    """Leaves without a word after the turn that is given."""

    text = ""

    def leaves(self, recalled: Sequence[Recalled], query: Pair | None = None) -> bool:
        assert query is not None
        return query.context[-1].text == LeavesSilentlyAfter.text


def lengths(user: SimulatedUser, talk: Conversation) -> tuple[int | None, int | None]:
    """Return the length of a conversation and after how many turns the twin left, the same in all records."""
    [found] = {(turn.turns, turn.left_after) for turn in run_drift(user, talk)}
    return found


def test_the_twin_leaves_with_its_own_reply_or_before_it(
    opened: tuple[SimulatedUser, FunctionChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, _ = opened
    user.last_turn = LeavesAfter(weights=(), bias=0, threshold=0, f1=None, endings=9, validation_turns=9)
    user.abandonment = LeavesSilentlyAfter(0.5, 1.0, 9, 9)
    assert lengths(user, long_talk(4)) == (4, None)
    numbers = itertools.count(1)
    user.model = function_model(lambda prompt, seed: f"twin {next(numbers)}")[0]
    monkeypatch.setattr(LeavesAfter, "texts", ("twin 2", "twin 3"))
    assert lengths(user, long_talk(4)) == (4, 2)
    monkeypatch.setattr(LeavesSilentlyAfter, "text", "question 2 of long")
    assert lengths(user, long_talk(12)) == (12, 1)
    monkeypatch.setattr(LeavesSilentlyAfter, "text", "question 1 of long")  # nobody leaves before they have spoken
    assert lengths(user, long_talk(4)) == (4, None)


def test_a_silent_leaving_after_the_last_turn_is_as_long(
    opened: tuple[SimulatedUser, FunctionChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    user, _ = opened
    user.last_turn, user.abandonment = None, LeavesSilentlyAfter(0.5, 1.0, 9, 9)
    monkeypatch.setattr(LeavesSilentlyAfter, "text", "bye")
    talk = long_talk(3)
    assert lengths(user, replace(talk, turns=(*talk.turns, Turn("desk", "agent", "bye")))) == (3, 3)
    assert lengths(user, talk) == (3, None)


def test_progress_reaches_the_end(opened: tuple[SimulatedUser, FunctionChatModel]) -> None:
    updates: list[tuple[str, int, int]] = []
    pairs = extract_pairs(long_talk(2), "Ann")
    asyncio.run(drift(opened[0], FakeEmbedder(), pairs, "x", max_conversations=3, progress=lambda *now: updates.append(now)))
    assert updates == [("drifting", 0, 1), ("drifting", 1, 1)]


# The result ---------------------------------------------------------------------------------------------------------


def record(talk: str, depth: int, free: float, forced: float, person: str = "a") -> DriftTurn:
    return DriftTurn(
        person=person, conversation_id=talk, depth=depth, action="yes please", free=f"no {free}", forced="yes",
        free_similarity=free, forced_similarity=forced,
    )  # fmt: skip


def ended(talk: str, turns: int, left_after: int | None, person: str = "a") -> DriftTurn:
    return replace(record(talk, 1, 0.5, 0.5, person), turns=turns, left_after=left_after)


@pytest.mark.parametrize(
    ("turns", "left_after", "kind"),
    [(4, 3, "too_short"), (4, 4, "as_long"), (4, None, "too_long"), (12, 9, "too_short"), (12, 10, "too_short"),
     (12, None, "as_long"), (10, None, "too_long"), (10, 10, "as_long")],
)  # fmt: skip
def test_a_conversation_is_too_short_as_long_or_too_long(turns: int, left_after: int | None, kind: str) -> None:
    shares = {name: estimate["value"] for name, estimate in length_result([ended("t", turns, left_after)]).items()}
    assert shares == {name: float(name == kind) for name in ("too_short", "as_long", "too_long")}


def test_each_conversation_counts_once_and_each_person_alike() -> None:
    records = [replace(ended("t0", 5, 2), depth=depth) for depth in (1, 3, 5)]
    records += [ended(f"t{n}", 3, 3) for n in range(1, 4)] + [ended("t0", 3, None, "b")]
    result = length_result(records)
    assert result["too_short"]["value"] == pytest.approx(1 / 8)
    assert (result["too_long"]["value"], result["as_long"]["value"]) == (0.5, pytest.approx(3 / 8))
    assert result["too_short"]["n"] == 5


def test_records_without_lengths_have_no_lengths() -> None:
    assert length_result([]) == length_result([record("t0", 1, 0.5, 0.5)]) == {}


def test_the_result_is_a_mean_for_each_depth_with_the_difference_paired() -> None:
    result = drift_result([record(f"t{n}", depth, 0.5 - depth / 20 + n / 10, 0.5) for n in range(4) for depth in (1, 3)])
    assert list(result) == ["1", "3"]
    assert result["3"]["similarity"]["value"] == pytest.approx(0.5 - 0.15 + 0.15)
    assert result["1"]["real_history"] == {"value": 0.5, "low": None, "high": None, "n": 4}
    assert result["3"]["difference"]["value"] == pytest.approx(result["3"]["similarity"]["value"] - 0.5)
    assert result["3"]["difference"]["low"] < result["3"]["difference"]["value"] < result["3"]["difference"]["high"]


def test_people_weigh_the_same_in_drift() -> None:
    records = [*(record(f"t{n}", 1, 0.0, 0.0, "a") for n in range(9)), record("t0", 1, 1.0, 0.0, "b")]
    assert drift_result(records)["1"]["similarity"]["value"] == pytest.approx(0.5)


def test_style_is_the_distance_of_all_replies_at_a_depth() -> None:
    records = [record(f"t{n}", 5, n / 10, 0.5) for n in range(3)]
    wanted = style_distance([one.free for one in records], [one.action for one in records])
    assert drift_result(records)["5"]["style"] == {"value": wanted, "low": None, "high": None, "n": 3}


def test_without_a_simulation_there_is_no_result() -> None:
    assert drift_result([]) == {}


def test_a_record_of_an_earlier_version_is_read() -> None:
    current = record("t0", 1, 0.5, 0.25)
    old = {{"forced": "led", "forced_similarity": "led_similarity"}.get(name, name): v for name, v in asdict(current).items()}
    assert DriftTurn(**upgrade(old)) == DriftTurn(**upgrade(asdict(current))) == current
