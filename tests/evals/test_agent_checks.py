"""Checks of the agent: ready-made ones, functions of users, names in files, and what happens when a check itself fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invented_conversations import talk

from conftest import function_model, scripted
from usertwin.evals.agent_tests import (
    AgentChecks,
    Check,
    as_check,
    called_tool,
    final_state,
    never_says,
    only_tools,
    reaches_goal,
    replies_within,
    run_checks,
    says,
)
from usertwin.evals.agent_tests.transcript import tool_calls, with_exchanges
from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsageError
from usertwin.simulator.records import CheckResult, Simulation
from usertwin.simulator.scenarios.scenario import Scenario, function_name

OPENAI_CALL: dict[str, Any] = {
    "role": "assistant", "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": '{"order": 7, "deep": {"a": 1}}'}},
    ],
}  # fmt: skip
ANTHROPIC_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "One moment."},
        {"type": "tool_use", "id": "2", "name": "refund", "input": {"order": 7}},
    ],
}
LANGCHAIN_CALL: dict[str, Any] = {
    "role": "assistant", "content": "", "tool_calls": [{"name": "close", "args": {"order": 8}, "id": "3", "type": "tool_call"}],
}  # fmt: skip
SIMULATION = talk(
    "where is order 7?",
    [
        OPENAI_CALL,
        {"role": "tool", "content": "the password is 1234"},
        {"role": "assistant", "content": "It is\non its way."},
    ],
    "I want my money back", [ANTHROPIC_CALL, {"role": "assistant", "content": "You get a REFUND."}],
    "thanks", final_state={"order": {"status": "refunded", "items": [1, 2]}},
)  # fmt: skip


LOOKUP = 'lookup({"order": 7, "deep": {"a": 1}})'
RETURNS = "return None or True if it holds, False or a sentence if it fails, or a CheckResult"


def outcome(check: Any, simulation: Simulation = SIMULATION) -> tuple[bool | None, str]:
    """Return whether a conversation passes a check, and what the result says."""
    [result] = run_checks([check], simulation)
    return result.passed, result.error or result.reason


@pytest.mark.parametrize(
    ("check", "passes", "reason"),
    [
        (says("refund"), True, ""),
        (says("IT IS on  its way"), True, ""),
        (says(re.compile(r"R[A-Z]+D\.$")), True, ""),
        (says(re.compile("refund")), False, "the agent never says /refund/"),
        (says("money back"), False, 'the agent never says "money back"'),  # the twin says it
        (never_says("1234"), True, ""),  # a tool says it
        (never_says("on its way"), False, 'message 1 of the agent says "It is on its way."'),
        (called_tool("lookup"), True, ""),
        (called_tool("lookup", {"order": 7}), True, ""),
        (called_tool("lookup", {"order": 8}), False, f"no call of lookup has these arguments: {LOOKUP}"),
        (called_tool("refund", lambda arguments: arguments["order"] == 7), True, ""),
        (called_tool("delete"), False, "the agent never calls delete"),
        (only_tools("lookup", "refund"), True, ""),
        (only_tools("lookup"), False, 'the agent calls refund({"order": 7})'),
        (only_tools(), False, f"the agent calls {LOOKUP}"),
        (replies_within(0.25), True, ""),
        (replies_within(0.2), False, "reply 1 took 0.2 s"),
        (final_state("order.status == 'refunded'"), True, ""),
        (final_state("length(order.items)", equals=2), True, ""),
        (final_state("order.status == 'open'"), False, "order.status == 'open' is False"),
        (final_state(lambda state: state["order"]["items"] == [1, 2]), True, ""),
        (reaches_goal, False, "it ended with user_stop"),
    ],
)  # fmt: skip
def test_ready_made_checks(check: Any, passes: bool, reason: str) -> None:
    assert outcome(check) == (passes, reason)


def test_calls_of_tools_are_read_in_the_shapes_of_three_apis() -> None:
    simulation = talk("hi", [OPENAI_CALL, ANTHROPIC_CALL, LANGCHAIN_CALL])
    assert [str(call) for call in tool_calls(simulation)] == [
        'lookup({"order": 7, "deep": {"a": 1}})',
        'refund({"order": 7})',
        'close({"order": 8})',
    ]


def test_arguments_that_are_no_json_are_kept_as_text_and_match_nothing() -> None:
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "lookup", "arguments": "{order: 7"}}]}
    simulation = talk("hi", [broken])
    assert [str(call) for call in tool_calls(simulation)] == ["lookup({order: 7)"]
    assert outcome(called_tool("lookup", {"order": 7}), simulation)[0] is False
    assert outcome(called_tool("lookup"), simulation)[0] is True


def test_a_turn_that_was_given_or_sent_in_several_messages_keeps_its_exchange() -> None:
    simulation = talk("hello there", "Hi.", "a refund please", "Yes.")
    given = [{"role": "user", "content": "from before"}, {"role": "assistant", "content": "old"}]
    two = [{"role": "user", "content": "hello"}, {"role": "user", "content": "there"}]
    simulation.messages[:1] = [*given, *two]
    object.__setattr__(simulation.exchanges[0], "sent", ("hello", "there"))
    exchanges = [exchange.answer.action if exchange else None for _, exchange in with_exchanges(simulation)]
    assert exchanges == [None, None, "hello there", None, None, "a refund please", None]


@pytest.mark.parametrize(
    ("returned", "passed", "reason"),
    [
        (None, True, ""),
        (True, True, ""),
        (False, False, ""),
        ("it was rude", False, "it was rude"),
        ("", False, ""),
        (CheckResult(name="", passed=True, reason="fine"), True, "fine"),
        (
            3,
            None,
            "the check returned a int; return None or True if it holds, False or a sentence if it fails, or a CheckResult",
        ),
    ],
)
def test_what_a_function_may_return(returned: Any, passed: bool | None, reason: str) -> None:
    def check(simulation: Simulation) -> Any:
        return returned

    async def later(simulation: Simulation) -> Any:
        return returned

    assert outcome(check) == (passed, reason)
    assert outcome(later) == (passed, reason)


def test_an_assertion_is_a_failed_check_and_another_exception_an_error_of_the_check() -> None:
    def polite(simulation: Simulation) -> None:
        assert "please" in simulation.messages[-1]["content"], "it never says please"

    def broken(simulation: Simulation) -> None:
        raise KeyError("order")

    def leaves(simulation: Simulation) -> None:
        raise SystemExit(3)

    assert outcome(polite) == (False, "it never says please")
    passed, error = outcome(broken)
    assert passed is None
    assert re.fullmatch(r"KeyError: 'order' in broken, line \d+", error)
    assert outcome(leaves)[0] is None


def test_a_missing_final_state_is_an_error_of_the_check_not_the_agents_fault() -> None:
    passed, error = outcome(final_state("order"), talk("hi", "Hello."))
    assert (passed, error) == (None, "the conversation has no final state; the agent must be a graph that returns one")


def test_a_check_cannot_change_the_record() -> None:
    def meddles(simulation: Simulation) -> None:
        simulation.messages[0]["content"] = "forged"
        simulation.final_state["order"] = None
        simulation.messages.clear()

    before = json.dumps(SIMULATION.to_json())
    assert outcome(meddles) == (True, "")
    assert json.dumps(SIMULATION.to_json()) == before


def test_a_check_in_a_file_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_checks_here.py").write_text(
        "from usertwin.evals.agent_tests import never_says\n"
        "def polite(simulation):\n    return 'never polite'\n"
        "no_secrets = never_says('secret')\nlimit = 3\ndef two(a, b):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_checks(["own_checks_here:polite"], SIMULATION) == [
        CheckResult(name="own_checks_here:polite", passed=False, reason="never polite")
    ]
    assert as_check("own_checks_here:no_secrets").name == 'never says "secret"'
    for name, sentence in {
        "own_checks_here:limit": 'the check "own_checks_here:limit" is a int; name a function of a conversation',
        "own_checks_here:two": 'the check "own_checks_here:two" must take one argument, the conversation',
        "own_checks_here:none": 'check "own_checks_here:none": the module "own_checks_here" has no "none"',
        "no_such_module_x:f": 'check "no_such_module_x:f": there is no module "no_such_module_x"; run the command in a folder '
        "from which it can be imported",
        "polite": 'the check "polite" has no module; write it as module:function, or name a ready-made check',
        "says:": 'the check "says:" has no argument; write it after the colon',
        "replies_within:soon": 'the check "replies_within:soon" has no number of seconds',
        "replies_within:0": "replies_within: 0.0 is no number of seconds above 0",
    }.items():
        with pytest.raises(UsageError) as error:
            as_check(name)
        assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("says: refund", says("refund")),
        ("never_says:1234", never_says("1234")),
        ("called_tool:lookup", called_tool("lookup")),
        ("only_tools:lookup, refund", only_tools("lookup", "refund")),
        ("only_tools:", only_tools()),
        ("replies_within:1.5", replies_within(1.5)),
        ("final_state:order.status == 'refunded'", final_state("order.status == 'refunded'")),
        ("reaches_goal", Check("reaches_goal", reaches_goal)),
    ],
)
def test_ready_made_checks_have_names_for_files(name: str, same: Check) -> None:
    assert as_check(name).name == same.name
    assert outcome(name) == outcome(same)


def test_records_of_a_run_name_ready_made_checks_apart() -> None:
    names = [function_name(check) for check in (says("refund"), says("sorry"), reaches_goal)]
    assert names == [
        'usertwin.evals.agent_tests.checks:says "refund"',
        'usertwin.evals.agent_tests.checks:says "sorry"',
        "usertwin.evals.agent_tests.ready_made:reaches_goal",
    ]


def test_an_invalid_expression_and_an_empty_text_are_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match=r'^the JMESPath expression "order\.\." is invalid: '):
        final_state("order..")
    with pytest.raises(UsageError, match="the text is empty"):
        says(" ")


def scenario(name: str, *checks: Any, criteria: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(name=name, checks=checks, criteria=criteria)


def test_a_run_checks_each_conversation_with_its_own_scenario() -> None:
    checks = AgentChecks([scenario("refund", says("refund")), scenario("other", says("nothing"))], checks=["never_says:1234"])
    assert [result.name for result in run_sync(checks(SIMULATION))] == ['never says "1234"', 'says "refund"']


def test_criteria_need_a_judge_and_wrong_names_are_refused_before_the_first_turn() -> None:
    with pytest.raises(UsageError) as error:
        AgentChecks([scenario("refund", criteria=("The agent is polite.",))])
    assert (
        str(error.value) == 'the criterion "The agent is polite." needs a judge, and no model is named; name one with --judge'
    )
    with pytest.raises(UsageError, match="has no module"):
        AgentChecks([scenario("refund", "polite")])
    judge, _ = function_model(lambda prompt, seed: "")
    with pytest.raises(UsageError, match="a criterion is empty"):
        AgentChecks([scenario("refund", criteria=(" ",))], judge=judge)


def test_criteria_and_the_goal_are_judged_after_the_checks() -> None:
    answer = json.dumps({"why": "It does.", "quote": "", "met": "yes"})
    judge, chat = function_model(lambda prompt, seed: answer, style="instruction")
    checks = AgentChecks([scenario("refund", says("refund"), criteria=("It is polite.",))], judge=judge, judges_goal=True)
    results = run_sync(checks(SIMULATION))
    assert [(result.name, result.passed) for result in results] == [
        ('says "refund"', True),
        ("criterion: It is polite.", True),
        ("reaches_goal (judge)", True),
    ]
    assert "What the user wanted (the agent was not told): You want a refund." in chat.prompts[1]
    assert "What the user wanted" not in chat.prompts[0]


def test_scenario_files_know_the_ready_made_checks() -> None:
    from usertwin.evals.agent_tests.ready_made import ready_made
    from usertwin.simulator.scenarios.read import READY_MADE

    arguments = {"replies_within": "3", "reaches_goal": ""}
    named = [name if name == "reaches_goal" else f"{name}:{arguments.get(name, 'x')}" for name in READY_MADE]
    assert all(ready_made(name) is not None for name in named)
    assert ready_made("my_module:check") is None


def test_a_judge_of_the_twin_adds_faults_and_its_failure_is_nobodys() -> None:
    scenario = Scenario(name="", goal="You want to know where your parcel is.")
    found = {"turn": 1, "kind": "contradicts_goal", "quote": "I never ordered anything"}
    for answer, kinds, passed in ((json.dumps({"faults": [found]}), ["contradicts_goal"], []), ("no idea", [], [None])):
        simulation = talk("where is my parcel", "In Rome.", "I never ordered anything")
        simulation.scenario = ""
        results = run_sync(AgentChecks([scenario], twin_judge=scripted(answer))(simulation))
        assert [fault.kind for fault in simulation.twin_faults] == kinds
        assert [result.passed for result in results] == passed
