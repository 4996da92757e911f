// SPDX-License-Identifier: Apache-2.0
// The first screen: the measurements in a sentence, and the commands for one's own model.
slim.headline = (component) => {
  const { el } = slim;
  slim.live(component, (value) => {
    const root = component.element.querySelector(".slim-root");
    root.replaceChildren(...(value ? [el("p", { class: "slim-headline" }, el("strong"), " ", el("span"), " ",
      el("button", { type: "button", class: "slim-link", onclick: () => component.trigger("open", {}) }, "All scores"))] : []));
    if (!value) return;
    root.querySelector("strong").textContent = value.kept;
    root.querySelector("span").textContent = value.learned;
  });
};

slim.own = (component) => {
  const { el } = slim;
  slim.live(component, (value) => {
    const root = component.element.querySelector(".slim-root");
    if (!value || root.firstChild) return;
    root.append(el("details", { class: "slim-card slim-own", open: innerWidth > 820 }, el("summary", {}, el("h2", {}, "Your own model")),
      el("ol", {}, ...value.commands.map(({ title, command }) => el("li", {}, el("span", {}, title),
        el("div", { class: "slim-command" }, el("code", { tabindex: "0" }, command),
          el("button", { type: "button", class: "slim-small", "aria-label": `Copy the command: ${title}`,
            onclick: () => slim.copy(command, "The command is copied.") }, "Copy"))))),
      el("p", { class: "slim-note" }, value.note)));
  });
};
/* The end of a part of SLIM's page 1. */
