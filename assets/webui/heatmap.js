// SPDX-License-Identifier: Apache-2.0
// Layers × tokens on one canvas: a pixel for a cell, stretched without smoothing. Above it the gate, below it the
// distance, where there is a gate. It is one tab stop; arrow keys move within it.
slim.heatmap = (root, pick) => {
  const { el, color, css } = slim;
  const canvas = el("canvas", { "aria-hidden": "true" });
  const cursor = el("div", { class: "slim-cursor", hidden: true });
  const axis = el("div", { class: "slim-axis", "aria-hidden": "true" });
  const inner = el("div", { class: "slim-heat-inner" }, canvas, cursor);
  const scroller = el("div", {
    class: "slim-heat-scroll", tabindex: "0", role: "application",
    "aria-label": "Heat map, layers by tokens. Arrow keys go from cell to cell.",
  }, inner);
  root.append(axis, scroller);
  const BAND = 16; // Above the cells: which tokens are the prompt, which the answer.
  const GATE = 16; // And how much a gate lets through, if there is one.
  const space = () => (numbers ? { top: BAND + GATE, below: slim.curve.HEIGHT } : { top: BAND, below: 0 });
  let data = null, share = null, numbers = null, cell = { w: 4, h: 12 }, at = { token: -1, row: 0 }, hue = "";

  function size() {
    const width = Math.max(100, scroller.clientWidth);
    const tokens = data.tokens.length;
    // Canvases have a largest size: wide cells for short texts, three points for long ones.
    cell = { w: Math.max(3, Math.min(160, width / Math.max(1, tokens))), h: data.blocks.length > 24 ? 10 : data.blocks.length > 10 ? 16 : 24 };
    const { top, below } = space();
    return { width: cell.w * tokens, height: top + cell.h * data.blocks.length + below };
  }

  // The numbers are the gate, distance and reference of each token, or null.
  function draw(value, bytes, ofGate = null) {
    data = value;
    share = bytes;
    numbers = ofGate;
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
    const { top } = space(), foot = top + rows * cell.h;
    const names = data.blocks.filter((_, i) => i % step === 0).map((block, i) => [String(block), top + i * step * cell.h]);
    if (numbers) names.push(["gate", BAND], ...slim.curve.ticks(numbers).map(([text, y]) => [text, foot + y - 7]));
    axis.replaceChildren(...names.map(([text, y]) => {
      const node = el("span", {}, text);
      node.style.top = `${y}px`;
      return node;
    }));
    axis.style.height = `${height}px`;
    place();
  }

  function paint(context, w, h, band) {
    const top = band + (numbers ? GATE : 0);
    const tokens = data.tokens.length, rows = data.blocks.length;
    const table = Array.from({ length: 256 }, (_, i) => color(i / 255, data.share));
    const image = new ImageData(tokens, rows);
    for (let t = 0; t < tokens; t++)
      for (let row = 0; row < rows; row++) {
        const [r, g, b] = table[share[t * rows + row]], p = 4 * (row * tokens + t);
        image.data[p] = r; image.data[p + 1] = g; image.data[p + 2] = b; image.data[p + 3] = 255;
      }
    const small = el("canvas", { width: tokens, height: rows });
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, tokens, rows, 0, top, tokens * w, rows * h);
    if (numbers) {
      for (let t = 0; t < tokens; t++) {
        context.fillStyle = `rgb(${table[255 - numbers.gate[t]]})`;
        context.fillRect(t * w, band, w, GATE - 4);
      }
      context.save();
      context.translate(0, top + rows * h);
      slim.curve.paint(context, numbers, w);
      context.restore();
    }
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
      context.fillRect(border - 1, 0, 2, top + rows * h);
    }
  }

  function place() {
    cursor.hidden = at.token < 0 || at.token >= (data?.tokens.length ?? 0);
    if (cursor.hidden) return;
    Object.assign(cursor.style, {
      left: `${at.token * cell.w}px`, top: `${BAND}px`, width: `${cell.w}px`, height: `${size().height - BAND}px`,
    });
    cursor.style.setProperty("--row", `${space().top - BAND + at.row * cell.h}px`);
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
    const row = Math.floor((event.clientY - box.top - space().top) / cell.h);
    if (!data || token < 0 || token >= data.tokens.length) return null;
    return { token, row: Math.max(0, Math.min(row, data.blocks.length - 1)) };
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
    const of = numbers && `; gate ${(numbers.gate[token] / 255).toFixed(2)}, distance ${slim.distance(numbers.distance[token])}, up to ${slim.distance(numbers.reference[token])} is like the training data`;
    return `Layer ${data.blocks[row]}, token ${token + 1} “${slim.visible(data.tokens[token]).trim()}”: ${data.share} ${slim.percent(value(token, row))}${of || ""}`;
  }
  new ResizeObserver(() => {
    if (data && share && scroller.clientWidth && hue !== `${scroller.clientWidth}`) {
      hue = `${scroller.clientWidth}`;
      draw(data, share, numbers);
    }
  }).observe(scroller);
  // What is above and below the rows, for the exported picture.
  const high = () => ({ ...space(), ticks: numbers && slim.curve.ticks(numbers) });
  return { draw, mark, paint, high, describe, value, position: () => at };
};
/* The end of a part of SLIM's page 1. */
