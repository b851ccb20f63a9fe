"""A judge that says which of two replies is closer to the person's real turn (the protocol of Recon, arXiv 2605.26969).

The one design choice: a verdict is what the judge said in both orders, kept by content in a file as soon as it is in; so
nothing is asked twice, a judge that was down half way is asked only for the rest, and every figure can be reckoned again
from what was said: a pair on which the two orders disagree is a tie, and an answer that cannot be read is counted as such.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import Estimate, evenly_spaced, mean_over_people, sign_flip
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import LABELS, JudgeVerdict, Label, Question, QuestionKind, digest, read_verdicts
from usertwin.memory import ChatModel
from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.jsonl import open_to_append, write_line
from usertwin.memory.models.chat import Ledger, sample
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import flat, shortened
from usertwin.personas import UsageError

PROMPT = PromptTemplate(Path(__file__).with_name("judge_pair.txt"))
#: From which share on the same answer to everything means that a judge does not look, and of how many answers at least.
CONSTANT, _ENOUGH = 0.9, 10
#: Where a warning is due: fewer pairs on which both orders agree, or more answers that cannot be read.
LOW_CONSISTENCY, MUCH_UNREADABLE = 0.6, 0.05
#: What must come out of the pairs of which it is known. Identical replies make one prompt in both orders, so a tie by
#: disagreement says nothing there: the judge must say that it is one.
MUST = {
    "identical": "the same reply twice: called a tie, in both orders, in at least 95% of the pairs",
    "real": "the real turn itself against the twin's reply: closer in at least 95% of the pairs",
    "same_arm": "two replies that the twin wrote in the same way: a half lies in the interval",
    "another_person": "what another person said against the twin's reply: the interval lies below a half",
}
_SURE = 0.95
_TRIES, _TOKENS, _READ_CHARACTERS = 3, 200, 10_000
_SCHEMA = {
    "type": "object",
    "properties": {"closer": {"type": "string", "enum": list(LABELS)}},
    "required": ["closer"],
    "additionalProperties": False,
}

#: Is told the stage ("judging"), how many pairs are done, of how many.
JudgeProgress = Callable[[str, int, int], None]


# Which pairs ---------------------------------------------------------------------------------------------------------


def questions_of(
    turns: Sequence[MeasuredTurn],
    contrasts: Sequence[tuple[str, str]],
    *,
    samples: int = 1,
    sanity: int = 40,
    seed: int = 0,
    twin: str | None = None,
) -> list[Question]:
    """Every pair that a judge is to compare.

    Args:
        turns: with their replies.
        contrasts: arms, two by two. A turn on which one of the two wrote nothing is left out for that contrast.
        samples: how many replies of each arm are compared, the first with the first and so on, as far as there are any.
        sanity: on how many turns, spread evenly, each of the pairs is asked of which it is known what must come out; those
            where nothing can be known, since both replies are the same, are left out first.
        seed: draws which sample of the twin stands in these.
        twin: the arm whose replies stand in these; the first of the first contrast if it is not given.

    Raises:
        UsageError: a number below what makes sense, or an arm that is compared with itself.
    """
    if samples < 1 or sanity < 0:
        raise UsageError("a judge compares at least 1 sample, and the number of sanity pairs is at least 0")
    for a, b in contrasts:
        if a == b:
            raise UsageError(f'"{a} - {b}" compares an arm with itself; that is what the sanity pairs do')
    found = [
        _question("contrast", turn, a, b, number, (turn.replies[a][number], turn.replies[b][number]))
        for a, b in contrasts
        for turn in turns
        for number in range(min(samples, len(turn.replies.get(a, ())), len(turn.replies.get(b, ()))))
    ]
    arm = twin or (contrasts[0][0] if contrasts else None)
    return found + (_sanity(turns, arm, sanity, seed) if arm is not None and sanity else [])


def _sanity(turns: Sequence[MeasuredTurn], arm: str, most: int, seed: int) -> list[Question]:
    """The pairs of which it is known what must come out."""
    kinds: dict[QuestionKind, list[Question]] = {"identical": [], "real": [], "same_arm": [], "another_person": []}
    for turn in turns:
        replies = turn.replies.get(arm, ())
        if not replies:
            continue
        order = list(range(len(replies)))
        random.Random(f"{seed}/{turn.person}/{turn.conversation_id}/{turn.position}").shuffle(order)
        number, reply = order[0], replies[order[0]]
        kinds["identical"].append(_question("identical", turn, arm, arm, number, (reply, reply)))
        if flat(reply) != flat(turn.action):
            kinds["real"].append(_question("real", turn, "real", arm, number, (turn.action, reply)))
            if flat(turn.other_action) not in {"", flat(reply), flat(turn.action)}:
                texts = (turn.other_action, reply)
                kinds["another_person"].append(_question("another_person", turn, "another_person", arm, number, texts))
        if len(order) > 1 and flat(replies[order[1]]) != flat(reply):
            kinds["same_arm"].append(_question("same_arm", turn, arm, arm, number, (reply, replies[order[1]])))
    return [question for each in kinds.values() for question in evenly_spaced(each, most)]


def _question(kind: QuestionKind, turn: MeasuredTurn, a: str, b: str, number: int, texts: tuple[str, str]) -> Question:
    place = (turn.person, turn.conversation_id, turn.position)
    return Question(kind, a, b, *place, turn.context, turn.action, number, texts)


# Asking --------------------------------------------------------------------------------------------------------------


async def judge_pairs(
    judge: ChatModel,
    questions: Sequence[Question],
    *,
    path: Path,
    seed: int = 0,
    concurrency: int = 1,
    progress: JudgeProgress = lambda stage, done, total: None,
    ledger: Ledger | None = None,
) -> list[JudgeVerdict]:
    """Have every pair judged in both orders. What the file holds already is not asked again.

    Args:
        judge: who judges; should be of another family than whoever wrote the replies.
        questions: see `questions_of`; pairs of the same content are asked once.
        path: verdicts.jsonl; a line is appended as soon as both orders of a pair are in.
        seed: for the sampler.
        concurrency: how many pairs may wait for the judge at once.
        progress: is told how far things are.
        ledger: where to note what it cost.

    Returns:
        A verdict for each question, in that order.

    Raises:
        ModelError: the judge does not answer. What it said until then is kept, and the same call goes on from there.
        UsageError: the file holds a line that is no verdict.
    """
    known = read_verdicts(path)
    written = {(verdict.key, *verdict.place): verdict for verdict in known}
    said = {verdict.key: verdict.said for verdict in known}
    asked = [(_key(judge, question, seed), question) for question in questions]
    waiting: dict[str, list[Question]] = {}
    for key, question in asked:
        if (key, *question.place) not in written:
            waiting.setdefault(key, []).append(question)
    left = sum(map(len, waiting.values()))
    progress("judging", len(asked) - left, len(asked))
    queue = iter(waiting.items())
    with open_to_append(path) as file:

        async def work() -> None:
            nonlocal left
            for key, same in queue:
                labels = said[key] if key in said else await _both_orders(judge, same[0], seed, ledger)
                for question in same:
                    told = (judge.name, judge.identity, PROMPT.version, seed, labels)
                    verdict = JudgeVerdict(key, question.pair, *question.place, *told)
                    written[key, *question.place] = verdict
                    write_line(file, verdict.to_json())
                left -= len(same)
                progress("judging", len(asked) - left, len(asked))

        await run_concurrently(work, concurrency)
    return [written[key, *question.place] for key, question in asked]


def read_verdict(text: str) -> Label | None:
    """The label in what a judge wrote; None if there is none, or more than one, or anything else under that key.

    >>> read_verdict('The first one: {"closer": "1"}')
    '1'
    """
    found: set[object] = set()
    decoder, text, start = json.JSONDecoder(), text[:_READ_CHARACTERS], 0
    while (start := text.find("{", start)) >= 0:
        try:
            told, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if "closer" in told:
            label: object = told["closer"]
            found.add(str(label) if type(label) is int else label if isinstance(label, str) else None)
    [label] = found if len(found) == 1 else [None]
    return label if label in LABELS else None


async def _both_orders(
    judge: ChatModel, question: Question, seed: int, ledger: Ledger | None
) -> tuple[Label | None, Label | None]:
    """What the judge says with a's reply first, and with b's."""
    return (
        await _ask(judge, question, question.texts, seed, ledger),
        await _ask(judge, question, (question.texts[1], question.texts[0]), seed, ledger),
    )


async def _ask(judge: ChatModel, question: Question, texts: tuple[str, str], seed: int, ledger: Ledger | None) -> Label | None:
    prompt = PROMPT.fill(
        name=question.name, context=question.context_lines(), action=shortened(question.action) or "(nothing)",
        replies=[shortened(text) or "(nothing)" for text in texts],
    )  # fmt: skip
    for attempt in range(_TRIES):
        [answer] = await sample(
            judge, [("user", prompt)], seed=seed + attempt, max_tokens=_TOKENS, temperature=0.2 * attempt,
            schema=_SCHEMA, ledger=ledger,
        )  # fmt: skip
        label = read_verdict(answer.text)
        if label is not None:
            return label
    return None


def _key(judge: ChatModel, question: Question, seed: int) -> str:
    return digest([judge.name, judge.identity, PROMPT.version, seed, question.name, question.pair])


# What they say -------------------------------------------------------------------------------------------------------


def judged(verdicts: Sequence[JudgeVerdict], seed: int = 0) -> dict[str, Any]:
    """Every figure of what one judge said, as result.json holds it.

    Shares are means over people of each person's mean over pairs, with intervals from the two-level bootstrap.

    Args:
        verdicts: of one judge.
        seed: for the resampling.

    Returns:
        "contrasts", by name: "win" (the share in which the first arm is closer, ties a half), "ties", "p" (sign-flip over
        people) and "decided" ("win" of the pairs on which both orders agree; None if there is none). "sanity": what came out
        of the pairs of which it is known, what "must", and whether that "holds" (None: too few pairs or conversations to tell).
        "consistent": the share of pairs on which both orders agree, and "first": of the answers that name a reply, the share
        that names the one shown first (a half is fair); both without identical pairs, and None if there is nothing to tell
        it from. "unreadable": the share of answers. "usable": whether the figures tell anything of the replies; if not,
        "warnings" say why.
    """
    names = dict.fromkeys((verdict.a, verdict.b) for verdict in verdicts if verdict.kind == "contrast")
    contrasts = {
        f"{a} - {b}": row
        for a, b in names
        if (row := _contrast([one for one in verdicts if one.kind == "contrast" and (one.a, one.b) == (a, b)], seed))
    }
    sanity = {kind: row for kind in MUST if (row := _known([one for one in verdicts if one.kind == kind], kind, seed))}
    different = [verdict for verdict in verdicts if verdict.kind != "identical"]
    named = [(one, label) for one in different for label in one.said if label in {"1", "2"}]
    answers = [label for verdict in verdicts for label in verdict.said]
    found: dict[str, Any] = {
        "model": ", ".join(dict.fromkeys(verdict.judge for verdict in verdicts)),
        "contrasts": contrasts,
        "sanity": sanity,
        "consistent": _json(_share([(one, float(one.consistent)) for one in different if one.consistent is not None], seed)),
        "first": _json(_share([(one, float(label == "1")) for one, label in named], seed)),
        "unreadable": {"value": answers.count(None) / len(answers) if answers else 0.0, "n": len(answers)},
    }
    useless = _useless(found, [label for verdict in different for label in verdict.said if label is not None])
    return found | {"usable": not useless, "warnings": useless + _warnings(found)}


def _contrast(verdicts: Sequence[JudgeVerdict], seed: int) -> dict[str, Any] | None:
    scores = [(one, one.score) for one in verdicts if one.score is not None]
    found = _over_people(scores, seed)
    if found is None:
        return None
    win, people = found
    return {
        "win": win.to_json(),
        "ties": _json(_share([(one, float(score == 0.5)) for one, score in scores], seed)),
        "p": sign_flip([value - 0.5 for value in people], seed=seed),
        "decided": _json(_share([(one, score) for one, score in scores if one.consistent], seed)),
    }


def _known(verdicts: Sequence[JudgeVerdict], kind: str, seed: int) -> dict[str, Any] | None:
    """What came out of the pairs of a kind, and whether it is what must."""
    scores = [(one, one.score) for one in verdicts if one.score is not None]
    win = _share(scores, seed)
    ties = _share([(one, float(one.orders == ("tie", "tie") if kind == "identical" else s == 0.5)) for one, s in scores], seed)
    if win is None or ties is None:
        return None
    holds: bool | None
    if kind == "identical":
        holds = ties.value >= _SURE
    elif kind == "real":
        holds = win.value >= _SURE
    elif win.low is None or win.high is None or len(scores) < _ENOUGH:
        holds = None  # of a few pairs the interval may be a point
    else:
        holds = win.low <= 0.5 <= win.high if kind == "same_arm" else win.high < 0.5
    return {"win": win.to_json(), "ties": ties.to_json(), "must": MUST[kind], "holds": holds}


def _useless(found: dict[str, Any], labels: Sequence[Label]) -> list[str]:
    """Why what this judge says tells nothing of the replies; empty if it does."""
    judge, unreadable = f'the judge "{found["model"]}"', found["unreadable"]
    if not unreadable["n"]:
        return ["no pair was judged"]
    if unreadable["value"] > 0.5:
        return [f"{judge} gave {_of(unreadable)} that cannot be read: its figures are not to be used"]
    [(most, times)] = Counter(labels).most_common(1) or [("", 0)]
    if len(labels) >= _ENOUGH and times >= CONSTANT * len(labels):
        tells = "tells nothing of the replies" if most == "tie" else "tells the order, not the replies"
        what = f'{judge} answers "{most}" in {times / len(labels):.0%} of {len(labels)} verdicts'
        return [f"{what}: what it says {tells}, and its figures are not to be used"]
    real = found["sanity"].get("real", {"win": None})["win"]
    if real is not None and (real["value"] <= 0.5 or (real["n"] >= _ENOUGH and real["low"] is not None and real["low"] <= 0.5)):
        return [f"{judge} does not even tell the real turn from the twin's reply: its figures are not to be used"]
    return []


def _warnings(found: dict[str, Any]) -> list[str]:
    judge, consistent, unreadable = f'the judge "{found["model"]}"', found["consistent"], found["unreadable"]
    said: list[str] = []
    if consistent is not None and consistent["value"] < LOW_CONSISTENCY:
        said.append(
            f"{judge} says the same in both orders in only {consistent['value']:.0%} of {consistent['n']} pairs; "
            "the others are counted as ties"
        )
    if MUCH_UNREADABLE < unreadable["value"] <= 0.5:
        said.append(f"{judge} gave {_of(unreadable)} that cannot be read; those pairs are left out")
    for kind, row in found["sanity"].items():
        if row["holds"] is False:
            share, what = (row["ties"], "called a tie") if kind == "identical" else (row["win"], "closer")
            interval = "" if share["low"] is None else f" ({share['low']:.0%} to {share['high']:.0%})"
            came = f"{what} in {share['value']:.0%}{interval} of {share['n']} pairs"
            said.append(f"a check of {judge} does not hold; what must be: {row['must']}; what came out: {came}")
    return said


def _of(share: dict[str, Any]) -> str:
    return f"{share['value']:.0%} of {share['n']} answers"


def _over_people(values: Sequence[tuple[JudgeVerdict, float]], seed: int) -> tuple[Estimate, tuple[float, ...]] | None:
    people, conversations = [one.person for one, _ in values], [one.conversation_id for one, _ in values]
    found = mean_over_people([value for _, value in values], people, conversations, seed=seed)
    return None if found is None else (found[0].estimate(), found[1])


def _share(values: Sequence[tuple[JudgeVerdict, float]], seed: int) -> Estimate | None:
    found = _over_people(values, seed)
    return None if found is None else found[0]


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else dict(estimate.to_json())
