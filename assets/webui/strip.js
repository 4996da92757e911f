// SPDX-License-Identifier: Apache-2.0
// A text whose tokens are coloured by a share from 0 to 1, or not where it is null. It grows while the answer does;
// old tokens are left alone.
slim.strip = (root, { label, pick = null, describe }) => {
  const { el, tip, visible } = slim;
  const list = el("div", { class: "slim-strip", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
  root.append(list);
  let tokens = [], shares = [], selected = -1, first = 0;

  function update(newTokens, newShares, from = 0) {
    const same = from === first && newTokens.length >= tokens.length && newTokens[from] === tokens[from];
    if (!same) { list.replaceChildren(); tokens = []; shares = []; selected = -1; }
    first = from;
    for (let i = first; i < newTokens.length; i++) {
      const at = i - first;
      let node = list.childNodes[at];
      if (!node) {
        node = el("span", { role: "option", tabindex: at === 0 ? "0" : "-1", "aria-selected": "false" });
        node.dataset.i = i;
        list.append(node);
      }
      if (tokens[i] !== newTokens[i]) node.textContent = visible(newTokens[i]);
      if (shares[i] !== newShares[i] || tokens[i] !== newTokens[i]) {
        const unread = newShares[i] === null;
        node.classList.toggle("slim-unread", unread);
        if (!unread) node.style.setProperty("--s", newShares[i].toFixed(3));
        node.setAttribute("aria-label", describe(i, newTokens[i], newShares[i]));
      }
    }
    while (list.childNodes.length > Math.max(0, newTokens.length - first)) list.lastChild.remove();
    tokens = newTokens.slice();
    shares = Array.from(newShares);
  }

  // Select a token; -1 selects none. There is one tab stop: the selected token, or else the first.
  function mark(i, focus = false) {
    const old = list.childNodes[selected - first], node = list.childNodes[i - first];
    if (old && old !== node) { old.setAttribute("aria-selected", "false"); old.tabIndex = -1; }
    if (list.firstChild) list.firstChild.tabIndex = node ? -1 : 0;
    selected = node ? i : -1;
    if (!node) return;
    node.setAttribute("aria-selected", "true");
    node.tabIndex = 0;
    if (focus) node.focus();
  }

  list.addEventListener("click", (event) => {
    const node = event.target.closest("[data-i]");
    if (!node) return;
    mark(+node.dataset.i, true);
    if (pick) pick(+node.dataset.i);
  });
  // The number of the token under the pointer, or of the one that has the focus.
  const tell = (event) => {
    const node = event.target.closest("[data-i]");
    // A token may be broken over two lines; the label stands at its first part.
    if (node) tip(node.getAttribute("aria-label"), () => node.getClientRects()[0]);
  };
  for (const name of ["mouseover", "focusin"]) list.addEventListener(name, tell);
  for (const name of ["mouseleave", "focusout"]) list.addEventListener(name, () => tip(""));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    const now = +(event.target.dataset?.i ?? first);
    let next = null;
    if (step) next = Math.min(tokens.length - 1, Math.max(first, now + step));
    else if (event.key === "Home") next = first;
    else if (event.key === "End") next = tokens.length - 1;
    else if (event.key === "Enter" || event.key === " ") next = now;
    if (next === null) return;
    event.preventDefault();
    mark(next, true);
    if (pick) pick(next);
  });
  return { update, mark, list };
};

// The part of an answer that belongs to each token, and the rest. Their own texts are not always parts of it: several
// can be one character, special ones are not shown, an answer does not begin with a space, and a stop text cuts it.
slim.pieces = (tokens, text) => {
  const found = tokens.map(() => "");
  // Of the tokens since the last one that was found: how long they are, and whether one is a part of a character.
  let at = 0, loose = 0, half = 0;
  tokens.forEach((token, i) => {
    const own = at === 0 && !text.startsWith(token) ? token.replace(/^ /, "") : token;
    const place = own ? text.slice(at + half, at + loose + own.length).indexOf(own) : -1;
    if (place >= 0) {
      const start = at + half + place;
      if (start > at) found[i - 1] = text.slice(at, start);
      found[i] = own;
      at = start + own.length;
      loose = half = 0;
    } else if (text.length - at < own.length && own.startsWith(text.slice(at))) {
      found[i] = text.slice(at);
      at = text.length;
    } else {
      loose += own.length;
      if (own.includes("\ufffd")) half = 1;
    }
  });
  if (half && at < text.length) {
    found[found.length - 1] = String.fromCodePoint(text.codePointAt(at));
    at += found.at(-1).length;
  }
  return [found, text.slice(at)];
};
/* The end of a part of SLIM's page 1. */
