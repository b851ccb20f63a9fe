"""The independent check of the twin: planted faults are found, and flawless conversations are not charged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import pytest

from conftest import function_model, scripted
from usertwin.memory.models.chat import Usage
from usertwin.memory.text.speaker_sides import SpeakerSides
from usertwin.personas import VerdictError
from usertwin.simulator.records import Exchange, FaultKind, Simulation, StopReason
from usertwin.simulator.scenarios import Fact, Scenario, find_twin_faults, judge_twin
from usertwin.simulator.state import Answer

ORDER = Fact(text="Your order number is 4711.", value="4711")
OPEN_ORDER = replace(ORDER, reveal="at once")
NAME = Fact(text="Your name is Sarah Brown.", value="Sarah Brown", reveal="at once")
MAIL = Fact(text="Your e-mail address is sarah@web.org.", value="sarah@web.org", reveal="at once")
ARRIVAL = Fact(text="Your parcel was due on Thursday.", value="Thursday", reveal="at once")
GUESTS = Fact(text="You bring 9 guests.", value="9", reveal="at once")
FLIGHT = Fact(text="Your flight is on May 11th.", value="May 11th", reveal="at once")
PRICE = Fact(text="You paid $300 for the shoes.", value="$300", reveal="at once")
PIN = Fact(text="Your PIN is 0314.", value="0314", reveal="at once")
CODE = Fact(text="Your booking code is XK72Q9.", value="XK72Q9", reveal="at once")
MAIDEN = Fact(text="Your mother's maiden name is Wong.", value="Wong", reveal="at once")
GIFT = Fact(text="The shoes were a birthday gift for your brother.", reveal=2)
PARCEL = "Your parcel is late. You want to know where it is."
TABLE = "You want to book a table for 4 people on Friday at 7 pm."
ROOM = "You want a room with two beds at the Hilton from May 11th."


class Planted(NamedTuple):
    """A conversation with at most one fault."""

    kind: str
    simulation: Simulation
    scenario: Scenario

    def __str__(self) -> str:
        return f"{self.kind}: {self.simulation.messages[-1]['content']}"


def talk(*turns: str, stop: StopReason = "max_turns", authored: tuple[int, ...] = ()) -> Simulation:
    """Return the record of a conversation; "A: ..." is a turn of the agent, any other text one of the twin."""
    messages = [
        {"role": "assistant", "content": turn[3:]} if turn.startswith("A: ") else {"role": "user", "content": turn}
        for turn in turns
    ]
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    exchanges = list[Exchange]()
    for number, (start, end) in enumerate(zip(places, [*places[1:], len(messages)], strict=True)):
        answer = Answer(action=messages[start]["content"], reasoning="", recalled=(), done=False, usage=Usage())
        exchanges.append(Exchange(answer, tuple(messages[start + 1 : end]), 0.0, 0.0, authored=number in authored))
    return Simulation(
        twin="sarah",
        goal="",
        seed=0,
        thread_id="t",
        messages=list[dict[str, Any]](messages),
        exchanges=exchanges,
        stop_reason=stop,
    )


def kinds(simulation: Simulation, goal: str, *facts: Fact, **values: Any) -> list[str]:
    """Return the kinds of faults that the check finds."""
    return [fault.kind for fault in find_twin_faults(simulation, Scenario(name="x", goal=goal, facts=facts, **values))]


def planted(kind: str, goal: str, facts: list[Fact], *turns: str, stop: StopReason = "max_turns", **values: Any) -> Planted:
    """Return a conversation, its scenario, and the one kind of fault that is in it; "" for none."""
    return Planted(kind, talk(*turns, stop=stop), Scenario(name="x", goal=goal, facts=tuple(facts), **values))


PLANTED = [
    planted("contradicts_fact", PARCEL, [ORDER], "where is my parcel", "A: What is your order number?", "it's 4812"),
    planted("contradicts_fact", PARCEL, [OPEN_ORDER], "where is my parcel, order number 123456"),
    planted("contradicts_fact", PARCEL, [OPEN_ORDER], "my parcel is late", "A: Your order number, please.", "4712"),
    planted("contradicts_fact", PARCEL, [NAME], "my parcel is late", "A: May I have your name?", "Peter Jones"),
    planted("contradicts_fact", PARCEL, [NAME], "hi, my name is Tom Miller and my parcel is late"),
    planted("contradicts_fact", PARCEL, [NAME], "parcel is late", "A: What is your full name?", "I'm Alexis Smith"),
    planted("contradicts_fact", PARCEL, [MAIL], "my parcel", "A: What is your email address?", "tom@web.org"),
    planted("contradicts_fact", PARCEL, [ARRIVAL], "my parcel was due on Monday"),
    planted("contradicts_fact", PARCEL, [ARRIVAL], "parcel late", "A: When was your parcel due?", "it was Tuesday"),
    planted("contradicts_fact", "You RSVP to a party.", [GUESTS], "RSVP to the party, I bring 12 guests"),
    planted("contradicts_fact", "You RSVP to a party.", [GUESTS], "RSVP, party", "A: How many guests?", "3 guests"),
    planted("contradicts_fact", "You check a flight.", [FLIGHT], "check my flight of May 12th"),
    planted("contradicts_fact", "You return shoes.", [PRICE], "return my shoes", "A: How much were the shoes?", "$250"),
    planted("contradicts_fact", "You return shoes.", [PRICE], "I want to return the shoes I paid 450 dollars"),
    planted("contradicts_fact", "Check your balance.", [PIN], "my balance", "A: And your PIN as well please.", "7402"),
    planted("contradicts_fact", "Cancel a booking.", [CODE], "cancel it", "A: Your booking code?", "AB12CD"),
    planted("contradicts_fact", "Cancel a booking.", [CODE], "cancel my booking, code ZZ99ZZ"),
    planted("contradicts_fact", "Balance.", [MAIDEN], "balance", "A: What was your mother's maiden name?", "Cooper"),
    planted("contradicts_goal", TABLE, [], "a table for 6 people on Friday please"),
    planted("contradicts_goal", TABLE, [], "I want to book a table", "A: On which day is your table?", "Saturday"),
    planted("contradicts_goal", TABLE, [], "I want to book a table on Sunday at 7 pm"),
    planted("contradicts_goal", TABLE, [], "book a table", "A: At what time do you want the table?", "9 pm"),
    planted("contradicts_goal", TABLE, [], "book a table", "A: For how many people?", "2 people"),
    planted("contradicts_goal", ROOM, [], "a room with three beds at the Hilton"),
    planted("contradicts_goal", ROOM, [], "I want a room at the Hilton from June 2nd"),
    planted("contradicts_goal", "You report that $300 are missing.", [], "I report that $700 are missing"),
    planted("reveals_early", PARCEL, [ORDER], "hi, my parcel 4711 is late"),
    planted("reveals_early", PARCEL, [ORDER], "my parcel is late", "A: I am sorry to hear that.", "order is 4711"),
    planted("reveals_early", PARCEL, [GIFT], "the shoes were a birthday gift for my brother"),
    planted("reveals_early", PARCEL, [replace(MAIL, reveal=3)], "parcel", "A: Hello.", "I am sarah@web.org"),
    planted("reveals_early", PARCEL, [replace(NAME, reveal="when asked")], "Sarah Brown here, my parcel"),
    planted("speaks_as_assistant", PARCEL, [], "How can I help you today?", "A: ?", "my parcel"),
    planted("speaks_as_assistant", PARCEL, [], "my parcel is late", "A: Hi!", "Is there anything else I can help you with?"),
    planted("speaks_as_assistant", PARCEL, [], "my parcel", "A: Hi!", "Thank you for contacting us."),
    planted("speaks_as_assistant", PARCEL, [], "my parcel", "A: Hi!", "As an AI language model, I have no parcel."),
    planted("speaks_as_assistant", PARCEL, [], "my parcel", "A: Hi!", "I'd be happy to help you with that parcel!"),
    planted("speaks_as_assistant", PARCEL, [], "mein parcel", "A: Hallo!", "Wie kann ich Ihnen helfen?"),
    planted("repeats_itself", PARCEL, [], "where is my parcel now", "A: In Rome.", "ok where is my parcel now"),
    planted("repeats_itself", PARCEL, [], "my parcel is late", "A: Hi.", "so late so late so late so late so late so late"),
    planted("repeats_itself", PARCEL, [], "my parcel", "A: Hi.", "can you look it up", "A: Sure.", "Can you look it up?"),
    planted("ends_early", PARCEL, [], "hi", "A: Hello! How can I help?", "bye", stop="user_stop"),
    planted("ends_early", PARCEL, [], "hi there friend", stop="user_stop"),
    planted("ends_early", PARCEL, [], "where is my parcel", "A: In Rome.", "thanks", stop="user_stop", min_turns=4),
    planted("never_ends", PARCEL, [], "my parcel", "A: Bye!", "nice", "A: Bye!", "so cool", "A: Have a nice day!", "great"),
    planted("never_ends", PARCEL, [], "a parcel", "A: Done.", "oh", "A: Done.", "hm", "A: Done.", "wow", until=("done",)),
    planted("goal_not_pursued", PARCEL, [], "hi", "A: Hello.", "nice weather", "A: Yes.", "I like cats"),
    planted("goal_not_pursued", PARCEL, [], "do you play chess", "A: No.", "what about football then", stop="agent_error"),
    planted("goal_not_pursued", TABLE, [], "I lost my card", "A: Which card?", "the blue one", "A: Ok.", "thx"),
]  # fmt: skip

FLAWLESS = [
    planted("", PARCEL, [ORDER], "where is my parcel", "A: Your order number?", "4711", "A: Rome.", "bye", stop="user_stop"),
    planted("", PARCEL, [ORDER], "my parcel is late", "A: Please give me the reference.", "you mean 4711?", "A: Yes."),
    planted("", PARCEL, [OPEN_ORDER], "my parcel is late, order number 47 11"),
    planted("", PARCEL, [OPEN_ORDER], "my parcel", "A: Is your order number 4812?", "no, 4812 is not my order number"),
    planted("", PARCEL, [NAME], "my parcel", "A: May I have your name?", "Sarah", "A: And your order?", "Don't know"),
    planted("", PARCEL, [NAME], "my parcel", "A: What was your mother's maiden name?", "Cooper"),
    planted("", PARCEL, [NAME], "I am Angry, my parcel is late"),
    planted("", TABLE, [], "a table for four on Friday, 7pm", "A: Sorry, we are full on Friday.", "Saturday then"),
    planted("", TABLE, [], "a table for four on Friday, 19:00", "A: We have 8 pm.", "ok 8 pm is fine"),
    planted(
        "",
        TABLE,
        [],
        "a table please",
        "A: How many people?",
        "4",
        "A: When?",
        "Friday",
        "A: Done. Bye!",
        "bye",
        stop="user_stop",
    ),
    planted("", PARCEL, [ORDER], "my parcel", "A: Order number?", "4711", "A: Order number?", "I said 4711"),
    planted("", PARCEL, [], "where is my parcel now", "A: Sorry?", "parcel!", "A: Sorry?", "where is my parcel now"),
    planted("", PARCEL, [], "my parcel?", "A: Here. Bye!", "bye", "A: Bye!", "bye"),
    planted("", "", [], "hi", "A: Hello.", "bye", stop="user_stop"),
    planted("", PARCEL, [], "hi", stop="agent_error"),
    planted("", PARCEL, [GIFT], "my parcel", "A: Hm.", "?", "A: Hm.", "the shoes were a birthday gift for my brother"),
    planted("", PARCEL, [], "my parcel", "A: How can I help you today?", "help me find it"),
]


@pytest.mark.parametrize("case", PLANTED, ids=str)
def test_a_planted_fault_is_found(case: Planted) -> None:
    assert [fault.kind for fault in find_twin_faults(case.simulation, case.scenario)] == [case.kind]


@pytest.mark.parametrize("case", FLAWLESS, ids=str)
def test_a_flawless_conversation_is_not_charged(case: Planted) -> None:
    assert find_twin_faults(case.simulation, case.scenario) == []


@pytest.mark.parametrize("case", PLANTED, ids=str)
def test_turns_that_the_scenario_wrote_are_never_charged(case: Planted) -> None:
    exchanges = [replace(exchange, authored=True) for exchange in case.simulation.exchanges]
    assert find_twin_faults(replace(case.simulation, exchanges=exchanges), case.scenario) == []


def test_at_least_forty_faults_are_planted_and_every_kind_is_among_them() -> None:
    assert len(PLANTED) >= 40
    assert {case.kind for case in PLANTED} == set(get_args(FaultKind))


def test_a_fault_names_its_turn_and_what_was_said() -> None:
    simulation = talk("where is my parcel", "A: What is your order number?", "it's 4812")
    [fault] = find_twin_faults(simulation, Scenario(name="x", goal=PARCEL, facts=(ORDER,)))
    assert fault.turn == 1
    assert fault.text == 'the twin said "4812"; its fact is: Your order number is 4711.'


def test_a_value_that_an_authored_turn_or_the_agent_said_may_be_repeated() -> None:
    opened = talk("hi, order 4711 is late", "A: Hello.", "the parcel of 4711", authored=(0,))
    assert kinds(opened, PARCEL, ORDER) == []
    assert kinds(talk("my parcel", "A: The order 4711.", "yes 4711"), PARCEL, ORDER) == []


def test_given_turns_before_the_first_exchange_are_the_persons() -> None:
    simulation = talk("hi", "A: Hello.", "ok", "A: In Rome.", "thanks", stop="user_stop")
    simulation.messages[:0] = [{"role": "user", "content": "where is my parcel"}, {"role": "assistant", "content": "Hi."}]
    assert kinds(simulation, PARCEL) == []


def test_a_turn_of_several_messages_is_one_turn() -> None:
    simulation = talk("my parcel is late", "A: Your order number?", "it is", "A: In Rome.")
    simulation.messages.insert(3, {"role": "user", "content": "4812"})
    assert kinds(simulation, PARCEL, ORDER) == ["contradicts_fact"]


def test_a_twin_that_leaves_without_a_word_after_its_goal_is_not_charged() -> None:
    simulation = talk("where is my parcel", "A: In Rome.", "", stop="user_stop")
    simulation.messages.pop()
    assert kinds(simulation, PARCEL) == []


def test_a_twin_that_leaves_without_a_word_has_not_said_that_turn() -> None:
    simulation = talk("where is my parcel", "A: In Rome.", "", stop="user_stop")
    simulation.messages.pop()
    assert kinds(simulation, PARCEL, min_turns=2) == ["ends_early"]
    assert kinds(simulation, PARCEL, min_turns=1) == []


def test_the_sides_of_the_persons_own_log_tell_a_line_of_the_agent() -> None:
    own = [f"where is my {thing} i want it now" for thing in ("parcel", "refund", "order", "shirt", "shoes") for _ in range(20)]
    other = [f"which {thing} do you mean, please?" for thing in ("name", "order", "number", "mail", "pin") for _ in range(20)]
    scenario = Scenario(name="x", goal=PARCEL)
    simulation = talk("where is my parcel", "A: Hm.", "which name do you mean, please?")
    assert find_twin_faults(simulation, scenario) == []
    [fault] = find_twin_faults(simulation, scenario, sides=SpeakerSides(own, other))
    assert (fault.kind, fault.turn) == ("speaks_as_assistant", 1)


# The judge --------------------------------------------------------------------------------------------------------------

WANDERS = talk("where is my parcel", "A: In Rome.", "I never ordered anything", "A: No?", "I collect stamps", authored=(2,))
WITH_ORDER = Scenario(name="x", goal=PARCEL, facts=(ORDER,))


def verdict(*faults: tuple[Any, Any, Any]) -> str:
    """Return a judge's verdict."""
    return json.dumps({"faults": [dict(zip(("turn", "kind", "quote"), fault, strict=True)) for fault in faults]})


def test_a_judge_charges_a_turn_that_it_can_quote() -> None:
    [fault] = judge_twin(WANDERS, WITH_ORDER, scripted(f"Well: {verdict((1, 'contradicts_fact', 'never ordered anything.'))}"))
    assert (fault.kind, fault.turn) == ("contradicts_fact", 1)
    assert "never ordered anything" in fault.text


@pytest.mark.parametrize(
    "fault",
    [
        (1, "contradicts_goal", "I hate you"), (0, "contradicts_fact", "I never ordered anything"),
        (7, "contradicts_goal", "parcel"), (2, "goal_not_pursued", "I collect stamps"), (1, "contradicts_goal", "..."),
    ],
)  # fmt: skip
def test_a_judge_cannot_charge_what_was_not_said_nor_an_authored_turn(fault: tuple[Any, Any, Any]) -> None:
    assert judge_twin(WANDERS, WITH_ORDER, scripted(verdict(fault))) == []


def test_a_judge_sees_goal_facts_and_numbered_turns() -> None:
    model, chat = function_model(lambda prompt, seed: verdict())
    assert judge_twin(WANDERS, WITH_ORDER, model) == []
    [(prompt, _)] = chat.requests
    for part in (
        PARCEL,
        ORDER.text,
        "Player, turn 1: I never ordered anything\nService: No?\nPlayer, turn 2: I collect stamps",
    ):
        assert part in prompt


@pytest.mark.parametrize(
    "answer", ["none", '{"faults": 3}', verdict((1, "rude", "x")), verdict(("1", "contradicts_goal", "x"))]
)
def test_an_unreadable_verdict_is_an_error(answer: str) -> None:
    with pytest.raises(VerdictError, match='the judge "scripted:test" returned no readable verdict on the twin'):
        judge_twin(WANDERS, WITH_ORDER, scripted(answer))


def test_without_a_goal_and_facts_there_is_nothing_to_judge() -> None:
    assert judge_twin(WANDERS, Scenario(name="x"), scripted("none")) == []
