"""The twin in action: a LangGraph agent that recalls, reasons and acts, and a plain class around it.

The one design choice: the graph is the only implementation. Its state is typed and holds plain JSON values, so that it
streams, checkpoints and composes like any LangGraph graph; `SimulatedUser` is a thin door to it for people who do not know
LangGraph. Messages are in the agent's point of view, as everywhere in this ecosystem: "user" is the twin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from usertwin.memory import ChatModel, Embedder, Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.chat import Sample, Style, Usage, sample
from usertwin.memory.models.embedding import CachedEmbedder
from usertwin.memory.recon.propose import MALFORMED, as_trace
from usertwin.memory.store.ranking import SIMILARITY, Ranking
from usertwin.memory.text.transcript import flat
from usertwin.memory.twin.abandonment import NEIGHBOURS, AbandonmentModel, abandonment_rate
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.memory.twin.record import ENDING, LEAVING
from usertwin.personas import Pair, Persona, Turn, TwinError, as_conversation
from usertwin.personas.pairs import visible_turns

from .backends.load import DEFAULT_MODEL, load_embedder, load_model
from .prompts import CONTEXT_TURNS, Messages, act_messages, as_shown, reason_messages
from .reasoner import reasoner_of
from .state import Answer, TwinState, as_state, from_state

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    Graph = CompiledStateGraph["TwinState", None, "TwinState", "TwinState"]

T = TypeVar("T")

#: How often a twin tries again when a model writes nothing, or only what was said already.
_TRIES = 4
#: A turn of so few words ("yes") may well be said twice.
_SHORT = 3
_LIVE = "(live)"


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (a notebook): the one sync door."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class SimulatedUser:
    """A twin: a simulated user that was learned from one real person.

    Args:
        record: what is known about the twin.
        store: its memory.
        model: who acts for it, and reasons too where nobody else does.
        reasoner: who reasons for it; None for the model.
        ending: when it leaves with a last word; None if it never does.
        leaving: when it leaves without another word; None if it never does.
        settings: how it uses its memory; by default what was found best on validation turns, if that was measured.
        k: how many triples it recalls for a turn, if not as many as the settings say.
        ranking: what counts for that besides similarity, and how much text they may be.
        seed: for the sampler; together with the turn's number it fixes what a local model says.
    """

    def __init__(
        self,
        record: TwinRecord,
        store: TripleStore,
        model: ChatModel,
        *,
        reasoner: ChatModel | None = None,
        ending: LastTurnModel | None = None,
        leaving: AbandonmentModel | None = None,
        settings: Settings | None = None,
        k: int | None = None,
        ranking: Ranking = SIMILARITY,
        seed: int = 0,
    ) -> None:
        self.record, self.store, self.model, self.seed = record, store, model, seed
        self.reasoner = reasoner or model
        self.settings = settings or record.settings or Settings()
        self.k = self.settings.k if k is None else k
        self.ending, self.leaving, self.ranking = ending, leaving, ranking
        self._graph: Graph | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        home: str | Path | None = None,
        model: str | ChatModel = DEFAULT_MODEL,
        style: Style | None = None,
        reasoner: str | ChatModel | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        k: int | None = None,
        ranking: Ranking = SIMILARITY,
        seed: int = 0,
    ) -> Self:
        """Open a twin that was learned before.

        Args:
            name: the twin.
            home: where twins live; by default USERTWIN_HOME, else the user's data folder.
            model: who acts for it, by name or built already.
            style: how to prompt the model, if not in its usual way.
            reasoner: who reasons for it, by name or built already; by default the synthesizer it was learned with, which is
                loaded only where the settings say that the twin reasons, else the model.
            embedder: the embedding model its memory was made with, if it is not to be loaded by its name.
            settings: how it is to use its memory; by default what was found best on validation turns, if that was measured.
            k: how many triples to recall for a turn, if not as many as the settings say.
            ranking: what counts for that besides similarity, and how much text they may be.
            seed: for the sampler.

        Raises:
            TwinError: there is no such twin, or it is damaged.
            ModelError: a model cannot be had.
        """
        folder = existing_twin(name, home)
        record = TwinRecord.load(folder)
        if embedder is not None and not isinstance(embedder, CachedEmbedder):
            embedder = CachedEmbedder(embedder)  # a moment is looked up more than once in a turn
        store = TripleStore(folder, embedder or load_embedder(record.recipe.embedder), create=False)
        try:
            chat = load_model(model, style=style) if isinstance(model, str) else model
            thinks = reasoner_of(record, chat, settings) if reasoner is None else reasoner
            if isinstance(thinks, str):
                thinks = chat if thinks == chat.name else load_model(thinks)
            return cls(
                record, store, chat, reasoner=thinks, ending=LastTurnModel.load(folder / ENDING),
                leaving=AbandonmentModel.load(folder / LEAVING), settings=settings, k=k, ranking=ranking, seed=seed,
            )  # fmt: skip
        except BaseException:
            store.close()
            raise

    @property
    def name(self) -> str:
        """The twin's name."""
        return self.record.name

    @property
    def persona(self) -> Persona:
        """Who the twin plays."""
        return self.record.persona

    @property
    def graph(self) -> Graph:
        """The twin as a compiled LangGraph graph over `TwinState`: recall, reason, act."""
        if self._graph is None:
            self._graph = self.build()
        return self._graph

    def build(self, *, checkpointer: Any = None) -> Graph:
        """Compile the graph anew, with a checkpointer of yours if you have one."""
        from langchain_core.runnables import RunnableLambda
        from langgraph.graph import END, START, StateGraph

        graph = StateGraph(TwinState)
        for name, step in (("recall", self._recall), ("reason", self._reason), ("act", self._act)):
            graph.add_node(name, RunnableLambda(_sync(step), step, name=name))
        for before, after in ((START, "recall"), ("reason", "act"), ("act", END)):
            graph.add_edge(before, after)
        graph.add_conditional_edges("recall", _after_recall, {"leave": END, "stay": "reason"})
        return graph.compile(checkpointer=checkpointer, name=f"twin:{self.name}")

    async def arespond(self, messages: Any, *, goal: str = "", config: RunnableConfig | None = None) -> Answer:
        """The twin's next turn.

        Args:
            messages: the conversation so far in any accepted shape ([] if the twin is to begin); "user" is the twin.
            goal: what the twin is to want in this conversation; the agent never sees it.
            config: LangChain's run config.

        Raises:
            ModelError: the model does not answer.
            TwinError: the model writes nothing.
            LogError: the messages have no shape that is known.
        """
        found = await self.graph.ainvoke({"messages": _plain(messages), "goal": goal}, config)
        return Answer(
            action=found["action"],
            reasoning=found["reasoning"],
            recalled=tuple(found["recalled"]),
            done=found["done"],
            usage=Usage(**found["usage"]),
            leaving=found["leaving"],
            reasoner=self.reasoner.name if found["reasoning"] and not self._one_model else None,
        )

    def respond(self, messages: Any, *, goal: str = "", config: RunnableConfig | None = None) -> Answer:
        """`arespond`, without async."""
        return run_sync(self.arespond(messages, goal=goal, config=config))

    def close(self) -> None:
        """Close the memory."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The steps of the graph ------------------------------------------------------------------------------------------

    async def _recall(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        query = self._query(state)
        traced = self.settings.traces != "none"
        found = await asyncio.to_thread(self.store.recall, query, self.k, with_trace=traced, ranking=self.ranking)
        update = {"usage": asdict(Usage()), "done": False, "leaving": 0.0}
        if self.leaving is not None and any(turn.speaker == query.speaker for turn in query.context):
            near = await asyncio.to_thread(self.store.recall, query, NEIGHBOURS, left=None)
            update["leaving"] = round(abandonment_rate(near), 6)
            if self.leaving.leaves(near):
                found, update = near, update | {"done": True, "action": "", "reasoning": ""}
        if self.settings.traces == "backward":
            first = as_shown([one.triple for one in found], "backward")
            found = [replace(one, triple=triple) for one, triple in zip(found, first, strict=True)]
        return update | {"recalled": [as_state(one) for one in found]}

    async def _reason(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        recalled = self._shown(state)
        continues = "transcript" in {self.model.style, self.reasoner.style}
        if not self.settings.reasons or (continues and not any(triple.reasoning for triple in recalled)):
            return {"reasoning": ""}  # without examples of thoughts a model that continues text makes nothing of one
        query = self._query(state)
        thought = await self.sample_reasoning(query, recalled, seed=self._seed(query), config=config)
        return {"reasoning": thought.text, "usage": _add(state, thought.usage)}

    async def _act(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        from langchain_core.messages import HumanMessage

        query = self._query(state)
        recalled, reasoning = self._shown(state), state.get("reasoning", "")
        said_before = {flat(turn.text).casefold() for turn in query.context if len(turn.text.split()) > _SHORT}
        used, action = Usage(), ""
        for attempt in range(_TRIES):
            seed, afresh = self._seed(query) + 1_000_003 * attempt, attempt == 0 and self._nothing_computed(reasoning)
            [answer] = await self.sample_action(query, recalled, reasoning, seed=seed, afresh=afresh, config=config)
            used, text = used + answer.usage, answer.text
            action = text or action
            if text and flat(text).casefold() not in said_before and not _is_repetitive(text):
                break
        if not action:
            raise TwinError(f'the twin said nothing: its model "{self.model.name}" wrote nothing {_TRIES} times in a row')
        done = self.ending is not None and self.ending.leaves(replace(query, action=action))
        return {"messages": [HumanMessage(action)], "action": action, "done": done, "usage": _add(state, used)}

    async def sample_reasoning(
        self, query: Pair, recalled: Sequence[Triple], *, seed: int, config: RunnableConfig | None = None
    ) -> Sample:
        """Ask the reasoner once for what goes on in the person at this moment, in the manner of the traces that are shown."""
        model, style = self.reasoner, self.reasoner.style
        messages = reason_messages(style, self.persona, query, recalled, turns=self.settings.window)
        most, stop = (60, ["\n"]) if style == "transcript" else (400, list[str]())
        [thought] = await sample(model, messages, seed=seed, max_tokens=most, stop=stop, afresh=True, config=config)
        # One that was trained to propose traces as objects may well write its thought as one.
        text = thought.text if style == "transcript" else as_trace(style, thought.text)
        return replace(thought, text="" if text == MALFORMED else flat(text).rstrip(")"))

    async def sample_action(
        self,
        query: Pair,
        recalled: Sequence[Triple],
        reasoning: str,
        *,
        seed: int,
        afresh: bool,
        n: int = 1,
        config: RunnableConfig | None = None,
    ) -> list[Sample]:
        """Ask the model for the person's turn; not `afresh`, it goes on from what it computed before, for the reasoning."""
        messages = act_messages(self.model.style, self.persona, query, recalled, reasoning, turns=self.settings.window)
        return await self.complete(messages, n=n, seed=seed, afresh=afresh, config=config)

    async def sample_reply(self, query: Pair, shown: Sequence[Triple], *, seed: int, n: int = 1) -> tuple[str, list[Sample]]:
        """Think, where this twin does and is shown traces, and then speak: the thought, or "", and n turns."""
        reasoning = ""
        if self.settings.reasons and any(triple.reasoning for triple in shown):
            reasoning = (await self.sample_reasoning(query, shown, seed=seed)).text
        return reasoning, await self.sample_action(
            query, shown, reasoning, seed=seed, afresh=self._nothing_computed(reasoning), n=n
        )

    async def complete(
        self, messages: Messages, *, n: int = 1, seed: int, afresh: bool = True, config: RunnableConfig | None = None
    ) -> list[Sample]:
        """Ask the model for n turns in the room that a turn of this person takes."""
        answers = await sample(
            self.model, messages, n=n, seed=seed, max_tokens=self.most_tokens, stop=self._stop, afresh=afresh, config=config
        )
        return [replace(answer, text=answer.text.strip()) for answer in answers]

    @property
    def most_tokens(self) -> int:
        """Room for a turn several times as long as this person's usual one; a hosted model may reason before it writes."""
        return min(400, 32 + 4 * self.persona.typical_words) if self._continues else 1500

    @property
    def _one_model(self) -> bool:
        """Whether the model that acts is also the one that reasons."""
        return self.reasoner.chat is self.model.chat

    def _nothing_computed(self, reasoning: str) -> bool:
        # What another model computed for its reasoning is not in the cache of the one that acts: that one reads all of its
        # prompt, and has to do so afresh, since what its cache holds of turns before would let the same seed say another thing.
        return not (reasoning and self._one_model)

    @property
    def _continues(self) -> bool:
        return self.model.style == "transcript"

    @property
    def _stop(self) -> list[str]:
        return ["\n"] if self._continues else []

    def _seed(self, query: Pair) -> int:
        return (self.seed * 7919 + query.position) % 2**31

    def _shown(self, state: TwinState) -> list[Triple]:
        """What came to mind as the model is shown it; traces that are not shown stay in the state, to be looked at."""
        recalled = from_state(state, self.record.recipe.speaker)
        return as_shown(recalled, "none") if self.settings.traces == "none" else recalled

    def _query(self, state: TwinState) -> Pair:
        """The present moment as a pair whose action is yet to come."""
        conversation = as_conversation(state["messages"], _LIVE)
        turns = [turn for turn, _ in visible_turns(conversation.turns)]
        private = [turn.text for turn in conversation.turns if turn.private]
        context = tuple(
            Turn(self.record.recipe.speaker if turn.role == "user" else turn.speaker, turn.role, turn.text) for turn in turns
        )
        return Pair(
            speaker=self.record.recipe.speaker,
            context=context[-max(CONTEXT_TURNS, self.settings.window, self.record.recipe.window) :],
            action="",
            goal="\n".join([text for text in (state.get("goal", ""), *private) if text]),
            conversation_id=_LIVE,
            position=len(turns),
            when=float("inf"),
        )


def _is_repetitive(text: str) -> bool:
    """Whether a text says the same again and again, as small models do: fewer than half of its word trigrams are new."""
    words = text.casefold().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) > 6 and len(set(trigrams)) < len(trigrams) / 2


def _after_recall(state: TwinState) -> str:
    return "leave" if state.get("done") else "stay"


def _sync(step: Any) -> Any:
    """The same step for callers without an event loop."""

    def run(state: TwinState, config: RunnableConfig) -> Any:
        return run_sync(step(state, config))

    return run


def _plain(messages: Any) -> list[Any]:
    """The messages as the graph takes them; any accepted shape of a conversation becomes OpenAI-style messages."""
    conversation = as_conversation(messages)
    known = {"user", "assistant", "system"}
    return [
        {"role": turn.role if turn.role in known else "system" if turn.private else "assistant", "content": turn.text}
        for turn in conversation.turns
    ]


def _add(state: TwinState, more: Usage) -> dict[str, int]:
    return asdict(Usage(**state.get("usage", {})) + more)
