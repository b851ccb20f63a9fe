"""A chat model that says what a file tells it to: for tests and demonstrations, without any weights.

The one design choice: it is chosen by name like every other model (`scripted:FILE`), so that whatever runs with a real model
runs with a script. A line of the file is an answer; answers are given in turn, again from the first after the last. A line
that is a JSON object `{"when": "...", "say": "..."}` is given, out of turn, to every prompt that contains the text of "when".
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from usertwin.personas import ModelError

_RULE = re.compile(r'\s*\{\s*"')


class ScriptedChatModel(BaseChatModel):
    """Gives prepared answers, and remembers what it was asked.

    Attributes:
        answers: given in turn, then again from the first.
        rules: (when, say) pairs; the first whose `when` is in the prompt is answered with its `say` instead.
        prompts: everything it was asked so far, as text.
    """

    answers: list[str]
    rules: list[tuple[str, str]] = []  # noqa: RUF012 - a pydantic field, copied for each model
    prompts: list[str] = []  # noqa: RUF012 - likewise
    _turn: itertools.count[int] = PrivateAttr(default_factory=itertools.count)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt = "\n".join(str(message.text) for message in messages)
        self.prompts.append(prompt)
        said = next((say for when, say in self.rules if when in prompt), None)
        if said is None:
            said = self.answers[next(self._turn) % len(self.answers)] if self.answers else ""
        read, written = len(prompt.split()), len(said.split())
        usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said, usage_metadata=usage))])  # pyright: ignore[reportArgumentType]


def scripted_model(path: str | Path) -> ScriptedChatModel:
    """Read a script. ModelError if there is no such file, or nothing in it, or a rule that is not one."""
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
            rule = json.loads(line)
            rules.append((str(rule["when"]), str(rule["say"])))
        except (ValueError, KeyError):
            raise ModelError(f'{path}, line {number}: a rule is {{"when": "...", "say": "..."}}') from None
    if not answers and not rules:
        raise ModelError(f"{path}: the script is empty; a line of it is an answer")
    return ScriptedChatModel(answers=answers, rules=rules)
