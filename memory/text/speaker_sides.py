"""Which side of a conversation a sentence is from: the person's, or that of whoever answers them.

Design: a naive Bayes classifier on words and pairs of words that each side said in the person's own log, so it works in every
language and knows the person's habits. Where both sides talk alike it finds nothing. Sentences of assistants are added to the
other side, since logs of people hold none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import ceil, inf, log

from .sentences import sentences, size_in_words
from .words import word_tokens

#: Sentences of at most this many words are of either side.
SHORT_WORDS = 3
#: The share of the person's own sentences that may be taken for the other side's, and the fewest sentences of each side.
_FALSE_POSITIVES, _MIN_SENTENCES = 0.005, 50
#: A sentence of the other side scores below this.
_MARGIN = -2.0
#: Added to every count, and the weight of the assistants' sentences against those of the log (see evals/EXPERIMENTS.md).
_SMOOTHING, _ASSISTANT_SHARE = 0.5, 0.2
_ASSISTANT = (
    "I'm an AI assistant.", "I am an AI language model.", "As an AI language model, I can't do that.",
    "I'm a virtual assistant here to help you.", "How can I help you today?", "How may I assist you today?",
    "As a customer service representative, I will be happy to assist you.", "Thank you for contacting customer support.",
    "Please let me know if you have any other questions.", "I apologize for the inconvenience.",
    "Ich bin ein KI-Assistent.", "Wie kann ich Ihnen heute helfen?", "Gibt es noch etwas, womit ich Ihnen helfen kann?",
    "Je suis un assistant IA.", "Comment puis-je vous aider aujourd'hui ?", "Soy un asistente de IA.",
    "¿En qué puedo ayudarle hoy?", "Sou um assistente de IA.", "Como posso ajudar você hoje?", "Sono un assistente IA.",
    "Come posso aiutarti oggi?", "Ik ben een AI-assistent.", "Hoe kan ik u vandaag helpen?", "Я ИИ-ассистент.",
    "Чем я могу вам помочь сегодня?", "我是一个人工智能助手。", "您好，请问今天有什么可以帮您的吗？",
    "私はAIアシスタントです。", "本日はどのようなご用件でしょうか。", "저는 AI 어시스턴트입니다.",
    "무엇을 도와드릴까요?", "أنا مساعد ذكاء اصطناعي.",
    "كيف يمكنني مساعدتك اليوم؟", "मैं एक एआई सहायक हूं।", "मैं आपकी कैसे मदद कर सकता हूँ?", "Size nasıl yardımcı olabilirim?",
)  # fmt: skip

_Feature = tuple[str, ...]


class SpeakerSides:
    """What a person and the other side of their conversations say.

    Args:
        own: turns of the person.
        other: turns of the others.
    """

    def __init__(self, own: Iterable[str], other: Iterable[str]) -> None:
        mine = [_features(sentence) for turn in own for sentence in _long_sentences(turn)]
        theirs = [_features(sentence) for turn in other for sentence in _long_sentences(turn)]
        self._own, self._other = Counter[_Feature](), Counter[_Feature]()
        for features in mine:
            self._own.update(features)
        for features in theirs:
            self._other.update(features)
        assistant = Counter(feature for sentence in _ASSISTANT for feature in _features(sentence))
        weight = max(1, ceil(_ASSISTANT_SHARE * self._other.total() / assistant.total()))
        self._other.update({feature: count * weight for feature, count in assistant.items()})
        self._totals = self._own.total(), self._other.total()
        self._threshold = -inf
        if min(len(mine), len(theirs)) >= _MIN_SENTENCES:
            scores = sorted(self._score(features, left_out=True) for features in mine)
            self._threshold = min(_MARGIN, scores[int(_FALSE_POSITIVES * len(scores))])

    def of_the_other_side(self, text: str) -> str:
        """Return the first sentence that the other side would rather say than the person; "" if there is none."""
        for sentence in _long_sentences(text):
            if self._score(_features(sentence)) < self._threshold:
                return sentence
        return ""

    def _score(self, features: Counter[_Feature], *, left_out: bool = False) -> float:
        """Return the log-probability ratio of the sides, per square root of the features; below 0 for the other side.

        `left_out`: score a sentence of the person as if it were not among their turns.
        """
        own_total, other_total = self._totals[0] - (features.total() if left_out else 0), self._totals[1]
        score, known = 0.0, 0
        for feature, count in features.items():
            own, other = self._own[feature] - (count if left_out else 0), self._other[feature]
            if own or other:
                known += count
                score += count * log((own + _SMOOTHING) / (own_total + 1) * (other_total + 1) / (other + _SMOOTHING))
        return score / max(1, known) ** 0.5


def _long_sentences(turn: str) -> list[str]:
    return [sentence for sentence in sentences(turn) if size_in_words(sentence) > SHORT_WORDS]


def _features(sentence: str) -> Counter[_Feature]:
    """Return the words of a sentence, and its pairs of words with its start and end."""
    words = word_tokens(sentence)
    return Counter[_Feature]([*((word,) for word in words), *pairwise(["", *words, ""])])
