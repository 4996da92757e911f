// SPDX-License-Identifier: Apache-2.0
// One token in full: for every Linear the weight of each expert, the share, distance and cluster.
slim.detail = (component) => {
  const { distance, el, percent } = slim;
  const root = () => component.element.querySelector(".slim-root");
  slim.live(component, (value) => {
    if (!value) { root().replaceChildren(); return; }
    const weights = value.rows[0]?.weights ?? [];
    const head = el("tr", {}, ...["Layer", "Linear", value.share === "identity" ? "Identity" : "Largest", "Gate", "Distance", "Up to", "Cluster",
      ...weights.map((_, i) => (i < value.experts ? `LoRA ${i + 1}` : `Id ${i - value.experts + 1}`))]
      .map((name) => el("th", { scope: "col" }, name)));
    const rows = value.rows.map((row) => el("tr", {},
      el("td", {}, String(row.block)), el("th", { scope: "row" }, row.module),
      el("td", {}, percent(row.share)), el("td", {}, value.gated ? row.gate.toFixed(2) : "–"),
      el("td", {}, row.cluster < 0 ? "–" : distance(row.distance)),
      el("td", {}, value.gated ? distance(row.reference) : "–"),
      el("td", {}, row.cluster < 0 ? "–" : String(row.cluster)),
      ...row.weights.map((weight, i) => {
        const cell = el("td", { class: i < value.experts ? "slim-w-lora" : "slim-w-identity" }, weight ? weight.toFixed(2) : "·");
        cell.style.setProperty("--w", weight);
        return cell;
      })));
    root().replaceChildren(el("section", { class: "slim-card slim-wide", "aria-label": "The chosen token", "data-share": value.share },
      el("h2", {}, "Token ", el("q", { class: "slim-token" }, slim.visible(value.text).trim() || "blank"), ` (number ${value.token + 1}, ${value.part})`),
      el("div", { class: "slim-table", tabindex: "0", role: "region", "aria-label": "Experts of every Linear for this token" },
        el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)))));
  });
};
/* The end of a part of SLIM's page 1. */
