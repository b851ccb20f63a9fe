"""A small rule-based help desk, the agent of demonstrations; it needs no model and no network.

The first rule that matches the last message gives the answer. If none matches, the desk asks a question, a different one each
time, so that the conversation continues.
"""

from __future__ import annotations

import re
from typing import Any

_RULES = (
    (r"\b(bye|goodbye|see you|good night|gotta go|have to go)\b", "Thank you for getting in touch. Goodbye!"),
    (r"\b(thanks|thank you|thx)\b", "You are welcome! Is there anything else I can do for you?"),
    (r"\b(refund|money back|return)\b", "I can help with a return. Is the item still unopened?"),
    (r"\b(order|parcel|package|deliver|shipping)\w*\b", "Let me look into your order. What is the order number?"),
    (r"\b(broken|damaged|does ?n[o']t work|problem|issue)\b", "I am sorry to hear that. What exactly went wrong?"),
    (r"\b(book|reserv\w*|appointment|room|hotel)\b", "I can book that for you. For which day, and for how many people?"),
    (r"\b(price|cost|how much|expensive)\b", "It is 24 dollars a month, and the first month is free. Shall I sign you up?"),
    (r"\d{3,}", "Thank you, I have found it. It should be with you on Friday. Does that suit you?"),
    (r"\b(yes|yeah|yep|sure|ok|okay)\b", "Good, that is done. Is there anything else?"),
    (r"\b(no|nope|nothing)\b", "All right. How did you like talking to us today?"),
    (r"\b(hi|hello|hey)\b", "Hello, this is the help desk. What can I do for you?"),
)
_QUESTIONS = (
    "I see. Could you tell me a little more about that?",
    "Understood. How long has it been like this?",
    "Thanks for telling me. What would you like to happen next?",
    "All right. Which of our services is this about?",
    "Noted. Would you rather have it done today or tomorrow?",
)


def help_desk(messages: list[dict[str, Any]]) -> str:
    """Return the answer to the user's last message, or a greeting if there is none."""
    texts = [str(message["content"]) for message in messages if message["role"] == "user"]
    if not texts:
        return "Hello, this is the help desk. What can I do for you?"
    earlier = {str(message["content"]) for message in messages if message["role"] == "assistant"}
    for pattern, answer in _RULES:
        if re.search(pattern, texts[-1], re.IGNORECASE) and answer not in earlier:
            return answer
    return _QUESTIONS[len(texts) % len(_QUESTIONS)]
