// SPDX-License-Identifier: Apache-2.0
// The gate of a SLIM column: open, as it was trained, or stronger; a slider for everything between; and where it begins
// to close. What is chosen while answers are being written is applied when they are done.
slim.gate = (label, choose) => {
  const { el, put, attribute } = slim, REST = 250;
  const buttons = {
    open: el("button", { type: "button", class: "slim-small", onclick: () => take({ strength: 0 }) }, "Open"),
    trained: el("button", { type: "button", class: "slim-small", onclick: () => take({ strength: null, quantile: null }) }, "As trained"),
    stronger: el("button", { type: "button", class: "slim-small",
      onclick: () => take({ strength: Math.min(most(), 2 * state.trained.strength) }) }, "Stronger"),
  };
  const slider = el("input", { type: "range", min: "0", max: "16", step: "0.5", "aria-label": `Strength of ${label}’s gate` });
  const says = el("span", { class: "slim-gate-says", "aria-hidden": "true" });
  const begin = el("select", { "aria-label": `Where ${label}’s gate begins to close`,
    onchange: () => take({ quantile: +begin.value }, REST) });
  const fixed = el("span", {}, "where it was trained to: this adapter stores no other distance");
  const node = el("div", { class: "slim-gate", role: "group", "aria-label": `Gate of ${label}` },
    el("span", { class: "slim-gate-name", "aria-hidden": "true" }, "Gate"),
    el("span", { class: "slim-segments" }, ...Object.values(buttons)), el("span", { class: "slim-gate-strength" }, slider, says),
    el("span", { class: "slim-gate-begin" }, el("span", {}, "Begins to close"), begin, fixed));
  let state = { trained: { strength: 4, quantile: null }, asked: { strength: null, quantile: null }, quantiles: [] };
  let running = false, wanted, timer = null, drawn = "", listed = "";
  const most = () => Math.max(16, Math.ceil(2 * state.trained.strength));
  const words = (strength) => (strength === 0 ? "always open" : `strength ${+strength.toFixed(2)}${strength === state.trained.strength ? ", as trained" : ""}`);
  const beyond = (quantile) => `beyond ${+(100 * quantile).toPrecision(6)}% of the training data${quantile === state.trained.quantile ? ", as trained" : ""}`;

  function paint(gate) {
    const value = gate.strength ?? state.trained.strength, quantile = gate.quantile ?? state.trained.quantile;
    attribute(slider, "max", most());
    if (+slider.value !== value) slider.value = value;
    put(says, words(value));
    attribute(slider, "aria-valuetext", words(value));
    const trained = value === state.trained.strength && quantile === state.trained.quantile;
    const pressed = value === 0 ? "open" : trained ? "trained" : value > state.trained.strength ? "stronger" : "";
    for (const [name, button] of Object.entries(buttons)) attribute(button, "aria-pressed", String(name === pressed));
    const options = JSON.stringify([state.quantiles, state.trained.quantile]);
    if (options !== listed) {
      listed = options;
      begin.replaceChildren(...state.quantiles.map((each) => el("option", { value: each }, beyond(each))));
      begin.hidden = !state.quantiles.length;
      fixed.hidden = !begin.hidden;
    }
    begin.value = quantile;
  }

  // Held arrow keys pass many values; only the last one is requested.
  function take(change, rest = 0) {
    wanted = { ...(wanted ?? state.asked), ...change };
    for (const [name, value] of Object.entries(state.trained)) if (wanted[name] === value) wanted[name] = null;
    paint(wanted);
    clearTimeout(timer);
    timer = setTimeout(send, rest);
  }
  function send() {
    if (wanted === undefined || running) return;
    const gate = wanted;
    wanted = undefined;
    if (gate.strength !== state.asked.strength || gate.quantile !== state.asked.quantile) choose(gate);
  }
  slider.addEventListener("input", () => { put(says, words(+slider.value)); });
  slider.addEventListener("change", () => take({ strength: +slider.value }, REST));

  return {
    node,
    // The server's value, unless the visitor has just chosen another.
    show(value, busy, afresh) {
      running = busy;
      const key = JSON.stringify([value, afresh]);
      if (key !== drawn && document.activeElement === slider && slider.matches(":active")) return;
      if (key !== drawn) { drawn = key; state = value; if (wanted === undefined) paint(value.asked); }
      if (!busy && wanted !== undefined) { clearTimeout(timer); timer = setTimeout(send, REST); }
    },
  };
};
/* The end of a part of SLIM's page 1. */
