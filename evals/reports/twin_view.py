"""Terminal views of one twin: `usertwin show`, and the table of `usertwin tune`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from usertwin.evals.records.result_shapes import ListwiseCheckShape, TuningShape
from usertwin.memory import Settings, Triple, TwinRecord
from usertwin.memory.text.transcript import single_line
from usertwin.memory.twin.abandonment import AbandonmentModel
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.memory.twin.record import TwinAdapter, twin_command
from usertwin.memory.twin.reranking import Reranking
from usertwin.personas.reading import as_type

from .labels import MIN_CONVERSATIONS, number, plural, with_interval
from .terminal import closeness_line, plain_table

#: Traces shown of a twin.
_SHOWN_TRACES = 3


def twin_view(
    record: TwinRecord,
    triples: Sequence[Triple],
    ending: LastTurnModel | None,
    abandonment: AbandonmentModel | None,
    home: Path | None = None,
) -> RenderableType:
    """Return the record of a twin in a home, and its traces with the highest fidelity."""
    recipe, persona = record.recipe, record.persona
    traced = [triple for triple in triples if triple.reasoning is not None]
    abandoned = sum(triple.pair.abandoned for triple in triples)
    scores = [triple.score for triple in traced if triple.score is not None]
    memory = f"{len(triples)} triples, {len(traced)} with a trace ({recipe.method})"
    memory += f", mean fidelity {number(sum(scores) / len(scores), 3, signed=True)} nats per token" if scores else ""
    memory += f"; {abandoned} of them abandonments" if abandoned else ""
    reasons = record.settings is None or record.settings.reasons
    reasoner = f"{'' if reasons else 'no model, since it showed no gain; its traces are by '}{recipe.synthesizer}"
    rows = {
        "state": record.state if record.state == "complete" else "interrupted; run the same learn command to continue",
        "person": f'"{recipe.speaker}" in {recipe.source}',
        "persona": f"{persona.name}: {persona.description}",
        "sample turns": "\n".join(persona.sample_turns),
        "memory": memory,
        "proposals": _proposals(triples),
        "audit": _audit(traced),
        **({"judge": _judge(record.judge_check)} if recipe.ranked_by_judge else {}),
        "cost": _cost(triples),
        "settings": _settings(record.settings),
        **({} if record.adapter is None else {"adapter": adapter_text(record.adapter)}),
        **({} if recipe.synthesizer is None else {"reasons with": reasoner}),
        "leaving": _leaving(ending, abandonment),
        "held out": f"{len(record.validation)} conversations for validation, {len(record.test)} for the test",
        "compared with": record.other_speaker or "no other person in the log",
        "models": f"traces {recipe.model or '–'}, scores {recipe.scorer or '–'}, vectors {recipe.embedder}, seed {recipe.seed}",
        "learned": f"{record.learned_at} with " + ", ".join(f"{name} {v}" for name, v in record.versions.items()),
        "closeness": closeness_line(record.closeness)
        if record.closeness
        else f"not measured; run {twin_command('eval', record.name, home)}",
    }
    table = Table(title=Text(f"twin {record.name}"), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, Text(text))
    best = sorted(traced, key=lambda triple: triple.score or 0.0, reverse=True)[:_SHOWN_TRACES]
    return Group(table, Text(), _traces_table(best)) if best else table


def _leaving(ending: LastTurnModel | None, abandonment: AbandonmentModel | None) -> str:
    """Return how the twin decides to leave."""
    ways: list[str] = []
    if ending is not None:
        f1 = "no validation turn is an ending" if ending.f1 is None else f"F1 {number(ending.f1, 2)} on its validation turns"
        ways.append(f"with a last turn, learned from {ending.endings} real endings ({f1}, n={ending.validation_turns})")
    if abandonment is not None:
        ways.append(
            f"without a last turn, by {abandonment.abandonments} remembered abandonments "
            f"(F1 {number(abandonment.f1, 2)} on its validation turns, n={abandonment.validation_turns})"
        )
    return "; ".join(ways) or "not learned (too few real endings)"


def _proposals(triples: Sequence[Triple]) -> str:
    """Return the number of candidate traces, their prompts, and the reasons for rejections."""
    provenances = [triple.provenance for triple in triples if triple.provenance is not None]
    if not provenances:
        return "none"
    rejected = sum((Counter(provenance.rejected) for provenance in provenances), Counter[str]())
    reasons = ", ".join(f"{count} {name}" for name, count in rejected.most_common()) or "none"
    prompts = ", ".join(sorted({provenance.prompt_version for provenance in provenances}))
    count = sum(provenance.candidates for provenance in provenances)
    return f"{count} for {plural(len(provenances), 'pair')}, prompt {prompts}; rejected: {reasons}"


def _audit(traced: Sequence[Triple]) -> str:
    """Return the result of the leak detector, which is part of no score, on the kept traces that were shown the action."""
    provenances = [triple.provenance for triple in traced if triple.provenance is not None]
    measured = [provenance.measured for provenance in provenances if provenance.proposal_mode != "forward"]
    flags = [values["reveals_action"] for values in measured if "reveals_action" in values]
    return f"{sum(flags):.0f} of {len(flags)} traces identify the action without the context" if flags else "none"


def _judge(check: Mapping[str, Any] | None) -> str:
    """Return how the judge of the fidelity answered questions with known answers."""
    if check is None:
        return "not checked on pairs with known answers"
    try:
        as_type(ListwiseCheckShape, check)
    except ValueError as error:
        return f"its check is damaged ({error})"
    return str(check["sentence"])


def _cost(triples: Sequence[Triple]) -> str:
    """Return the cost of the traces in completions, tokens and money."""
    costs = [triple.provenance.cost for triple in triples if triple.provenance is not None and triple.provenance.cost]
    if not costs:
        return "unknown"
    keys = ("calls", "repeated", "input_tokens", "output_tokens", "dollars")
    calls, repeated, read, written, dollars = (sum(cost.get(key) or 0 for cost in costs) for key in keys)
    price = "price unknown" if any(cost.get("dollars") is None for cost in costs) else f"${dollars:.4g}"
    return (
        f"{calls:.0f} completions, {repeated:.0f} more from the cache; {read:.0f} tokens read, {written:.0f} written; {price}; "
        f"per pair: {calls / len(costs):.1f} completions, {(read + written) / len(costs):.0f} tokens"
    )


def _settings(settings: Settings | None) -> str:
    """Return the settings of the twin, and the measurement behind them."""
    if settings is None:
        return "8 pairs with their traces; not tuned (usertwin tune)"
    basis = "" if settings.measured is None else f"; {_damage(settings.measured) or _basis(settings.measured)}"
    return _described(settings) + basis


def _damage(measured: Mapping[str, Any]) -> str:
    """Return what is wrong with the measurement in a twin's record, and the way out; "" for nothing."""
    try:
        as_type(TuningShape, measured)
    except ValueError as error:
        return f"their measurement is damaged ({error}); tune again with usertwin tune"
    return ""


def _described(settings: Settings) -> str:
    names = {"none": "without traces", "backward": "with the first traces", "recon": "with Recon-selected traces"}
    own = ", and a trace of its own before it acts" if settings.reasons else ""
    words = "" if settings.words is None else "; own words mixed into the model's probabilities"
    rule = settings.reranking
    best = "" if rule is None else f"; the best of {_candidates(rule.samples, quotes=rule.quotes)}"
    return f"{settings.k} pairs {names[settings.traces]}, {settings.window} turns of the chat{own}{words}{best}"


def _candidates(samples: int, *, quotes: bool) -> str:
    return f"{samples} replies" + (" and the recalled answers" if quotes else "")


def _basis(measured: Mapping[str, Any]) -> str:
    turns = f"{measured['turns']} validation turns of {plural(measured['conversations'], 'conversation')}"
    if measured["conversations"] < MIN_CONVERSATIONS:
        return f"not told apart from the others by {turns}; {MIN_CONVERSATIONS} conversations are needed"
    return f"best within a standard error on {turns}, scored by {measured['scorer']}"


def adapter_text(adapter: TwinAdapter) -> str:
    """Return how an adapter was trained, what it changes, and when it is used."""
    difference = {"value": adapter.difference, "low": adapter.low, "high": adapter.high}
    trained = f"trained on {adapter.turns} of the {adapter.remembered} turns remembered on {adapter.trained_at[:10]}"
    changes = (
        f"changes bits per character by {with_interval(difference, 3, signed=True)} on {adapter.validation_turns} validation "
        f"turns of {plural(adapter.conversations, 'conversation')}"
    )
    if adapter.used:
        return f"{trained}; {changes}; used when {adapter.base} acts, and with no other model"
    return f"none; one {trained} {changes}, which is not shown to be a gain, so it was deleted"


def settings_table(settings: Settings) -> RenderableType:
    """Return the settings that were compared on validation turns, and the selected ones."""
    if settings.measured is None:
        return Text("There is no validation turn to tune on; the twin is shown its memory without traces.")
    if damage := _damage(settings.measured):
        return Text(f"{_described(settings)}; {damage}")
    table = plain_table("Settings compared on validation turns")
    measure = "bits_per_char" if "bits_per_char" in settings.measured["settings"][0] else "unlikeness"
    title = {"bits_per_char": "bits per char", "unlikeness": "unlikeness of replies"}[measure]
    for place, head in enumerate(("pairs", "turns", "traces", "own trace", title, "minus best without traces")):
        table.add_column(head, justify="left" if place < 4 else "right")
    for row in settings.measured["settings"]:
        cost, extra = row[measure], row["against_plain"]
        cells = (
            str(row["k"]), str(row["window"]), str({"chosen": "recon"}.get(row["traces"], row["traces"])),
            "yes" if row["reasons"] else "no", "–" if cost is None else number(cost["value"], 3),
            ("–" if extra is None else with_interval(extra, 3, signed=True)) + (" ←" if row["chosen"] else ""),
        )  # fmt: skip
        table.add_row(*map(Text, cells), style="bold" if row["chosen"] else "")
    parts = [table, Text(f"Selected, as the simplest that is {_basis(settings.measured)}: {_described(settings)}.")]
    if (gain := settings.measured.get("words")) is not None:
        use = "left out." if settings.words is None else "mixed in."
        words = f"The person's own words change that by {with_interval(gain, 3, signed=True)} bits per character, so they are "
        parts.append(Text(words + use))
    if (compared := settings.measured.get("reranking")) is not None:
        parts += [_rules_table(compared), _rule_text(settings.reranking, settings.measured["conversations"])]
    return Group(*parts)


def _rules_table(compared: Mapping[str, Any]) -> Table:
    turns = f"{plural(compared['turns'], 'validation turn')}; one reply has {number(compared['single'], 3)}"
    table = plain_table(f"The best of several replies: mean of chrF and cosine with the person's, on {turns}")
    for place, head in enumerate(("the best of", "tokens a turn", "minus one reply")):
        table.add_column(head, justify="right" if place else "left")
    for row in compared["rules"]:
        gain = "–" if row["gain"] is None else with_interval(row["gain"], 3, signed=True)
        cells = (_candidates(row["samples"], quotes=row["quotes"]), number(row["tokens_per_turn"], 0), gain)
        table.add_row(
            *map(Text, (*cells[:2], cells[2] + (" ←" if row["chosen"] else ""))), style="bold" if row["chosen"] else ""
        )
    return table


def _rule_text(rule: Reranking | None, conversations: int) -> Text:
    if rule is None:
        few = f"{plural(conversations, 'conversation')} tell no rule from one reply; {MIN_CONVERSATIONS} are needed"
        reason = few if conversations < MIN_CONVERSATIONS else "No rule is shown to gain"
        return Text(f"{reason}, so the twin sends the first reply that the model writes.")
    weights = ", ".join(f"{name} {number(weight, 3, signed=True)}" for name, weight in rule.weights.items())
    return Text(f"The score of a reply is the sum of its features with these weights: {weights}.")


def _traces_table(triples: Sequence[Triple]) -> Table:
    table = Table(title="traces with the highest fidelity", title_justify="left", box=None, header_style="dim")
    for head in ("fidelity", "last turn", "trace", "action"):
        table.add_column(head, justify="right" if head == "fidelity" else "left")
    for triple in triples:
        score = "–" if triple.score is None else number(triple.score, 2, signed=True)
        last = triple.pair.context[-1].text if triple.pair.context else "(none)"
        texts = (last, triple.reasoning or "", triple.pair.action)
        table.add_row(score, *(Text(shorten(single_line(text), 90)) for text in texts))
    return table
