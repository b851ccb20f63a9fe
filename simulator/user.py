"""The twin: a LangGraph graph that recalls, reasons and acts, and a class around it.

Messages have the roles that an agent's developer expects: "user" is the twin, "assistant" is the agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from usertwin.memory import ChatModel, Embedder, Recalled, Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.concurrency import Batches
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import PromptStyle, Sample, Usage, limit_error, sample
from usertwin.memory.models.embedding import CachedEmbedder
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.models.token_writer import NextToken
from usertwin.memory.own_words.own_words import OwnWords, WordMixture
from usertwin.memory.own_words.word_weights import WordWeights
from usertwin.memory.recon.propose import MALFORMED, parse_trace
from usertwin.memory.store.ranking import BY_STAGE, Ranking
from usertwin.memory.text.transcript import single_line
from usertwin.memory.twin.abandonment import NEIGHBOURS, AbandonmentModel, abandonment_rate
from usertwin.memory.twin.forget import open_memory
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.memory.twin.record import ABANDONMENT_FILE, LAST_TURN_FILE
from usertwin.memory.twin.reranking import Reranking
from usertwin.personas import Pair, Persona, Turn, as_conversation

from .backends.load import DEFAULT_MODEL, load_model
from .backends.lora_of_twin import model_for_twin
from .prompt_fit import FittedPrompt, fit_prompt
from .prompts import reason_messages, shown_turns, with_shown_traces
from .reasoner import load_own_embedder, load_reasoner
from .reranking.reranker import BestOf, Reranker
from .state import (
    Answer,
    Place,
    TwinState,
    add_usage,
    as_node,
    from_rows,
    has_left,
    is_traced,
    sampler_seed,
    to_messages,
    to_rows,
    upcoming_turn,
    working_state,
)  # fmt: skip
from .structured_reply import may_leave
from .tracing.runs import traced_recall, traced_turn
from .turn_checks import MemorySides, StyleCards
from .turn_writer import Draft, TurnWriter

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    Graph = CompiledStateGraph["TwinState", None, "TwinState", "TwinState"]


class SimulatedUser:
    """A twin: a simulated user that was learned from one real person.

    It has no seed and no state of a conversation, so many conversations can share it.

    Args:
        record: the twin's record.
        store: its memory.
        model: the model that acts.
        reasoner: the model that reasons; by default the model that acts.
        last_turn: predicts whether a turn is the person's last; None if only the model that acts may say so.
        abandonment: predicts whether the person leaves without a word; None if the twin never does.
        settings: how it uses its memory; by default the settings in the record, which tuning found.
        k: triples to recall for a turn; by default the settings' number.
        ranking: how recalled triples are ranked, and how much text they may be.
    """

    def __init__(
        self, record: TwinRecord, store: TripleStore, model: ChatModel, *, reasoner: ChatModel | None = None,
        last_turn: LastTurnModel | None = None, abandonment: AbandonmentModel | None = None, settings: Settings | None = None,
        k: int | None = None, ranking: Ranking = BY_STAGE,
    ) -> None:  # fmt: skip
        self.record, self.store, self.model = record, store, model
        self.reasoner = reasoner or model
        self.settings = settings or record.settings or Settings()
        self.k = self.settings.k if k is None else k
        self.last_turn, self.abandonment, self.ranking = last_turn, abandonment, ranking
        self.sides, self._reranker, self.style_card = MemorySides(store), Reranker(store), StyleCards(store)
        self._memories = Batches(self._remember)
        self._graph: Graph | None = None
        self._words: tuple[int, OwnWords] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        home: str | Path | None = None,
        model: str | ChatModel = DEFAULT_MODEL,
        style: PromptStyle | None = None,
        reasoner: str | ChatModel | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        k: int | None = None,
        ranking: Ranking = BY_STAGE,
    ) -> Self:
        """Open a learned twin; the arguments not described here are those of the class.

        `home` is the folder of all twins; by default USERTWIN_HOME, else the user's data folder. `style` is how to prompt the
        model, if not in its default style. The reasoner is by default the synthesizer that the twin was learned with, which is
        loaded only if the settings use reasoning; without a synthesizer, it is the model that acts. The embedder is by default
        loaded by the name in the record.

        The model acts with the twin's adapter, if that was trained on its weights.

        Raises:
            TwinError: there is no such twin, or it is damaged.
            ModelError: a model cannot be loaded.
            UsageError: a name is not that of a model.
        """
        folder = existing_twin(name, home)
        record = TwinRecord.load(folder)
        if embedder is not None and not isinstance(embedder, CachedEmbedder):
            embedder = CachedEmbedder(embedder)  # a turn embeds the same context more than once
        store = open_memory(folder, embedder or load_own_embedder(record, folder))
        try:
            record = TwinRecord.load(folder)  # opening may have finished forgetting
            chat = model_for_twin(record, folder, model, style=style)
            if reasoner is None:
                reasoner = load_reasoner(record, chat, settings, folder=folder)
            elif isinstance(reasoner, str):
                reasoner = chat if reasoner == chat.name else load_model(reasoner)
            return cls(
                record, store, chat, reasoner=reasoner, last_turn=LastTurnModel.load(folder / LAST_TURN_FILE),
                abandonment=AbandonmentModel.load(folder / ABANDONMENT_FILE), settings=settings, k=k, ranking=ranking,
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
        """The person that the twin plays."""
        return self.record.persona

    @property
    def writer(self) -> TurnWriter:
        """What writes the twin's turns."""
        return self.writer_with(self.settings.words, self.settings.reranking)

    def writer_with(
        self, weights: WordWeights | None, reranking: Reranking | None = None, *, before: float = float("inf")
    ) -> TurnWriter:
        """Return what writes the person's turns with these weights of their own words, said before a time; None for no words.

        Words need a model that tells the probabilities of tokens; any other one writes without them. With `reranking` it writes
        the best of several turns.
        """
        return TurnWriter(
            self.model, self.persona, self.record.recipe.speaker, self.settings.window, card=self.style_card,
            structured=self._is_structured, sides=self.sides, next_token=self._next_token(weights, before),
            best_of=None if reranking is None else BestOf(self._reranker, reranking),
        )  # fmt: skip

    def _next_token(self, weights: WordWeights | None, before: float) -> NextToken | None:
        """Return the mixture of the model's probabilities with the words in the memory, as it is now."""
        writer = self.model.token_writer
        if weights is None or writer is None:
            return None
        generation = self.store.generation
        if self._words is None or self._words[0] != generation:
            self._words = generation, OwnWords(writer.encode, writer.vocabulary_size, list(self.store.triples()))
        return WordMixture(self._words[1], weights).next_token(before)

    @property
    def graph(self) -> Graph:
        """The twin as a compiled LangGraph graph over `TwinState`; the checkpoints of a graph around it hold no memories."""
        if self._graph is None:
            self._graph = self.build(checkpointer=False)
        return self._graph

    def build(self, *, checkpointer: Any = None) -> Graph:
        """Return a new compiled graph, with a checkpointer if one is given."""
        from langgraph.graph import END, START, StateGraph

        state = working_state()
        graph = StateGraph(state, input_schema=state, output_schema=TwinState)
        for name, step in (("recall", self._recall), ("reason", self._reason), ("act", self._act)):
            graph.add_node(name, as_node(name, step))
        for source, target in ((START, "recall"), ("reason", "act"), ("act", END)):
            graph.add_edge(source, target)
        targets: dict[Any, str] = {True: END, False: "reason"}
        graph.add_conditional_edges("recall", has_left, targets)
        return graph.compile(checkpointer=checkpointer, name=f"twin:{self.name}")

    @traced_turn
    async def arespond(self, messages: Any, *, goal: str = "", seed: int = 0, config: RunnableConfig | None = None) -> Answer:
        """Return the twin's next turn in a conversation of any accepted shape, in which "user" is the twin; [] if it opens one.

        The goal is what the twin wants; the agent never sees it. The conversation's seed and the turn's number determine what
        a local model samples.

        Raises:
            ModelError: the model does not answer.
            TwinError: the model writes no turn of the person in four attempts.
            LogError: the messages have no known shape.
        """
        turns = as_conversation(messages).turns
        start: Any = {"messages": to_messages(turns), "goal": goal, "seed": seed, "place": Place(self._query(turns, goal))}
        state = await (self.graph.ainvoke(start, config) if config or is_traced() else self._run(start))
        return Answer(
            action=state["action"], reasoning=state["reasoning"], done=state["done"],
            recalled=tuple(from_rows(state["recalled"], self.record.recipe.speaker)),
            usage=Usage(**state["usage"]), abandonment_rate=state["abandonment_rate"],
            reasoner=self.reasoner.name if state["reasoning"] and not self._one_model else None,
            prompts=tuple(state.get("prompts", ())),
            **{name: state.get(name, 0) for name in ("discarded", "candidates", "cut_turns", "cut_recalled")},
        )  # fmt: skip

    async def _run(self, state: Any) -> Any:
        """Run the steps as the graph does, without the cost of the graph, where nothing observes it."""
        for step in (self._recall, self._reason, self._act):
            state = state | await step(state, {})
            if state["done"]:
                break
        return state

    def respond(self, messages: Any, *, goal: str = "", seed: int = 0, config: RunnableConfig | None = None) -> Answer:
        """Return the twin's next turn; the synchronous form of `arespond`, with the same arguments."""
        return run_sync(self.arespond(messages, goal=goal, seed=seed, config=config))

    def close(self) -> None:
        """Close the memory."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The steps of the graph ------------------------------------------------------------------------------------------

    async def _recall(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        query = self._place(state).query
        recalled, neighbours = await self._memories(query)
        update: dict[str, Any] = {"usage": asdict(Usage()), "done": False, "abandonment_rate": 0.0, "prompts": []}
        if self.abandonment is not None and neighbours is not None:
            update["abandonment_rate"] = round(abandonment_rate(neighbours), 6)
            if self.abandonment.leaves(neighbours, query):
                recalled, update = neighbours, update | {"done": True, "action": "", "reasoning": ""}
        if self.settings.traces == "backward":
            shown = with_shown_traces([memory.triple for memory in recalled], "backward")
            recalled = [replace(memory, triple=triple) for memory, triple in zip(recalled, shown, strict=True)]
        return update | {"recalled": to_rows(recalled), "place": Place(query, recalled)}

    def _remember(self, queries: Sequence[Pair]) -> list[tuple[list[Recalled], list[Recalled] | None]]:
        """Return for each query what the twin recalls, and the neighbours for the abandonment model if the person may leave.

        It blocks. What the prompts need of the memory, and takes a while to read, is read here and kept.
        """
        recalled = self.recall_many(queries)
        if "instruction" in {self.model.style, self.reasoner.style}:
            self.style_card(queries[0])
        self._next_token(self.settings.words, queries[0].when)
        may_go = [self.abandonment is not None and any(t.speaker == q.speaker for t in q.context) for q in queries]
        neighbours = iter(self.store.recall_many(list(compress(queries, may_go)), NEIGHBOURS, abandoned=None))
        return [(own, next(neighbours) if goes else None) for own, goes in zip(recalled, may_go, strict=True)]

    async def _reason(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        place = self._place(state)
        query, recalled = place.query, self._shown(place)
        if self._is_structured or not self.reasons_after(recalled):
            return {"reasoning": ""}
        prompt, seed = self.reasoning_prompt(query, recalled), sampler_seed(state, query)
        thought = await self.sample_reasoning(query, recalled, seed=seed, prompt=prompt, config=config)
        return {"reasoning": thought.text, "usage": add_usage(state, thought.usage), "prompts": [prompt.checksum]}

    async def _act(self, state: TwinState, config: RunnableConfig) -> dict[str, Any]:
        from langchain_core.messages import HumanMessage

        place, reasoning = self._place(state), state.get("reasoning", "")
        query, recalled = place.query, self._shown(place)
        turn = await self.writer.write(
            query, recalled, reasoning, seed=sampler_seed(state, query), bypass_cache=self._bypasses_cache(reasoning),
            config=config,
        )  # fmt: skip
        pair = replace(query, action=turn.text)
        done = self.last_turn is not None and self.last_turn.leaves(pair)
        return {
            "messages": [HumanMessage(turn.text)], "action": turn.text, "reasoning": reasoning or turn.sample.thought,
            "done": done or (turn.sample.done and may_leave(pair)),
            "usage": add_usage(state, turn.sample.usage), "discarded": turn.discarded, "candidates": turn.candidates,
            "cut_turns": turn.prompt.cut_turns, "cut_recalled": turn.prompt.cut_recalled,
            "prompts": [*state.get("prompts", []), turn.prompt.checksum],
        }  # fmt: skip

    @traced_recall
    def recall_many(self, queries: Sequence[Pair], *, before: Sequence[float] | None = None) -> list[list[Recalled]]:
        """Return what the twin recalls for each query, the same whatever traces it shows: one has a trace, if any is stored."""
        return self.store.recall_many(queries, self.k, before=before, with_trace=True, ranking=self.ranking)

    def reasons_after(self, shown: Sequence[Triple]) -> bool:
        """Return whether the twin writes a trace of its own: a model that continues text needs examples of traces."""
        continues = "transcript" in {self.model.style, self.reasoner.style}
        return self.settings.reasons and (not continues or any(triple.reasoning for triple in shown))

    def reasoning_prompt(self, query: Pair, recalled: Sequence[Triple]) -> FittedPrompt:
        """Return the prompt for the thought before a turn, within the context of the reasoner."""
        style = self.reasoner.style
        card = self.style_card(query) if style == "instruction" else None
        return fit_prompt(
            self.reasoner, token_limit("thought", style), query=query, recalled=recalled,
            turns=shown_turns(style, query, self.settings.window),
            build=lambda pair, triples, turns: reason_messages(style, self.persona, pair, triples, turns=turns, card=card),
        )  # fmt: skip

    async def sample_reasoning(
        self, query: Pair, recalled: Sequence[Triple], *, seed: int, prompt: FittedPrompt | None = None,
        config: RunnableConfig | None = None,
    ) -> Sample:  # fmt: skip
        """Sample the reasoner's thought for the current turn once, in the style of the traces in `recalled`.

        `prompt` is that of `reasoning_prompt`, if it has been built already.
        """
        model, style = self.reasoner, self.reasoner.style
        max_tokens = token_limit("thought", style)
        prompt = prompt or self.reasoning_prompt(query, recalled)
        [thought] = await sample(
            model, prompt.messages, seed=seed, max_tokens=max_tokens, stop=["\n"] if style == "transcript" else [],
            bypass_cache=True, config=config,
        )  # fmt: skip
        if thought.at_limit and not thought.text.strip() and style == "instruction":
            raise limit_error(model, max_tokens)
        # A synthesizer that was trained to propose traces as JSON objects may write one here, too.
        text = thought.text if style == "transcript" else parse_trace(style, thought.text)
        return replace(thought, text="" if text == MALFORMED else single_line(text).rstrip(")"))

    async def sample_action(
        self, query: Pair, shown: Sequence[Triple], reasoning: str, *, seed: int, n: int = 1, bypass_cache: bool | None = None,
        writer: TurnWriter | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Sample n turns of the person; by default with the twin's writer, and with the prompt cache as in a conversation.

        A model that writes its thoughts with the reply does not see `reasoning`.
        """
        reasoning = "" if self.writer.structured else reasoning
        bypass = self._bypasses_cache(reasoning) if bypass_cache is None else bypass_cache
        return await (writer or self.writer).sample_action(query, shown, reasoning, seed=seed, n=n, bypass_cache=bypass)

    async def reasoning_for(self, query: Pair, shown: Sequence[Triple], *, seed: int) -> str:
        """Return the reasoning before a turn; "" if the twin writes none, or the acting model writes it with the reply."""
        reasons = self.reasons_after(shown) and not self.writer.structured
        return (await self.sample_reasoning(query, shown, seed=seed)).text if reasons else ""

    async def sample_reply(self, query: Pair, shown: Sequence[Triple], *, seed: int, n: int = 1) -> tuple[str, list[Draft]]:
        """Return the reasoning, "" if the twin writes none (see `reasons_after`), and n sampled turns."""
        reasoning = await self.reasoning_for(query, shown, seed=seed)
        drafts = await self.sample_action(query, shown, reasoning, seed=seed, n=n)
        return reasoning or drafts[0].thought, drafts

    @property
    def _is_structured(self) -> bool:
        """Whether the model writes its thoughts with the reply, in one JSON object."""
        return self.model.style == "instruction" and self.model.structured and self.settings.reasons and self._one_model

    @property
    def _one_model(self) -> bool:
        """Whether one model reasons and acts."""
        return self.reasoner.chat is self.model.chat

    def _bypasses_cache(self, reasoning: str) -> bool:
        # A separate reasoner does not warm the actor's prompt cache. Bypass the cache then: reusing older entries changes
        # rounding and breaks seed reproducibility.
        return not (reasoning and self._one_model)

    def _shown(self, place: Place) -> list[Triple]:
        """Return the recalled triples as the model sees them; the state keeps traces that are not shown."""
        recalled = [memory.triple for memory in place.recalled]
        return with_shown_traces(recalled, "none") if self.settings.traces == "none" else recalled

    def _place(self, state: Mapping[str, Any]) -> Place:
        """Return the place in a state; it is computed if the graph was run with messages alone, or continued."""
        if (place := state.get("place")) is not None:
            return place
        recalled = from_rows(state.get("recalled", []), self.record.recipe.speaker)
        return Place(self._query(as_conversation(state["messages"]).turns, state.get("goal", "")), recalled)

    def _query(self, turns: Sequence[Turn], goal: str) -> Pair:
        return upcoming_turn(turns, goal, self.record.recipe.speaker)
