// SPDX-License-Identifier: Apache-2.0
// Saves the conversation in the browser, and offers to restore it in a small bar if no other conversation has begun.
slim.keeper = (component) => {
  const { el, put, kept, tab, prompt } = slim, REST = 150;
  const words = el("p");
  const restore = el("button", { type: "button", class: "slim-small slim-main", onclick: take }, "Restore");
  const discard = el("button", { type: "button", class: "slim-small", onclick: () => {
    kept.drop(offered);
    look();
    document.querySelector("#slim-prompt textarea")?.focus();
  } }, "Discard");
  const bar = el("section", { class: "slim-kept", "aria-label": "From before", hidden: true }, words, restore, discard);
  component.element.querySelector(".slim-root").replaceChildren(bar);
  const loaded = performance.getEntriesByType("navigation")[0]?.type ?? "navigate";
  let offered = null, taken = null, turns = 0, opened = false, begun = false, timer = null;

  // ---- what is typed

  function type() {
    clearTimeout(timer);
    timer = null;
    if (begun) kept.draft(tab.id, prompt.typed());
  }
  document.addEventListener("input", (event) => {
    if (event.target.closest?.("#slim-prompt")) timer ??= setTimeout(type, REST);
  }, true);
  for (const name of ["pagehide", "visibilitychange"]) addEventListener(name, () => { if (timer) type(); }, true);

  // ---- what is offered

  const short = (text) => (text.length > 60 ? `${text.slice(0, 60).trim()}…` : text).replace(/\s+/g, " ");
  function when(at) {
    const then = new Date(at), today = then.toDateString() === new Date().toDateString();
    return then.toLocaleString(undefined, today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
  }
  async function look() {
    const others = await tab.held();
    offered = turns ? null : kept.latest([...others, tab.id]);
    const found = offered && kept.read(offered);
    tab.offer(offered);
    const before = bar.hidden;
    bar.hidden = !found;
    if (!found) return;
    if (before) slim.say("Your earlier conversation can be restored.");
    put(words, found.turns
      ? `Restore the conversation from before? ${found.turns} prompt${found.turns > 1 ? "s" : ""}, the last “${short(found.last)}”, ${when(found.at)}.`
      : `Restore what was typed before? “${short(found.typed)}”, ${when(found.at)}.`);
  }
  function take() {
    const found = kept.read(offered);
    if (!found) { look(); return; }
    taken = offered;
    if (found.text) component.trigger("restore", { text: found.text }); else finish();
  }
  // It belongs to this tab now.
  function finish() {
    const typed = taken && kept.read(taken)?.typed;
    if (typed) prompt.offer(typed);
    if (taken && taken !== tab.id) kept.drop(taken);
    taken = null;
    bar.hidden = true;
    if (!turns) look();
    document.querySelector("#slim-prompt textarea")?.focus();
  }
  addEventListener("slim-turns", ({ detail }) => {
    if (begun && (detail > 0) !== (turns > 0)) { turns = detail; look(); }
    turns = detail;
  });

  // ---- what the server says; handled at once, since nothing is drawn while the tab is hidden

  component.watch("value", async () => {
    const value = component.props.value;
    if (!value?.ticket) return;
    await tab.named;
    const old = tab.id, before = kept.read(old), first = !opened;
    opened = true;
    tab.show(value.ticket);
    if (value.text !== null) {
      prompt.arrived();
      kept.talk(tab.id, value.text);
      if (value.restored) finish();
    }
    if (value.go_on) component.trigger("go_on");
    if (begun) type();
    if (!first) return;
    // Gradio fills the prompt's box a moment later, if a link says so.
    await new Promise((done) => setTimeout(done, 100));
    begun = true;
    kept.draft(old, "");
    // Typed text is restored unless it was sent. A link takes precedence, but not after a reload.
    const typed = before && before.typed !== kept.read(tab.id)?.last ? before.typed : "";
    if (typed && !prompt.begin(typed, loaded !== "navigate")) kept.draft(tab.aside(), typed);
    type();
    look();
  });
};
/* The end of a part of SLIM's page 1. */
