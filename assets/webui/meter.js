// SPDX-License-Identifier: Apache-2.0
// Under the prompt's box: how far what is being typed is from SLIM's training data. One question at a time, and only
// when the typing rests.
slim.meter = (component) => {
  const { el, put, attribute } = slim;
  const REST = 400, AGAIN = 1500, PATIENCE = 10000;
  const dot = el("i"), track = el("span", { class: "slim-meter-track", "aria-hidden": "true" }, el("b"), dot);
  const word = el("strong"), share = el("span"), far = el("span", { class: "slim-meter-far" });
  const line = el("p", { class: "slim-meter", role: "group", "aria-label": "What the gate makes of this prompt", hidden: true },
    track, word, share, far);
  component.element.querySelector(".slim-root").replaceChildren(line);
  const box = () => document.querySelector("#slim-prompt textarea");
  let text = "", changed = 0, asked = null, number = 0, sent = 0, answered = 0;

  // Half of the track is what is like the training data; beyond, ever larger distances come ever closer to its end.
  function place(distance, reference) {
    if (distance <= reference) return 0.5 * Math.max(0.04, (distance + 1) / Math.max(reference + 1, 1e-6));
    const beyond = (distance - reference) / (Math.abs(reference) + 1);
    return 0.5 + 0.5 * Math.min(0.97, beyond / (beyond + 0.5));
  }

  setInterval(() => {
    const now = performance.now(), value = box()?.value ?? "";
    if (value !== text) {
      text = value;
      changed = now;
      // Whoever types the same again is told again.
      if (!text.trim()) [line.hidden, asked] = [true, null];
    }
    if (!slim.metered) {
      if (!line.hidden) line.hidden = true; // to set it again would be a change of the page
      asked = null;
      return;
    }
    const waiting = answered < number && now - sent < PATIENCE;
    if (document.hidden || waiting || text === asked || !text.trim() || now - changed < REST) return;
    asked = text;
    sent = now;
    component.trigger("peek", { number: ++number, text });
  }, 150);

  slim.live(component, (value) => {
    if (!value || !(value.number > answered)) return;
    answered = value.number;
    if (value.busy) {
      // Try later, if the text is still there.
      const same = asked;
      setTimeout(() => { if (asked === same) asked = null; }, AGAIN);
    }
    const fits = asked !== null && asked === (box()?.value ?? "") && value.kind;
    line.hidden = !fits;
    // The box was emptied meanwhile, and the same may be in it again before that is noticed.
    if (!fits && value.kind) asked = null;
    if (!fits) return;
    attribute(line, "data-kind", value.kind);
    put(word, value.word);
    put(share, value.share);
    put(far, value.far);
    dot.style.setProperty("--at", place(value.distance, value.reference).toFixed(3));
  });

  // The gate, the conversation or the system prompt has changed.
  addEventListener("slim-reread", () => { asked = null; });
};
/* The end of a part of SLIM's page 1. */
