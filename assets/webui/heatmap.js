// SPDX-License-Identifier: Apache-2.0
// Layers × tokens on one canvas: a pixel for a cell, stretched without smoothing. One tab stop; arrow keys walk in it.
slim.heatmap = (root, pick) => {
  const { el, color, css } = slim;
  const canvas = el("canvas", { "aria-hidden": "true" });
  const cursor = el("div", { class: "slim-cursor", hidden: true });
  const axis = el("div", { class: "slim-axis", "aria-hidden": "true" });
  const inner = el("div", { class: "slim-heat-inner" }, canvas, cursor);
  const scroller = el("div", {
    class: "slim-heat-scroll", tabindex: "0", role: "application",
    "aria-label": "Heat map of the identity share, layers by tokens. Arrow keys go from cell to cell.",
  }, inner);
  root.append(axis, scroller);
  const BAND = 16; // Above the cells: which tokens are the prompt, which the answer.
  let data = null, share = null, cell = { w: 4, h: 12 }, at = { token: -1, row: 0 }, hue = "";

  function size() {
    const width = Math.max(100, scroller.clientWidth);
    const tokens = data.tokens.length;
    // Canvases have a largest size: wide cells for short texts, three points for long ones.
    cell = { w: Math.max(3, Math.min(36, width / Math.max(1, tokens))), h: data.blocks.length > 24 ? 10 : data.blocks.length > 10 ? 16 : 24 };
    return { width: cell.w * tokens, height: BAND + cell.h * data.blocks.length };
  }

  function draw(value, bytes) {
    data = value;
    share = bytes;
    const tokens = data.tokens.length, rows = data.blocks.length;
    scroller.hidden = tokens === 0;
    if (!tokens) return;
    const { width, height } = size();
    const sharp = Math.min(window.devicePixelRatio || 1, 16000 / width);
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(height * sharp);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    inner.style.width = `${width}px`;
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    paint(context, cell.w, cell.h, BAND);
    const step = rows > 24 ? 5 : rows > 12 ? 2 : 1;
    axis.replaceChildren(...data.blocks.filter((_, i) => i % step === 0).map((block, i) => {
      const node = el("span", {}, String(block));
      node.style.top = `${BAND + i * step * cell.h}px`;
      return node;
    }));
    axis.style.height = `${height}px`;
    place();
  }

  function paint(context, w, h, band) {
    const tokens = data.tokens.length, rows = data.blocks.length;
    const table = Array.from({ length: 256 }, (_, i) => color(i / 255));
    const image = new ImageData(tokens, rows);
    for (let t = 0; t < tokens; t++)
      for (let row = 0; row < rows; row++) {
        const [r, g, b] = table[share[t * rows + row]], p = 4 * (row * tokens + t);
        image.data[p] = r; image.data[p + 1] = g; image.data[p + 2] = b; image.data[p + 3] = 255;
      }
    const small = el("canvas", { width: tokens, height: rows });
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, tokens, rows, 0, band, tokens * w, rows * h);
    const border = data.prompt_tokens * w, text = css("--body-text-color") || "#222";
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const [from, to, name, alpha] of [[0, border, "prompt", 0.12], [border, tokens * w, "answer", 0.3]]) {
      if (to <= from) continue;
      context.globalAlpha = alpha;
      context.fillStyle = text;
      context.fillRect(from, 0, to - from, band - 3);
      context.globalAlpha = 1;
      if (to - from > 46) context.fillText(name, from + 4, (band - 3) / 2 + 0.5);
    }
    if (border > 0 && border < tokens * w) {
      context.fillStyle = text;
      context.fillRect(border - 1, 0, 2, band + rows * h);
    }
  }

  function place() {
    cursor.hidden = at.token < 0 || at.token >= (data?.tokens.length ?? 0);
    if (cursor.hidden) return;
    Object.assign(cursor.style, {
      left: `${at.token * cell.w}px`, top: `${BAND}px`, width: `${cell.w}px`, height: `${data.blocks.length * cell.h}px`,
    });
    cursor.style.setProperty("--row", `${at.row * cell.h}px`);
    cursor.style.setProperty("--h", `${cell.h}px`);
  }

  function mark(token, row = at.row) {
    at = { token, row: Math.max(0, Math.min((data?.blocks.length ?? 1) - 1, row)) };
    place();
    const left = token * cell.w;
    if (left < scroller.scrollLeft || left + cell.w > scroller.scrollLeft + scroller.clientWidth)
      scroller.scrollLeft = left - scroller.clientWidth / 2;
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const token = Math.floor((event.clientX - box.left) / cell.w);
    const row = Math.floor((event.clientY - box.top - BAND) / cell.h);
    if (!data || token < 0 || token >= data.tokens.length || row >= data.blocks.length) return null;
    return { token, row: Math.max(0, row) };
  }

  canvas.addEventListener("click", (event) => {
    const hit = under(event);
    if (hit) { mark(hit.token, hit.row); pick(hit.token, hit.row); }
  });
  canvas.addEventListener("mousemove", (event) => {
    const hit = under(event);
    slim.tip(hit ? describe(hit.token, hit.row) : "", () => new DOMRect(event.clientX, event.clientY - 4, 0, 16));
  });
  canvas.addEventListener("mouseleave", () => slim.tip(""));
  scroller.addEventListener("keydown", (event) => {
    if (!data) return;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], PageUp: [-20, 0],
      PageDown: [20, 0], Home: [-1e9, 0], End: [1e9, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const token = Math.max(0, Math.min(data.tokens.length - 1, (at.token < 0 ? data.prompt_tokens : at.token) + move[0]));
    mark(token, at.row + move[1]);
    pick(token, at.row);
  });
  const value = (token, row) => share[token * data.blocks.length + row] / 255;
  function describe(token, row) {
    return `Layer ${data.blocks[row]}, token ${token + 1} “${slim.visible(data.tokens[token]).trim()}”: identity ${slim.percent(value(token, row))}`;
  }
  new ResizeObserver(() => {
    if (data && share && scroller.clientWidth && hue !== `${scroller.clientWidth}`) {
      hue = `${scroller.clientWidth}`;
      draw(data, share);
    }
  }).observe(scroller);
  return { draw, mark, paint, describe, value, position: () => at };
};
