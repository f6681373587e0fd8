// A result beside its query, large; over both, which regions made them similar.

import { ApiError, getJson, postForm, send } from "../lib/api.js";
import { openDialog } from "../lib/dialog.js";
import { clear, h, stylesheet } from "../lib/dom.js";
import { attributes as formatAttribute, score as formatScore } from "../lib/format.js";
import { photo } from "../lib/photo.js";
import { markPair, paintVeil } from "./overlay.js";

// The longer side in pixels of what is shown: the service makes none that are larger.
const SIZE = 1024;

let model = null;

/**
 * Open the comparison.
 *
 * @param {object} options
 * @param {{file?: Blob, itemId?: number, url?: string}} options.query what was searched by: a photo
 *   and the address where it can be seen, or an item.
 * @param {object} options.result a hit: id, score, label, sku, attributes.
 * @param {object[]} [options.results] all hits of the search, to go through with the arrow keys.
 */
export async function openCompare({ query, result, results = [result] }) {
  stylesheet("style/compare.css");
  let position = Math.max(0, results.findIndex((each) => each.id === result.id));
  let stop = new AbortController();

  const stage = h("div", { class: "compare-stage" });
  const facts = h("div", { class: "compare-facts" });
  const note = h("p", { class: "compare-note quiet", role: "status" });
  const overlay = h("input", { type: "checkbox", checked: true, id: "compare-overlay" });
  const toggle = h(
    "label",
    { class: "compare-toggle", hidden: true },
    overlay,
    h("span", {}, "Similar regions"),
  );
  const earlier = h("button", { type: "button", class: "button", onclick: () => step(-1) }, "← Previous");
  const later = h("button", { type: "button", class: "button", onclick: () => step(1) }, "Next →");
  const steps = h("div", { class: "compare-steps", hidden: results.length < 2 }, earlier, later);

  const body = h(
    "div",
    { class: "compare" },
    stage,
    h("div", { class: "compare-bar" }, toggle, note, steps),
    facts,
  );
  const dialog = openDialog({
    title: "Compare",
    body,
    className: "compare-dialog",
    onClose: () => stop.abort(),
  });

  overlay.addEventListener("change", () => stage.classList.toggle("plain", !overlay.checked));
  dialog.node.addEventListener("keydown", pressed);
  await show();

  function step(by) {
    const next = position + by;
    if (next < 0 || next >= results.length) return;
    position = next;
    show();
  }

  function pressed(event) {
    if (event.target.matches("input[type=text]")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "o" && !toggle.hidden) overlay.click();
    else if (event.key === "m") searchBy(results[position]);
    else return;
    event.preventDefault();
  }

  function searchBy(hit) {
    dialog.close();
    location.hash = `#/search?item=${hit.id}`;
  }

  async function show() {
    stop.abort();
    stop = new AbortController();
    const { signal } = stop;
    const hit = results[position];
    earlier.disabled = position === 0;
    later.disabled = position === results.length - 1;
    note.textContent = "";

    const left = pane("Query", queryPhoto(query));
    const right = pane("Result", photo(hit, { size: SIZE }));
    clear(stage).append(left.figure, right.figure);
    clear(facts).append(description(hit, () => searchBy(hit)));

    try {
      if (!(await canExplain())) {
        note.textContent = "This model cannot show which regions are similar.";
        return;
      }
      note.textContent = "Finding similar regions …";
      const explained = await explain(query, hit, signal);
      if (signal.aborted) return;
      toggle.hidden = false;
      note.textContent = "Bright: what makes the two similar. Equal numbers belong together.";
      paintVeil(left.frame, explained.query);
      paintVeil(right.frame, explained.result);
      explained.pairs.forEach((pair, i) => {
        markPair(left.frame, right.frame, explained, pair, i + 1);
      });
    } catch (error) {
      if (signal.aborted) return;
      toggle.hidden = true;
      note.textContent =
        error instanceof ApiError ? `No regions: ${error.detail}` : "No regions: no answer.";
    }
  }
}

function pane(caption, picture) {
  const frame = h("div", { class: "compare-frame" }, picture);
  picture.addEventListener("load", () => {
    // As wide as the photo is at the height there is.
    frame.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
  });
  return { frame, figure: h("figure", {}, h("figcaption", { class: "quiet" }, caption), frame) };
}

function queryPhoto(query) {
  if (query.itemId !== undefined) return photo({ id: query.itemId }, { size: SIZE });
  return h("img", { src: query.url, alt: "The photo that was searched by" });
}

function description(hit, searchBy) {
  const rows = Object.entries(hit.attributes ?? {}).map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, formatAttribute(value))),
  );
  return h(
    "div",
    { class: "compare-description" },
    h(
      "p",
      { class: "compare-title" },
      h("strong", {}, hit.label ?? "No label"),
      h("span", { class: "compare-score" }, formatScore(hit.score)),
    ),
    h("dl", { class: "compare-attributes" }, ...rows),
    h(
      "div",
      { class: "compare-actions" },
      h("button", { type: "button", class: "button primary", onclick: searchBy }, "More like this"),
    ),
  );
}

// Asked once: another model comes with another load of the page.
async function canExplain() {
  model ??= getJson("model");
  try {
    return (await model).regions === true;
  } catch (error) {
    model = null;
    throw error;
  }
}

function explain(query, hit, signal) {
  if (query.itemId !== undefined) {
    return send("POST", `explain?result=${hit.id}&item=${query.itemId}`, undefined, { signal });
  }
  const form = new FormData();
  form.append("file", query.file);
  return postForm(`explain?result=${hit.id}`, form, { signal });
}
