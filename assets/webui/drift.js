// SPDX-License-Identifier: Apache-2.0
// How much less likely each variant finds the base's own answer, token by token.
slim.drift = (component) => {
  const { el, put } = slim;
  const root = () => component.element.querySelector(".slim-root");
  const MOVED = 0.7;  // nats in total from which a variant has moved: half or twice as likely
  let drawn = "";
  const number = (x) => (Math.abs(x) >= 100 ? Math.round(x).toLocaleString("en") : x.toFixed(2).replace(/^-(0\.00)$/, "$1"));
  // A ratio from nats, like `times` in formatting.py.
  function times(nats) {
    if (nats >= Math.log(1e5)) return `10${[...(nats / Math.LN10).toFixed(0)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
    const value = Math.exp(nats);
    if (value < 2) return value.toFixed(2);
    if (value < 99.95) return value.toFixed(1);
    return Number(value.toPrecision(value < 1000 ? 3 : 2)).toLocaleString("en");
  }
  const alike = (nats) => (nats === 0 ? "exactly as likely" : "about as likely");
  const ratio = (nats) => (Math.abs(nats) < 0.005 ? alike(nats) : `${times(Math.abs(nats))} times ${nats > 0 ? "less" : "more"} likely`);

  // Over each token a bar: up for less likely than the base finds it, down for more. Bar and token are one box, so
  // that they stay together where the text is broken over lines.
  function bars(list, values, most, least) {
    const span = Math.max(1e-9, most - least);
    list.style.setProperty("--zero", (most / span).toFixed(4));
    [...list.children].forEach((node, i) => {
      const size = Math.abs(values[i]) / span, from = (values[i] > 0 ? most - values[i] : most) / span;
      const bar = el("i", { "aria-hidden": "true", class: values[i] < 0 ? "slim-less" : "" });
      bar.style.setProperty("--from", from.toFixed(4));
      bar.style.setProperty("--size", size.toFixed(4));
      node.replaceChildren(el("b", { "aria-hidden": "true" }, bar), el("span", {}, node.textContent));
    });
  }

  function card(variant, data, most, least, taught) {
    const strip = el("div");
    const top = variant.log_ratio.indexOf(Math.max(...variant.log_ratio));
    const mean = variant.kl.reduce((a, b) => a + b, 0) / Math.max(1, variant.kl.length);
    const node = el("section", { class: "slim-card slim-wide", "data-kind": variant.kind, "data-taught": taught ? "true" : null },
      el("div", { class: "slim-card-line" }, el("h2", {}, variant.label, ...(taught ? [" ", el("span", { class: "slim-chip" }, "moved towards what it was taught")] : [])),
        el("span", { class: "slim-note" }, `${number(variant.total)} nats in total · mean KL ${number(mean)} nats`)),
      ...(variant.exact ? [el("p", { class: "slim-exact" }, variant.exact)] : []), strip);
    const text = slim.strip(strip, {
      label: `The base’s answer as ${variant.label} reads it; the most at token ${top + 1}, ${ratio(variant.log_ratio[top] ?? 0)}`,
      describe: (i, token) => `${slim.visible(token).trim() || "blank"}: ${ratio(variant.log_ratio[i])}, KL ${number(variant.kl[i])} nats`,
    });
    // Full colour at 5 nats: about 150 times less likely.
    text.list.classList.add("slim-drift-bars");
    text.update(data.tokens, variant.log_ratio.map((value) => Math.min(1, Math.max(0, value / 5))));
    bars(text.list, variant.log_ratio, most, least);
    return node;
  }

  // The mean drift of all prompts of the conversation, by verdict.
  function table(groups) {
    const labels = [...new Set(groups.flatMap((group) => Object.keys(group.kl)))];
    const nats = (x) => (x === undefined ? "–" : x === 0 ? "0" : x < 0.001 ? "under 0.001" : x.toFixed(3));
    return el("section", { class: "slim-card slim-wide" }, el("h2", {}, "In domain and outside"),
      el("p", { class: "slim-note" }, "Mean KL of this conversation’s prompts so far, in nats per token: how far each variant has moved from the base. A gate lets SLIM move where it was trained and keeps it in place elsewhere."),
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
      root().replaceChildren(el("p", { class: "slim-empty" }, value.hidden ? value.hidden : value.running
        ? "The drift is measured when the answers are done."
        : "Ask something under Compare. Then every variant reads the base’s answer, and this tab shows how much less likely it finds each token."));
      return;
    }
    const all = value.data.variants.flatMap((variant) => variant.log_ratio);
    const most = Math.max(1, ...all), least = Math.min(0, ...all);
    const sentence = el("p", { class: "slim-sentence" });
    put(sentence, value.sentence);
    root().replaceChildren(sentence,
      el("p", { class: "slim-note" }, `The base’s answer to “${value.prompt}”, read by each variant. A bar over a token: how much less likely the variant finds it than the base does, in nats, on one scale; the highest is ${ratio(most)}. Below the line is more likely.`),
      ...(value.note ? [el("p", { class: "slim-note" }, value.note)] : []),
      ...value.data.variants.map((variant) => card(variant, value.data, most, least, value.taught && Math.abs(variant.total) >= MOVED)),
      ...(value.groups.length ? [table(value.groups)] : []));
  });
};
/* The end of a part of SLIM's page 1. */
