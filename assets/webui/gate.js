// SPDX-License-Identifier: Apache-2.0
// The gate of a SLIM column: open, as it was trained, or stronger; a slider for everything between. A strength chosen
// while answers are being written is applied when they are done.
slim.gate = (label, choose) => {
  const { el, put, attribute } = slim, REST = 250;
  const buttons = {
    open: el("button", { type: "button", class: "slim-small", onclick: () => take(0) }, "Open"),
    trained: el("button", { type: "button", class: "slim-small", onclick: () => take(null) }, "As trained"),
    stronger: el("button", { type: "button", class: "slim-small", onclick: () => take(Math.min(most(), 2 * state.trained)) }, "Stronger"),
  };
  const slider = el("input", { type: "range", min: "0", max: "16", step: "0.5", "aria-label": `Strength of ${label}’s gate` });
  const says = el("span", { class: "slim-gate-says", "aria-hidden": "true" });
  const node = el("div", { class: "slim-gate", role: "group", "aria-label": `Gate of ${label}` },
    el("span", { class: "slim-gate-name", "aria-hidden": "true" }, "Gate"),
    el("span", { class: "slim-segments" }, ...Object.values(buttons)), el("span", { class: "slim-gate-strength" }, slider, says));
  let state = { trained: 4, strength: null }, running = false, wanted, timer = null, drawn = "";
  const most = () => Math.max(16, Math.ceil(2 * state.trained));
  const words = (strength) => (strength === 0 ? "always open" : `strength ${+strength.toFixed(2)}${strength === state.trained ? ", as trained" : ""}`);

  function paint(strength) {
    const value = strength ?? state.trained;
    attribute(slider, "max", most());
    if (+slider.value !== value) slider.value = value;
    put(says, words(value));
    attribute(slider, "aria-valuetext", words(value));
    const pressed = value === 0 ? "open" : value === state.trained ? "trained" : value > state.trained ? "stronger" : "";
    for (const [name, button] of Object.entries(buttons)) attribute(button, "aria-pressed", String(name === pressed));
  }

  // Held arrow keys pass many values; only the last one is requested.
  function take(strength, rest = 0) {
    wanted = strength === state.trained ? null : strength;
    paint(wanted);
    clearTimeout(timer);
    timer = setTimeout(send, rest);
  }
  function send() {
    if (wanted === undefined || running) return;
    const strength = wanted;
    wanted = undefined;
    if (strength !== state.strength) choose(strength);
  }
  slider.addEventListener("input", () => { put(says, words(+slider.value)); });
  slider.addEventListener("change", () => take(+slider.value, REST));

  return {
    node,
    // The server's value, unless the visitor has just chosen another.
    show(value, busy, afresh) {
      running = busy;
      const key = JSON.stringify([value, afresh]);
      if (key !== drawn && document.activeElement === slider && slider.matches(":active")) return;
      if (key !== drawn) { drawn = key; state = value; if (wanted === undefined) paint(value.strength); }
      if (!busy && wanted !== undefined) { clearTimeout(timer); timer = setTimeout(send, REST); }
    },
  };
};
/* The end of a part of SLIM's page 1. */
