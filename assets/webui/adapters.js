// SPDX-License-Identifier: Apache-2.0
// The checks of a new adapter, and the adapters in the columns. All text is inserted as text, never as HTML.
slim.checks = (component) => {
  const { el, put, attribute, say } = slim;
  const MARKS = { passed: "✓", warning: "!", failed: "✕", running: "…", waiting: "" };
  // File names are in backquotes, for terminals.
  const plain = (text) => text.replaceAll("`", "");
  const title = (name) => name[0].toUpperCase() + name.slice(1);
  const SPOKEN = { passed: "passed", warning: "passed with a warning", failed: "failed", running: "running", waiting: "not yet" };
  let rows = [], root = null, again = null, told = "";

  function build(value) {
    rows = value.rows.map(() => {
      const part = { mark: el("span", { class: "slim-mark", "aria-hidden": "true" }), name: el("span", { class: "slim-check-name" }),
        state: el("span", { class: "slim-sr" }), sentence: el("p", { class: "slim-note" }) };
      part.node = el("li", {}, part.mark, el("div", {}, part.name, part.state, part.sentence));
      return part;
    });
    again = el("button", { type: "button", class: "slim-small slim-main", onclick: () =>
      document.querySelector("#slim-tabs > .tab-wrapper button[role=tab]")?.click() }, "Go and compare");
    root = el("section", { class: "slim-card slim-checks", "aria-label": "Checks" },
      el("h2", {}, "Checks"), el("ol", {}, ...rows.map((part) => part.node)), again);
    component.element.querySelector(".slim-root").replaceChildren(root);
  }

  slim.live(component, (value) => {
    if (!value) return;
    if (!root || !root.isConnected) build(value);
    value.rows.forEach((row, i) => {
      const part = rows[i];
      attribute(part.node, "data-state", row.state);
      put(part.mark, MARKS[row.state]);
      put(part.name, title(row.name));
      put(part.state, `: ${SPOKEN[row.state]}.`);
      put(part.sentence, plain(row.sentence));
    });
    const last = value.rows.findLast((row) => row.state === "failed") ?? value.rows.at(-1);
    again.hidden = !(value.ended && last.state === "passed");
    const sentence = value.ended ? `${title(last.name)}: ${plain(last.sentence)}` : "";
    if (sentence && sentence !== told) say(sentence);
    told = sentence;
  });
};

slim.shelf = (component) => {
  const { el } = slim;
  let drawn = "";

  function card(column) {
    const node = el("section", { class: "slim-card slim-shelf", "data-kind": column.kind, "data-column": column.name, "aria-label": column.title },
      el("p", { class: "slim-note" }, column.title));
    if (!column.label) {
      node.append(el("p", { class: "slim-empty" }, "Nothing answers here yet."));
      return node;
    }
    node.append(el("div", { class: "slim-head-line" }, el("h3", {}, column.label),
      el("span", { class: "slim-chip" }, `${column.own ? "your " : ""}${column.what}`)),
      el("p", { class: "slim-size" }, column.size.replaceAll("-", "\u2011")),
      ...column.warnings.map((text) => el("p", { class: "slim-warning" }, text)));
    if (column.own) node.append(el("button", {
      type: "button", class: "slim-small", "aria-label": `Remove ${column.label}`,
      onclick: (event) => { event.target.disabled = true; component.trigger("remove", { column: column.name }); },
    }, column.app ? `Remove it, back to ${column.app}` : "Remove it"));
    return node;
  }

  slim.live(component, (value) => {
    const root = component.element.querySelector(".slim-root"), key = JSON.stringify(value);
    // Gradio may have replaced the root that was drawn into by an empty one.
    if (!value || (key === drawn && root.firstChild)) return;
    drawn = key;
    root.replaceChildren(
      el("div", { class: "slim-shelves" }, ...value.map(card)));
  });
};
/* The end of a part of SLIM's page 1. */
