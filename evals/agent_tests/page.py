"""The summary and the conversations of a run as one HTML page that needs no network.

Design: the template escapes every text from people, twins and agents, and the page has no script. Conversations open by the
browser's own `details`. What a page cannot hold is counted on it, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.run_folder import HTML_REPORT, write_atomically
from usertwin.evals.reports.cells import NONE, Cell, Section, TableRow, section, table_row
from usertwin.evals.reports.labels import counted, number, plural
from usertwin.evals.reports.templates import template
from usertwin.personas.roles import is_user
from usertwin.simulator.agents import Message
from usertwin.simulator.records import CheckResult, Exchange

from .outcomes import Outcome, outcomes_of
from .rates import Rate
from .read import AgentRun
from .screen import seconds, summary_line
from .summary import Spread, Summary, gravest_first
from .transcript import is_agents, raw_calls, text_of, tool_call, with_exchanges

#: Conversations on the page, characters of a message, recalled pairs of a turn, and turns of context of a pair, at most.
_CONVERSATIONS, _CHARACTERS, _RECALLED, _CONTEXT = 400, 4_000, 3, 2
_TITLES = {
    "failed": ("Failed", "the gravest first"),
    "twin_fault": ("Set aside: the twin's fault", "counted neither for nor against the agent"),
    "no_verdict": ("Set aside: no verdict", "counted neither for nor against the agent"),
    "passed": ("Passed", ""),
}


def write_page(run: AgentRun, summary: Summary, failures: Sequence[str] = (), limits: bool = False) -> Path:
    """Write the page of a run into its folder, and return its path. UsageError if it cannot be written."""
    path = run.folder / HTML_REPORT
    write_atomically(path, render_page(run, summary, failures, limits))
    return path


def render_page(run: AgentRun, summary: Summary, failures: Sequence[str] = (), limits: bool = False) -> str:
    """Return the page of a run.

    Args:
        run: with its conversations.
        summary: of the run.
        failures: the limits that it does not keep (`Thresholds.failures`).
        limits: whether there are limits.
    """
    outcomes = gravest_first(outcomes_of(run.simulations, run.scenarios))
    ordered = [outcome for name in _TITLES for outcome in outcomes if outcome.name == name]
    shown, numbers = ordered[:_CONVERSATIONS], {id(outcome): number for number, outcome in enumerate(ordered, 1)}
    anchors = {outcome.simulation.id: numbers[id(outcome)] for outcome in shown}
    groups = [
        {
            "name": name, "title": title, "description": description,
            "count": sum(outcome.name == name for outcome in ordered),
            "talks": [_talk(outcome, numbers[id(outcome)]) for outcome in shown if outcome.name == name],
        }
        for name, (title, description) in _TITLES.items()
    ]  # fmt: skip
    return template("agent_page.html", Path(__file__).parent).render(
        name=summary.name, summary=f"{summary_line(summary)}.",
        verdict="further" if failures else "closer" if limits else "same", failures=failures, limits=limits,
        tiles=_tiles(summary), sections=_sections(summary),
        worst=[(worst, anchors.get(worst.id)) for worst in summary.worst], groups=[group for group in groups if group["count"]],
        started=str(run.manifest.get("started_at", ""))[:10], signs={}, spoken={},
        facts=_facts(run),
    )  # fmt: skip


def _tiles(summary: Summary) -> list[tuple[str, str]]:
    rates = {
        "passed": summary.pass_rate, "goal reached": summary.goal_rate, "agent's faults": summary.agent_faults,
        "twin's faults, set aside": summary.twin_faults,
    }  # fmt: skip
    known = {name: rate for name, rate in rates.items() if rate is not None}
    tiles = [(f"{rate.value:.0%}", f"{name}, {rate.low:.0%} to {rate.high:.0%}, n={rate.n}") for name, rate in known.items()]
    return [*tiles, (counted(summary.conversations), f"conversations, {plural(len(summary.twins), 'twin')}")]


def _rate_cell(rate: Rate | None) -> Cell:
    return NONE if rate is None else Cell(f"{rate.value:.0%}", f"{rate.low:.0%} to {rate.high:.0%}, {rate.count} of {rate.n}")


def _sections(summary: Summary) -> list[Section]:
    rows = [
        ("Passed", ", ".join(summary.passed_means), summary.pass_rate),
        ("Goal reached", f"by {' and '.join(summary.goal_by)}" if summary.goal_by else "nothing says when", summary.goal_rate),
        ("Faults of the agent", "an error, nothing said, or too late", summary.agent_faults),
        ("Faults of the twin", ", ".join(f"{k} {n}" for k, n in summary.twin_fault_kinds.items()), summary.twin_faults),
    ]  # fmt: skip
    results = [
        table_row(title, _rate_cell(rate), Cell(rate.over if rate else ""), description=note) for title, note, rate in rows
    ]
    results += [
        table_row(
            f"pass^{power.k}", Cell(f"{power.value:.0%}", _ends(power.low, power.high)),
            Cell("pairs of scenario and twin", f"n={power.pairs}"), description="all of k repetitions passed",
        )
        for power in summary.pass_powers
    ]  # fmt: skip
    checks = [
        table_row(check.name, _rate_cell(check.rate), Cell(counted(check.errors) if check.errors else ""))
        for check in summary.checks
    ]
    shares, passed = "Shares of conversations with 95% intervals", "Usable conversations that the agent passed"
    holds, cost = "Usable conversations for which each check holds", ("", "Mean", "Median", "95% within", "Most", "n")
    columns = ("Passed", "Conversations", "Twin's faults")
    sections = [
        section("results", "Results", shares, ("", "Share", "Interval over"), results, _notes(summary)),
        section("checks", "Checks", holds, ("Check", "Holds", "Errors of the check"), checks),
        section("scenarios", "Scenarios", passed, ("Scenario", *columns), _group_rows(summary, "scenarios")),
        section("twins", "Twins", passed, ("Twin", *columns), _group_rows(summary, "twins")),
        section("cost", "Time and cost", "Turns and seconds", cost, _cost_rows(summary), [_tokens(summary)]),
    ]
    return [part for part in sections if part is not None]


def _notes(summary: Summary) -> list[str]:
    spoiled = summary.conversations - summary.usable - sum(summary.no_verdict.values())
    aside = {"a fault of the twin": spoiled, **summary.no_verdict}
    listed = ", ".join(f"{name} ({count})" for name, count in aside.items() if count)
    ended = ", ".join(f"{reason} {count}" for reason, count in summary.stop_reasons.items())
    notes = [f"{counted(summary.usable)} of {plural(summary.conversations, 'conversation')} count. They ended by: {ended}."]
    return [*notes, f"Set aside: {listed}."] if listed else notes


def _group_rows(summary: Summary, kind: str) -> list[TableRow]:
    groups = summary.scenarios if kind == "scenarios" else summary.twins
    if kind == "scenarios" and not any(group.name for group in groups):
        return []
    notes = {} if kind == "scenarios" else {twin: text or "closeness not measured" for twin, text in summary.closeness.items()}
    return [
        table_row(
            group.name or "(none)", _rate_cell(group.pass_rate), Cell(counted(group.conversations)),
            Cell(counted(group.twin_faults)), description=notes.get(group.name, ""),
        )
        for group in groups
    ]  # fmt: skip


def _cost_rows(summary: Summary) -> list[TableRow]:
    rows: list[tuple[str, Spread | None, bool]] = [
        ("Turns of the twin", summary.turns, False), ("Reply of the agent", summary.reply_seconds, True),
        ("Conversation", summary.seconds, True),
    ]  # fmt: skip

    def cells(spread: Spread, timed: bool) -> list[Cell]:
        values = (spread.mean, spread.median, spread.p95, spread.most)
        return [*(Cell(seconds(value) if timed else number(value, 1)) for value in values), Cell(counted(spread.n))]

    return [table_row(title, *cells(spread, timed)) for title, spread, timed in rows if spread is not None]


def _tokens(summary: Summary) -> str:
    usage = summary.usage
    cached = f"{counted(usage.cached_tokens)} of them from its cache"
    text = f"The twin's model read {counted(usage.input_tokens)} tokens ({cached}) and wrote "
    text += f"{counted(usage.output_tokens)}; it wrote {plural(summary.discarded, 'defective turn')} again."
    text += "" if summary.dollars is None else f" Cost: ${summary.dollars:.2f}."
    return text + ("" if summary.retries is None else f" Repeated requests: {summary.retries}.")


def manifest_facts(run: AgentRun) -> list[tuple[str, str]]:
    """Return what the manifest of a run says, as terms and texts."""
    manifest = run.manifest
    facts = {
        "Agent": run.agent,
        "Started": str(manifest.get("started_at", "")),
        "Seed": str(manifest.get("seed", "")),
        **{name.capitalize(): _listed(manifest.get(name)) for name in ("models", "prompts", "arguments", "versions")},
    }
    return [(term, text) for term, text in facts.items() if text]


def _facts(run: AgentRun) -> list[tuple[str, str]]:
    """Return what the run was and how its figures were computed, as terms and texts."""
    methods = {
        "Intervals": "95%. Over conversations: Wilson's. From 8 scenarios, twins or pairs of the two on, Student's t with "
        "jackknife standard errors is computed over these, too, and the widest interval is shown; with fewer, it holds for "
        "these scenarios and twins alone.",
        "pass^k": "The probability that all of k conversations of the same scenario and twin are passed: C(c, k) / C(n, k) for "
        "c of n passed, averaged over the pairs of scenario and twin with at least k usable conversations.",
    }  # fmt: skip
    return [*manifest_facts(run), *methods.items()]


def _listed(values: Any) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items()) if isinstance(values, Mapping) else ""


def _ends(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.0%} to {high:.0%}"


def _talk(outcome: Outcome, number: int) -> dict[str, Any]:
    """Return a conversation as values for the template."""
    simulation = outcome.simulation
    facts = [
        f"seed {simulation.seed}", plural(len(simulation.exchanges), "turn"), f"ended by {simulation.stop_reason}",
        *([seconds(simulation.seconds)] if simulation.seconds else []),
    ]  # fmt: skip
    return {
        "number": number, "id": simulation.id, "outcome": outcome.name, "why": "; ".join(outcome.reasons),
        "goal": simulation.goal,
        "facts": "; ".join(facts), "error": simulation.error or "",
        "messages": [_message(message, exchange) for message, exchange in with_exchanges(simulation)],
        "checks": [_check(check) for check in simulation.checks],
        "faults": [f"{fault.kind}: {fault.text}" for fault in simulation.twin_faults],
        "state": "" if simulation.final_state is None else _clipped(str(simulation.final_state)),
    }  # fmt: skip


def _check(check: CheckResult) -> tuple[str, str, str]:
    """Return the sign of a result, its name, and what it says."""
    sign = {True: "holds", False: "fails", None: "error"}[check.passed]
    return sign, check.name, check.error or check.reason


def _message(message: Message, exchange: Exchange | None) -> dict[str, Any]:
    role = str(message.get("role"))
    who = "twin" if is_user(role) else "agent" if is_agents(message) else role
    values: dict[str, Any] = {
        "who": who, "text": _clipped(text_of(message)), "thought": "", "recalled": [], "notes": "", "more": 0,
        "calls": [_clipped(str(tool_call(raw, 0))) for raw in raw_calls(message)],
    }  # fmt: skip
    if exchange is None:
        return values
    answer = exchange.answer
    notes = [
        *(["written by the scenario"] if exchange.authored else []),
        *exchange.notes,
        *([f"{plural(answer.discarded, 'defective turn')} discarded before it"] if answer.discarded else []),
    ]
    recalled = [
        {
            "similarity": number(memory.similarity, 2), "action": _clipped(memory.triple.pair.action),
            "context": [(turn.speaker, _clipped(turn.text)) for turn in memory.triple.pair.context[-_CONTEXT:]],
            "reasoning": memory.triple.reasoning or "",
        }
        for memory in answer.recalled[:_RECALLED]
    ]  # fmt: skip
    more = len(answer.recalled) - len(recalled)
    return values | {
        "thought": answer.reasoning, "recalled": recalled, "notes": "; ".join(notes), "more": more,
    }  # fmt: skip


def _clipped(text: str) -> str:
    """Return a text, or its beginning with the number of characters that follow it in conversations.jsonl."""
    if len(text) <= _CHARACTERS:
        return text
    return f"{text[:_CHARACTERS]}… ({counted(len(text) - _CHARACTERS)} more characters in conversations.jsonl)"
