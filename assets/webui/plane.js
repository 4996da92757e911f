// SPDX-License-Identifier: Apache-2.0
// The plane of learning and forgetting. To the right: what should not be forgotten. Up: what was trained.
slim.plane = (plane) => {
  const { el, tip } = slim;
  const NS = "http://www.w3.org/2000/svg", LEFT = 60, RIGHT = 18, TOP = 14, BOTTOM = 46;
  const percent = (x) => `${(100 * x).toFixed(1)}%`;
  const node = el("div", { class: "slim-plane" });
  const everything = [plane.base, ...plane.shipped, ...plane.rates, ...plane.strengths, ...plane.scales];
  const described = (point) => `${point.name}${point.what ? `, ${point.what}` : ""}: ${percent(point.downstream[0])} of what was trained, ${percent(point.general[0])} of the rest`;

  function part(tag, attributes, text = null) {
    const made = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  // From the least to the most of what is shown, in steps that a person would choose.
  function range(scores) {
    const least = Math.min(...scores), most = Math.max(...scores), span = Math.max(0.05, most - least);
    const step = [0.02, 0.05, 0.1, 0.2].find((size) => span / size <= 6) ?? 0.25;
    const low = Math.max(0, Math.floor((least - 0.04 * span) / step) * step);
    const high = Math.min(1, Math.ceil((most + 0.04 * span) / step) * step);
    const ticks = [];
    for (let x = low; x <= high + 1e-9; x += step) ticks.push(x);
    return { low, high: Math.max(high, low + step), ticks };
  }

  function draw(width) {
    const height = Math.round(Math.max(280, Math.min(460, width * 0.62)));
    const ends = (name) => everything.flatMap((point) => point[name]);
    const across = range(ends("general")), up = range(ends("downstream"));
    const x = (share) => LEFT + ((width - LEFT - RIGHT) * (share - across.low)) / (across.high - across.low);
    const y = (share) => height - BOTTOM - ((height - TOP - BOTTOM) * (share - up.low)) / (up.high - up.low);
    const summary = [plane.base, ...plane.shipped].map(described).join("; ");
    const svg = part("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Learning against forgetting. ${summary}.${plane.here ? ` Your gate, ${plane.here.text}.` : ""}` });
    const line = (x1, y1, x2, y2, name) => svg.append(part("line", { x1, y1, x2, y2, class: name }));
    for (const tick of across.ticks) {
      line(x(tick), TOP, x(tick), height - BOTTOM, "slim-plane-grid");
      svg.append(part("text", { x: x(tick), y: height - BOTTOM + 16, "text-anchor": "middle" }, `${Math.round(100 * tick)}%`));
    }
    for (const tick of up.ticks) {
      line(LEFT, y(tick), width - RIGHT, y(tick), "slim-plane-grid");
      svg.append(part("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, `${Math.round(100 * tick)}%`));
    }
    svg.append(part("text", { x: (LEFT + width - RIGHT) / 2, y: height - 8, "text-anchor": "middle" }, "what should not be forgotten →"),
      part("text", { transform: `translate(13 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, "what was trained →"));
    line(x(plane.base.general[0]), TOP, x(plane.base.general[0]), height - BOTTOM, "slim-plane-base");
    line(LEFT, y(plane.base.downstream[0]), width - RIGHT, y(plane.base.downstream[0]), "slim-plane-base");

    const way = (points, name) => {
      if (points.length > 1)
        svg.append(part("polyline", { class: name, points: points.map((p) => `${x(p.general[0])},${y(p.downstream[0])}`).join(" ") }));
    };
    way(plane.scales, "slim-plane-way slim-plane-of-lora");
    way(plane.strengths, "slim-plane-way slim-plane-of-slim");

    function dot(point, size, name) {
      const [g, gLow, gHigh] = point.general, [d, dLow, dHigh] = point.downstream, kind = point.method.split("_")[0];
      const group = part("g", { class: `slim-plane-point slim-plane-of-${kind} ${name}` });
      group.append(part("line", { x1: x(gLow), x2: x(gHigh), y1: y(d), y2: y(d) }),
        part("line", { x1: x(g), x2: x(g), y1: y(dLow), y2: y(dHigh) }),
        part("circle", { cx: x(g), cy: y(d), r: size }), part("circle", { cx: x(g), cy: y(d), r: 12, class: "slim-plane-hit" }));
      group.addEventListener("mouseenter", () => tip(described(point), () => group.lastChild.getBoundingClientRect()));
      group.addEventListener("mouseleave", () => tip(""));
      svg.append(group);
    }
    const label = (point, text, name, below = false) => {
      const left = x(point.general[0]) > width * 0.55, top = y(point.downstream[0]);
      // There is no room above a point at the top.
      svg.append(part("text", { x: x(point.general[0]) + (left ? -12 : 12), y: top + (below || top < TOP + 12 ? 20 : -10),
        "text-anchor": left ? "end" : "start", class: `slim-plane-label ${name}` }, text));
    };
    for (const point of plane.rates) dot(point, 3.5, point.method === "lora_half" ? "slim-plane-hollow" : "slim-plane-faint");
    for (const point of plane.scales) if (point.scale !== 1) dot(point, 3.5, "slim-plane-hollow");
    for (const point of plane.strengths) dot(point, 4, "");
    if (plane.here) svg.append(part("circle", { cx: x(plane.here.general), cy: y(plane.here.downstream), r: 12, class: "slim-plane-here" }));
    for (const point of [plane.base, ...plane.shipped]) {
      dot(point, 7, "");
      label(point, point.name, `slim-plane-of-${point.method}`, point.method === "base");
    }
    const open = plane.strengths.find((point) => point.strength === 0);
    if (open) label(open, "SLIM, gate open", "slim-plane-of-slim", true);
    node.replaceChildren(svg);
  }

  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.min(900, node.clientWidth);
    if (width > 60 && width !== drawn) draw(drawn = width);
  }).observe(node);

  const rows = everything.map((point) => el("tr", {}, el("th", { scope: "row" }, point.name), el("td", {}, point.what || "as it is here"),
    ...["downstream", "general"].map((name) => el("td", {}, `${percent(point[name][0])} (${percent(point[name][1])} to ${percent(point[name][2])})`))));
  const parts = [plane.note ?? "Dashed lines: the base. The lines through a large point are its 95 % intervals over the questions. Small points are learning rates, scored on validation questions; the lines through them are ranges over the seeds."];
  if (plane.strengths.length > 1) parts.push("The blue line is SLIM’s gate from open to strong, the same adapter throughout.");
  if (plane.scales.length > 1) parts.push("The orange line is LoRA scaled down.");
  if (plane.rates.some((point) => point.method === "lora_half")) parts.push("Small hollow points off the line are LoRA on half of the Linears.");
  if (plane.here) parts.push(`The ring is your gate, ${plane.here.text}.`);
  if (plane.elsewhere) parts.push(plane.elsewhere);
  const title = plane.title ?? "Learning against forgetting";
  return el("section", { class: "slim-card slim-wide", "aria-label": title },
    el("h2", {}, title), el("p", { class: "slim-note" }, parts.join(" ")), node,
    el("details", {}, el("summary", {}, "The points as a table"),
      el("div", { class: "slim-table", tabindex: "0", role: "region", "aria-label": "Points of the plane" },
        el("table", {}, el("thead", {}, el("tr", {}, ...["Method", "Which", "Trained on", "Not to be forgotten"].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, ...rows)))));
};
/* The end of a part of SLIM's page 1. */
