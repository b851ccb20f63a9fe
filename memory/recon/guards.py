"""Guards: rules that reject a trace whatever its score, most of them against leaks of the action.

A guard sees the trace, the action, and what could be known before the action (context and goal). The lexical guards and, given
an embedder, the paraphrase guard run on every proposal. `kept_share` and the audit `reveals_action` need likelihoods, so they
run only on a trace that would be selected; the audit rejects nothing and is part of no score.

A trace that was proposed without the action ("forward") leaks nothing, so only the guards of form apply to it: one that names
the action before it happened predicts well.

Sources: the five-token (5-gram) rule is from Turing-RL (arXiv 2606.19336), the trace-only probe from LAS (Hase et al. 2020).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from usertwin.memory.models.scoring import Scorer
from usertwin.memory.text.transcript import (
    ME,
    THOUGHT_PREFIX,
    action_completion,
    filler_text,
    format_action_prompt,
    single_line,
)
from usertwin.memory.text.words import (
    content_words,
    context_and_goal,
    longest_copied_run,
    new_stems,
    ngrams,
    spans_with_stems,
    stem,
    stems,
    word_tokens,
)
from usertwin.personas import Pair

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

#: A trace is rejected if it shares this many consecutive word tokens with the action, and the context does not have them.
MIN_QUOTED_NGRAM = 5
#: An action of three or four words could be quoted whole below that limit; such a quote is rejected too.
MIN_QUOTED_ACTION = 3
#: A trace is rejected if it shares this many consecutive word tokens with the examples of its prompt.
MIN_ECHO_NGRAM = 7
#: Longest allowed trace in words; a trace may have 12 times as many characters, which rejects a single endless word.
MAX_TRACE_WORDS = 120
#: Largest share of the action's new content words that a trace may contain; of three or more, one is always allowed.
MAX_NEW_WORD_SHARE = 0.3
#: A sentence of the trace this similar to the action (cosine), and more similar than any turn before, paraphrases it.
PARAPHRASE_COSINE = 0.6
#: Smallest share of the gain that must remain when the words shared with the action are masked.
MIN_KEPT_SHARE = 0.5

#: Why a trace is rejected: the name of each guard, and its description in reports.
REASONS = {
    "empty": "no text was generated",
    "cut_off": "reached the token limit before any text",
    "malformed": "not the JSON object that the prompt requires",
    "too_long": f"over {MAX_TRACE_WORDS} words or {12 * MAX_TRACE_WORDS} characters",
    "quotes_action": "quotes the action",
    "new_words": f"has over {MAX_NEW_WORD_SHARE:.0%} of the action's new words",
    "new_names": "has a number or a name that only the action has",
    "announces": "announces the reply instead of giving reasons",
    "echoes_examples": "repeats the prompt",
    "same_meaning": "paraphrases the action",
    "misleads": "predicts the action worse than filler text",
    "leans_on_words": "gains by the words it shares with the action",
    "no_verdict": "the judge returned no readable verdict",
}
#: The guards against leaks; the other guards check form.
LEAK_REASONS = ("quotes_action", "new_words", "new_names", "same_meaning", "announces")

_ANNOUNCES = re.compile(
    r"\b(?:i|me)(?:'ll| will| would|'d| shall| am going to|'m going to| was going to)"
    r" (?:then |now |just |simply )?(?:say|said|reply|respond|answer|write|type|tell (?:them|him|her|you))\b"
    r"|(?<!their )(?<!his )(?<!her )(?<!your )(?<!'s )\b(?:reply|response|answer|message) (?:is|was|will be|would be)\b ?:"
    r"|(?:(?:^|[.!?;]\s)\s*|\bi\b[^.!?\n]*?(?:\b(?:i|and|so|then|just|simply) |, ?))"
    r"(?:say|said|write|wrote|reply|replied)(?: back)? ?[:\"“]",
    re.IGNORECASE,
)
#: What others say or said, up to the verb: no announcement of the person's own reply.
_OTHERS_SAY = re.compile(
    r"\b(?:he|she|they|you|we|it|who)(?:'\w+)?\b(?:(?!\b(?:i|i'\w+|me)\b)[^.!?\n])*?"
    r"\b(?:say|said|reply|replied|respond|answer|write|wrote|type|tell)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\b\w*\d[\w.:-]*")
_CAPITALIZED = re.compile(r"(?<=[\w,;:] )[A-Z][\w'-]+")
#: Longer words in capitals are stressed words, not acronyms.
_MAX_ACRONYM = 4
#: A writer who starts this share of the words (of at least four) with a capital marks no names by it.
_TITLE_CASE_SHARE, _TITLE_CASE_WORDS = 0.75, 4
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


def rejection_reason(
    trace: str, pair: Pair, examples: str = "", embedder: Embedder | None = None, *, saw_action: bool = True
) -> str | None:
    """Return the name of the first guard that rejects a trace before scoring, or None.

    Args:
        trace: the proposed trace.
        pair: the pair it was proposed for.
        examples: the fixed text of the proposal prompt.
        embedder: enables the guard against paraphrases.
        saw_action: whether the action was in the prompt of the trace; without it, no guard against leaks applies.

    Returns:
        A key of `REASONS`.
    """
    tokens = word_tokens(trace)
    if not tokens:
        return "empty"
    if len(tokens) > MAX_TRACE_WORDS or len(trace) > 12 * MAX_TRACE_WORDS:
        return "too_long"
    leak = _leak_reason(trace, pair) if saw_action else None
    if leak is not None:
        return leak
    if ngrams(tokens, MIN_ECHO_NGRAM) & ngrams(word_tokens(examples), MIN_ECHO_NGRAM):
        return "echoes_examples"
    paraphrases = saw_action and embedder is not None and paraphrases_action(trace, pair, embedder)
    return "same_meaning" if paraphrases else None


def _leak_reason(trace: str, pair: Pair) -> str | None:
    """Return the name of the first lexical guard against leaks that rejects a trace, or None."""
    if _quotes_action(trace, pair):
        return "quotes_action"
    trace_stems, action_stems = stems(trace), new_stems(pair)
    if _new_name_stems(pair) & trace_stems:
        return "new_names"
    if len(action_stems & trace_stems) > max(MAX_NEW_WORD_SHARE * len(action_stems), len(action_stems) >= 3):
        return "new_words"
    return "announces" if _ANNOUNCES.search(_OTHERS_SAY.sub("", trace.replace("’", "'"))) else None


def _quotes_action(trace: str, pair: Pair) -> bool:
    tokens = word_tokens(pair.action)
    if not tokens:  # an emoji, or punctuation alone
        action = single_line(pair.action)
        return bool(action) and action in trace
    limit = min(MIN_QUOTED_NGRAM, max(MIN_QUOTED_ACTION, len(tokens)))
    return longest_copied_run(trace, pair.action, context_and_goal(pair)) >= limit


def _new_name_stems(pair: Pair) -> set[str]:
    """Return the stems of the action's numbers and names that neither context nor goal has.

    A capital at the start of a sentence makes no name, nor does one in a stop word ("Yes, The red one").
    """
    names = [*_NUMBER.findall(pair.action), *(name for part in _SENTENCE.findall(pair.action) for name in _names(part))]
    return {stem(word) for name in names for word in content_words(word_tokens(name))} - stems(context_and_goal(pair))


def _names(sentence: str) -> list[str]:
    """Return the capitalized words of a sentence that may be names; none where the writer uses capitals throughout."""
    if sentence == sentence.upper():
        return []
    words = [word for word in sentence.split()[1:] if word[0].isalpha()]
    title_case = len(words) >= _TITLE_CASE_WORDS and sum(word[0].isupper() for word in words) >= _TITLE_CASE_SHARE * len(words)
    shouted = sum(len(word) > 1 and word.isupper() for word in words) > 1
    return [
        name
        for name in _CAPITALIZED.findall(sentence)
        if not (shouted or len(name) > _MAX_ACRONYM if name.isupper() else title_case)
    ]


def paraphrases_action(trace: str, pair: Pair, embedder: Embedder) -> bool:
    """Return whether a sentence of the trace is similar to the action, and more similar than any recent turn."""
    trace_cosine, context_cosine = cosine_to_action(trace, pair, embedder)
    return trace_cosine >= PARAPHRASE_COSINE and trace_cosine > context_cosine


def cosine_to_action(trace: str, pair: Pair, embedder: Embedder) -> tuple[float, float]:
    """Return the largest cosine to the action of a sentence of the trace, and of one of the last four turns.

    The second is -1 if there are no turns.
    """
    sentences = [sentence for part in _SENTENCE.findall(trace) if (sentence := part.strip())] or [trace]
    turns = [turn.text for turn in pair.context[-4:] if turn.text.strip()]
    vectors = embedder.embed([pair.action, *sentences, *turns])
    cosines = vectors[1:] @ vectors[0]
    return float(cosines[: len(sentences)].max()), float(cosines[len(sentences) :].max(initial=-1.0))


def masked(trace: str, pair: Pair) -> str:
    """Return the trace with an ellipsis in place of each word that only the action has."""
    pieces, end = list[str](), 0
    for start, stop in spans_with_stems(trace, new_stems(pair)):
        pieces += [trace[end:start], "…"]
        end = stop
    return "".join([*pieces, trace[end:]])


def kept_share(scorer: Scorer, pair: Pair, trace: str, turns: int) -> float:
    """Return the share of a trace's gain that remains when the words that only the action has are masked.

    1 if there are no such words, or the trace gains nothing. `turns` is the number of context turns in the prompt.
    """
    masked_trace = masked(trace, pair)
    if masked_trace == trace:
        return 1.0
    action = action_completion(pair.action)
    thoughts = (filler_text(len(trace.split())), trace, masked_trace)
    prompts = [(format_action_prompt(pair, turns, thought=thought), action) for thought in thoughts]
    filler_nats, trace_nats, masked_nats = (likelihood.nats for likelihood in scorer.score(prompts))
    return (masked_nats - filler_nats) / (trace_nats - filler_nats) if trace_nats > filler_nats else 1.0


def reveals_action(scorer: Scorer, pair: Pair, trace: str, others: Sequence[str]) -> bool:
    """Return whether the trace alone, without the context, picks the action out of other actions (the audit)."""
    margin = reveal_margin(scorer, pair, trace, others)
    return margin is not None and margin > 0


def reveal_margin(scorer: Scorer, pair: Pair, trace: str, others: Sequence[str]) -> float | None:
    """Return by how many nats the trace alone favours the action over the best other action; None without others.

    Each action is scored by the log-ratio of its likelihood with and without the trace as the prompt.

    Design: the audit is part of no score and rejects nothing, since selection against a detector teaches evasion of it.
    """
    if not others:
        return None
    actions = [action_completion(action) for action in (pair.action, *others)]
    prompts = (f"{THOUGHT_PREFIX} {single_line(trace)})\n{ME}:", f"{ME}:")
    after_trace, unconditional = (scorer.score([(prompt, action) for action in actions]) for prompt in prompts)
    gains = [after.nats - before.nats for after, before in zip(after_trace, unconditional, strict=True)]
    return gains[0] - max(gains[1:])
