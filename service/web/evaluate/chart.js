// The recall@K curve, of one run or of two, as SVG with a table's worth of text for screen readers.

import { percent } from "../lib/format.js";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 560;
const HEIGHT = 300;
const EDGE = { left: 52, right: 16, top: 16, bottom: 40 };

/**
 * A chart of recall over K, both axes whole: 0 to 100 %, and K by its logarithm.
 *
 * @param {{name: string, recall: Record<string, number>}[]} runs the first one stands out.
 */
export function recallChart(runs) {
  const ks = [...new Set(runs.flatMap((run) => Object.keys(run.recall).map(Number)))].sort((a, b) => a - b);
  const largest = Math.max(2, ks.at(-1));
  const x = (k) => EDGE.left + ((WIDTH - EDGE.left - EDGE.right) * Math.log(k)) / Math.log(largest);
  const y = (share) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (1 - share);
  const chart = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img" });
  const told = runs.map((run) => `${run.name}: ${points(run).map(([k, share]) => `${percent(share)} at ${k}`).join(", ")}`);
  chart.append(s("title", {}, `recall@K. ${told.join(". ")}`));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(
      s("line", { class: "chart-rule", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(share), y2: y(share) }),
      s("text", { class: "chart-mark", x: EDGE.left - 8, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)),
    );
  }
  for (const k of ks) {
    chart.append(s("text", { class: "chart-mark", x: x(k), y: HEIGHT - EDGE.bottom + 20, "text-anchor": "middle" }, String(k)));
  }
  chart.append(s("text", { class: "chart-mark", x: WIDTH / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "K"));
  runs.toReversed().forEach((run, place) => {
    const kind = place === runs.length - 1 ? "chart-now" : "chart-before";
    const path = points(run).map(([k, share]) => `${x(k)},${y(share)}`);
    chart.append(s("polyline", { class: `chart-line ${kind}`, points: path.join(" ") }));
    for (const [k, share] of points(run)) chart.append(s("circle", { class: `chart-dot ${kind}`, cx: x(k), cy: y(share), r: 4 }));
  });
  const [now] = runs;
  for (const [k, share] of points(now)) {
    // The curve rises, so under its first point is room.
    const below = share > 0.9 || (k === ks[0] && share > 0.1);
    const anchor = k === ks[0] ? "start" : k === largest ? "end" : "middle";
    chart.append(s("text", { class: "chart-value", x: x(k), y: y(share) + (below ? 22 : -10), "text-anchor": anchor }, percent(share)));
  }
  return chart;
}

function points(run) {
  return Object.entries(run.recall)
    .map(([k, share]) => [Number(k), share])
    .sort((a, b) => a[0] - b[0]);
}

function s(tag, attributes, text = "") {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(text);
  return node;
}
