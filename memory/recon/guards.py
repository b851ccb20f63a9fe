"""Guards: what a trace may not do, whatever its score.

The one design choice: a guard sees the trace, the action and what could honestly be known before the action (context and
goal), and answers with its name if it rejects. The lexical ones need no model and run first; those that need a likelihood
(`kept_share`, and the audit `gives_away`, which rejects nothing and is in no score) are asked about the best trace only.

Sources: the five-token rule is Turing-RL's (arXiv 2606.19336); the trace-only probe is the idea of LAS (Hase et al. 2020).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from usertwin.memory.models.scoring import Scorer
from usertwin.memory.text.transcript import ME, THOUGHT, action_line, current_moment, filler, flat
from usertwin.memory.text.words import (
    content_words,
    known_text,
    longest_new_run,
    new_stems,
    runs,
    spans_of,
    stem,
    stems,
    word_tokens,
)
from usertwin.personas import Pair

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

#: A trace that shares a run of this many word tokens with the action, a run the context does not have, is rejected.
LONGEST_RUN = 5
#: Actions of three or four words could be quoted whole without ever reaching that; quoting them whole is rejected too.
SHORTEST_ACTION = 3
#: A trace that shares a run of this many word tokens with the examples it was asked for with is one of them, warmed up.
LONGEST_ECHO = 7
#: Traces longer than this, in words, are rejected; so are those with a dozen times as many characters (one endless word).
LONGEST_TRACE = 120
#: The most of the action's new content words that a trace may have.
MOST_NEW_WORDS = 0.3
#: A sentence of the trace this similar to the action (cosine), and more similar than any turn before, says the same.
SAME_MEANING = 0.6
#: The least part of a trace's gain that must be left when the words it shares with the action are masked.
LEAST_KEPT = 0.5

#: Why a trace is not used, for whoever reads the counts.
REASONS = {
    "empty": "nothing was written",
    "malformed": "not the object that was asked for",
    "too_long": f"over {LONGEST_TRACE} words, or as much in one",
    "quotes_action": "quotes the action",
    "new_words": f"has over {MOST_NEW_WORDS:.0%} of the action's new words",
    "new_names": "has a number or a name that only the action has",
    "announces": "announces the reply instead of giving reasons",
    "echoes_examples": "repeats the prompt",
    "same_meaning": "says in other words what the action says",
    "misleads": "predicts the action worse than words that say nothing",
    "leans_on_words": "gains by the words it shares with the action",
    "no_verdict": "the judge gave no verdict that can be read",
}

_ANNOUNCES = re.compile(
    r"\b(?:i|he|she|they|me)(?:'ll| will| would|'d| shall| am going to|'m going to| was going to|'s going to)"
    r" (?:then |now |just |simply )?(?:say|said|reply|respond|answer|write|type|tell (?:them|him|her|you))\b"
    r"|\b(?:reply|response|answer|message) (?:is|was|will be|would be)\b ?:"
    r"|\b(?:say|said|write|wrote|reply|replied)(?: back)? ?[:\"“]",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[\w,;:] )[A-Z][\w'-]+|\b\w*\d[\w.:-]*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


def rejection_reason(trace: str, pair: Pair, examples: str = "", embedder: Embedder | None = None) -> str | None:
    """The name of the guard that rejects a trace of this pair by its words, or None.

    Args:
        trace: what was proposed.
        pair: what it was proposed for.
        examples: the text it was asked for with, the same for every pair.
        embedder: tells whether the trace says the same in other words; not asked if None.

    Returns:
        One of the names in `REASONS`.
    """
    told = word_tokens(trace)
    if not told:
        return "empty"
    if len(told) > LONGEST_TRACE or len(trace) > 12 * LONGEST_TRACE:
        return "too_long"
    if _quotes(trace, pair):
        return "quotes_action"
    told_stems, fresh = {stem(word) for word in told}, new_stems(pair)
    if _names(pair) & told_stems:
        return "new_names"
    if fresh and len(fresh & told_stems) > MOST_NEW_WORDS * len(fresh):
        return "new_words"
    if _ANNOUNCES.search(trace.replace("’", "'")):
        return "announces"
    if runs(told, LONGEST_ECHO) & runs(word_tokens(examples), LONGEST_ECHO):
        return "echoes_examples"
    return "same_meaning" if embedder is not None and paraphrases_action(trace, pair, embedder) else None


def _quotes(trace: str, pair: Pair) -> bool:
    done = word_tokens(pair.action)
    if not done:  # an emoji, a row of dots
        return bool(flat(pair.action)) and flat(pair.action) in trace
    return longest_new_run(trace, pair.action, known_text(pair)) >= min(LONGEST_RUN, max(SHORTEST_ACTION, len(done)))


def _names(pair: Pair) -> set[str]:
    """The stems of the action's numbers and names that nobody mentioned before.

    A capital that begins a sentence makes no name, nor does one of a word that carries no content ("Yes, The red one").
    """
    found = (word for name in _NAME.findall(pair.action) for word in content_words(word_tokens(name)))
    return {stem(word) for word in found} - stems(known_text(pair))


def paraphrases_action(trace: str, pair: Pair, embedder: Embedder) -> bool:
    """Whether a sentence of the trace means what the action does, more than anything said before it does (guard G5)."""
    told, known = cosine_to_action(trace, pair, embedder)
    return told >= SAME_MEANING and told > known


def cosine_to_action(trace: str, pair: Pair, embedder: Embedder) -> tuple[float, float]:
    """How near the nearest sentence of the trace comes to what the action means, and how near the last turns came (cosines).

    -1 for the turns if nothing was said before.
    """
    sentences = [found for part in _SENTENCE.findall(trace) if (found := part.strip())] or [trace]
    turns = [turn.text for turn in pair.context[-4:] if turn.text.strip()]
    vectors = embedder.embed([pair.action, *sentences, *turns])
    similar = vectors[1:] @ vectors[0]
    return float(similar[: len(sentences)].max()), float(similar[len(sentences) :].max(initial=-1.0))


def masked(trace: str, pair: Pair) -> str:
    """The trace with every word that only the action has replaced by an ellipsis (guard G3)."""
    pieces, end = list[str](), 0
    for start, stop in spans_of(trace, new_stems(pair)):
        pieces += [trace[end:start], "…"]
        end = stop
    return "".join([*pieces, trace[end:]])


def kept_share(scorer: Scorer, pair: Pair, trace: str, turns: int) -> float:
    """What part of a trace's gain is left when the words that only the action has are masked; 1 if there are none (G3).

    A trace that gains nothing keeps all of it.
    """
    without = masked(trace, pair)
    if without == trace:
        return 1.0
    action = action_line(pair.action)
    prompts = [current_moment(pair, turns, thought=thought) for thought in (filler(len(trace.split())), trace, without)]
    nothing, told, hidden = (found.nats for found in scorer.score([(prompt, action) for prompt in prompts]))
    return (hidden - nothing) / (told - nothing) if told > nothing else 1.0


def reveals_action(scorer: Scorer, pair: Pair, trace: str, others: Sequence[str]) -> bool:
    """Whether the trace alone, without the context, tells the action from other actions of the person (the audit, G4).

    Each action counts by how much more likely the trace makes it than nothing does. It takes part in no score and rejects
    nothing: what selects against a detector learns to hide from it.
    """
    if not others:
        return False
    actions = [action_line(action) for action in (pair.action, *others)]
    prompts = (f"{THOUGHT} {flat(trace)})\n{ME}:", f"{ME}:")
    told, alone = (scorer.score([(prompt, action) for action in actions]) for prompt in prompts)
    gains = [a.nats - b.nats for a, b in zip(told, alone, strict=True)]
    return gains[0] > max(gains[1:])


#: Guards that speak of a leak; the others of form.
LEAKS = ("quotes_action", "new_words", "new_names", "same_meaning", "announces")
