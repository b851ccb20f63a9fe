"""A chat model that replies from a file, for tests and demonstrations without weights.

Each line of the file is a reply. Replies are given in order, and again from the first after the last. A line that is a JSON
object `{"when": "...", "say": "..."}` is a rule: every prompt that contains the text of "when" gets the text of "say".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from usertwin.personas import ModelError
from usertwin.personas.reading import parse_json

_RULE = re.compile(r'\s*\{\s*"')


class ScriptedChatModel(BaseChatModel):
    """A chat model that gives prepared replies and records its prompts.

    Attributes:
        answers: the replies, given in order, then again from the first.
        rules: (when, say) pairs; a prompt that contains a `when` gets its `say`, and the first match wins.
        prompts: all prompts so far, as text.
    """

    answers: list[str]
    rules: list[tuple[str, str]] = []  # noqa: RUF012 - a pydantic field, copied for each model
    prompts: list[str] = []  # noqa: RUF012 - likewise
    _turn: itertools.count[int] = PrivateAttr(default_factory=itertools.count)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        prompt = "\n".join(str(message.text) for message in messages)
        self.prompts.append(prompt)
        reply = next((say for when, say in self.rules if when in prompt), None)
        if reply is None:
            reply = self.answers[next(self._turn) % len(self.answers)] if self.answers else ""
        input_tokens, output_tokens = len(prompt.split()), len(reply.split())
        usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": input_tokens + output_tokens}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply, usage_metadata=usage))])  # pyright: ignore[reportArgumentType]

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        return self._generate(messages, stop, **kwargs)  # a thread, as by default, would give replies in its own order


def scripted_model(path: str | Path) -> ScriptedChatModel:
    """Return the chat model of a script file.

    Raises:
        ModelError: the file cannot be read, is empty, or contains a malformed rule.
    """
    path = Path(path)
    try:
        lines: Sequence[str] = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the script cannot be read ({error})") from None
    answers: list[str] = []
    rules: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not _RULE.match(line):
            answers += [line] if line.strip() else []
            continue
        try:
            rule = parse_json(line)
            rules.append((str(rule["when"]), str(rule["say"])))
        except (ValueError, KeyError, TypeError):
            raise ModelError(f'{path}:{number}: not a rule; write {{"when": "...", "say": "..."}}') from None
    if not answers and not rules:
        raise ModelError(f"{path}: the script is empty; write one reply per line")
    return ScriptedChatModel(answers=answers, rules=rules)
