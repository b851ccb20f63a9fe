"""memory/recon/guards.py: leaking traces are rejected and honest ones are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from conftest import FixedSimilarityEmbedder
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.recon.guards import (
    LEAK_REASONS,
    MAX_NEW_WORD_SHARE,
    MAX_TRACE_WORDS,
    MIN_ECHO_NGRAM,
    MIN_KEPT_SHARE,
    MIN_QUOTED_NGRAM,
    PARAPHRASE_COSINE,
    REASONS,
    kept_share,
    masked,
    paraphrases_action,
    rejection_reason,
    reveals_action,
)
from usertwin.memory.text.transcript import action_completion, filler_text, format_action_prompt
from usertwin.memory.text.words import context_and_goal, longest_copied_run, new_stems, ngrams, stem, stems, word_tokens
from usertwin.personas import Pair, Turn

ACTION = "I would rather take the early train to Oslo"
#: Makes every word of the action known, so that only longer runs of them are new.
KNOWN = " / ".join(reversed(ACTION.split()))

VERDICTS = {None, *REASONS}
MODEL_REASONS = {"malformed", "cut_off", "misleads", "leans_on_words", "no_verdict"}  # not from the lexical guards


def pair(action: str, *context: str, goal: str = "") -> Pair:
    turns = tuple(Turn("Bob", "agent", text) for text in context)
    return Pair(speaker="Ann", context=turns, action=action, goal=goal, conversation_id="talk", position=len(turns), when=0.0)


# G1, runs: quotes of the action --------------------------------------------------------------------------------------


words = st.lists(st.sampled_from(["tea", "milk", "no", "I'm", "茶"]), max_size=9)


@given(trace=words.filter(bool), action=words, context=st.lists(words, max_size=3), goal=words)
def test_of_known_words_a_trace_is_rejected_by_the_five_token_rule_and_nothing_else(
    trace: list[str], action: list[str], context: list[list[str]], goal: list[str]
) -> None:
    earlier = [" ".join(turn) for turn in (["I'm", "茶", "no", "milk", "tea"], *context)]
    turn = pair(" ".join(action), *earlier, goal=" ".join(goal))
    run = longest_copied_run(" ".join(trace), " ".join(action), "\n".join([*earlier, " ".join(goal)]))
    whole = len(action) in (3, 4) and run == len(action)
    assert rejection_reason(" ".join(trace), turn) == ("quotes_action" if run >= 5 or whole else None)


def test_five_shared_words_are_rejected_and_four_are_not() -> None:
    assert MIN_QUOTED_NGRAM == 5
    assert rejection_reason("Thinks: would rather take the early one.", pair(ACTION, KNOWN)) == "quotes_action"
    assert rejection_reason("Thinks: would rather take the late one.", pair(ACTION, KNOWN)) is None


def test_case_punctuation_and_line_breaks_hide_no_quotation() -> None:
    assert rejection_reason('Felt "i WOULD...\nrather - take; the"', pair(ACTION)) == "quotes_action"


def test_a_typographic_apostrophe_hides_no_quotation() -> None:
    assert rejection_reason("So: I don’t think we can’t come.", pair("i don't think we can't come")) == "quotes_action"


def test_a_run_that_the_context_or_the_goal_has_is_allowed() -> None:
    trace = "Was asked to take the early train to Oslo and likes it."
    assert rejection_reason(trace, pair(ACTION)) == "quotes_action"
    assert rejection_reason(trace, pair(ACTION, "Hello", "Will you take the early train to Oslo?")) is None
    assert rejection_reason(trace, pair(ACTION, goal="Take the early train to Oslo.")) is None


def test_a_run_longer_than_what_the_context_has_is_rejected() -> None:
    trace = "Would rather take the early train to Oslo."
    assert rejection_reason(trace, pair(ACTION, "Will you take the early train to Oslo?")) == "quotes_action"


@pytest.mark.parametrize("action", ["see you tomorrow", "no thank you Bob", "так и есть", "東京駅"])
def test_a_short_action_may_not_be_quoted_whole(action: str) -> None:
    known = " / ".join([*word_tokens(action), "and", *word_tokens(action)])  # every word, and never the whole
    assert rejection_reason(f"Felt like {action.upper()}!", pair(action, known.replace(" / ", " x "))) == "quotes_action"
    assert rejection_reason(f"Felt like {action[:-1]}", pair(action, known.replace(" / ", " x "))) is None
    assert rejection_reason(f"Felt like {action}", pair(action, f"Say: {action}")) is None


@pytest.mark.parametrize("action", ["", "are you", "is it?"])
def test_action_of_stop_words_cannot_be_leaked(action: str) -> None:
    assert rejection_reason(f"I wondered what is it, and who are you {action}", pair(action)) is None


def test_an_action_without_words_may_not_be_quoted_either() -> None:
    assert rejection_reason("I was glad and felt like 👍 🎉", pair("👍\n🎉")) == "quotes_action"
    assert rejection_reason("I was glad and felt like 👍", pair("👍 🎉")) is None
    assert rejection_reason("I was glad...", pair("😀")) is None


pieces = st.text(min_size=1, max_size=8) | st.sampled_from(["don’t", "Oslo", "дом", "東京", "सेवा", "ขอบคุณ", "שלום", "🙂", "42"])
actions = st.lists(pieces, min_size=1, max_size=12).map(" ".join)


@given(action=actions, before=st.text(max_size=20), after=st.text(max_size=20), context=st.text(), goal=actions)
@example(action="may I ask", before="", after="", context="", goal="may I")
def test_a_trace_with_the_whole_action_never_passes(action: str, before: str, after: str, context: str, goal: str) -> None:
    turn, tokens = pair(action, context, goal=goal), word_tokens(action)
    assume(len(tokens) >= 3)
    assume(tuple(tokens) not in ngrams(word_tokens(context_and_goal(turn)), len(tokens)))
    assert rejection_reason(f"{before} {action} {after}", turn) in {"quotes_action", "too_long"}


# G1, single words: content words, numbers and names ------------------------------------------------------------------

TEN = "whales shout loudly; frozen bridges creak; winter storms break glass"


def test_three_of_ten_new_content_words_are_allowed_and_four_are_not() -> None:
    assert MAX_NEW_WORD_SHARE == 0.3
    assert len(new_stems(pair(TEN))) == 10
    assert rejection_reason("I thought of a storm or bridge, or of winter", pair(TEN)) is None
    assert rejection_reason("I thought of a storm or bridge, or of frozen winter", pair(TEN)) == "new_words"
    assert rejection_reason("I thought of a storm or bridge, or of frozen winter", pair(TEN, "Is it winter?")) == "new_words"
    assert (
        rejection_reason("I thought of a storm or bridge, or of winter", pair(f"so it is in {TEN}", "Do whales shout?"))
        == "new_words"
    )


def test_of_three_new_content_words_one_is_allowed_in_any_form_and_two_are_not() -> None:
    turn = pair("songs, singing, dancing")
    assert rejection_reason("I was in the mood for singing", turn) is None
    assert rejection_reason("I was in the mood for singing and dances", turn) == "new_words"
    assert rejection_reason("I was in the mood for singing", pair("singing songs")) == "new_words"
    assert rejection_reason("I was in the mood for it", pair("singing songs")) is None


@pytest.mark.parametrize("action", ["yes", "No!", "thanks", "ok bye"])
def test_an_action_of_one_or_two_words_may_not_be_told(action: str) -> None:
    mentioned = word_tokens(action)[0]
    assert rejection_reason(f"I meant {mentioned.upper()} by that", pair(action)) == "new_words"
    assert rejection_reason(f"I meant {mentioned} by that", pair(action, f"{action}?")) is None


some_words = st.lists(st.sampled_from(word_tokens(TEN)), unique=True)


@given(some_words, some_words)
def test_words_that_were_said_before_do_not_count(mentioned: list[str], earlier: list[str]) -> None:
    turn = pair(TEN, " or ".join(earlier))
    trace = " or ".join(["so", *mentioned])
    fresh = {stem(word) for word in word_tokens(TEN)} - {stem(word) for word in earlier}
    share = len(fresh & stems(trace)) / len(fresh) if fresh else 0
    assert rejection_reason(trace, turn) == ("new_words" if share > 0.3 and (len(fresh) != 3 or share > 0.5) else None)


LONG = "so we could maybe walk slowly along some quiet green river banks"


@pytest.mark.parametrize(
    ("end", "telling"),
    [
        ("near Oslo", "I missed oslo"),
        ("near Oslo", "I missed Oslo’s air"),
        ("near Oslo's", "I missed Oslo"),
        ("at 15:30", "I had 30 in mind"),
        ("with 3kg", "I weighed 3kg"),
        ("on day 12", "I had 12 in mind"),
        ("then, Bobby", "I liked bobby"),
    ],
)
def test_one_new_number_or_name_is_enough(end: str, telling: str) -> None:
    assert rejection_reason(telling, pair(f"{LONG} {end}")) == "new_names"
    assert rejection_reason(telling, pair(f"{LONG} {end}", f"Is it {end}?")) is None


@pytest.mark.parametrize(
    "end", ["now. Calm it is", "but, My dear, The end", "and I'm glad, I’ll come", "AND THE END IS NEAR ME"]
)
def test_a_capital_at_a_beginning_or_of_a_word_without_content_makes_no_name(end: str) -> None:
    assert rejection_reason("I felt calm: this is my day, and the rest is for me, I'm sure", pair(f"{LONG} {end}")) is None


#: Honest traces that earlier guards rejected, each beside a trace that leaks the same action: context, action, honest, leaking.
HONEST_AND_LEAKING = [
    # Third persons, in a trace about what others said or may say.
    ("Any news?", "still waiting on the parcel", "I thought they would say anything to calm me", "I will say I still wait"),
    ("Bob?", "ok leave it then", 'I was cross since she replied: "later" before', "I was cross and replied: never mind"),
    # Writers who use capitals throughout, for stress, or at the start of each word.
    ("Hello, how may I help?", "I STILL DID NOT GET MY MONEY BACK FOR THOSE BROKEN SHOES AND I AM DONE",
     "I was angry about being left without money", "I was angry over broken shoes and the money"),
    ("How was it?", "it was REALLY AWESOME there and the food and the music and the people too",
     "I felt awesome after the trip", "I liked food, music and people"),
    ("Where to?", "i would love to see NASA one day, with the whole family and our two dogs",
     "I felt a longing for the stars", "I felt a longing for nasa"),
    ("What now?", "My Phone Will Not Turn On Since This Morning Please Help Me With The Charger",
     "I felt lost without a phone", "I wanted to turn on the phone with its charger, since morning"),
    ("Where are you going?", "we leave for Anna Karenina's house near the old mill by the river tomorrow",
     "I was in a hurry", "I was on my way to Karenina"),
    # One shared stem of three.
    ("How are you?", "tired, hungry, cold", "I felt tired of it all", "I felt tired and hungry"),
    ("Which one do you want?", "the cheaper blue train", "I had little money, cheap as I am", "I wanted blue trains"),
    # Words on a stop list that carry content.
    ("What is it about?", "my bill", "I wanted this to be over", "I had the bill in mind"),
    ("What happened?", "there was a fire", "I was shaken", "I was shaken by the fire"),
    ("How many of you?", "we are twelve", "I counted everybody twice", "I counted twelve"),
    ("How do you like it?", "very serious", "I was moved by it", "I found it serious"),
]  # fmt: skip


@pytest.mark.parametrize(("context", "action", "honest", "leaking"), HONEST_AND_LEAKING)
def test_an_honest_trace_passes_where_one_that_leaks_the_same_action_does_not(
    context: str, action: str, honest: str, leaking: str
) -> None:
    assert rejection_reason(honest, pair(action, context)) is None
    assert rejection_reason(leaking, pair(action, context)) in LEAK_REASONS


def test_a_trace_that_never_saw_the_action_passes_the_guards_against_leaks_and_no_other() -> None:
    embedder = FixedSimilarityEmbedder({ACTION: 1.0, f"I will say {ACTION}": 1.0})
    for trace in (f"I will say {ACTION}", "I wanted the train to Oslo"):
        assert rejection_reason(trace, pair(ACTION), embedder=embedder) in LEAK_REASONS
        assert rejection_reason(trace, pair(ACTION), embedder=embedder, saw_action=False) is None
    assert rejection_reason("", pair(ACTION), saw_action=False) == "empty"
    assert rejection_reason("well " * 121, pair(ACTION), saw_action=False) == "too_long"
    assert rejection_reason("a b c d e f g", pair(ACTION), "a b c d e f g", saw_action=False) == "echoes_examples"


# G8: form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trace",
    [
        "I will say that all is well",
        "I'll reply politely",
        "I’ll just tell them about it",
        "I was in a hurry. I am going to write something short",
        "I noticed she would answer calmly, so I will say little",
        "He had said no. I'd answer calmly",
        "My reply is: fine",
        "the response will be: fine",
        'I was sure and said "fine"',
        "I was sure and wrote: fine",
        "I just said: fine",
        "I felt sure. Reply: fine",
    ],
)
def test_a_trace_that_announces_the_reply_is_rejected(trace: str) -> None:
    assert rejection_reason(trace, pair("x")) == "announces"


@pytest.mark.parametrize(
    "trace",
    [
        "I wanted to say little and decided on a short reply",
        "I felt that they said too much, so my answer is short",
        "I would rather not say",
        "I will be late and was told so",
        "I noticed that his reply was cold",
        "I felt she would answer calmly",
        "I knew he'd say little",
        "I was afraid that they would say it again",
        'I was hurt that he said "fine" and left',
        "I noticed what the agent wrote: it was cold",
        "I was told their answer was: nothing to be had",
    ],
)
def test_a_trace_that_speaks_of_speaking_is_not(trace: str) -> None:
    assert rejection_reason(trace, pair("x")) is None


def test_seven_words_of_the_prompts_examples_are_rejected_and_six_are_not() -> None:
    assert MIN_ECHO_NGRAM == 7
    examples = "Note: feels unsure about strangers and asks who comes."
    assert rejection_reason("Ann feels UNSURE about strangers, and asks who", pair("x"), examples) == "echoes_examples"
    assert rejection_reason("Ann feels unsure about strangers and asks them", pair("x"), examples) is None
    assert rejection_reason("Ann feels unsure about strangers and asks who", pair("x")) is None


@pytest.mark.parametrize("trace", ["", " \n", "...", "?! —", "👍"])
def test_a_trace_without_words_is_empty(trace: str) -> None:
    assert rejection_reason(trace, pair(ACTION)) == "empty"
    assert rejection_reason(trace, pair("")) == "empty"


def test_a_trace_may_be_120_words_and_not_121() -> None:
    assert MAX_TRACE_WORDS == 120
    assert rejection_reason("well " * 120, pair(ACTION)) is None
    assert rejection_reason("well " * 121, pair(ACTION)) == "too_long"


# G5: paraphrases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cosine", "same"), [(PARAPHRASE_COSINE - 0.01, False), (PARAPHRASE_COSINE + 0.01, True), (1.0, True)])
def test_one_sentence_that_means_what_the_action_does_is_enough(cosine: float, same: bool) -> None:
    embedder = FixedSimilarityEmbedder({"see you later": 1.0, "I felt tired!": 0.3, "I had to part for now.": cosine})
    trace = "I felt tired! I had to part for now. It was late"
    assert paraphrases_action(trace, pair("see you later"), embedder) is same
    assert rejection_reason(trace, pair("see you later"), embedder=embedder) == ("same_meaning" if same else None)
    assert embedder.calls[0] == ["see you later", "I felt tired!", "I had to part for now.", "It was late"]


def test_meaning_of_a_recent_turn_may_be_repeated() -> None:
    embedder = FixedSimilarityEmbedder({"see you later": 1.0, "I had to part": 0.8, "so we part now?": 0.85, "bye?": 0.78})
    assert paraphrases_action("I had to part", pair("see you later", "hello", " \n", "bye?"), embedder)
    assert not paraphrases_action("I had to part", pair("see you later", "so we part now?", "b", "c", "d"), embedder)
    assert paraphrases_action("I had to part", pair("see you later", "so we part now?", "b", "c", "d", "e"), embedder)
    assert not any(text.isspace() for call in embedder.calls for text in call)


def test_no_embedder_is_asked_about_a_trace_that_another_guard_rejects() -> None:
    embedder = FixedSimilarityEmbedder({})
    assert rejection_reason(ACTION, pair(ACTION), embedder=embedder) == "quotes_action"
    assert embedder.calls == []


@pytest.mark.slow
def test_the_real_embeddings_tell_a_paraphrase_from_reasons() -> None:
    from usertwin.simulator import load_embedder

    embedder = load_embedder()
    turn = pair("can you get me the refund for these shoes", "Hello, how may I help?", "Tell me what happened.")
    paraphrase = "I was upset. Could you reimburse me for this pair of shoes?"
    reasons = "I was upset that the soles came off, felt cheated, and wanted the matter settled fast. I stayed polite."
    assert paraphrases_action(paraphrase, turn, embedder)
    assert not paraphrases_action(reasons, turn, embedder)
    assert not paraphrases_action(paraphrase, pair(turn.action, "Do you want the refund for these shoes?"), embedder)
    for odd in ("", "👍", "https://shop.example/a?b=1", "東京へ行きたい", "well " * 3000):
        assert rejection_reason(reasons, pair(odd, odd), embedder=embedder) is None


# G3: masking ---------------------------------------------------------------------------------------------------------


def test_every_form_of_a_word_that_only_the_action_has_is_masked() -> None:
    turn = pair("I booked Oslo’s trains, no?", "Which train?", goal="")
    assert masked("Booking, or no booking: the TRAIN to Oslo was early", turn) == "…, or … …: the TRAIN to … was early"
    assert masked("I was in a hurry", turn) == "I was in a hurry"
    assert masked("", turn) == ""


@given(action=actions, trace=actions, mixed=st.booleans(), context=st.text(), goal=actions)
@example(action="we met in İstanbul", trace="I like İstanbul", mixed=False, context="", goal="")
@example(action="東京", trace="a東'b京'c", mixed=False, context="", goal="")
def test_masking_leaves_no_new_word_of_the_action_and_every_other(
    action: str, trace: str, mixed: bool, context: str, goal: str
) -> None:
    turn = pair(action, context, goal=goal)
    trace = f"{trace} {action} {trace}" if mixed else trace
    assert stems(masked(trace, turn)) == stems(trace) - new_stems(turn)


class Weighing:
    """A scorer that adds nats to a continuation for each word of the prompt, and records its calls."""

    name = "weighing"

    def __init__(self, nats: Mapping[str, float]) -> None:
        self.nats, self.calls = nats, list[list[tuple[str, str]]]()

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.calls.append(list(items))
        return [Likelihood(sum(self.nats.get(word, 0.0) for word in word_tokens(prompt)) - 50, 5) for prompt, _ in items]


TRACE = "I like mornings and trains"
MOMENT = pair("the early train please", "When?", goal="See the sea.")


@pytest.mark.parametrize(
    ("reason", "word", "kept"),
    [
        (1.0, 3.0, 0.25),
        (3.0, 1.0, 0.75),
        (2.0, 0.0, 1.0),
        (0.0, 2.0, 0.0),
        (-1.0, 3.0, -0.5),
        (-2.0, 1.0, 1.0),
        (0.0, 0.0, 1.0),
    ],
)
def test_kept_share_is_the_gain_without_shared_words(reason: float, word: float, kept: float) -> None:
    assert kept_share(Weighing({"mornings": reason, "trains": word}), MOMENT, TRACE, 4) == pytest.approx(kept)
    assert (kept < MIN_KEPT_SHARE) == (kept not in {0.75, 1.0})


def test_the_masked_trace_is_scored_like_the_trace_on_the_same_action() -> None:
    scorer = Weighing({"mornings": 1.0})
    kept_share(scorer, MOMENT, TRACE, 4)
    thoughts = (filler_text(len(TRACE.split())), TRACE, "I like mornings and …")
    assert scorer.calls == [
        [(format_action_prompt(MOMENT, 4, thought=thought), action_completion(MOMENT.action)) for thought in thoughts]
    ]


def test_trace_without_shared_words_keeps_its_gain_without_scoring() -> None:
    scorer = Weighing({"mornings": -9.0})
    assert kept_share(scorer, MOMENT, "I like mornings", 4) == 1.0
    assert scorer.calls == []


# The audit (G4) ------------------------------------------------------------------------------------------------------


class Knowing:
    """A scorer with a likelihood of each action alone, and how much the trace adds to it."""

    name = "knowing"

    def __init__(self, alone: Mapping[str, float], mentioned: Mapping[str, float]) -> None:
        self.alone, self.after_trace, self.prompts = alone, mentioned, set[str]()

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.prompts |= {prompt for prompt, _ in items}
        mentioned = [self.after_trace.get(action.strip(), 0.0) if TRACE in prompt else 0.0 for prompt, action in items]
        return [Likelihood(self.alone[action.strip()] + nats, 1) for (_, action), nats in zip(items, mentioned, strict=True)]


OTHERS = ["no thats all", "tomorrow then"]


def test_a_trace_gives_the_action_away_if_it_makes_it_likelier_than_any_other() -> None:
    alone = {MOMENT.action: -20.0, "no thats all": -5.0, "tomorrow then": -9.0}
    for mentioned, away in (({MOMENT.action: 4.0}, True), ({MOMENT.action: 4.0, "tomorrow then": 5.0}, False), ({}, False)):
        assert reveals_action(Knowing(alone, mentioned), MOMENT, TRACE, OTHERS) is away
    assert not reveals_action(
        Knowing(alone, {MOMENT.action: 4.0, "no thats all": 4.0}), MOMENT, TRACE, OTHERS
    )  # not told apart


def test_the_audit_sees_the_trace_and_neither_context_nor_goal() -> None:
    scorer = Knowing(dict.fromkeys([MOMENT.action, *OTHERS], -1.0), {})
    reveals_action(scorer, MOMENT, f"{TRACE}\n", OTHERS)
    assert scorer.prompts == {f"(Me thinking: {TRACE})\nMe:", "Me:"}


def test_audit_without_other_actions_is_false() -> None:
    scorer = Knowing({}, {})
    assert reveals_action(scorer, MOMENT, TRACE, []) is False
    assert scorer.prompts == set()


# Arbitrary input -----------------------------------------------------------------------------------------------------

EACH: dict[str, tuple[str, Pair]] = {
    "empty": ("…", pair("x")),
    "too_long": ("well " * 121, pair("x")),
    "quotes_action": (f"so {ACTION}", pair(ACTION)),
    "new_words": ("I thought of whales", pair("whales")),
    "new_names": ("I missed Oslo", pair(f"{LONG} near Oslo")),
    "announces": ("I will say it", pair("x")),
    "echoes_examples": ("a b c d e f g h", pair("x")),
    "same_meaning": ("it is so", pair("same")),
}


@pytest.mark.parametrize("reason", EACH)
def test_each_guard_gives_its_own_reason(reason: str) -> None:
    trace, turn = EACH[reason]
    embedder = FixedSimilarityEmbedder({"same": 1.0, "it is so": 0.9})
    assert rejection_reason(trace, turn, "A b c d e f g", embedder) == reason


def test_every_reason_is_explained() -> None:
    assert set(REASONS) == set(EACH) | MODEL_REASONS
    assert all(REASONS.values())


@given(trace=st.text() | actions, action=st.text() | actions, known=st.text(), goal=actions, examples=st.text())
def test_any_text_in_any_script_is_judged(trace: str, action: str, known: str, goal: str, examples: str) -> None:
    turn = pair(action, known, goal=goal)
    verdict = rejection_reason(trace, turn, examples, FakeEmbedder(64))
    assert verdict in VERDICTS
    assert (verdict == "empty") == (word_tokens(trace) == [])
    if verdict is None:
        assert rejection_reason(trace, turn) is None


ODD_ACTIONS = {
    "one word": "ok",
    "emoji": "👍🏽",
    "link": "https://shop.example/item/42?colour=red&size=9#top",
    "3,000 words": " ".join(f"word{number}" for number in range(3000)),
    "one word 3,000 times": "well " * 3000,
    "3,000 characters without a space": "東" * 3000,
    "one endless word": "a1-" * 3000,
}
ODD_CONTEXTS = {
    "none": "",
    "Arabic": "مرحبا، كيف يمكنني مساعدتك اليوم؟",
    "Japanese": "こんにちは。どのようなご用件でしょうか。",
    "Hindi": "नमस्ते, मैं आपकी क्या मदद कर सकता हूँ?",
    "Thai": "สวัสดีครับ มีอะไรให้ช่วยไหมครับ",
    "3,000 words": "so " * 3000,
}


@pytest.mark.parametrize("context", ODD_CONTEXTS)
@pytest.mark.parametrize("action", ODD_ACTIONS)
def test_copy_is_rejected_and_honest_reasons_pass_for_any_pair(action: str, context: str) -> None:
    turn, embedder = pair(ODD_ACTIONS[action], ODD_CONTEXTS[context]), FakeEmbedder()
    assert rejection_reason("I felt at ease and wanted this to be over", turn, embedder=embedder) is None
    copy = " ".join(ODD_ACTIONS[action].split()[:100])
    assert rejection_reason(copy, turn, embedder=embedder) in REASONS
    assert rejection_reason("", turn, embedder=embedder) == "empty"
    assert rejection_reason(" \n\t ", turn, embedder=embedder) == "empty"
    assert rejection_reason(" ".join(["token"] * 10_000), turn, embedder=embedder) == "too_long"
    assert new_stems(turn).isdisjoint(stems(masked(f"I felt {turn.action}", turn)))
