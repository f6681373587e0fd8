// What a search found, as a grid of photos.

import { h } from "../lib/dom.js";
import { attributeLine, score } from "../lib/format.js";
import { roving } from "../lib/keys.js";
import { photo } from "../lib/photo.js";

/**
 * A grid of hits.
 *
 * @param {object[]} hits as the service gives them.
 * @param {(hit: object) => void} options.onOpen a hit was opened, to be compared.
 * @param {(hit: object) => void} options.onMore more like this one is wanted.
 * @param {string} options.label what the grid is called.
 */
export function resultGrid(hits, { onOpen, onMore, label }) {
  const byCard = new Map();
  const cards = hits.map((hit, place) => {
    const first = place === 0 ? "0" : "-1";
    const open = h(
      "button",
      {
        type: "button",
        class: "result-open",
        tabindex: first,
        "aria-label": `${hit.label ?? `Item ${hit.id}`}, score ${score(hit.score)}. Compare`,
        onclick: () => onOpen(hit),
      },
      photo(hit, { size: 384, alt: "" }),
    );
    byCard.set(open, hit);
    return h(
      "li",
      { class: "card result" },
      open,
      h(
        "div",
        { class: "result-line" },
        h("p", { class: "card-label" }, hit.label ?? hit.sku ?? `Item ${hit.id}`),
        h("p", { class: "result-score", title: "Cosine similarity: higher is nearer" }, score(hit.score)),
      ),
      h("p", { class: "card-attributes quiet" }, attributeLine(hit)),
      h(
        "button",
        {
          type: "button",
          class: "result-more",
          tabindex: first,
          "aria-label": `More like this: ${hit.label ?? `item ${hit.id}`}`,
          onclick: () => onMore(hit),
        },
        "More like this",
      ),
    );
  });
  const grid = h("ol", { class: "grid results", "aria-label": label }, cards);
  roving(grid, ".result-open", (card, key) => {
    if (key !== "m") return false;
    onMore(byCard.get(card));
    return true;
  });
  // Tab leads from the photo to its button, and from there out of the grid.
  grid.addEventListener("focusin", (event) => {
    const here = event.target.closest(".result");
    for (const more of grid.querySelectorAll(".result-more")) more.tabIndex = here?.contains(more) ? 0 : -1;
  });
  return grid;
}
