// The page of the conversations of one run or of two: a list to filter, and the conversation that is opened.
// Texts of people, twins and agents become text nodes and nothing else; no markup is ever parsed.
"use strict";
(() => {
  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const find = (id) => document.getElementById(id);
  const { runs, items } = json("index");
  const pairs = runs.length > 1;
  const CHUNK = 60; // rows of the list that are made at a time
  let shared = null; // memories and lines of prompts, parsed when they are first needed
  const parsed = new Map(); // conversations that were opened or searched, by id

  // Elements ------------------------------------------------------------------------------------------------------------

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  const set = (node, attributes) => {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const said = (tag, className, text) => set(make(tag, className, text), { dir: "auto" });
  const badge = (word) => make("span", `badge ${word.split(" ")[0]}`, word);
  const sign = (result) => make("span", `sign ${result}`, { passed: "✓", failed: "✗", error: "!" }[result]);
  const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  /** A `details` whose content is made when it is first opened. */
  const folded = (title, fill) => {
    const node = make("details", "folded", make("summary", "", title));
    node.addEventListener("toggle", () => node.childElementCount > 1 || node.append(...fill()));
    return node;
  };

  // Data ----------------------------------------------------------------------------------------------------------------

  const rowsOf = (item) => item.filter((row) => row !== null);
  const sharedData = () => (shared ??= json("shared"));
  const talkOf = (run, row) => {
    const id = `talk-${run}-${row.n}`;
    if (!parsed.has(id)) parsed.set(id, json(id));
    return parsed.get(id);
  };
  const results = (row) => new Map(row.checks);

  /** What two conversations of the same scenario, twin and repetition differ in. */
  const changesOf = ([a, b]) => {
    if (!a || !b) return ["in one run only"];
    const [old, now] = [results(a), results(b)];
    const checks = [...new Set([...old.keys(), ...now.keys()])].filter((name) => old.get(name) !== now.get(name));
    const kinds = [];
    if (a.outcome !== b.outcome) kinds.push(`now ${b.outcome}`);
    if (checks.length) kinds.push("a check changed");
    if (a.reason !== b.reason) kinds.push("another ending");
    return kinds.length ? ["changed", ...kinds] : ["the same"];
  };

  const words = new Map();
  /** All that is searched in an item, in lower case. */
  const wordsOf = (item) => {
    if (!words.has(item)) {
      const texts = [];
      item.forEach((row, run) => {
        if (!row) return;
        const talk = talkOf(run, row);
        texts.push(row.id, row.why, row.reason, talk.goal, talk.error, talk.thread, ...talk.faults, ...talk.checks.flat());
        for (const turn of talk.turns) {
          texts.push(turn.about?.thought ?? "");
          for (const [, text, calls] of turn.messages) texts.push(text, ...calls);
        }
      });
      words.set(item, texts.join("\n").toLowerCase());
    }
    return words.get(item);
  };

  // Filters -------------------------------------------------------------------------------------------------------------

  const ofRows = (value) => (item) => rowsOf(item).flatMap(value);
  const FILTERS = [
    ...(pairs ? [{ key: "change", label: "Change", values: changesOf }] : []),
    { key: "outcome", label: "Outcome", values: ofRows((row) => [row.outcome]) },
    { key: "end", label: "Ended by", values: ofRows((row) => [row.reason]) },
    { key: "fault", label: "Side at fault", values: ofRows((row) => [row.side]) },
    { key: "check", label: "Check", values: ofRows((row) => row.checks.map(([name, result]) => `${name}: ${result}`)) },
    { key: "twin", label: "Twin", values: ofRows((row) => [row.twin]) },
    { key: "scenario", label: "Scenario", values: ofRows((row) => [row.scenario]) },
  ];
  const state = new Map(); // the filters that are set, "q" for the text, and "c" for the open conversation
  let shown = []; // the numbers of the items that pass
  let made = 0; // rows that are in the list

  const readHash = () => {
    state.clear();
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) state.set(key, value);
  };
  const hashWith = (key, value) => {
    const changed = new Map(state);
    if (value === "") changed.delete(key);
    else changed.set(key, value);
    return `#${new URLSearchParams([...changed])}`;
  };

  const control = (key, label, node) => {
    set(node, { id: `f-${key}`, name: key });
    return make("div", "control", set(make("label", "", label), { for: node.id }), node);
  };

  const makeFilters = () => {
    const search = set(make("input"), { type: "search", placeholder: "messages, reasons, goals …", autocomplete: "off" });
    const controls = [control("q", "Text", search)];
    for (const filter of FILTERS) {
      const counts = new Map();
      for (const value of items.flatMap((item) => [...new Set(filter.values(item))])) {
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
      if (counts.size < 2) continue;
      const select = make("select", "", set(make("option", "", "all"), { value: "" }));
      const compare = new Intl.Collator("en", { numeric: true }).compare;
      for (const value of [...counts.keys()].sort(compare)) {
        const only = value === "changed" ? "changed only" : value;
        select.append(set(make("option", "", `${only} (${counts.get(value).toLocaleString("en")})`), { value }));
      }
      controls.push(control(filter.key, filter.label, select));
    }
    const reset = set(make("button", "", "Clear"), { type: "reset" });
    find("filters").append(...controls, reset);
    find("filters").addEventListener("input", (event) => {
      history.replaceState(null, "", hashWith(event.target.name, event.target.value));
      readHash();
      applyFilters();
    });
    find("filters").addEventListener("reset", () => {
      history.replaceState(null, "", state.has("c") ? `#c=${state.get("c")}` : "#");
      readHash();
      applyFilters();
    });
    find("filters").addEventListener("submit", (event) => event.preventDefault());
  };

  const applyFilters = () => {
    const active = FILTERS.filter((filter) => state.get(filter.key) && find(`f-${filter.key}`));
    const text = (state.get("q") ?? "").toLowerCase();
    const passes = (item) =>
      active.every((filter) => filter.values(item).includes(state.get(filter.key))) && (!text || wordsOf(item).includes(text));
    shown = [...items.keys()].filter((number) => passes(items[number]));
    const all = plural(items.length, pairs ? "pair" : "conversation");
    find("count").textContent = shown.length === items.length ? all : `${shown.length.toLocaleString("en")} of ${all}`;
    find("list").replaceChildren();
    made = 0;
    makeRows();
  };

  // The list ------------------------------------------------------------------------------------------------------------

  const makeRows = () => {
    find("list").append(...shown.slice(made, made + CHUNK).map(rowOf));
    made = Math.min(shown.length, made + CHUNK);
    const left = shown.length - made;
    find("more").hidden = left === 0;
    find("more").textContent = `Show ${Math.min(CHUNK, left)} more of ${left.toLocaleString("en")}`;
    markOpen();
  };

  const rowOf = (number) => {
    const item = items[number];
    const row = rowsOf(item).at(-1);
    const outcomes = pairs && item[0] && item[1] && item[0].outcome !== item[1].outcome ? item : [row];
    const badges = outcomes.flatMap((one, place) => [place ? " → " : null, badge(one.outcome)]);
    const only = pairs && !(item[0] && item[1]) ? ` only in ${item[0] ? "A" : "B"}` : "";
    const facts = [`${plural(row.turns, "turn")}`, row.reason, ...(row.time ? [row.time] : [])];
    if (row.tokens) facts.push(plural(row.tokens, "token"));
    const link = make(
      "a", "row", make("span", "badges", ...badges, only), said("b", "", row.id), said("span", "why", row.why || row.first),
      make("small", "dim", facts.join(" · ")),
    );
    return make("li", "", set(link, { href: hashWith("c", String(number)), "data-item": number }));
  };

  const markOpen = () => {
    for (const link of find("list").querySelectorAll("a")) {
      if (link.dataset.item === state.get("c")) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      link.setAttribute("href", hashWith("c", link.dataset.item));
    }
  };

  // A conversation ------------------------------------------------------------------------------------------------------

  const memoryOf = ([place, similarity]) => {
    const memory = sharedData().memories[place];
    const score = memory.score ? ` · score of its trace ${memory.score}` : "";
    const context = memory.context.map(([who, text]) => said("p", "", `${who}: ${text}`));
    const source = said("span", "", memory.from);
    return make(
      "li", "memory", make("p", "dim", make("code", "", memory.id), ` · cosine ${similarity} · `, source, score),
      make("div", "context", ...context),
      said("p", "action", memory.action || "(the person left without a word)"),
      memory.trace ? said("p", "trace", `Trace: ${memory.trace}`) : null,
    );
  };

  const promptOf = ([step, messages]) => {
    const { lines } = sharedData();
    const parts = messages.flatMap(([role, numbers]) => [
      make("h5", "", role),
      set(said("pre", "", numbers.map((number) => lines[number]).join("\n")), { tabindex: "0" }),
    ]);
    return make("div", "prompt", make("h4", "", step === "turn" ? "For the turn" : "For the reasoning"), ...parts);
  };

  const aboutOf = (about) => {
    const node = make("div", "about", make("p", "dim", about.numbers.join(" · ")));
    if (about.written) node.append(said("p", "dim", `As the twin wrote it: ${about.written}`));
    if (about.thought) node.append(said("p", "thought", `Reasoning: ${about.thought}`));
    if (about.memories.length) {
      const count = `${about.memories.length} recalled ${about.memories.length === 1 ? "memory" : "memories"}`;
      node.append(folded(count, () => [make("ol", "memories", ...about.memories.map(memoryOf))]));
    }
    const why = about.why_not === null ? [] : [about.why_not];
    const title = about.prompts.length ? "The prompt that was sent" : "No prompt";
    node.append(folded(title, () => [
      ...about.prompts.map(promptOf), ...why.map((line) => make("p", "missing", sharedData().lines[line])),
    ]));
    if (about.state) node.append(folded("State of the agent after this turn", () => [make("pre", "", about.state)]));
    return node;
  };

  const messageOf = ([who, text, calls], differs) => {
    const side = who === "twin" || who === "agent" ? who : "other";
    return make(
      "li", `message ${side}${differs ? " differs" : ""}`, make("h4", "", who), text ? said("p", "text", text) : null,
      ...calls.map((call) => make("p", "call", make("code", "", call))),
      text || calls.length ? null : make("p", "dim", "(nothing)"),
    );
  };

  const turnOf = (turn, other) => {
    const texts = other?.messages.map((message) => JSON.stringify(message));
    const differs = (message, place) => texts !== undefined && texts[place] !== JSON.stringify(message);
    const nodes = turn.messages.map((message, place) => messageOf(message, differs(message, place)));
    const twin = turn.messages.findLastIndex(([who]) => who === "twin");
    if (turn.about) nodes.splice(twin + 1, 0, make("li", "behind", aboutOf(turn.about)));
    return make("ol", "messages", ...nodes);
  };

  const headOf = (row, talk) => {
    const facts = [`seed ${row.seed}`, plural(row.turns, "turn"), `ended by ${row.reason}`];
    if (row.time) facts.push(row.time);
    if (row.tokens) facts.push(plural(row.tokens, "token"));
    if (row.side !== "nobody") facts.push(`at fault: the ${row.side}`);
    const checks = talk.checks.map(([result, name, why]) => {
      const reason = why ? said("small", "dim", ` ${why}`) : null;
      return make("li", "", sign(result), make("span", "spoken", `${result}: `), said("span", "", name), reason);
    });
    return [
      make("p", "", badge(row.outcome), " ", make("span", "dim", facts.join(" · "))),
      talk.error ? said("p", "error", talk.error) : null,
      talk.goal ? said("p", "goal", `The twin's goal: ${talk.goal}`) : null,
      ...talk.faults.map((fault) => said("p", "error", `The twin: ${fault}`)),
      checks.length ? set(make("ul", "checks", ...checks), { "aria-label": "Checks" }) : null,
      make("p", "dim", "thread ", make("code", "", talk.thread)),
    ];
  };

  const stateOf = (talk) => (talk.state ? [folded("Final state of the agent", () => [make("pre", "", talk.state)])] : []);

  const single = (row) => {
    const talk = talkOf(0, row);
    const turns = talk.turns.length ? talk.turns.map((turn) => turnOf(turn)) : [make("p", "dim", "(nobody said anything)")];
    return [...headOf(row, talk), ...turns, ...stateOf(talk)];
  };

  /** A turn of each run beside the other, by its number; what was said before the twin's first turn comes first. */
  const sideBySide = (item) => {
    const talks = item.map((row, run) => row && talkOf(run, row));
    const blocks = talks.map((talk) => talk && (talk.turns[0]?.about === null ? talk.turns : [undefined, ...talk.turns]));
    const column = (run, children) => {
      const { short, name } = runs[run];
      return make("div", "column", make("p", "whose", make("span", "letter", short), ` ${name}`), ...children);
    };
    const cell = (run, place) => {
      const turn = blocks[run]?.[place];
      return column(run, turn ? [turnOf(turn, blocks[1 - run]?.[place] ?? { messages: [] })] : [make("p", "dim", "–")]);
    };
    const absent = () => make("p", "dim", "not in this run");
    const rows = [...Array(Math.max(...blocks.map((block) => block?.length ?? 0))).keys()];
    const turns = rows.filter((place) => blocks.some((block) => block?.[place]));
    return [
      changedChecks(item),
      make("div", "beside", ...item.map((row, run) => column(run, row ? headOf(row, talks[run]) : [absent()]))),
      ...turns.map((place) => make("div", "beside", cell(0, place), cell(1, place))),
      make("div", "beside", ...talks.map((talk, run) => column(run, talk ? stateOf(talk) : []))),
    ];
  };

  const changedChecks = (item) => {
    if (!item[0] || !item[1]) return null;
    const [old, now] = item.map(results);
    const names = [...new Set([...old.keys(), ...now.keys()])].filter((name) => old.get(name) !== now.get(name));
    const lines = names.map((name) =>
      make("li", "", said("span", "", name), `: ${old.get(name) ?? "absent"} → ${now.get(name) ?? "absent"}`));
    const [a, b] = item;
    const parts = [names.length ? `${plural(names.length, "check")} changed` : "no check changed"];
    if (a.reason !== b.reason) parts.unshift(`ended by ${b.reason}, before by ${a.reason}`);
    if (a.outcome !== b.outcome) parts.unshift(`${b.outcome}, before ${a.outcome}`);
    const edge = make("small", "dim", "A coloured edge marks messages that are not the same in both runs.");
    return make("div", "changes", make("p", "", parts.join(" · ")), names.length ? make("ul", "", ...lines) : null, edge);
  };

  const showOpen = () => {
    const number = Number(state.get("c"));
    const item = state.has("c") ? items[number] : undefined;
    document.body.classList.toggle("reading", item !== undefined);
    markOpen();
    if (!item) {
      const hint = items.length ? "Choose a conversation." : "The run holds no conversation.";
      find("talk").replaceChildren(make("p", "dim empty", hint));
      return;
    }
    const place = shown.indexOf(number);
    const step = (title, target) =>
      target === undefined ? null : set(make("a", "step", title), { href: hashWith("c", String(target)) });
    const steps = make(
      "nav", "steps", set(make("a", "step back", "← List"), { href: hashWith("c", "") }),
      step("Previous", place > 0 ? shown[place - 1] : undefined), step("Next", place < 0 ? undefined : shown[place + 1]),
    );
    const heading = set(said("h2", "", rowsOf(item)[0].id), { tabindex: "-1", id: "open" });
    const content = pairs ? sideBySide(item) : single(item[0]);
    set(steps, { "aria-label": "Conversations" });
    find("talk").replaceChildren(steps, heading, ...content.filter((node) => node !== null));
    heading.focus({ preventScroll: true });
    find("talk").scrollTop = 0;
    if (document.body.clientWidth < 900) window.scrollTo(0, 0);
  };

  // Keys ----------------------------------------------------------------------------------------------------------------

  const moveInList = (by) => {
    const links = [...find("list").querySelectorAll("a")];
    const place = links.indexOf(document.activeElement);
    if (place === links.length - 1 && by > 0 && made < shown.length) {
      makeRows();
      return moveInList(by);
    }
    links[Math.max(0, Math.min(links.length - 1, place < 0 ? 0 : place + by))]?.focus();
    return true;
  };
  const follow = (selector) => find("talk").querySelector(selector)?.click();
  const steps = { j: "Next", k: "Previous" };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const inList = find("list").contains(document.activeElement);
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "Escape" && state.has("c") && !typing) {
      location.hash = hashWith("c", "");
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (inList || document.activeElement === document.body)) {
      moveInList(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "/" && !typing) {
      find("f-q").focus();
    } else if (steps[event.key] && !typing) {
      const link = [...find("talk").querySelectorAll(".step")].find((node) => node.textContent === steps[event.key]);
      if (link) link.click();
      else if (!state.has("c") && shown.length) location.hash = hashWith("c", String(shown[0]));
    } else {
      return;
    }
    event.preventDefault();
  });

  // Start ---------------------------------------------------------------------------------------------------------------

  const focusRow = (number) => {
    const place = shown.indexOf(number);
    while (made <= place) makeRows();
    find("list").querySelector(`a[data-item="${number}"]`)?.focus();
  };

  const filtersOf = () => JSON.stringify([...state].filter(([key]) => key !== "c"));

  const applyHash = () => {
    const [before, filters] = [state.get("c"), filtersOf()];
    readHash();
    for (const node of find("filters").elements) {
      if (!node.name) continue;
      node.value = state.get(node.name) ?? "";
      if (node.value !== state.get(node.name)) state.delete(node.name); // a link to another page's filter
    }
    if (made === 0 || filters !== filtersOf()) applyFilters(); // else the list stays where it was scrolled to
    showOpen();
    if (before !== undefined && !state.has("c")) focusRow(Number(before));
  };
  find("more").addEventListener("click", makeRows);
  find("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the hash holds the filters
    moveInList(0);
  });
  const isNear = (entries) => entries.some((entry) => entry.isIntersecting);
  new IntersectionObserver((entries) => isNear(entries) && makeRows(), { rootMargin: "400px" }).observe(find("more"));
  window.addEventListener("hashchange", applyHash);
  makeFilters();
  applyHash();
})();
