"""Outcomes of conversations, the summary of a run, its limits, and how it is shown on the screen."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from invented_conversations import answer, talk
from rich.console import Console

from usertwin.evals.agent_tests import Summary, Thresholds, outcome_of, summarize
from usertwin.evals.agent_tests.outcomes import outcomes_of
from usertwin.evals.agent_tests.screen import summary_line, summary_view
from usertwin.personas import UsageError
from usertwin.simulator.records import CheckResult, Exchange, Simulation, TwinFault

HELD = CheckResult(name="is polite", passed=True)
FAILED = CheckResult(name="is polite", passed=False, reason="it shouts")
BROKEN = CheckResult(name="is polite", passed=None, error="KeyError: 'x'")
FAULT = TwinFault("contradicts_goal", 1, "It wants no refund after all.")
JUDGED_NO = CheckResult(name="reaches_goal (judge)", passed=False, reason="It gives no answer.")
NOT_REACHED = CheckResult(name="reaches_goal", passed=False)
CUT_OFF = "the time limit of the conversation cut it off"
JUDGED_YES = CheckResult(name="reaches_goal (judge)", passed=True)


def one(**changes: Any) -> Simulation:
    return talk("hi", "Hello.", "bye", **changes)


@pytest.mark.parametrize(
    ("changes", "rule", "name", "why"),
    [
        ({}, False, "passed", ""),
        ({"stop_reason": "max_turns"}, False, "passed", ""),
        ({"stop_reason": "max_turns"}, True, "failed", "goal not reached: it ended with max_turns"),
        ({"stop_reason": "user_stop"}, True, "failed", "goal not reached: it ended with user_stop"),
        ({"stop_reason": "goal_reached"}, True, "passed", ""),
        ({"stop_reason": "goal_reached", "checks": [JUDGED_NO]}, True, "passed", ""),  # the rule comes first
        ({"checks": [JUDGED_NO]}, False, "failed", "goal not reached: It gives no answer."),
        ({"checks": [JUDGED_YES]}, True, "passed", ""),
        ({"checks": [NOT_REACHED]}, False, "failed", "goal not reached: it ended with user_stop"),
        ({"stop_reason": "agent_error", "error": "it raised"}, False, "failed", "agent_error: it raised"),
        ({"stop_reason": "agent_timeout", "checks": [HELD]}, False, "failed", "agent_timeout"),
        ({"stop_reason": "agent_error", "twin_faults": [FAULT]}, False, "failed", "agent_error"),
        ({"stop_reason": "twin_error", "error": "no words"}, True, "twin_fault", "twin_error: no words"),
        ({"stop_reason": "model_unavailable", "checks": [FAILED]}, False, "twin_fault", "model_unavailable"),
        ({"twin_faults": [FAULT], "checks": [FAILED]}, True, "twin_fault", "It wants no refund after all."),
        ({"stop_reason": "time_limit", "checks": [FAILED]}, True, "no_verdict", CUT_OFF),
        ({"checks": [HELD]}, False, "passed", ""),
        ({"checks": [FAILED]}, False, "failed", "is polite: it shouts"),
        ({"checks": [BROKEN]}, False, "no_verdict", "error in is polite: KeyError: 'x'"),
        ({"checks": [BROKEN, FAILED]}, False, "failed", "is polite: it shouts"),
    ],
)  # fmt: skip
def test_outcomes(changes: dict[str, Any], rule: bool, name: str, why: str) -> None:
    outcome = outcome_of(one(**changes), has_goal_rule=rule)
    assert (outcome.name, outcome.why) == (name, why)
    assert outcome.is_usable == (name in {"passed", "failed"})


def test_a_scenario_has_a_rule_if_it_says_so_or_if_a_conversation_ended_by_it() -> None:
    talks = [one(), one(scenario="other"), one(scenario="third", stop_reason="goal_reached"), one(scenario="third")]
    scenarios = {"refund": {"name": "refund", "until": ["refund granted"]}, "other": {"name": "other", "until": []}}
    assert [outcome.name for outcome in outcomes_of(talks, scenarios)] == ["failed", "passed", "passed", "failed"]


def many(*rows: dict[str, Any], of: int = 1) -> list[Simulation]:
    """Return conversations with these changes, each of a twin of its own; `of` scenarios."""
    return [
        one(**{"twin": f"twin-{number}", "scenario": f"case {number % of}", "seed": number, "repeat": 0} | row)
        for number, row in enumerate(rows)
    ]


ROWS: list[dict[str, Any]] = [
    *[{"checks": [HELD]}] * 8,
    *[{"checks": [FAILED, CheckResult(name="criterion: It answers.", passed=False, reason="It does not.")]}] * 3,
    {"stop_reason": "agent_error", "error": "ValueError: no tool", "checks": [FAILED]},
    *[{"stop_reason": "twin_error", "error": "it says nothing"}] * 2,
    {"twin_faults": [FAULT, TwinFault("repeats_itself", 2, "It repeats.")]},
    {"checks": [BROKEN]},
    {"stop_reason": "time_limit"},
]


def summary_of(*rows: dict[str, Any], **options: Any) -> Summary:
    return summarize(many(*(rows or ROWS), of=3), name="nightly", agent="my_agent:reply", **options)


def test_faults_of_the_twin_count_neither_for_nor_against_the_agent() -> None:
    summary = summary_of()
    assert (summary.conversations, summary.usable, summary.passed) == (17, 12, 8)
    assert summary.pass_rate is not None
    assert (summary.pass_rate.value, summary.pass_rate.n) == (8 / 12, 12)
    assert summary.twin_faults is not None
    assert (summary.twin_faults.count, summary.twin_faults.n) == (3, 17)
    assert summary.twin_fault_kinds == {"twin_error": 2, "contradicts_goal": 1, "repeats_itself": 1}
    assert summary.agent_faults is not None
    assert (summary.agent_faults.count, summary.agent_faults.n) == (1, 14)
    assert summary.no_verdict == {"error in is polite": 1, "time_limit": 1}
    assert summary.stop_reasons == {"user_stop": 13, "twin_error": 2, "agent_error": 1, "time_limit": 1}
    assert summary.passed_means == ("no fault of the agent", "every check holds", "every criterion is met")
    assert (summary.goal_rate, summary.goal_by) == (None, ())


def test_checks_are_counted_over_usable_conversations_with_their_errors_apart() -> None:
    polite, answers = summary_of().checks
    assert (polite.name, polite.rate and (polite.rate.count, polite.rate.n), polite.errors) == ("is polite", (8, 12), 1)
    assert (answers.name, answers.rate and (answers.rate.count, answers.rate.n)) == ("criterion: It answers.", (0, 3))


def test_the_worst_conversations_show_each_kind_of_failure_before_repeating_one() -> None:
    worst = summary_of().worst
    assert [(conversation.id, conversation.why, conversation.others) for conversation in worst] == [
        ("case 2/twin-11/0", "agent_error: ValueError: no tool", 0),
        ("case 2/twin-8/0", "is polite: it shouts; criterion: It answers.: It does not.", 2),
        ("case 0/twin-9/0", "is polite: it shouts; criterion: It answers.: It does not.", 2),
        ("case 1/twin-10/0", "is polite: it shouts; criterion: It answers.: It does not.", 2),
    ]


def test_a_goal_reached_by_rule_and_by_judge_is_one_rate() -> None:
    rows = [{"stop_reason": "goal_reached"}] * 3 + [{"checks": [JUDGED_YES]}] + [{"checks": [JUDGED_NO]}] * 4
    summary = summary_of(*rows)
    assert summary.goal_rate is not None
    assert (summary.goal_rate.count, summary.goal_rate.n, summary.goal_by) == (4, 8, ("rule", "judge"))
    assert summary.passed == 4


def test_turns_seconds_tokens_and_cost_are_summed() -> None:
    talks = many(*[{}] * 4)
    talks[0].exchanges[0] = Exchange(answer("hi", discarded=2), talks[0].exchanges[0].replies, 0.5, 9.0)
    summary = summarize(talks, name="x", agent="y", dollars=0.25, retries=3, closeness={"twin-0": "1.2 bits"})
    assert summary.turns is not None
    assert (summary.turns.mean, summary.turns.most, summary.turns.n) == (2, 2, 4)
    assert summary.reply_seconds is not None
    assert (summary.reply_seconds.median, summary.reply_seconds.most, summary.reply_seconds.n) == (0.25, 9.0, 4)
    assert (summary.usage.input_tokens, summary.discarded, summary.dollars, summary.retries) == (800, 2, 0.25, 3)
    assert summary.closeness == {"twin-0": "1.2 bits", "twin-1": None, "twin-2": None, "twin-3": None}


@pytest.mark.parametrize("rows", [ROWS, [{"stop_reason": "twin_error"}] * 2, []])
def test_a_summary_is_json_and_reads_back(rows: list[dict[str, Any]]) -> None:
    summary = summarize(many(*rows), name="nightly", agent="my_agent:reply")
    raw = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert Summary.from_json(raw) == summary
    assert raw["finished"] is True
    assert "stop_reasons" in raw
    with pytest.raises(ValueError, match="usable"):
        Summary.from_json(raw | {"usable": "many"})


def limits(summary: Summary, **given: Any) -> list[str]:
    return Thresholds(**given).failures(summary)


def test_limits_compare_the_share_or_the_worse_end_of_its_interval() -> None:
    summary = summary_of()
    assert limits(summary, min_pass_rate=0.66, max_twin_faults=0.2, max_agent_faults=0.1) == []
    assert limits(summary, min_pass_rate=0.7, max_twin_faults=0.1) == [
        "pass rate: 66.7% of 12, below 70% (--min-pass-rate)",
        "faults of the twin: 17.6% of 17, above 10% (--max-twin-faults)",
    ]
    [failure] = limits(summary, min_pass_rate=0.6, by_interval=True)
    assert failure == "pass rate: 66.7% of 12, the lower end of the interval 39.1%, below 60% (--min-pass-rate)"
    [failure] = limits(summary, max_agent_faults=0.1, by_interval=True)
    assert failure.startswith("faults of the agent: 7.1% of 14, the upper end of the interval 31.5%, above 10%")
    assert limits(summary, max_reply_seconds=0.2) == ["replies: 95% come within 0.25 s, above 0.2 s (--max-reply-seconds)"]


def test_too_few_usable_conversations_are_no_verdict_on_the_agent_whatever_they_say() -> None:
    summary = summary_of(*[{"checks": [HELD]}] * 3, *[{"stop_reason": "twin_error"}] * 9)
    assert limits(summary, min_pass_rate=0.5, max_twin_faults=0.9) == [
        "no verdict on the agent: 3 of 12 conversations are usable, and 8 are needed (--min-conversations)"
    ]
    assert limits(summary, min_pass_rate=0.5, min_conversations=3) == []
    assert limits(summary, max_twin_faults=0.5) == ["faults of the twin: 75.0% of 12, above 50% (--max-twin-faults)"]


def test_a_goal_without_rule_and_judge_keeps_no_limit() -> None:
    [failure] = limits(summary_of(), min_goal_rate=0.1)
    assert failure == "no verdict on the goal: neither a rule nor a judge says when it is reached (--min-goal-rate)"


def test_impossible_limits_are_refused() -> None:
    for given, sentence in {
        ("min_pass_rate", 90): "--min-pass-rate is 90; it must be a share from 0 to 1",
        ("max_twin_faults", -0.1): "--max-twin-faults is -0.1; it must be a share from 0 to 1",
        ("min_goal_rate", float("nan")): "--min-goal-rate is nan; it must be a share from 0 to 1",
        ("max_reply_seconds", 0): "--max-reply-seconds is 0; it must be above 0",
        ("min_conversations", 0): "--min-conversations is 0; it must be at least 1",
    }.items():
        with pytest.raises(UsageError) as error:
            Thresholds(**{given[0]: given[1]})  # pyright: ignore[reportArgumentType]
        assert str(error.value) == sentence
    assert not Thresholds(min_conversations=3).is_set
    assert Thresholds(max_twin_faults=0.0).is_set


def shown(summary: Summary, *failures: str, width: int = 80) -> list[str]:
    """Return the lines of the summary on a console without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False)
    console.print(summary_view(summary, failures))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_screen_shows_the_summary_in_plain_lines() -> None:
    lines = shown(summary_of(dollars=1.5, retries=2), "pass rate: 66.7% of 12, below 70% (--min-pass-rate)")
    assert lines[0] == "17 conversations of 17 twins with my_agent:reply, in 3 scenarios"
    assert lines[1] == "Passed          67% (39% to 86%): 8 of 12 usable, interval over conversations"
    assert "Twin's faults   18% (6% to 41%), set aside: twin_error 2, contradicts_goal 1, r…" in lines
    assert "No verdict      2 set aside: error in is polite 1, time_limit 1" in lines
    assert "Closeness       not measured for 17 twins (usertwin eval NAME)" in lines
    assert "  case 2/twin-8/0 ×3: is polite: it shouts; criterion: It answers.: It does not." in lines
    assert lines[-1] == "FAILED  pass rate: 66.7% of 12, below 70% (--min-pass-rate)"


def test_any_run_takes_at_most_thirty_lines_of_eighty_columns() -> None:
    rows: list[dict[str, Any]] = []
    for number in range(60):
        checks = [
            CheckResult(name=f"check {n} " + "long " * 30, passed=(number + n) % 4 > 0, reason="x" * 200) for n in range(9)
        ]
        reasons = {5: "goal_reached", 9: "time_limit", 11: "agent_error", 13: "twin_error"}
        rows.append(
            {
                "checks": checks,
                "scenario": f"scenario {number % 7} " + "name " * 20,
                "stop_reason": reasons.get(number, "user_stop"),
            }
        )
        rows.append(rows[-1] | {"repeat": 1, "checks": [BROKEN]})
    closeness = {f"twin-{number}": "1.234 (1.1 to 1.3) bits per character, " + "n=400 " * 20 for number in range(90)}
    summary = summary_of(*rows, closeness=closeness, dollars=12.0, retries=4)
    for width in (80, 60, 200):
        lines = shown(summary, width=width)
        assert len(lines) <= 30
        assert max(map(len, lines)) <= width


def test_an_unfinished_run_and_one_without_usable_conversations_say_so() -> None:
    summary = summary_of(*[{"stop_reason": "twin_error"}] * 2, finished=False)
    assert shown(summary)[:2] == [
        "2 conversations so far of 2 twins with my_agent:reply, in 2 scenarios",
        "Passed          no verdict: none of 2 conversations is usable",
    ]
    assert summary_line(summary) == (
        "nightly: no verdict on my_agent:reply: no usable conversation; 2 set aside; the run is unfinished"
    )
    assert (
        summary_line(summary_of()) == "nightly: my_agent:reply passed 67% (39% to 86%) of 12 usable conversations; 5 set aside"
    )
    assert shown(summarize([], name="empty", agent="a"))
