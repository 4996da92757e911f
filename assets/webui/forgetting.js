// SPDX-License-Identifier: Apache-2.0
// Stored scores: a bar with its interval for each task and variant, and the same numbers as a table.
slim.forgetting = (component) => {
  const { el } = slim;
  let drawn = "";
  const points = (share) => (share * 100).toFixed(0);
  slim.live(component, (value) => {
    const root = component.element.querySelector(".slim-root");
    const key = JSON.stringify(value);
    // Gradio may have replaced the root that was drawn into by an empty one.
    if (!value || (key === drawn && root.firstChild)) return;
    drawn = key;
    if (value.none) {
      root.replaceChildren(el("p", { class: "slim-empty", id: "slim-no-results" }, value.none));
      return;
    }
    const VARIANTS = ["base", "lora", "slim", "slim_open"].filter((name) => name in value.labels);
    const bars = (row) => el("div", { class: "slim-scores", role: "listitem" }, el("h3", {}, row.task),
      ...VARIANTS.map((name) => {
        const { score, low, high } = row[name];
        const node = el("div", { class: "slim-score", "data-kind": name }, el("span", {}, value.labels[name]),
          el("span", { class: "slim-track", "aria-hidden": "true" }, el("i"), el("b")), el("span", {}, `${points(score)}%`));
        for (const [key, x] of Object.entries({ s: score, low, high })) node.style.setProperty(`--${key}`, x);
        return node;
      }));
    const table = (group) => el("div", { class: "slim-table", tabindex: "0", role: "region", "aria-label": group.title },
      el("table", {}, el("thead", {}, el("tr", {}, ...["Task", "Questions", ...VARIANTS.map((v) => value.labels[v])].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...group.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.task), el("td", {}, String(row.n)),
          ...VARIANTS.map((v) => el("td", {}, `${points(row[v].score)}% (${points(row[v].low)} to ${points(row[v].high)})`)))))));
    root.replaceChildren(el("p", { class: "slim-sentence" }, value.sentence),
      ...(value.missing ? [el("p", { class: "slim-note slim-missing" }, value.missing)] : []),
      ...(value.plane ? [slim.plane(value.plane)] : []),
      el("p", { class: "slim-note" }, "Share of right answers on held-out questions. The thin line is the 95 % interval: about nineteen of twenty such intervals contain the score that all questions of this kind would give."),
      ...value.groups.filter((group) => group.rows.length).map((group) => el("section", { class: "slim-card slim-wide" },
        el("h2", {}, group.title), el("div", { class: "slim-score-grid", role: "list" }, ...group.rows.map(bars)),
        el("details", {}, el("summary", {}, "The numbers as a table"), table(group)))),
      ...(value.methods ? [slim.plane(value.methods)] : []));
  });
};
/* The end of a part of SLIM's page 1. */
