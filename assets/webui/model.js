// SPDX-License-Identifier: Apache-2.0
// The loaded model, what another base would need, and the progress of a switch.
slim.loaded = slim.facts;

slim.need = (component) => {
  const { el } = slim;
  slim.live(component, (value) => {
    component.element.querySelector(".slim-root").replaceChildren(el("p", { class: "slim-need" }, value || ""));
  });
};

slim.switch = (component) => {
  const { attribute, el, put } = slim;
  const line = el("p", { role: "status" });
  const amount = el("span", {});
  const bar = el("progress", { "aria-label": "Loading" });
  const box = el("div", { class: "slim-banner", hidden: true }, line, amount, bar);
  component.element.querySelector(".slim-root").replaceChildren(box);
  slim.live(component, (value) => {
    if (!value) return;
    const header = document.querySelector("#slim-header .slim-model");
    if (header) put(header, value.model);
    const text = value.line || value.sentence;
    box.hidden = !text;
    put(line, text);
    put(amount, value.amount);
    bar.hidden = !value.line;
    attribute(bar, "max", value.total || null);
    attribute(bar, "value", value.total ? value.done : null);
    attribute(box, "data-state", value.line ? "busy" : value.failed ? "failed" : "done");
  });
};
/* The end of a part of SLIM's page 1. */
