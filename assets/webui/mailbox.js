// SPDX-License-Identifier: Apache-2.0
// Files, links and prompts from the server, and the one status line of the page.
slim.mailbox = ({ props, watch }) => {
  watch("value", () => {
    const letter = props.value;
    if (!letter) return;
    if (letter.kind === "save") {
      slim.save(new Blob([letter.text], { type: letter.mime ?? "application/json" }), letter.name);
      slim.say(letter.said ?? "The conversation is saved as JSON.");
    } else if (letter.kind === "link") {
      const link = `${location.origin}${location.pathname}?${letter.query}`;
      slim.copy(link, "The link to this prompt and its settings is copied.");
    } else if (letter.kind === "draft") slim.prompt.draft(letter.text);
    else if (letter.kind === "refused") slim.prompt.back();
  });
};

slim.status = (component) => {
  const root = component.element.querySelector(".slim-root");
  if (!root.firstChild) root.append(slim.el("p", { role: "status", "aria-live": "polite" }));
  let last = null;
  slim.live(component, (value) => {
    // Only a new sentence is spoken; what another part said meanwhile stays until then.
    if (value !== last) slim.put(root.firstChild, value ?? "");
    last = value;
  });
};
/* The end of a part of SLIM's page 1. */
