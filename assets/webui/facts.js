// SPDX-License-Identifier: Apache-2.0
// Small tables of names and values.
slim.facts = (component) => {
  const { el } = slim;
  slim.live(component, (value) => {
    component.element.querySelector(".slim-root").replaceChildren(...(value ?? []).map((table) =>
      el("section", { class: "slim-card" }, el("h2", {}, table.title), el("dl", {}, ...table.rows.flatMap(
        ([name, text]) => [el("dt", {}, name), el("dd", {}, text)])))));
  });
};
/* The end of a part of SLIM's page 1. */
