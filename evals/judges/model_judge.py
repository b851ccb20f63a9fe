"""A model judge that compares two replies with the person's real turn (the protocol of Recon, arXiv 2605.26969).

Design: a verdict holds the answers in both orders and is appended to a file as soon as both are in. So no answer is paid twice,
an interrupted judge resumes, and every figure can be computed again: a pair on which the orders disagree is a tie, and
unreadable answers are counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import (
    Estimate,
    Inference,
    evenly_spaced,
    mean,
    mean_over_people,
    optional_json,
)
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import LABELS, JudgeVerdict, Label, Question, QuestionKind, digest, read_verdicts, slot
from usertwin.memory import ChatModel
from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.jsonl import append_line, open_for_append
from usertwin.memory.models.chat import Ledger, limit_error, sample_readable
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.text.completions import json_objects, without_reasoning
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import single_line, truncate_action
from usertwin.personas import UsageError

from .known_answers import ENOUGH, MAX_UNREADABLE, Check, percentage, unreadable_answers

PROMPT = PromptTemplate(Path(__file__).with_name("judge_pair.txt"))
#: A judge that gives the same answer to this share of the pairs ignores them; fewer answers than `ENOUGH` prove nothing.
CONSTANT_SHARE = 0.9
#: Agreement of the two orders below which there is a warning.
LOW_CONSISTENCY = 0.6
#: Pairs with a known verdict, and that verdict. Identical replies give one prompt in both orders, so a tie by disagreement
#: proves nothing there: the judge must call a tie.
SANITY_CHECKS = {
    "identical": Check("the same reply twice: called a tie, in both orders, in at least 95% of the pairs", "tied"),
    "real": Check("the real turn against the twin's reply: closer in at least 95% of the pairs", "closer"),
    "same_arm": Check("two replies of the same arm: the interval contains 0.5", "even"),
    "another_person": Check("another person's turn against the twin's reply: the interval lies below 0.5", "below"),
}
_READ_CHARACTERS = 10_000
_SCHEMA = {
    "type": "object",
    "properties": {"closer": {"type": "string", "enum": list(LABELS)}},
    "required": ["closer"],
    "additionalProperties": False,
}


def build_questions(
    turns: Sequence[MeasuredTurn], contrasts: Sequence[tuple[str, str]], *,
    samples: int = 1, sanity: int = 40, seed: int = 0, twin: str | None = None,
) -> list[Question]:  # fmt: skip
    """Return every pair that a judge compares.

    Args:
        turns: with their replies.
        contrasts: pairs of arms. Turns without a reply of one of the two are left out of that contrast.
        samples: the most replies of each arm to compare, the first with the first and so on.
        sanity: the most pairs of each sanity check, evenly spaced over the turns; turns where the two replies are equal are
            left out first.
        seed: chooses the sample of the twin's arm in sanity checks.
        twin: the arm of sanity checks; the first arm of the first contrast if None.

    Raises:
        UsageError: a number is too small, or a contrast names the same arm twice.
    """
    if samples < 1 or sanity < 0:
        raise UsageError(f"samples is {samples} and sanity {sanity}; they must be at least 1 and 0")
    for a, b in contrasts:
        if a == b:
            raise UsageError(f'"{a} - {b}" compares an arm with itself; sanity checks do that')
    questions = [
        _question("contrast", turn, a, b, number, texts)
        for a, b in contrasts
        for turn in turns
        for number, texts in enumerate(zip(turn.replies.get(a, ())[:samples], turn.replies.get(b, ()), strict=False))
    ]
    arm = twin or (contrasts[0][0] if contrasts else None)
    return questions + (_sanity_questions(turns, arm, sanity, seed) if arm is not None and sanity else [])


def _sanity_questions(turns: Sequence[MeasuredTurn], arm: str, max_pairs: int, seed: int) -> list[Question]:
    """Return the pairs of every sanity check."""
    kinds: dict[QuestionKind, list[Question]] = {"identical": [], "real": [], "same_arm": [], "another_person": []}
    for turn in turns:
        replies = turn.replies.get(arm, ())
        if not replies:
            continue
        order = list(range(len(replies)))
        random.Random(f"{seed}/{turn.person}/{turn.conversation_id}/{turn.position}").shuffle(order)
        number, reply = order[0], replies[order[0]]
        kinds["identical"].append(_question("identical", turn, arm, arm, number, (reply, reply)))
        if single_line(reply) != single_line(turn.action):
            kinds["real"].append(_question("real", turn, "real", arm, number, (turn.action, reply)))
            if single_line(turn.other_action) not in {"", single_line(reply), single_line(turn.action)}:
                texts = (turn.other_action, reply)
                kinds["another_person"].append(_question("another_person", turn, "another_person", arm, number, texts))
        if len(order) > 1 and single_line(replies[order[1]]) != single_line(reply):
            kinds["same_arm"].append(_question("same_arm", turn, arm, arm, number, (reply, replies[order[1]])))
    return [question for questions in kinds.values() for question in evenly_spaced(questions, max_pairs)]


def _question(kind: QuestionKind, turn: MeasuredTurn, a: str, b: str, sample_index: int, texts: tuple[str, str]) -> Question:
    return Question(
        kind=kind, a=a, b=b, person=turn.person, conversation_id=turn.conversation_id, position=turn.position,
        context=turn.context, action=turn.action, sample=sample_index, texts=texts,
    )  # fmt: skip


async def judge_pairs(
    judge: ChatModel, questions: Sequence[Question], *, path: Path, seed: int = 0, concurrency: int = 1,
    progress: Progress = no_progress, ledger: Ledger | None = None,
) -> list[JudgeVerdict]:  # fmt: skip
    """Return a verdict for each question, in order: judge every pair in both orders, except where the file holds a label.

    Take a judge of another model family than that of the replies. Pairs with the same content are judged once. A line is
    appended to `path` (verdicts.jsonl) as soon as both orders of a pair are in; answers of earlier calls that could not be read
    are asked for again. At most `concurrency` pairs wait for the judge at once. `progress` is called with "judging", the number
    of judged pairs, and the total.

    Raises:
        ModelError: the judge does not answer, or is empty at its limit of tokens in all attempts. The file keeps the verdicts
            so far, and the same call resumes.
        UsageError: the file holds a line that is not a verdict.
    """
    known = read_verdicts(path)
    verdicts = {(verdict.key, *slot(verdict)): verdict for verdict in known}
    known_labels = {verdict.key: verdict.labels for verdict in known}
    keyed = [(_key(judge, question, seed), question) for question in questions]
    pending: dict[str, list[Question]] = {}
    for key, question in keyed:
        verdict = verdicts.get((key, *slot(question)))
        if verdict is None or None in verdict.labels:
            pending.setdefault(key, []).append(question)
    remaining = sum(map(len, pending.values()))
    progress("judging", len(keyed) - remaining, len(keyed))
    queue = iter(pending.items())
    with open_for_append(path) as file:

        async def work() -> None:
            nonlocal remaining
            for key, same in queue:
                first, second = same[0].texts
                label, reverse = known_labels.get(key, (None, None))
                labels = (
                    label or await _sample_label(judge, same[0], (first, second), seed, ledger),
                    reverse or await _sample_label(judge, same[0], (second, first), seed, ledger),
                )
                for question in same:
                    kind, a, b, person, conversation_id, position, sample_index = slot(question)
                    verdict = JudgeVerdict(
                        key=key, pair=question.pair, kind=kind, a=a, b=b, person=person, conversation_id=conversation_id,
                        position=position, sample=sample_index, judge=judge.name, identity=judge.identity,
                        prompt=PROMPT.version, seed=seed, labels=labels,
                    )  # fmt: skip
                    if verdicts.get((key, *slot(question))) != verdict:
                        append_line(file, verdict.to_json())
                    verdicts[key, *slot(question)] = verdict
                remaining -= len(same)
                progress("judging", len(keyed) - remaining, len(keyed))

        await run_concurrently(work, concurrency)
    return [verdicts[key, *slot(question)] for key, question in keyed]


def parse_label(text: str) -> Label | None:
    """Return the label in an answer, after its reasoning; None if it has none, two different ones, or another value.

    >>> parse_label('<think>{"closer": "2"}?</think> The first one: {"closer": "1"}')
    '1'
    """
    values: set[object] = set()
    for raw in json_objects(without_reasoning(text).text[:_READ_CHARACTERS]):
        if "closer" in raw:
            value: object = raw["closer"]
            values.add(str(value) if type(value) is int else value.lower() if isinstance(value, str) else None)
    [label] = values if len(values) == 1 else [None]
    return label if label in LABELS else None


async def _sample_label(
    judge: ChatModel, question: Question, texts: tuple[str, str], seed: int, ledger: Ledger | None
) -> Label | None:
    prompt = PROMPT.fill(
        name=question.name, context=question.context_lines(), action=truncate_action(question.action) or "(nothing)",
        replies=[truncate_action(text) or "(nothing)" for text in texts],
    )  # fmt: skip
    max_tokens = token_limit("verdict", judge.style)
    label, is_cut_off = await sample_readable(
        judge, [("user", prompt)], parse_label, seed=seed, max_tokens=max_tokens, schema=_SCHEMA, ledger=ledger
    )
    if is_cut_off:
        raise limit_error(judge, max_tokens)
    return label


def _key(judge: ChatModel, question: Question, seed: int) -> str:
    return digest([judge.name, judge.identity, PROMPT.version, seed, question.name, question.pair])


def summarize_verdicts(verdicts: Sequence[JudgeVerdict], seed: int = 0) -> dict[str, Any]:
    """Return the figures of one judge that result.json holds.

    Shares of a contrast are means over people of each person's mean over pairs, with intervals over people (or over the
    conversations of few people). Shares that tell about the judge are over pairs, with intervals over conversations.

    Returns:
        "contrasts", by name: "win" (the share of pairs in which the first arm is closer, a tie counts 0.5), "ties", "p"
        (of a share of a half) and "decided" ("win" of the pairs on which both orders agree; None without such pairs).
        "sanity", by check: "win", "ties", the verdict that "must" come out, and whether it "holds" (None: too few pairs or
        conversations). "consistent": the share of pairs on which both orders agree. "first": the share of answers for the
        reply shown first, without ties (0.5 is unbiased). Both are without identical pairs, and None without data.
        "unreadable": the share of answers. "usable": whether the figures are about the replies; if not, "warnings" say why.
    """
    by_name: dict[str, list[JudgeVerdict]] = {}
    for verdict in verdicts:
        if verdict.kind == "contrast":
            by_name.setdefault(f"{verdict.a} - {verdict.b}", []).append(verdict)
    people = len({verdict.person for verdict in verdicts if verdict.kind == "contrast"})
    contrasts = {name: row for name, own in by_name.items() if (row := _contrast(own, people, seed))}
    sanity = {kind: row for kind in SANITY_CHECKS if (row := _sanity([v for v in verdicts if v.kind == kind], kind))}
    different = [verdict for verdict in verdicts if verdict.kind != "identical"]
    without_ties = [(verdict, label) for verdict in different for label in verdict.labels if label in {"1", "2"}]
    answers = [label for verdict in verdicts for label in verdict.labels]
    summary: dict[str, Any] = {
        "model": ", ".join(dict.fromkeys(verdict.judge for verdict in verdicts)),
        "contrasts": contrasts,
        "sanity": sanity,
        "consistent": optional_json(_share([(v, float(v.consistent)) for v in different if v.consistent is not None])),
        "first": optional_json(_share([(verdict, float(label == "1")) for verdict, label in without_ties])),
        "unreadable": unreadable_answers(answers.count(None), len(answers)),
    }
    reasons = _unusable_reasons(summary, [label for verdict in different for label in verdict.labels if label is not None])
    return summary | {"usable": not reasons, "warnings": reasons + _warnings(summary)}


def _contrast(verdicts: Sequence[JudgeVerdict], people: int, seed: int) -> dict[str, Any] | None:
    """Return the row of a contrast in a measurement of some people; None without readable verdicts."""
    scores = [(verdict, verdict.score) for verdict in verdicts if verdict.score is not None]
    win = _over_people(scores, people)
    if win is None:
        return None
    ties = _over_people([(verdict, float(score == 0.5)) for verdict, score in scores], people)
    decided = _over_people([(verdict, score) for verdict, score in scores if verdict.consistent], people)
    return {
        "win": win.estimate().to_json(),
        "ties": optional_json(ties and ties.estimate()),
        "p": win.p(0.5, seed=seed),
        "decided": optional_json(decided and decided.estimate()),
    }


def _sanity(verdicts: Sequence[JudgeVerdict], kind: str) -> dict[str, Any] | None:
    """Return the result of a sanity check; None without verdicts."""
    scores = [(verdict, verdict.score) for verdict in verdicts if verdict.score is not None]
    win = _share(scores)
    is_tie = [(v, float(v.orders == ("tie", "tie") if kind == "identical" else score == 0.5)) for v, score in scores]
    return SANITY_CHECKS[kind].row(win, _share(is_tie))


def _unusable_reasons(summary: dict[str, Any], labels: Sequence[Label]) -> list[str]:
    """Return why the verdicts are not about the replies; empty if they are."""
    judge, unreadable = f'the judge "{summary["model"]}"', summary["unreadable"]
    if not unreadable["n"]:
        return ["no pair was judged"]
    if unreadable["value"] > MAX_UNREADABLE:
        share = f"{unreadable['value']:.0%} of {unreadable['n']} answers"
        return [f"{judge} gave {share} that cannot be read: do not use its figures"]
    [(label, count)] = Counter(labels).most_common(1) or [("", 0)]
    if len(labels) >= ENOUGH and count >= CONSTANT_SHARE * len(labels):
        cause = "it ignores the replies" if label == "tie" else "it follows the order, not the replies"
        share = f'{judge} answers "{label}" in {count / len(labels):.0%} of {len(labels)} verdicts'
        return [f"{share}: {cause}; do not use its figures"]
    real = summary["sanity"].get("real", {"win": None})["win"]
    if real is not None and (real["value"] <= 0.5 or (real["n"] >= ENOUGH and real["low"] is not None and real["low"] <= 0.5)):
        return [f"{judge} does not prefer the real turn to the twin's reply: do not use its figures"]
    return []


def _warnings(summary: dict[str, Any]) -> list[str]:
    judge, consistent, unreadable = f'the judge "{summary["model"]}"', summary["consistent"], summary["unreadable"]
    warnings: list[str] = []
    if consistent is not None and consistent["value"] < LOW_CONSISTENCY:
        warnings.append(
            f"{judge} agrees with itself in both orders in only {consistent['value']:.0%} of {consistent['n']} pairs; "
            "the other pairs count as ties"
        )
    if 0 < unreadable["value"] <= MAX_UNREADABLE:
        share = f"{unreadable['value']:.0%} of {unreadable['n']} answers"
        warnings.append(f"{judge} gave {share} that cannot be read; those pairs are left out")
    for kind, row in summary["sanity"].items():
        if row["holds"] is False:
            share, outcome = (row["ties"], "called a tie") if kind == "identical" else (row["win"], "closer")
            warnings.append(f"{judge} fails a sanity check; expected: {row['must']}; result: {outcome} in {percentage(share)}")
    return warnings


def _over_people(values: Sequence[tuple[JudgeVerdict, float]], measured: int) -> Inference | None:
    people, conversations = [verdict.person for verdict, _ in values], [verdict.conversation_id for verdict, _ in values]
    return mean_over_people([value for _, value in values], people, conversations, share=True, measured=measured)


def _share(values: Sequence[tuple[JudgeVerdict, float]]) -> Estimate | None:
    """Return a share of pairs, with an interval over conversations."""
    conversations = [(verdict.person, verdict.conversation_id) for verdict, _ in values]
    return mean([value for _, value in values], conversations, share=True)
