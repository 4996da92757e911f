// SPDX-License-Identifier: Apache-2.0
// The routing of each token: strip, heat map, layers, experts. They share one selected token.
slim.routing = (component) => {
  const { el, put, attribute, chunks, percent, say, scroller } = slim;
  const { element, trigger } = component;
  const parts = {}, byBlock = chunks(), byToken = chunks(), byGate = chunks(), byDistance = chunks(), byReference = chunks();
  let root = null, data = null, scope = "answer", shown = "", timer = null;

  function build() {
    parts.turn = el("select", { id: "slim-turn", onchange: choose });
    parts.which = el("label", { for: "slim-turn" }, "for prompt");
    parts.who = el("select", { id: "slim-who", onchange: choose });
    parts.scope = el("div", { class: "slim-segments", role: "group", "aria-label": "Averaged over" },
      ...["prompt", "answer", "both"].map((name) => el("button", {
        type: "button", class: "slim-small", "data-scope": name, onclick: () => { scope = name; numbers(); },
      }, name)));
    parts.readout = el("p", { class: "slim-readout" });
    parts.note = el("p", { class: "slim-note" });
    parts.tokens = el("div");
    parts.verdict = el("p", { class: "slim-verdict", hidden: true }, el("strong"), el("span"));
    parts.curve = el("p", { class: "slim-note" });
    parts.heat = el("div", { class: "slim-heat" });
    parts.bars = el("div", { class: "slim-bars", role: "list", "aria-label": "Share of each layer" });
    parts.mean = el("p", { class: "slim-note" });
    parts.use = el("div", { class: "slim-use", role: "list", "aria-label": "Weight of each expert" });
    for (const list of [parts.bars, parts.use]) scroller(list);
    parts.imbalance = el("p", { class: "slim-note" });
    parts.body = el("div", { class: "slim-routing-body" },
      el("section", { class: "slim-card slim-wide" },
        el("div", { class: "slim-card-line" }, el("h2", {}, "Tokens"), legend()), parts.note, parts.tokens),
      el("section", { class: "slim-card slim-wide" },
        el("div", { class: "slim-card-line" }, el("h2", {}, "Layers × tokens"),
          el("button", { type: "button", class: "slim-small", id: "slim-png", onclick: png }, "Save as PNG")),
        parts.curve, parts.heat, parts.readout),
      el("section", { class: "slim-card" },
        el("div", { class: "slim-card-line" }, el("h2", {}, "Each layer"), parts.scope),
        parts.mean, parts.bars),
      el("section", { class: "slim-card" },
        el("h2", {}, "Use of the experts"), parts.imbalance, parts.use));
    parts.empty = el("p", { class: "slim-empty" });
    root = el("div", { class: "slim-routing" },
      el("div", { class: "slim-controls" }, el("label", { for: "slim-who" }, "Routing of"), parts.who,
        parts.which, parts.turn), parts.verdict, parts.empty, parts.body);
    element.querySelector(".slim-root").replaceChildren(root);
    parts.strip = slim.strip(parts.tokens, { label: "Prompt and answer, token by token", pick: (i) => select(i, "strip"),
      describe: (i, token, share) =>
        `${slim.visible(token).trim() || "blank"}, token ${i + 1}, ${i < data.prompt_tokens ? "prompt" : "answer"}, ${data.share} ${percent(share)}` });
    parts.map = slim.heatmap(parts.heat, (token, row) => select(token, "map", row));
  }

  function legend() {
    parts.ramp = el("span", { class: "slim-ramp", role: "img" });
    parts.low = el("span");
    parts.high = el("span");
    return el("div", { class: "slim-legend" }, parts.low, parts.ramp, parts.high);
  }

  // What the shares are, in words.
  function words() {
    const past = data.share === "identity";
    attribute(root, "data-share", data.share);
    put(parts.low, past ? "LoRA" : "several experts alike");
    put(parts.high, past ? "identity" : "one expert alone");
    attribute(parts.ramp, "aria-label", past ? "Colours from orange, all LoRA, to blue, all identity"
      : "Colours from grey, a half of the weight or less on the largest expert, to violet, all of it");
    put(parts.mean, `Mean over the tokens and Linears of a layer: ${past ? "identity against LoRA" : "the weight of the largest expert"}.`);
  }

  function choose() { trigger("choose", { column: parts.who.value, turn: +parts.turn.value }); }

  function options(select, items, value) {
    const key = JSON.stringify(items);
    if (select.dataset.key !== key) {
      select.dataset.key = key;
      select.replaceChildren(...items.map(([id, text]) => el("option", { value: id }, text)));
    }
    if (value != null) select.value = value;
  }

  function select(token, from, row = null) {
    if (from !== "strip") parts.strip.mark(token);
    if (from !== "map") parts.map.mark(token);
    const at = parts.map.position().row;
    const text = parts.map.describe(token, row ?? at);
    put(parts.readout, text + ".");
    if (from === "map") say(text);
    // Held arrow keys pass many tokens; only the last one is requested.
    clearTimeout(timer);
    timer = setTimeout(() => trigger("pick", { token, column: data.column, turn: parts.turnId }), 90);
  }

  function bar(name, share, left, right) {
    const node = el("div", { class: "slim-bar", role: "listitem", "aria-label": `${name}: ${left} ${percent(share)}${right ? `, ${right} ${percent(1 - share)}` : ""}` },
      el("span", { "aria-hidden": "true" }, name), el("span", { class: "slim-track", "aria-hidden": "true" }, el("i")),
      el("span", { "aria-hidden": "true" }, percent(share)));
    node.style.setProperty("--s", share);
    return node;
  }

  function numbers() {
    for (const button of parts.scope.children) button.setAttribute("aria-pressed", button.dataset.scope === scope);
    const bars = data.bars[scope], use = data.use[scope];
    const key = JSON.stringify([bars, use, scope]);
    if (key === shown) return;
    shown = key;
    parts.bars.replaceChildren(...bars.map((share, i) => bar(`Layer ${data.blocks[i]}`, share, data.share, data.share === "identity" ? "LoRA" : "")));
    const most = Math.max(...use, 0.01);
    parts.use.replaceChildren(...use.map((share, i) => {
      const identity = i >= data.experts;
      const node = bar(identity ? `Identity ${i - data.experts + 1}` : `LoRA ${i + 1}`, share, "weight", "");
      node.dataset.kind = identity ? "identity" : "lora";
      node.style.setProperty("--s", share / most);
      return node;
    }));
    const imbalance = data.imbalance[scope];
    put(parts.imbalance, bars.length === 0 ? "No tokens yet." : imbalance === null
      ? `No LoRA expert was used (${scope}).`
      : `Mean weight over tokens and Linears (${scope}). Imbalance of the LoRA experts: ${imbalance.toFixed(2)} (largest weight over mean weight: 1 if all are used alike, ${data.experts} if only one is used).`);
  }

  function png() {
    const canvas = slim.picture({
      title: `Routing of ${parts.who.selectedOptions[0]?.text ?? data.column}`,
      prompt: parts.turn.selectedOptions[0]?.text ?? "", scope, data, shares: parts.shares, paint: parts.map.paint, high: parts.map.high(),
      words: [parts.low, parts.high].map((node) => node.textContent),
    });
    canvas.toBlob((blob) => { slim.save(blob, "slim-routing.png"); say("The routing view is saved as a PNG."); });
  }

  slim.live(component, (value) => {
    if (!value) return;
    if (!root || !root.isConnected) build();
    options(parts.who, value.columns.map((v) => [v.name, v.label]), value.column);
    options(parts.turn, value.turns.map((t, i) => [t.id, `${i + 1}. ${t.prompt}`]), value.turn);
    // With one prompt there is nothing to choose.
    parts.which.hidden = parts.turn.hidden = value.turns.length < 2;
    const fresh = !data || data.column !== value.data?.column || parts.turnId !== value.turn;
    if (fresh) clearTimeout(timer); // of a token of the answer that was shown before
    data = value.data;
    parts.turnId = value.turn;
    parts.body.hidden = !data;
    parts.verdict.hidden = true;
    parts.empty.hidden = !parts.body.hidden;
    put(parts.empty, value.empty);
    if (parts.body.hidden) { parts.strip.mark(-1); parts.map.mark(-1); return; }
    put(parts.note, "Hover over a token or focus it to see its number; choose it to see all experts of every Linear. The last token of an answer is never read, so it has no routing.");
    words();
    const rows = data.blocks.length;
    const floats = (bytes) => new Float32Array(bytes.buffer);
    const ofGate = data.gated && { gate: byGate(data.gate), distance: floats(byDistance(data.distance)), reference: floats(byReference(data.reference)) };
    parts.map.draw(data, byBlock(data.chunks), ofGate || null);
    parts.curve.hidden = !data.gated && !value.note;
    put(parts.curve, !data.gated ? value.note ?? "" : `Above the map: how much of the LoRA experts the gate lets through, mean over the Linears. Below it: the distance; up to the dashed line it is like the training data. ${value.distance ?? ""}`);
    parts.verdict.hidden = !value.verdict;
    if (value.verdict) {
      attribute(parts.verdict, "data-verdict", value.verdict.kind);
      put(parts.verdict.firstChild, value.verdict.sentence);
      put(parts.verdict.lastChild, value.verdict.numbers);
    }
    parts.shares = Array.from(byToken(data.token_share), (byte) => byte / 255);
    parts.strip.update(data.tokens, parts.shares);
    parts.strip.list.childNodes.forEach((node, i) => { node.classList.toggle("slim-of-prompt", i < data.prompt_tokens); });
    if (fresh) {
      // Nothing is chosen in another answer, and what was chosen a moment ago is not asked of it.
      clearTimeout(timer);
      parts.strip.mark(-1);
      parts.map.mark(-1);
      put(parts.readout, `${data.tokens.length} tokens, ${rows} layers. Choose a cell.`);
    }
    numbers();
  });
};
/* The end of a part of SLIM's page 1. */
