// SPDX-License-Identifier: Apache-2.0
// The distance of the context over the tokens, with the limit for "like the training data" as a dashed line. The scale
// is logarithmic: an unfamiliar context may be a hundred times as far away as a familiar one.
slim.curve = (() => {
  const { css } = slim;
  const HEIGHT = 104, TOP = 10, BOTTOM = 6, TICKS = [-1, 0, 1, 10, 100, 1000];
  // Distances begin at -1, at the centre of a cluster.
  const scaled = (x) => Math.log(Math.max(x, -1) + 2);
  const top = (numbers) => Math.max(scaled(1), ...[...numbers.distance, ...numbers.reference].map(scaled)) * 1.05;
  const at = (x, most) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * scaled(x)) / most;

  // The labels of the axis and their positions.
  function ticks(numbers) {
    const most = top(numbers);
    return TICKS.filter((x) => scaled(x) <= most && (x !== 0 || most < scaled(8))).map((x) => [String(x).replace("-", "−"), at(x, most)]);
  }

  // On a context whose origin is the upper left corner; w is a token's width.
  function paint(context, numbers, w) {
    const { distance, reference } = numbers, most = top(numbers), width = w * distance.length;
    const line = css("--slim-quiet") || "#666", ink = css("--body-text-color") || "#222";
    const lora = css("--slim-lora-bg"), identity = css("--slim-identity-bg");
    context.save();
    context.globalAlpha = 0.25;
    context.fillStyle = line;
    for (const [, y] of ticks(numbers)) context.fillRect(0, y, width, 1);
    context.globalAlpha = 1;
    for (let t = 0; t < distance.length; t++) {
      const far = distance[t] > reference[t], y = at(distance[t], most), zero = at(reference[t], most);
      context.fillStyle = far ? identity : lora;
      context.globalAlpha = 0.22;
      context.fillRect(t * w, Math.min(y, zero), w, Math.abs(zero - y));
      context.globalAlpha = 1;
      context.fillRect(t * w, y - 1.5, w, 3);
    }
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    context.setLineDash([5, 4]);
    context.beginPath();
    reference.forEach((x, t) => {
      const y = at(x, most);
      if (t === 0) context.moveTo(0, y);
      else context.lineTo(t * w, y);
      context.lineTo((t + 1) * w, y);
    });
    context.stroke();
    context.restore();
  }
  return { HEIGHT, paint, ticks };
})();
/* The end of a part of SLIM's page 1. */
