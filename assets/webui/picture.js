// SPDX-License-Identifier: Apache-2.0
// The routing view as one picture: its owner, tokens, heat map, layers, experts, and the legend.
slim.picture = ({ title, prompt, scope, data, shares, paint, high, words: [least, most] }) => {
  const { color, css, el, percent, visible } = slim;
  const EDGE = 24, LEFT = 56, LINE = 24, CELL = 16, BAND = 16, BAR = 18, MOST_LINES = 16;
  const FONT = "system-ui, sans-serif";
  const ink = css("--body-text-color") || "#222", paper = css("--body-background-fill") || "#fff";
  const past = data.share === "identity", track = css("--slim-mid-soft");
  const lora = css(past ? "--slim-lora-bg" : "--slim-other"), identity = css(past ? "--slim-identity-bg" : "--slim-other");
  const cell = Math.max(3, Math.min(22, 1200 / Math.max(1, data.tokens.length)));
  const width = Math.max(760, LEFT + cell * data.tokens.length + EDGE);

  const canvas = el("canvas"), context = canvas.getContext("2d");
  const write = (text, x, y, font = `13px ${FONT}`, align = "left") => {
    context.font = font;
    context.fillStyle = ink;
    context.textAlign = align;
    context.fillText(text, x, y);
  };

  // Where each token stands; a long text ends with the number of further tokens.
  context.font = `14px ${FONT}`;
  const placed = [];
  let x = EDGE, line = 0;
  for (const [i, token] of data.tokens.entries()) {
    const text = visible(token).replace(/\n/g, ""), size = context.measureText(text).width;
    if (x + size > width - EDGE) { x = EDGE; line += 1; }
    if (line === MOST_LINES) { placed.push({ text: `… and ${data.tokens.length - i} more`, x, line, size: 0, share: null }); break; }
    placed.push({ text, x, line, size, share: shares[i], prompt: i < data.prompt_tokens });
    x += size;
  }

  const tokensTop = 92, heatTop = tokensTop + LINE * (placed.length ? placed.at(-1).line + 1 : 0) + 20;
  const rowsTop = heatTop + high.top, rowsEnd = rowsTop + CELL * data.blocks.length;
  const barsTop = rowsEnd + high.below + 44;
  const bars = data.bars[scope], use = data.use[scope];
  const height = barsTop + BAR * Math.max(bars.length, use.length) + EDGE;
  // Canvases have a largest size.
  const sharp = Math.min(2, 16000 / Math.max(width, height));
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  context.scale(sharp, sharp);
  context.fillStyle = paper;
  context.fillRect(0, 0, width, height);

  write(title, EDGE, 32, `600 17px ${FONT}`);
  write(prompt, EDGE, 54);
  write(least, EDGE, 76);
  const ramp = EDGE + context.measureText(least).width + 10;
  for (let i = 0; i < 120; i++) {
    context.fillStyle = `rgb(${color(i / 119, data.share)})`;
    context.fillRect(ramp + i, 66, 1, 12);
  }
  write(most, ramp + 128, 76);

  for (const token of placed) {
    const top = tokensTop + LINE * token.line;
    if (token.share !== null) {
      context.globalAlpha = 0.4;
      context.fillStyle = `rgb(${color(token.share, data.share)})`;
      context.fillRect(token.x, top + 2, token.size, LINE - 4);
      context.globalAlpha = 1;
    }
    write(token.text, token.x, top + 17, `${token.prompt ? "italic " : ""}14px ${FONT}`);
  }

  data.blocks.forEach((block, i) => write(`layer ${block}`, LEFT - 8, rowsTop + i * CELL + 12, `11px ${FONT}`, "right"));
  if (high.ticks) {
    write("gate", LEFT - 8, heatTop + BAND + 10, `11px ${FONT}`, "right");
    for (const [text, y] of high.ticks) write(text, LEFT - 8, rowsEnd + y + 4, `11px ${FONT}`, "right");
  }
  context.save();
  context.textAlign = "left";
  context.translate(LEFT, heatTop);
  paint(context, cell, CELL, BAND);
  context.restore();

  const column = (width - 3 * EDGE) / 2;
  const bar = (name, share, size, i, left, front, back) => {
    const y = barsTop + i * BAR;
    write(name, left + 66, y + 11, `12px ${FONT}`, "right");
    for (const [colour, part] of [[back, 1], [front, size]]) {
      context.fillStyle = colour;
      context.fillRect(left + 76, y + 2, (column - 140) * part, 10);
    }
    write(percent(share), left + column, y + 11, `12px ${FONT}`, "right");
  };
  const right = column + 2 * EDGE, top = Math.max(...use, 0.01);
  write(`Each layer, ${past ? "identity against LoRA" : data.share} (${scope})`, EDGE, barsTop - 10, `600 13px ${FONT}`);
  bars.forEach((share, i) => bar(`Layer ${data.blocks[i]}`, share, share, i, EDGE, identity, past ? lora : track));
  write(`Use of the experts (${scope})`, right, barsTop - 10, `600 13px ${FONT}`);
  use.forEach((share, i) => {
    const own = i >= data.experts;
    bar(own ? `Identity ${i - data.experts + 1}` : `LoRA ${i + 1}`, share, share / top, i, right, own ? identity : lora, track);
  });
  return canvas;
};
/* The end of a part of SLIM's page 1. */
