// SPDX-License-Identifier: Apache-2.0
// Between the box and the table of many prompts: the uploaded file, the progress, and the summary.
slim.many = (component) => {
  const { el, put, attribute } = slim;
  const file = el("p", { class: "slim-note", id: "slim-many-file" });
  const line = el("span"), bar = el("progress", { "aria-label": "Prompts answered" });
  const going = el("p", { class: "slim-many-line", id: "slim-many-line" }, line, bar);
  const note = el("p", { class: "slim-error" }), means = el("ul", { class: "slim-many-means" });
  component.element.querySelector(".slim-root").replaceChildren(file, going, note, means);
  slim.live(component, (value) => {
    if (!value) return;
    put(file, value.file);
    file.hidden = !value.file;
    put(line, value.line);
    going.hidden = !value.line;
    attribute(going, "data-running", String(value.running));
    attribute(bar, "max", value.total || 1);
    attribute(bar, "value", value.done);
    bar.hidden = !value.running;
    put(note, value.note);
    note.hidden = !value.note;
    means.replaceChildren(...value.means.map((text) => el("li", {}, text)));
    means.hidden = value.means.length === 0;
  });
};
/* The end of a part of SLIM's page 1. */
