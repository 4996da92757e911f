// SPDX-License-Identifier: Apache-2.0
// The columns and the conversation. Only what changed is touched, for answers come several times a second.
slim.transcript = (component) => {
  const { el, put, attribute, chunks, copy, say, scroller } = slim;
  const { element, trigger } = component;
  const STORE = "slim-columns";
  let columns = [], turns = new Map(), gates = new Map(), gateKey = "", told = -1, following = false, root = null, layout = { hidden: [], expanded: null };
  try { layout = { ...layout, ...JSON.parse(localStorage.getItem(STORE) || "{}") }; } catch { /* start afresh */ }

  // Layout settings for the current columns.
  function fitting() {
    const names = columns.map((column) => column.name);
    let hidden = names.filter((name) => layout.hidden.includes(name));
    if (hidden.length >= names.length) hidden = [];
    const expanded = names.includes(layout.expanded) && !hidden.includes(layout.expanded) ? layout.expanded : null;
    return { names, hidden, expanded };
  }

  // Only a visitor's action is stored, and moves the focus to the button that undoes it.
  function change(wanted, focus = null) {
    const { hidden, expanded } = fitting();
    layout = { hidden, expanded, ...wanted };
    try { localStorage.setItem(STORE, JSON.stringify(layout)); } catch { /* private window */ }
    arrange();
    if (focus) root.querySelector(focus)?.focus();
  }

  // After every draw: a button that stays must be the same node, or a click and the focus are lost.
  function arrange() {
    const { names, hidden, expanded } = fitting();
    const shown = (name) => (expanded ? name === expanded : !hidden.includes(name));
    root.style.setProperty("--columns", names.filter(shown).length || 1);
    for (const node of root.querySelectorAll("[data-column]")) node.hidden = !shown(node.dataset.column);
    const back = root.querySelector(".slim-hidden"), key = JSON.stringify(hidden.map((name) => [name, labelOf(name)]));
    if (back.dataset.key !== key) {
      back.dataset.key = key;
      back.replaceChildren(...hidden.map((name) => el("button", {
        type: "button", class: "slim-small", "data-show": name, onclick: () => change(
          { hidden: hidden.filter((other) => other !== name), expanded: null }, `[data-column="${name}"] [data-tool="hide"]`),
      }, `Show ${labelOf(name)}`)));
      back.hidden = hidden.length === 0;
    }
    for (const head of root.querySelectorAll(".slim-head")) {
      const name = head.dataset.column, open = name === expanded;
      const [wide, hide] = head.querySelectorAll("[data-tool]");
      put(wide, open ? "All columns" : "Expand");
      attribute(wide, "aria-label", open ? "Show all columns" : `Show only ${labelOf(name)}`);
      attribute(wide, "aria-pressed", String(open));
      hide.hidden = open || names.length - hidden.length < 2;
    }
  }
  const labelOf = (name) => columns.find((column) => column.name === name)?.label ?? name;

  function build() {
    root = el("div", { class: "slim-compare", "data-empty": "true" });
    const heads = columns.map((column) => el("section", {
      class: "slim-head", "data-column": column.name, "data-kind": column.kind, "aria-label": column.label,
    },
      el("div", { class: "slim-head-line" },
        el("h2", {}, column.label), column.kind === "hidden" ? null : el("span", { class: "slim-chip" }, (column.own ? "your " : "") + column.what + (column.kind === "base" ? "" : " adapter")),
        el("span", { class: "slim-head-tools" },
          ...(["base", "hidden"].includes(column.kind) ? [] : [el("button", {
            type: "button", class: "slim-small", "aria-label": `Change the adapter of ${column.label}`,
            onclick: () => trigger("change_column", { column: column.name }),
          }, "Change")]),
          el("button", { type: "button", class: "slim-small", "data-tool": "expand", onclick: () => {
            change({ expanded: fitting().expanded === column.name ? null : column.name });
          } }, "Expand"),
          el("button", { type: "button", class: "slim-small", "data-tool": "hide", "aria-label": `Hide ${column.label}`, onclick: () => {
            change({ hidden: [...fitting().hidden, column.name] }, `[data-show="${column.name}"]`);
          } }, "Hide"))),
      el("p", { class: "slim-size" }, column.size.replaceAll("-", "\u2011"))));
    gates = new Map();
    columns.forEach((column, i) => {
      if (column.kind !== "slim") return;
      const gate = slim.gate(column.label, (asked) => trigger("set_gate", { column: column.name, ...asked }));
      gates.set(column.name, gate);
      heads[i].append(gate.node);
    });
    root.append(el("div", { class: "slim-hidden", hidden: true }), el("div", { class: "slim-heads" }, ...heads),
      el("div", { class: "slim-turns" }), el("p", { class: "slim-note slim-latest", hidden: true }),
      el("p", { class: "slim-tally", hidden: true }),
      el("p", { class: "slim-empty" }, "Write a prompt or choose an example. Every column answers it at once, with the same random numbers."));
    element.querySelector(".slim-root").replaceChildren(root);
    turns = new Map();
  }

  function turnNode(turn, number) {
    const bubble = el("div", { class: "slim-bubble", dir: "auto" });
    scroller(bubble, { role: "group", "aria-label": `Prompt ${number}` });
    const edit = el("button", { type: "button", class: "slim-small" }, "Edit");
    edit.setAttribute("aria-label", `Edit prompt ${number} and answer again from there`);
    const user = el("div", { class: "slim-user" }, el("h3", {}, "Prompt"), bubble, edit);
    const verdicts = el("div", { class: "slim-verdicts" });
    const holder = el("div", { class: "slim-answers" }), vote = slim.vote((choice) => trigger("vote", { turn: turn.id, choice }));
    const node = el("article", { class: "slim-turn", "aria-label": `Turn ${number}` }, user, verdicts, holder, vote.node);
    const refs = { node, bubble, user, edit, verdicts, holder, vote, answers: new Map(), turn };
    edit.addEventListener("click", () => editor(refs));
    return refs;
  }

  function editor(refs) {
    if (refs.user.querySelector("form")) return;
    const area = el("textarea", { "aria-label": "The prompt, edited", rows: "3" });
    area.value = refs.turn.prompt;
    const close = () => { form.remove(); refs.bubble.hidden = refs.edit.hidden = false; refs.edit.focus(); };
    const form = el("form", { class: "slim-editor", onsubmit: (event) => {
      event.preventDefault();
      // The typed text stays in the box: the server would refuse it now.
      if (root.dataset.running === "true") { say("Answers are still being written. Stop them first."); return; }
      trigger("edit_turn", { turn: refs.turn.id, text: area.value });
      close();
    } }, area, el("div", {}, el("button", { type: "submit", class: "slim-small slim-main" }, "Answer again"),
      el("button", { type: "button", class: "slim-small", onclick: close }, "Cancel")));
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    refs.bubble.hidden = refs.edit.hidden = true;
    refs.user.append(form);
    area.focus();
  }

  function answerNode(refs, column) {
    const part = {
      state: el("span", { class: "slim-state" }), speed: el("span", { class: "slim-speed" }),
      text: el("div", { class: "slim-text", dir: "auto" }), special: el("div", { class: "slim-special" }),
      error: el("p", { class: "slim-error" }), summary: el("p", { class: "slim-summary" }),
      stop: el("button", { type: "button", class: "slim-small slim-stop" }, "Stop"),
      copy: el("button", { type: "button", class: "slim-small" }, "Copy"),
      retry: el("button", { type: "button", class: "slim-small", "aria-label": `Let ${column.label} answer again` }, "Retry"),
      how: el("span", { class: "slim-how" }), name: el("span", { class: "slim-name" }), share: chunks(), drawn: "",
    };
    part.stop.onclick = () => trigger("stop_one", { column: column.name });
    part.retry.onclick = () => trigger("retry_one", { column: column.name });
    part.copy.onclick = () => copy(part.text.textContent, `${part.name.textContent}’s answer is copied.`);
    part.node = el("section", {
      class: "slim-answer", "data-column": column.name,
    }, el("div", { class: "slim-answer-line" }, part.name, part.state, part.speed),
      part.text, part.special, part.error, part.summary,
      el("div", { class: "slim-tools" }, part.stop, part.copy, part.retry, part.how));
    refs.answers.set(column.name, part);
    return part;
  }

  // Each gate's verdict on the prompt. The nodes are kept, so that a selection in them survives.
  function judge(refs, verdicts) {
    while (refs.verdicts.children.length > verdicts.length) refs.verdicts.lastChild.remove();
    verdicts.forEach((verdict, i) => {
      const node = refs.verdicts.children[i] ?? refs.verdicts.appendChild(el("p", { class: "slim-verdict" }, el("strong"), el("span")));
      attribute(node, "data-verdict", verdict.kind);
      put(node.firstChild, verdict.sentence);
      put(node.lastChild, verdict.numbers);
    });
    refs.verdicts.hidden = verdicts.length === 0;
  }

  function special(part, answer) {
    const mode = answer.diff ? "diff" : answer.strip ? "strip" : "";
    if (part.mode !== mode) { part.special.replaceChildren(); part.drawn = ""; part.mode = mode; part.strip = null; }
    part.text.hidden = mode !== "";
    if (mode === "diff") {
      const key = JSON.stringify(answer.diff);
      if (key === part.drawn) return;
      part.drawn = key;
      const same = answer.diff.every(([mark]) => mark === "same");
      part.special.replaceChildren(el("p", { class: "slim-text", dir: "auto" }, ...answer.diff.map(([mark, text]) =>
        mark === "same" ? text : el(mark === "added" ? "ins" : "del", {}, text))),
      ...(same ? [el("p", { class: "slim-note" }, "Word for word the base’s answer.")] : []));
    } else if (mode === "strip") {
      part.named = answer.strip.share;
      attribute(part.special, "data-share", part.named);
      part.strip ??= slim.strip(part.special, {
        label: "Answer, token by token",
        describe: (i, token, share) =>
          `${slim.visible(token).trim() || "blank"}: ${share === null ? "no routing" : part.lora ? "through LoRA" : `${part.named} ${slim.percent(share)}`}`,
      });
      const shares = Array.from(part.share(answer.strip.token_share), (byte) => byte / 255);
      const from = answer.strip.prompt_tokens;
      const [pieces, rest] = slim.pieces(answer.strip.tokens.slice(from), answer.text);
      const shown = pieces.map((piece, i) => [piece, shares[from + i]]).filter(([piece]) => piece);
      // The last token is never read by the model, and the routing comes less often than the text.
      if (rest) shown.push([rest, null]);
      part.strip.update(shown.map(([piece]) => piece), shown.map(([, share]) => share));
    }
  }

  function answer(refs, column, value, last, running) {
    const part = refs.answers.get(column.name) ?? answerNode(refs, column);
    if (!part.node.isConnected) refs.holder.append(part.node);
    const done = value.state === "done";
    // The variant that answered; by now another adapter may be in the column.
    put(part.name, value.label);
    attribute(part.node, "data-kind", value.kind);
    part.lora = value.kind === "lora";
    attribute(part.node, "aria-label", `${value.label}’s answer`);
    attribute(part.stop, "aria-label", `Stop ${value.label}`);
    attribute(part.copy, "aria-label", `Copy ${value.label}’s answer`);
    attribute(part.node, "data-state", value.state);
    attribute(part.node, "aria-busy", done ? "false" : "true");
    put(part.state, value.word);
    put(part.speed, value.speed);
    put(part.how, done ? value.how : "");
    put(part.text, value.text);
    put(part.error, value.error);
    put(part.summary, value.summary.join(" · "));
    part.stop.hidden = done;
    part.copy.hidden = !done || !value.text;
    part.retry.hidden = !done || !last || running;
    special(part, value);
  }

  slim.live(component, (value) => {
    if (!value) return;
    const names = JSON.stringify(value.columns);
    if (!root || !root.isConnected || names !== JSON.stringify(columns)) { columns = value.columns; build(); }
    const holder = root.querySelector(".slim-turns");
    const before = turns.size;
    const ids = new Set(value.turns.map((turn) => turn.id));
    for (const [id, refs] of turns) if (!ids.has(id)) { refs.node.remove(); turns.delete(id); }
    value.turns.forEach((turn, i) => {
      const refs = turns.get(turn.id) ?? turnNode(turn, i + 1);
      if (!turns.has(turn.id)) { turns.set(turn.id, refs); holder.append(refs.node); }
      refs.turn = turn;
      put(refs.bubble, turn.prompt);
      refs.edit.disabled = value.running;
      judge(refs, turn.verdicts);
      refs.vote.show(turn.vote);
      for (const column of columns)
        if (turn.answers[column.name])
          answer(refs, column, turn.answers[column.name], i === value.turns.length - 1, value.running);
    });
    root.querySelector(".slim-empty").hidden = value.turns.length > 0;
    for (const [name, gate] of gates) {
      gate.node.hidden = !value.gates[name];
      if (value.gates[name]) gate.show(value.gates[name], value.running, value.afresh);
    }
    slim.metered = value.metered;
    const key = JSON.stringify([value.gates, value.turns.length, value.running]);
    if (key !== gateKey) { gateKey = key; dispatchEvent(new Event("slim-reread")); }
    const tally = root.querySelector(".slim-tally");
    put(tally, value.tally);
    tally.hidden = !value.tally;
    const note = root.querySelector(".slim-latest");
    put(note, value.note);
    note.hidden = !value.note;
    attribute(root, "data-ready", value.ready ? "true" : "false");
    attribute(root, "data-running", value.running ? "true" : "false");
    arrange();
    if (value.ready && told !== turns.size) {
      told = turns.size;
      attribute(root, "data-empty", String(!told));
      dispatchEvent(new CustomEvent("slim-turns", { detail: told }));
    }
    if (turns.size > before && (value.running || !before)) following = true;
    if (following) follow(holder.lastChild);
    if (!value.running) following = false;
  });

  // The latest turn stands right above the composer, or with its prompt at the top where it is taller than the window;
  // not where a person scrolls elsewhere meanwhile.
  function follow(turn) {
    const composer = document.querySelector("#slim-composer"), GAP = 12;
    if (!turn?.offsetParent || !composer) return;
    const { top, bottom } = turn.getBoundingClientRect(), free = innerHeight - composer.offsetHeight - GAP;
    const wanted = bottom > free ? Math.min(bottom - free, top - GAP) : Math.min(0, top - GAP);
    if (wanted) scrollBy({ top: wanted, behavior: "instant" });
  }
  const away = (event) => {
    if (event.type !== "keydown" || /^(Page|Arrow|Home|End)/.test(event.key)) following = false;
  };
  for (const name of ["wheel", "touchmove", "keydown"]) addEventListener(name, away, { passive: true });
};
/* The end of a part of SLIM's page 1. */
