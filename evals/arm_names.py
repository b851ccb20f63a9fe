"""Names and descriptions of the arms that an evaluation can compare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from usertwin.personas import UsageError

Peer = Literal["openevals", "openevals_written", "tau2", "persona"]
PEERS: tuple[Peer, ...] = get_args(Peer)
TRACE_ARMS = ("backward", "random_of_n", "best_of_n", "recon", "trained")
#: Arms that show the pairs that the twin recalls, with or without traces. Any other arm could replace the twin.
MEMORY_ARMS = ("recalled_pairs", *TRACE_ARMS)
#: Arms that reply with something the person said before, without a model; they have replies, but no likelihoods.
QUOTING_ARMS = ("verbatim", "medoid")
#: Arms that recall other people's pairs; they need the log that the twin was learned from.
POOLED_ARMS = ("pooled", "pooled_with_own")

#: Appended to the name of an arm that could be the twin, before the others: the model has the twin's adapter.
ADAPTED = "+adapted"
#: Appended to the name of an arm with likelihoods: the person's own words are mixed into the model's next-token probabilities.
WORDS = "+words"
#: Appended to the name of an arm that could be the twin, after `WORDS`: a reply is the best of several, by the twin's rule.
RERANKED = "+reranked"
_SUFFIXES = tuple(f"{adapted}{words}{best}" for adapted in ("", ADAPTED) for best in ("", RERANKED) for words in ("", WORDS))

#: Every arm, in the order of reports, with one sentence on what the model is shown before the present context, or on the reply.
ARM_DESCRIPTIONS: Mapping[str, str] = {
    "no_memory": "Nothing but the chat.",
    "other_person": "Pairs recalled from another person's past.",
    "pooled": "Pairs recalled from everybody else of the same role in the log.",
    "pooled_with_own": "Pairs recalled from everybody of the same role in the log, the person too.",
    "random_own": "Random pairs from the person's own past.",
    "recent_own": "The latest pairs from the person's own past.",
    "recalled_pairs": "The person's own pairs most similar to the present context, without traces.",
    "backward": "The recalled pairs, each with the first candidate trace that passes the guards (backward synthesis).",
    "random_of_n": "The recalled pairs, each with a random candidate trace that passes the guards.",
    "best_of_n": "The recalled pairs, each with the best-scored candidate trace that passes the guards, whatever its score.",
    "recon": "The recalled pairs with the traces that the twin uses: Recon-selected, or the first ones if tuning chose those.",
    "trained": "The recalled pairs, each with the trace of a trained synthesizer.",
    "verbatim": "No model: the reply is what the person said at the most similar remembered pair.",
    "medoid": "No model: of what the person said at the 16 most similar pairs, the turn most like the others.",
    "openevals": "A system prompt of ours with a description of the person, in the message format of openevals' user.",
    "openevals_written": "The same, with a description of the person that the model wrote from the log.",
    "tau2": "A paraphrase of the guidelines of tau2-bench's user simulator, its scenario, and a description of the person.",
    "persona": "A description of the person, computed from the same log.",
}
ARMS = tuple(ARM_DESCRIPTIONS)
DEFAULT_ARMS = ("no_memory", "other_person", "random_own", "recalled_pairs", "recon")

#: Earlier names of arms, which options and suites may still use.
ARM_ALIASES: Mapping[str, str] = {"recalled_triples": "recon", "chosen": "recon"}
#: The name of a simulator of the user's as an arm: it must be told from the names of two arms, "A - B", in a result.
_SIMULATOR = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")


def base_arm(arm: str) -> str:
    """Return the arm that shows the same prompt, without adapter and own words and with the first reply.

    >>> base_arm("recalled_pairs+adapted+words+reranked")
    'recalled_pairs'
    """
    return arm.removesuffix(RERANKED).removesuffix(WORDS).removesuffix(ADAPTED)


def is_adapted(arm: str) -> bool:
    """Return whether the model has the twin's adapter in an arm."""
    return arm.removesuffix(RERANKED).removesuffix(WORDS).endswith(ADAPTED)


def uses_words(arm: str) -> bool:
    """Return whether the person's own words are mixed into the probabilities of an arm."""
    return arm.removesuffix(RERANKED).endswith(WORDS)


def is_reranked(arm: str) -> bool:
    """Return whether a reply of an arm is the best of several."""
    return arm.endswith(RERANKED)


def peer_of(arm: str) -> Peer | None:
    """Return the peer whose prompt an arm shows, with own words or without; None if it is no peer's."""
    return next((peer for peer in PEERS if peer == base_arm(arm)), None)


def describe_arm(arm: str) -> str:
    """Return one sentence about an arm; "" for a simulator of the user's."""
    description = ARM_DESCRIPTIONS.get(base_arm(arm), "")
    adapter = "; the model has the twin's adapter" if is_adapted(arm) else ""
    words = "; the person's own words are mixed into the model's probabilities" if uses_words(arm) else ""
    best = "; the reply is the best of several, by the twin's rule or the general one" if is_reranked(arm) else ""
    return description and f"{description[:-1]}{adapter}{words}{best}."


def in_order(arms: Iterable[str]) -> list[str]:
    """Return arms in the order of reports, each before itself with adapter, own words or reranking; simulators come last."""
    given = list(dict.fromkeys(arms))
    known = [arm for base in ARMS for suffix in _SUFFIXES if (arm := base + suffix) in given]
    return [*known, *(arm for arm in given if arm not in known)]


def _is_arm(name: str) -> bool:
    base = base_arm(name)
    allowed = MEMORY_ARMS if is_reranked(name) or is_adapted(name) else tuple(arm for arm in ARMS if arm not in QUOTING_ARMS)
    return name in ARMS or (base in allowed and name.removeprefix(base) in _SUFFIXES)


def check_arms(arms: Sequence[str]) -> tuple[str, ...]:
    """Return arms in the order of reports, earlier names replaced, and then simulators, as "NAME = SIMULATOR".

    A simulator is any other simulated user, under a name of the user's choice; see replay/simulators.py.

    Raises:
        UsageError: an unknown arm, or none; two simulators, or an arm and a simulator, have the same name.
    """
    current = [ARM_ALIASES.get(arm, arm) for arm in arms if "=" not in arm]
    unknown = [arm for arm in current if not _is_arm(arm)]
    if unknown or not arms:
        problem = f'there is no arm "{unknown[0]}"' if unknown else "no arm is named"
        raise UsageError(
            f"{problem}; there are {', '.join(ARMS)}, these with {WORDS} where a model writes, those of the twin's memory with "
            f"{ADAPTED} or {RERANKED}, and NAME=MODULE:ATTRIBUTE for a simulator of yours"
        )
    simulators: dict[str, str] = {}
    for arm in arms:
        name, equals, target = (part.strip() for part in arm.partition("="))
        if not equals:
            continue
        if not _SIMULATOR.fullmatch(name) or not target:
            raise UsageError(f'"{arm}" is no simulator; write NAME=MODULE:ATTRIBUTE, the name of letters, digits and "_.-"')
        if name in {*ARMS, *ARM_ALIASES} or simulators.get(name, target) != target:
            raise UsageError(f'"{arm}": there is another arm "{name}"; give the simulator another name')
        simulators[name] = target
    return (*in_order(current), *(f"{name} = {target}" for name, target in simulators.items()))


def check_question(contrasts: Sequence[str], arms: Sequence[str]) -> tuple[str, ...]:
    """Return the contrasts "A - B" that a measurement is to answer, earlier names of arms replaced, without repetitions.

    Args:
        contrasts: what is asked: does A predict the person better than B?
        arms: the checked arms that are measured.

    Raises:
        UsageError: a contrast is not of two of these arms, or is of an arm without likelihoods.
    """
    measured, unlikely = arm_names(arms), {*QUOTING_ARMS, *simulators_of(arms)}
    checked: list[str] = []
    for contrast in contrasts:
        pair = [ARM_ALIASES.get(part.strip(), part.strip()) for part in contrast.split(" - ")]
        if len(pair) != 2 or pair[0] == pair[1]:
            raise UsageError(f'"{contrast}" is no contrast; write two arms as "A - B"')
        if missing := [arm for arm in pair if arm not in measured]:
            raise UsageError(f'"{contrast}" names "{missing[0]}", which is not measured; add it to arms, or ask about another')
        if pair[0].removesuffix(RERANKED) == pair[1].removesuffix(RERANKED):
            raise UsageError(f'"{contrast}": the best of several replies has the same bits per character; ask about other arms')
        if silent := [arm for arm in pair if arm in unlikely]:
            raise UsageError(f'"{contrast}": "{silent[0]}" has replies alone, and no bits per character; ask about other arms')
        checked.append(" - ".join(pair))
    return tuple(dict.fromkeys(checked))


def usual_opponents(arms: Iterable[str]) -> list[str]:
    """Return the arms that the twin is compared with where no question is declared.

    It is "no_memory", and without that each arm that could replace the twin.
    """
    others = list(arms)
    return ["no_memory"] if "no_memory" in others else [arm for arm in others if base_arm(arm) not in MEMORY_ARMS]


def simulators_of(arms: Sequence[str]) -> dict[str, str]:
    """Return the simulators among checked arms, by name."""
    return dict(arm.split(" = ", 1) for arm in arms if "=" in arm)


def arm_names(arms: Sequence[str]) -> tuple[str, ...]:
    """Return the names of checked arms, as in results."""
    return tuple(arm.partition(" = ")[0] for arm in arms)


def with_current_arms(raw: Any) -> Any:
    """Return a JSON value of an earlier version with the earlier name of the arm `recon` replaced, in keys and in values.

    >>> with_current_arms({"paired": {"recalled_triples - no_memory": {}}, "twin_arm": "recalled_triples"})
    {'paired': {'recon - no_memory': {}}, 'twin_arm': 'recon'}
    """
    if isinstance(raw, str):
        # "chosen" is a key of other JSON objects too, and never was an arm in a record.
        return " - ".join("recon" if part == "recalled_triples" else part for part in raw.split(" - "))
    if isinstance(raw, Mapping):
        return {with_current_arms(key): with_current_arms(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [with_current_arms(value) for value in raw]
    return raw
