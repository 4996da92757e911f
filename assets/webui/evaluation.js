// SPDX-License-Identifier: Apache-2.0
// An evaluation that is going on or has ended: its progress, the scores as tables, and the plane.
slim.evaluation = (component) => {
  const { el, put, attribute } = slim;
  const line = el("span"), bar = el("progress", { "aria-label": "Questions asked" });
  const going = el("p", { class: "slim-many-line", id: "slim-evaluation-line" }, line, bar);
  const note = el("p", { class: "slim-error" }), results = el("div", { class: "slim-evaluation-results" });
  component.element.querySelector(".slim-root").replaceChildren(going, note, results);
  let drawn = "[]";

  const cell = ([score, between]) => el("td", {}, score, " ", el("span", {}, between));
  const scores = (group) => el("div", { class: "slim-table slim-evaluation-table", tabindex: "0", role: "region", "aria-label": group.title },
    el("table", {}, el("thead", {}, el("tr", {}, ...["Task (questions asked)", ...group.labels].map((name) => el("th", { scope: "col" }, name)))),
      ...group.kinds.map((kind) => el("tbody", {},
        el("tr", { class: "slim-evaluation-kind" }, el("th", { scope: "rowgroup", colspan: group.labels.length + 1 }, kind.title)),
        ...kind.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, `${row.task} `, el("span", {}, `(${row.n})`)), ...row.scores.map(cell))),
        ...(kind.mean.length ? [el("tr", { class: "slim-evaluation-mean" }, el("th", { scope: "row" }, "Mean over the tasks"), ...kind.mean.map(cell))] : [])))));
  const part = (group) => el("section", { class: "slim-card slim-wide", "aria-label": group.title },
    el("h2", {}, group.title), scores(group), ...group.notes.map((text) => el("p", { class: "slim-note" }, text)),
    ...(group.kinds.some((kind) => kind.compared.length) ? [el("details", {}, el("summary", {}, "Which differences are more than chance"),
      ...group.kinds.map((kind) => el("div", {}, el("h3", {}, kind.title), el("ul", {}, ...kind.compared.map((text) => el("li", {}, text))))))] : []));

  slim.live(component, (value) => {
    going.hidden = note.hidden = results.hidden = !value;
    if (!value) return;
    put(line, value.line);
    attribute(going, "data-running", String(value.running));
    attribute(bar, "max", value.total || 1);
    attribute(bar, "value", value.done);
    bar.hidden = !value.running;
    put(note, value.note);
    note.hidden = !value.note;
    const key = JSON.stringify(value.groups);
    if (key === drawn) return;
    drawn = key;
    // What a person has opened stays open when more results come.
    const open = [...results.querySelectorAll("details")].map((node) => node.open);
    results.replaceChildren(...(value.groups.length ? [el("p", { class: "slim-note" }, value.explained)] : []),
      ...value.groups.flatMap((group) => [part(group), ...(group.plane ? [slim.plane(group.plane)] : [])]));
    results.querySelectorAll("details").forEach((node, i) => { node.open = open[i] ?? false; });
  });
};
/* The end of a part of SLIM's page 1. */
