"""Simulated users of the user's as arms: code or a model that plays the person, measured as every other arm is.

Each is asked for the person's next turn after the same context, and gets the persona that the twin has. It has replies and no
likelihoods. Code sees the person as "user" and everybody else as "assistant", as openevals' simulated users do:

    a function              of the messages; or of any of `messages`, `persona`, `goal`, `turn_counter`, `thread_id`, `seed`
    an openevals user       what create_llm_simulated_user returns, or its asynchronous form
    a LangGraph graph       over `messages`; a LangChain runnable
    a model, such as openai:NAME@URL    plays the person by the prompt of the arm "openevals", roles exchanged

The first message is a system message with the persona and the goal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from usertwin.evals.arm_names import simulators_of
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import sample
from usertwin.memory.models.token_limits import token_limit
from usertwin.personas import ModelError, Pair, Persona, UsageError, as_conversation
from usertwin.personas.roles import is_user
from usertwin.simulator.agents import Failure, Message, load_agent, run_turn
from usertwin.simulator.agents.turn import in_thread

from .peers import peer_messages, reply_of_peer, system_text

#: Seconds for one reply.
TIMEOUT = 300.0
_ARGUMENTS = ("messages", "persona", "goal", "turn_counter", "thread_id", "seed")


@dataclass(frozen=True, slots=True)
class Simulator:
    """A simulated user under the name of its arm."""

    name: str
    target: Any

    async def reply(self, persona: Persona, pair: Pair, *, turns: int, seed: int, sample_number: int = 0) -> str:
        """Return the turn that it writes in place of the pair's action; it sees the latest `turns` turns of the context.

        Raises:
            ModelError: it raised an exception, took too long, or returned no message.
        """
        seed += sample_number
        if isinstance(self.target, ChatModel):
            messages = peer_messages("openevals", "instruction", persona, pair, turns=turns)
            [answer] = await sample(self.target, messages, seed=seed, max_tokens=token_limit("action", "instruction"))
            return reply_of_peer("openevals", answer.text)
        chat: list[Message] = [
            {"role": "user" if turn.speaker == pair.speaker else "assistant", "content": turn.text}
            for turn in pair.context[len(pair.context) - min(turns, len(pair.context)) :]
        ]
        known: dict[str, Any] = {
            "persona": persona, "goal": pair.goal, "turn_counter": sum(m["role"] == "user" for m in chat), "seed": seed,
            "thread_id": f"{pair.conversation_id}/{pair.position}/{seed}",
        }  # fmt: skip
        messages = [{"role": "system", "content": system_text(persona, pair.goal)}, *chat]
        answer = await run_turn(_Turn(self.target, known), messages, known["thread_id"], TIMEOUT)
        if isinstance(answer, Failure):
            reason = answer.error.replace("the agent", "it", 1)
            raise ModelError(f'the arm "{self.name}" did not reply in {pair.conversation_id}: {reason}; mend it, and run again')
        return "\n".join(str(message["content"]).strip() for message in answer)


@dataclass(slots=True)
class _Turn:
    """One call of a simulator's code, in the form that `run_turn` takes."""

    target: Any
    known: Mapping[str, Any]
    own_loop: bool = False

    async def __call__(self, messages: Sequence[Message], thread_id: str) -> list[Message]:
        given = [dict(message) for message in messages]
        if hasattr(self.target, "ainvoke"):
            config = {"configurable": {"thread_id": thread_id}}
            takes_state = hasattr(self.target, "checkpointer") or _describes_messages(self.target)
            returned = await self.target.ainvoke({"messages": given} if takes_state else given, config)
        else:
            positional, names = _arguments(self.target)
            known = {**self.known, "messages": given}
            bound = partial(self.target, *([given] if positional else []), **{name: known[name] for name in names})
            returned = await in_thread(bound)
            if inspect.isawaitable(returned):
                returned = await returned
        return [{"role": "user", "content": await in_thread(partial(_reply_text, returned, messages))}]


def load_simulators(arms: Sequence[str]) -> dict[str, Simulator]:
    """Return the simulators among checked arms, imported and with a fitting shape, by name.

    Raises:
        UsageError: one cannot be imported, or is neither a function nor a graph nor a model.
        ModelError: a model cannot be loaded.
    """
    simulators: dict[str, Simulator] = {}
    for name, spec in simulators_of(arms).items():
        try:
            target = load_agent(spec)
            if not isinstance(target, ChatModel) and not hasattr(target, "ainvoke"):
                _arguments(target)
        except UsageError as error:
            raise UsageError(f'arm "{name}": {str(error).replace("is not an agent", "is no simulator")}') from None
        simulators[name] = Simulator(name, target)
    return simulators


def _arguments(function: Any) -> tuple[bool, list[str]]:
    """Return whether a function takes the messages by position, and the arguments that it gets by name.

    Raises:
        UsageError: it is no function, or needs another argument.
    """
    shown = getattr(function, "__name__", type(function).__name__)
    way_out = f"give it one argument for the messages, or any of {', '.join(_ARGUMENTS)}"
    if not callable(function):
        raise UsageError(f"{shown} is no simulator; use a function, a LangChain runnable, a LangGraph graph or a model")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return True, []
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        named = {*_ARGUMENTS} - {"messages"}
    else:
        named = {p.name for p in parameters if p.kind != p.POSITIONAL_ONLY}
    names = [name for name in _ARGUMENTS if name in named or any(p.name == name for p in parameters)]
    others = [p for p in parameters if p.name not in names and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    required = [p.name for p in others if p.default is p.empty]
    positional = "messages" not in names
    if positional and required and others[0].name == required[0] and others[0].kind != others[0].KEYWORD_ONLY:
        required = required[1:]
    elif positional and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        positional = False
    if required or not (positional or names):
        raise UsageError(f"{shown} takes {', '.join(required) or 'no arguments'}; {way_out}")
    return positional, names


def _describes_messages(runnable: Any) -> bool:
    try:
        return "messages" in runnable.get_input_jsonschema().get("properties", {})
    except Exception:  # not every runnable can describe its input
        return False


def _reply_text(returned: Any, sent: Sequence[Message]) -> str:
    """Return the text of what a simulator returned: a text, a message, a list of messages or {"messages": [...]}.

    Of a list that repeats the conversation only what follows counts, of the person's messages or else of any. ModelError for
    anything else.
    """
    if isinstance(returned, Mapping) and "messages" in returned:
        returned = cast("Mapping[str, Any]", returned)["messages"]
    if isinstance(returned, str):
        return returned
    if isinstance(returned, Mapping) or not isinstance(returned, Sequence):
        returned = [returned]
    values = [
        {"role": "user", "content": value} if isinstance(value, str) else value for value in cast("Sequence[Any]", returned)
    ]
    try:
        turns = list(as_conversation(values).turns) if values else []
    except ValueError:
        raise ModelError("the agent returned a value that is not a message") from None
    texts = [message["content"] for message in sent]
    if [turn.text for turn in turns[: len(sent)]] == texts:
        turns = turns[len(sent) :]
    elif len(turns) > 1 and [turn.text for turn in turns[: len(sent) - 1]] == texts[1:]:  # without the system message
        turns = turns[len(sent) - 1 :]
    return "\n".join([turn.text for turn in turns if is_user(turn.role)] or [turn.text for turn in turns if not turn.private])
