// What the search view says where it has no results to show.

import { h } from "../lib/dom.js";
import { roving } from "../lib/keys.js";
import { photo } from "../lib/photo.js";

/** Something went wrong; `onRetry`, if given, is what its button does. */
export function wrong(title, text, onRetry = null) {
  return h(
    "div",
    { class: "notice notice-wrong", role: "alert" },
    h("p", { class: "notice-title" }, title),
    h("p", {}, text),
    onRetry && h("p", {}, h("button", { type: "button", class: "button", onclick: onRetry }, "Try again")),
  );
}

/** No item has the filters and the score that were asked for. */
export function nothingMatches() {
  return h(
    "div",
    { class: "empty-state" },
    h("h2", {}, "Nothing matches"),
    h("p", { class: "quiet" }, "No photo of the gallery has these filters and so high a score. Clear a filter, or lower the score."),
  );
}

/** The gallery has no items: how to fill it. */
export function emptyGallery() {
  return h(
    "div",
    { class: "empty-state" },
    h("h2", {}, "The gallery is empty"),
    h("p", {}, "Add photos on the page, or a folder of them from the command line; class folders become labels:"),
    h("pre", {}, "dscl index build --gallery galleries/cars photos/"),
    h("a", { class: "button primary", href: "#/gallery" }, "Add photos"),
  );
}

/** Some items to start from; `onChoose(item)` is told which. */
export function samples(items, onChoose) {
  const grid = h(
    "ul",
    { class: "grid", "aria-label": "Photos of the gallery" },
    items.map((item, place) => {
      const name = item.label ?? item.sku ?? `Item ${item.id}`;
      const open = h(
        "button",
        { type: "button", class: "result-open", tabindex: place === 0 ? "0" : "-1", onclick: () => onChoose(item) },
        photo(item, { size: 192, alt: "" }),
        h("span", { class: "card-label sample-label" }, name),
      );
      return h("li", { class: "card" }, open);
    }),
  );
  roving(grid, ".result-open");
  return h("section", { class: "samples" }, h("h2", {}, "Or start from one of the gallery"), grid);
}
