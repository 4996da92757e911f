// SPDX-License-Identifier: Apache-2.0
// Functions shared by all views. Text from models and adapters is only inserted as text.
window.slim = (() => {
  const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const dark = () => document.body.classList.contains("dark");

  // el("p", {class: "x", onclick: f}, "text", child): an element; strings become text nodes.
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  }

  // Set a text only if it changed; a growing text is appended to, so that a selection in it survives.
  function put(node, text) {
    const old = node.textContent;
    if (old === text) return;
    const last = node.firstChild;
    if (old && last && node.childNodes.length === 1 && last.nodeType === 3 && text.startsWith(old))
      last.appendData(text.slice(old.length));
    else node.textContent = text;
  }

  function attribute(node, name, value) {
    if (value == null || value === false) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
  }

  function bytes(text) {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }

  // Chunks of base64 bytes that are decoded once: a chunk that did not change is not read again.
  function chunks() {
    let seen = [], parts = [];
    return (texts) => {
      parts.length = texts.length;
      texts.forEach((text, i) => { if (seen[i] !== text) parts[i] = bytes(text); });
      seen = texts.slice();
      const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
      let at = 0;
      for (const part of parts) { all.set(part, at); at += part.length; }
      return all;
    };
  }

  // Orange for LoRA, blue for identity: distinguishable with every common kind of colour vision. The share of the
  // largest expert, of another method, goes to violet, and up to a half it has no colour.
  const scales = {
    light: [[222, 110, 10], [240, 239, 236], [37, 99, 205]],
    dark: [[240, 140, 50], [58, 62, 70], [90, 150, 250]],
  };
  const violet = { light: [124, 58, 237], dark: [196, 167, 255] };
  function color(share, of = "identity") {
    const theme = dark() ? "dark" : "light";
    let [low, middle, high] = scales[theme];
    if (of !== "identity") [low, high] = [middle, violet[theme]];
    const [from, to, part] = share < 0.5 ? [low, middle, share * 2] : [middle, high, share * 2 - 1];
    return from.map((value, i) => Math.round(value + (to[i] - value) * part));
  }
  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  // A distance as the server writes it.
  const distance = (x) => x.toFixed(2).replace(/^-(?=0\.00$)/, "").replace("-", "−");
  // Never rounded up to all or down to nothing.
  const percent = (share) =>
    share > 0 && share < 0.005 ? "under 1%" : share >= 0.995 && share < 1 ? "over 99%" : `${Math.round(share * 100)}%`;

  // A token for display: line breaks and empty tokens are made visible.
  const visible = (token) => (token === "" ? "∅" : token.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥"));

  // Elements that scroll can be focused, to be scrolled with the keyboard; others would be needless tab stops.
  function scroller(node, names = {}) {
    new ResizeObserver(() => {
      const scrolls = node.scrollHeight > node.clientHeight;
      for (const [name, value] of Object.entries({ tabindex: "0", ...names })) attribute(node, name, scrolls && value);
    }).observe(node);
  }

  // Announce a text in the page's polite status line.
  function say(text) {
    const line = document.querySelector("#slim-status [role=status]");
    if (line) put(line, text);
  }

  // One small label for the whole page, next to whatever has the pointer or the focus. Its text is also the
  // element's own label, so nobody hears it twice.
  const label = el("div", { class: "slim-tip", "aria-hidden": "true", hidden: true });
  let where = null;
  // tip(text, () => the rectangle it belongs to), or tip("") for none.
  function tip(text, rectangle = null) {
    label.hidden = !text;
    where = text ? rectangle : null;
    if (!text) return;
    if (!label.isConnected) document.body.append(label);
    put(label, text);
    place();
  }
  function place() {
    const box = where?.();
    if (!box) return;
    const { width, height } = label.getBoundingClientRect();
    label.style.left = `${Math.max(4, Math.min(innerWidth - width - 4, box.left + box.width / 2 - width / 2))}px`;
    label.style.top = `${box.top - height > 10 ? box.top - height - 6 : box.bottom + 6}px`;
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip(""); });
  addEventListener("scroll", place, { capture: true, passive: true });

  async function copy(text, done) {
    let ok = true;
    try { await navigator.clipboard.writeText(text); } catch {
      // Without a secure context there is no clipboard; the old way still works.
      const focused = document.activeElement, area = el("textarea", { class: "slim-sr" });
      area.value = text;
      document.body.append(area);
      area.select();
      ok = document.execCommand("copy");
      area.remove();
      focused?.focus({ preventScroll: true });
    }
    say(ok ? done : "The browser did not allow copying.");
    return ok;
  }

  function save(blob, name) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // Draw now, and whenever the value or the theme changes. Several changes between two frames cause one drawing.
  function live({ element, props, watch }, draw) {
    let queued = false;
    // In a tab that was never open, Gradio sets its marker for "unchanged" as the value.
    const value = () => (props.value?.__type__ ? null : props.value);
    const redraw = () => {
      if (queued) return;
      queued = true;
      requestAnimationFrame(() => { queued = false; draw(value()); });
    };
    watch("value", redraw);
    new MutationObserver(redraw).observe(document.body, { attributeFilter: ["class"] });
    draw(value());
    return redraw;
  }

  return { attribute, bytes, chunks, color, copy, css, dark, distance, el, live, percent, put, reduced, save, say, scroller, tip, visible };
})();

// The prompt box. It is emptied here at once: text typed while the server still reads a prompt belongs to the next
// one.
slim.prompt = (() => {
  let pressed = null, sent = "", given = "", unsure = "";
  const box = () => document.querySelector("#slim-prompt textarea");
  const write = (area, text) => { area.value = text; area.dispatchEvent(new Event("input", { bubbles: true })); };
  // Gradio reads the box a moment after Enter, when there may be more text in it.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === box()) pressed = event.target.value;
  }, true);
  document.addEventListener("click", () => { pressed = null; }, true);
  return {
    // The part of the box that is sent.
    take(text) {
      const area = box(), all = (text ?? "").replace(/\r\n?/g, "\n");
      sent = pressed !== null && all.startsWith(pressed) ? pressed : all;
      pressed = null;
      unsure = sent;
      if (sent && area?.value.startsWith(sent)) write(area, area.value.slice(sent.length));
      return sent;
    },
    // A refused prompt is put back, unless another one is being written.
    back() { unsure = ""; if (box()?.value === "") write(box(), sent); },
    // A prompt that the server has is part of the conversation.
    arrived() { unsure = ""; },
    // Text that is typed but not part of a conversation yet.
    typed: () => [unsure, box()?.value].filter((text) => text?.trim()).join("\n\n"),
    // Text typed before this page was loaded. Returns whether it is in the box now.
    begin(text, first) {
      if (box() && (first || box().value === "")) write(box(), text);
      return box()?.value === text;
    },
    // Text to restore, appended to the current text.
    offer(text) { write(box(), [box().value, text].filter((part) => part.trim()).join("\n\n")); },
    // The prompt of an undone turn is put back too; it does not count as a draft.
    draft(text) { if (["", given].includes(box()?.value)) write(box(), given = text); },
  };
})();

// A link's settings are not kept as the visitor's own; only what a person changes is.
for (const name of ["input", "click"])
  document.addEventListener(name, (event) => (slim.chose ||= Boolean(event.target.closest?.("#slim-settings"))), true);
/* The end of a part of SLIM's page 1. */
