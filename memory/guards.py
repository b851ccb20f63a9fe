"""Guards: what a trace may not do, whatever its score.

The one design choice: a guard sees the trace, the action and what could honestly be known before the action (context and
goal), and answers with its name if it rejects; the five-token rule is the one used by Turing-RL (arXiv 2606.19336).
"""

from __future__ import annotations

import re

from usertwin.personas import Pair

#: A trace that shares a run of this many word tokens with the action, a run the context does not have, is rejected.
LONGEST_RUN = 5
#: Actions of three or four words could be quoted whole without ever reaching that; quoting them whole is rejected too.
SHORTEST_ACTION = 3
#: A trace that shares a run of this many word tokens with the examples it was asked for with is one of them, warmed up.
LONGEST_ECHO = 7
#: Traces longer than this, in words, are rejected.
LONGEST_TRACE = 120

#: A word; in scripts that put no spaces between words, a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+(?:'\w+)*")


def word_tokens(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation; both apostrophes are one."""
    return _WORD.findall(text.casefold().replace("’", "'"))


def longest_new_run(trace: str, action: str, known: str) -> int:
    """The length in words of the longest run that trace and action share and that `known` does not have."""
    told, done, known_tokens = word_tokens(trace), word_tokens(action), word_tokens(known)
    for length in range(min(len(told), len(done)), 0, -1):
        shared = _runs(told, length) & _runs(done, length)
        if shared - _runs(known_tokens, length):
            return length
    return 0


def rejected_by(trace: str, pair: Pair, examples: str = "") -> str | None:
    """The name of the guard that rejects a trace of this pair, or None.

    Args:
        trace: what was proposed.
        pair: what it was proposed for.
        examples: the text it was asked for with, the same for every pair.

    Returns:
        "empty", "too_long", "quotes_action" or "echoes_examples".
    """
    told = word_tokens(trace)
    if not told:
        return "empty"
    if len(told) > LONGEST_TRACE:
        return "too_long"
    done = len(word_tokens(pair.action))
    allowed = min(LONGEST_RUN, max(SHORTEST_ACTION, done))
    known = "\n".join([*(turn.text for turn in pair.context), pair.goal])
    if longest_new_run(trace, pair.action, known) >= allowed:
        return "quotes_action"
    return "echoes_examples" if _runs(told, LONGEST_ECHO) & _runs(word_tokens(examples), LONGEST_ECHO) else None


def _runs(tokens: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}
