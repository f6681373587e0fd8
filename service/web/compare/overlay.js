// A veil over a photo that is thin where the photo made the two similar, and marks of pairs.

import { h } from "../lib/dom.js";

// Of the veil where nothing was added; where most was, there is none.
const DARKEST = 0.62;

// Pixels of the veil: it is smooth, and the browser scales it.
const SIDE = 512;

/**
 * Lay a veil over the photo in `frame`.
 *
 * @param {HTMLElement} frame holds the photo and nothing around it.
 * @param {{heat: number[][], area: object}} regions as the service gives them.
 */
export function paintVeil(frame, { heat, area }) {
  const grid = h("canvas", { width: heat[0].length, height: heat.length });
  const pen = grid.getContext("2d");
  const pixels = pen.createImageData(grid.width, grid.height);
  heat.flat().forEach((value, i) => {
    pixels.data[4 * i + 3] = Math.round(255 * DARKEST * (1 - value));
  });
  pen.putImageData(pixels, 0, 0);

  const veil = h("canvas", { class: "compare-veil", width: SIDE, height: SIDE, "aria-hidden": "true" });
  const brush = veil.getContext("2d");
  const [left, top] = [area.left * SIDE, area.top * SIDE];
  const [width, height] = [(area.right - area.left) * SIDE, (area.bottom - area.top) * SIDE];
  // What the model does not see adds nothing.
  brush.fillStyle = `rgb(0 0 0 / ${DARKEST})`;
  brush.fillRect(0, 0, SIDE, SIDE);
  brush.clearRect(left, top, width, height);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(grid, left, top, width, height);
  frame.append(veil);
}

/**
 * Number the two cells of a pair; pointing at one shows both.
 *
 * @param {HTMLElement} left frame of the query.
 * @param {HTMLElement} right frame of the result.
 * @param {object} explained the service's answer.
 * @param {{query: number[], result: number[], contribution: number}} pair one of its pairs.
 * @param {number} number what to write.
 */
export function markPair(left, right, explained, pair, number) {
  const marks = [
    mark(left, explained.query, pair.query, number),
    mark(right, explained.result, pair.result, number),
  ];
  const title = `Adds ${pair.contribution.toFixed(3)} to the score of ${explained.score.toFixed(3)}`;
  for (const each of marks) {
    each.title = title;
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
      each.addEventListener(event, () => marks.forEach((m) => m.classList.toggle("on", on)));
    }
  }
}

function mark(frame, { heat, area }, [row, column], number) {
  const x = area.left + ((column + 0.5) / heat[0].length) * (area.right - area.left);
  const y = area.top + ((row + 0.5) / heat.length) * (area.bottom - area.top);
  const node = h("span", { class: "compare-mark", "aria-hidden": "true" }, String(number));
  // A cell can lie beside the photo where the model adds grey.
  node.style.left = `${100 * Math.min(0.97, Math.max(0.03, x))}%`;
  node.style.top = `${100 * Math.min(0.97, Math.max(0.03, y))}%`;
  frame.append(node);
  return node;
}
