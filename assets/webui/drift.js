// SPDX-License-Identifier: Apache-2.0
// How much less likely each variant finds the base's own answer, token by token.
slim.drift = (component) => {
  const { el, put } = slim;
  const root = () => component.element.querySelector(".slim-root");
  let drawn = "";
  const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2).replace(/^-(0\.00)$/, "$1"));

  function chart(variant, most, tokens, least) {
    // Bars up: less likely than the base finds it. One point is one token.
    const height = 72, zero = height * (most / Math.max(1e-9, most - least)), width = Math.max(tokens.length, 1);
    const ns = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(ns, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "slim-chart");
    svg.setAttribute("role", "img");
    const top = variant.log_ratio.indexOf(Math.max(...variant.log_ratio));
    svg.setAttribute("aria-label", `Drift of ${variant.label} token by token; the most at token ${top + 1}, ${number(variant.log_ratio[top] ?? 0)} nats`);
    const line = document.createElementNS(ns, "line");
    for (const [name, x] of Object.entries({ x1: 0, x2: width, y1: zero, y2: zero, "vector-effect": "non-scaling-stroke" }))
      line.setAttribute(name, x);
    svg.append(line);
    variant.log_ratio.forEach((value, i) => {
      const size = (Math.abs(value) / Math.max(1e-9, most - least)) * height;
      const bar = document.createElementNS(ns, "rect");
      for (const [name, x] of Object.entries({ x: i + 0.08, width: 0.84, y: value > 0 ? zero - size : zero, height: Math.max(size, 0.4) }))
        bar.setAttribute(name, x);
      svg.append(bar);
    });
    return svg;
  }

  function card(variant, data, most, least) {
    const strip = el("div");
    const node = el("section", { class: "slim-card slim-wide", "data-kind": variant.kind },
      el("div", { class: "slim-card-line" }, el("h2", {}, variant.label),
        el("span", { class: "slim-note" }, `${number(variant.total)} nats in all · mean KL ${number(variant.kl.reduce((a, b) => a + b, 0) / Math.max(1, variant.kl.length))} nats`)),
      ...(variant.exact ? [el("p", { class: "slim-exact" }, variant.exact)] : []), chart(variant, most, data.tokens, least), strip);
    const text = slim.strip(strip, {
      label: `The base’s answer as ${variant.label} reads it`,
      describe: (i, token) => `${slim.visible(token).trim() || "blank"}: ${Math.exp(Math.abs(variant.log_ratio[i])).toPrecision(3)} times ${variant.log_ratio[i] >= 0 ? "less" : "more"} likely, KL ${number(variant.kl[i])} nats`,
    });
    // Full colour at 5 nats: about 150 times less likely.
    text.list.classList.add("slim-heat-one");
    text.update(data.tokens, variant.log_ratio.map((value) => Math.min(1, Math.max(0, value / 5))));
    return node;
  }

  // What all prompts of the conversation have cost, by what the gate made of them.
  function table(groups) {
    const labels = [...new Set(groups.flatMap((group) => Object.keys(group.kl)))];
    const nats = (x) => (x === undefined ? "–" : x === 0 ? "0" : x < 0.001 ? x.toExponential(1) : x.toFixed(3));
    return el("section", { class: "slim-card slim-wide" }, el("h2", {}, "In domain and outside"),
      el("p", { class: "slim-note" }, "Mean KL of this conversation’s prompts so far, in nats a token: how far each variant has moved from the base. A gate lets SLIM move where it was trained and keeps it in place elsewhere."),
      el("div", { class: "slim-table", tabindex: "0", role: "region", "aria-label": "Mean KL in domain and outside" }, el("table", {},
        el("thead", {}, el("tr", {}, ...["What the gate says", "Prompts", ...labels].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...groups.map((group) => el("tr", {}, el("th", { scope: "row" }, group.title), el("td", {}, String(group.prompts)),
          ...labels.map((label) => el("td", {}, nats(group.kl[label])))))))));
  }

  slim.live(component, (value) => {
    if (!value) return;
    const key = JSON.stringify(value);
    if (key === drawn && root().firstChild) return;
    drawn = key;
    if (!value.data) {
      root().replaceChildren(el("p", { class: "slim-empty" }, value.running
        ? "The drift is measured when the answers are done."
        : "Ask something under Compare. Then every variant reads the base’s answer, and here stands how much less likely it finds each token."));
      return;
    }
    const all = value.data.variants.flatMap((variant) => variant.log_ratio);
    const most = Math.max(1, ...all), least = Math.min(0, ...all);
    const sentence = el("p", { class: "slim-sentence" });
    put(sentence, value.sentence);
    root().replaceChildren(sentence,
      el("p", { class: "slim-note" }, `The base’s answer to “${value.prompt}”, read by each variant. Bars: log of base’s over variant’s probability, in nats, same scale for all; above the line is less likely.`),
      ...(value.note ? [el("p", { class: "slim-note" }, value.note)] : []),
      ...value.data.variants.map((variant) => card(variant, value.data, most, least)),
      ...(value.groups.length ? [table(value.groups)] : []));
  });
};
