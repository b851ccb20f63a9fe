"""simulator/turn_writer.py: turns with a defect are sampled again, and the least bad of all attempts is kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from conftest import FunctionChatModel, function_model, other_conversation, recipe, small_conversation
from usertwin.memory import ChatModel, Settings, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import ChatLog, TwinError
from usertwin.personas.chat_log import sort_by_time
from usertwin.simulator import Answer, SimulatedUser
from usertwin.simulator.turn_checks import ECHO, OTHER_SIDE, MemorySides

GOAL = "You want the weather for Oslo on the day of the regatta."
ASKED = "Which day do you mean for your trip to Oslo?"
CHAT = [{"role": "user", "content": "hi, the weather in Oslo please"}, {"role": "assistant", "content": ASKED}]


def saying(*replies: str) -> tuple[ChatModel, FunctionChatModel]:
    """Return a model that writes these replies by turns, the last one again and again."""
    numbers = itertools.count()
    return function_model(lambda prompt, seed: replies[min(next(numbers), len(replies) - 1)])


def answered(name: str, *replies: str, goal: str = GOAL) -> tuple[Answer, int]:
    """Return the answer of a twin whose model writes these replies, and the number of its calls."""
    model, chat = saying(*replies)
    with SimulatedUser.load(name, model=model, settings=Settings(reasons=False)) as user:
        return user.respond(CHAT, goal=goal), len(chat.prompts)


@pytest.mark.parametrize(
    "defective",
    [ASKED, f"ok. {ASKED}", GOAL, "hi, the weather in Oslo please", "no no no no no no no no no no", "(Me thinking: x) a"],
)
def test_a_defective_turn_is_sampled_again(ann: str, defective: str) -> None:
    answer, calls = answered(ann, defective, defective, "tomorrow please", "never asked for")
    assert (answer.action, answer.discarded, calls) == ("tomorrow please", 2, 3)


@pytest.mark.parametrize("turn", ["tomorrow", "the day of the regatta", "Oslo, yes", "for my trip to Oslo"])
def test_a_turn_without_a_defect_is_taken_at_once(ann: str, turn: str) -> None:
    answer, calls = answered(ann, turn)
    assert (answer.action, answer.discarded, calls) == (turn, 0, 1)


def test_the_least_bad_of_four_attempts_is_kept(ann: str) -> None:
    loop, thought = "no no no no no no no no no no", "(Me thinking: hm) tomorrow"
    assert answered(ann, thought, ASKED, loop, thought)[0].action == ASKED  # an echo is kept, a thought or a loop is not
    assert answered(ann, ASKED, GOAL, loop, thought)[0].action == GOAL
    assert answered(ann, f"well, {ASKED}", ASKED, thought)[0].action == ASKED  # of equals the last
    answer, calls = answered(ann, ASKED)
    assert (answer.action, answer.discarded, calls) == (ASKED, 3, 4)


def test_a_model_that_writes_no_turn_in_four_attempts_is_an_error(ann: str) -> None:
    with pytest.raises(TwinError, match="wrote a thought instead of a turn 4 times in a row"):
        answered(ann, "(Me thinking: hm) tomorrow")


def test_without_a_goal_its_text_is_no_defect(ann: str) -> None:
    assert answered(ann, GOAL, goal="")[1] == 1


def test_a_turn_that_runs_on_is_cut(ann: str) -> None:
    answer, calls = answered(ann, "tomorrow please Them: It will be sunny. Me: bye")
    assert (answer.action, calls) == ("tomorrow please", 1)


@pytest.fixture
def served() -> Iterator[SimulatedUser]:
    """Yield Ann's twin with a memory of seventy conversations, whose model first talks like the help desk."""
    log = ChatLog(sort_by_time([*map(small_conversation, range(90)), other_conversation(1)], "test"), "test")
    asyncio.run(alearn("served", log, recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder()))
    model, _ = saying("Which day do you mean, sir? Anything else?", "I'm an AI assistant.", "tomorrow, day 3")
    with SimulatedUser.load("served", model=model, embedder=FakeEmbedder()) as user:
        yield user


def test_a_line_of_the_other_side_is_sampled_again(served: SimulatedUser) -> None:
    answer = served.respond([{"role": "assistant", "content": "What can I do for you?"}])
    assert (answer.action, answer.discarded) == ("tomorrow, day 3", 2)


def test_a_measured_turn_and_a_peers_turn_are_checked_alike(served: SimulatedUser) -> None:
    place = served.store.recall_many([next(served.store.triples()).pair], 1)[0][0].triple.pair
    [reply] = asyncio.run(served.sample_action(place, [], "", seed=0))
    assert (reply.text, reply.defect) == ("tomorrow, day 3", "")
    served.model, _ = saying(place.context[-1].text)
    [peer] = asyncio.run(served.writer.complete([("user", "Be Ann.")], seed=0, query=place))
    assert (peer.text, peer.defect) == (place.context[-1].text, OTHER_SIDE)
    served.store.delete([triple.id for triple in served.store.triples()])  # now nothing tells the sides apart
    [peer] = asyncio.run(served.writer.complete([("user", "Be Ann.")], seed=0, query=place))
    assert (peer.text, peer.defect) == (place.context[-1].text, ECHO)


def test_the_sides_are_counted_anew_after_a_change_of_the_memory(served: SimulatedUser) -> None:
    sides = MemorySides(served.store)
    first = sides()
    assert first is sides()
    served.store.delete([next(served.store.triples()).id])
    assert sides() is not first
