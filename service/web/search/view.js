// Searching: by a photo or a part of it, by several photos, by an item of the gallery.

import { ServerGone, events, getJson, isAbort, postForm } from "../lib/api.js";
import { clear, debounce, h } from "../lib/dom.js";
import { filterPanel } from "../lib/filters.js";
import { bytes, duration, percent, plural, score } from "../lib/format.js";
import { photo } from "../lib/photo.js";
import { cropper } from "./crop.js";
import { emptyGallery, nothingMatches, samples, wrong } from "./messages.js";
import { resultGrid } from "./results.js";

const COUNTS = [12, 24, 48, 96];
const SAMPLES = 6;

// A search that takes longer than this is said to; milliseconds.
const SLOW_MS = 4000;

// The photos that were searched by last: they are searched by again when the view is shown again,
// after a look at another view, or on the way back from "more like this".
let kept = [];

/** Show the view in `root`; `params` are those of the address. Gives what ends it. */
export async function show(root, params) {
  const leaving = new AbortController();
  let query = null; // {file, sent, url} | {itemId} | {files}
  let running = null;
  let crop = null;
  let urls = []; // of photos in rows, to be released

  // The query

  const upload = h("input", {
    type: "file",
    class: "drop-input",
    accept: "image/*",
    multiple: true,
    id: "photo-input",
    "data-upload": "",
    onchange: () => take([...upload.files], upload),
  });
  const camera = h("input", {
    type: "file",
    class: "out-of-sight camera-input",
    accept: "image/*",
    capture: "environment",
    id: "camera-input",
    onchange: () => take([...camera.files], camera),
  });
  const drop = h(
    "label",
    { class: "drop", for: "photo-input" },
    upload,
    h("span", { class: "drop-title" }, "Choose photos"),
    h("span", { class: "drop-hint quiet" }, "or drop them here, or paste one"),
  );
  const takePhoto = h("label", { class: "button camera", for: "camera-input" }, "Take a photo", camera);
  const preview = h("div", { class: "preview", hidden: true });
  const another = h("button", { type: "button", class: "button another", "data-upload": "", onclick: () => upload.click() }, "Another photo");

  // How to search

  const number = h(
    "select",
    { id: "result-count", onchange: () => changed() },
    COUNTS.map((n) => h("option", { value: String(n) }, String(n))),
  );
  const wantedCount = Number(params.get("k")) || COUNTS[1];
  if (!COUNTS.includes(wantedCount)) number.append(h("option", { value: String(wantedCount) }, String(wantedCount)));
  number.value = String(wantedCount);
  const grouped = h("input", {
    type: "checkbox",
    id: "grouped",
    checked: params.get("group_by") === "label",
    onchange: () => changed(),
  });
  const threshold = h("input", {
    type: "range",
    id: "threshold",
    min: "-1",
    max: "1",
    step: "0.01",
    oninput: () => {
      tellThreshold();
      later();
    },
  });
  threshold.value = Number.isFinite(parseFloat(params.get("threshold"))) ? params.get("threshold") : "-1";
  const thresholdValue = h("output", { for: "threshold", class: "threshold-value" });
  const filters = filterPanel({ onChange: () => changed(), where: parsed(params.get("where")) });
  const later = debounce(() => changed(), 250);

  function tellThreshold() {
    thresholdValue.textContent = Number(threshold.value) <= -1 ? "any" : `≥ ${score(Number(threshold.value))}`;
  }
  tellThreshold();

  const options = h(
    "div",
    { class: "search-options" },
    h("label", { class: "option", for: "result-count" }, "Show", number),
    h("label", { class: "option", for: "grouped" }, grouped, "One of each class"),
    h("label", { class: "option option-wide", for: "threshold" }, h("span", {}, "Score"), threshold, thresholdValue),
  );

  // What was found

  const note = h("p", { class: "results-note quiet", role: "status" });
  const stop = h("button", { type: "button", class: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const again = h("button", { type: "button", class: "button", hidden: true, onclick: () => search() }, "Search again");
  const found = h("div", { class: "found" });
  const title = h("h2", { class: "results-title", hidden: true }, "Nearest");
  const head = h("div", { class: "results-head" }, title, note, stop, again);
  const view = h(
    "div",
    { class: "search" },
    h(
      "section",
      { class: "query", "aria-label": "Your photo" },
      h("h1", {}, "Which ones look like yours?"),
      preview,
      h("div", { class: "sources" }, drop, takePhoto, another),
      options,
      filters.node,
    ),
    h("section", { class: "outcome", "aria-label": "Results", "aria-busy": "false" }, head, found),
  );
  const outcome = view.querySelector(".outcome");
  clear(root).append(view);

  // Photos come in

  const over = (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    view.classList.toggle("dropping", event.type === "dragover");
  };
  const signal = leaving.signal;
  window.addEventListener("dragover", over, { signal });
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && view.classList.remove("dropping"), { signal });
  window.addEventListener(
    "drop",
    (event) => {
      over(event);
      take([...(event.dataTransfer?.files ?? [])]);
    },
    { signal },
  );
  window.addEventListener(
    "paste",
    (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length === 0) return;
      event.preventDefault();
      take(files);
    },
    { signal },
  );
  events.addEventListener("back", resume, { signal });

  if (params.has("where") && parsed(params.get("where")) === null) {
    say("That link does not work", "Its filter cannot be read: it was cut off, or changed on its way.");
  } else if (params.has("item")) byItem(Number(params.get("item")), { remember: false });
  else if (kept.length > 0) byFiles(kept);
  else start();

  return () => {
    leaving.abort();
    running?.abort();
    crop?.release();
    releaseRows();
  };

  function take(files, input = null) {
    if (input !== null) input.value = ""; // so that the same file can be chosen again
    if (files.length === 0) return;
    const fromItem = query?.itemId !== undefined;
    kept = files;
    byFiles(files);
    if (fromItem) history.pushState(null, "", link());
  }

  function byFiles(files) {
    if (files.length === 1) byPhoto(files[0]);
    else bySeveral(files);
  }

  function byPhoto(file) {
    const mine = cropper(file, {
      onCrop: (part) => {
        query.sent = part ?? file;
        search();
      },
    });
    showQuery(mine.node, "photo");
    crop = mine;
    query = { file, sent: file, url: crop.url };
    search();
  }

  function bySeveral(files) {
    query = { files };
    showQuery(h("p", { class: "preview-several" }, plural(files.length, "photo")), "several");
    search();
  }

  function byItem(itemId, { remember = true } = {}) {
    if (!Number.isSafeInteger(itemId) || itemId < 1) {
      say("That link does not work", `“${params.get("item")}” is not the number of an item.`);
      return;
    }
    query = { itemId };
    const node = h(
      "figure",
      { class: "preview-item" },
      photo({ id: itemId }, { size: 512, alt: "The item that is searched by" }),
      h("figcaption", { class: "quiet" }, `Item ${itemId} of the gallery`),
    );
    showQuery(node, "item");
    if (remember) history.pushState(null, "", link());
    search();
    view.querySelector("h1").scrollIntoView({ block: "nearest" });
  }

  function showQuery(node, kind) {
    crop?.release();
    crop = null;
    clear(preview).append(node);
    preview.hidden = false;
    view.dataset.query = kind;
  }

  function changed() {
    if (query === null) return;
    history.replaceState(null, "", link());
    search();
  }

  function parameters() {
    const asked = new URLSearchParams({ k: number.value });
    if (grouped.checked) asked.set("group_by", "label");
    if (Number(threshold.value) > -1) asked.set("threshold", threshold.value);
    if (filters.where() !== null) asked.set("where", JSON.stringify(filters.where()));
    return asked;
  }

  /** The address that shows this search again: the item's, or its options alone. */
  function link() {
    return `#/search?${query.itemId ? `item=${query.itemId}&` : ""}${parameters()}`;
  }

  // Searching

  async function search() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    outcome.setAttribute("aria-busy", "true");
    note.textContent = "Searching …";
    stop.hidden = true;
    again.hidden = true;
    let sent = query.itemId ? 1 : 0;
    const tellSlow = () => {
      if (stop.hidden || running !== mine) return;
      note.textContent =
        sent < 1
          ? `Still sending, ${percent(sent, 0)}: the network is slow.`
          : "Still searching: the network is slow, or the server is busy.";
    };
    const slow = setTimeout(() => {
      stop.hidden = false;
      tellSlow();
    }, SLOW_MS);
    const onProgress = (part) => {
      sent = part;
      tellSlow();
    };
    const began = performance.now();
    try {
      if (query.files) await searchSeveral(query.files, { signal: mine.signal, onProgress });
      else await searchOne({ signal: mine.signal, onProgress }, began);
    } catch (error) {
      if (running === mine) failed(error);
    } finally {
      clearTimeout(slow);
      if (running === mine) {
        running = null;
        stop.hidden = true;
        outcome.setAttribute("aria-busy", "false");
      }
    }
  }

  async function searchOne({ signal, onProgress }, began) {
    const asked = query;
    let answer;
    if (asked.itemId) {
      answer = await getJson(`items/${asked.itemId}/similar?${parameters()}`, { signal });
    } else {
      const form = new FormData();
      form.append("file", asked.sent, asked.file.name || "photo.jpg");
      answer = await postForm(`search?${parameters()}`, form, { signal, onProgress });
    }
    if (answer.results.length === 0) {
      await tellNothing(signal);
      return;
    }
    releaseRows();
    const shown = asked.itemId ? { itemId: asked.itemId } : { file: asked.sent, url: asked.url };
    clear(found).append(
      resultGrid(answer.results, {
        label: "Nearest first",
        onMore: (hit) => byItem(hit.id),
        onOpen: (hit) => open(shown, hit, answer.results),
      }),
    );
    title.hidden = false;
    note.textContent = `${plural(answer.results.length, "result")} in ${duration(performance.now() - began)}`;
  }

  async function searchSeveral(files, { signal, onProgress }) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    const { answers } = await postForm(`search/batch?${parameters()}`, form, { signal, onProgress });
    releaseRows();
    urls = files.map((file) => URL.createObjectURL(file));
    const rows = answers.map((answer, i) => {
      const url = urls[i];
      const what = answer.problem
        ? h("p", { class: "notice notice-wrong" }, answer.problem.detail)
        : answer.results.length === 0
          ? h("p", { class: "quiet" }, "Nothing matches.")
          : resultGrid(answer.results, {
              label: `Nearest to ${answer.file ?? `photo ${i + 1}`}`,
              onMore: (hit) => byItem(hit.id),
              onOpen: (hit) => open({ file: files[i], url }, hit, answer.results),
            });
      return h(
        "section",
        { class: "row", "aria-label": answer.file ?? `Photo ${i + 1}` },
        h(
          "figure",
          { class: "row-query" },
          h("img", { src: url, alt: "" }),
          h("figcaption", { class: "quiet" }, answer.file ?? `Photo ${i + 1}`),
        ),
        what,
      );
    });
    clear(found).append(...rows);
    title.hidden = false;
    note.textContent = plural(files.length, "photo");
  }

  async function open(query, hit, results) {
    const { openCompare } = await import("../compare/dialog.js");
    openCompare({ query, result: hit, results });
  }

  // What else there is to say

  function failed(error) {
    if (isAbort(error)) {
      note.textContent = "Stopped.";
      again.hidden = false;
      return;
    }
    if (error instanceof ServerGone) {
      say("The server does not answer", "The search is repeated as soon as it is back.");
      return;
    }
    const file = query?.file;
    const which = file ? `${file.name || "The photo"} (${bytes(file.size)})` : "The search";
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    const mayWork = error.status >= 500 || error.status === 429 || error.status === 401;
    say(`${which} did not work`, `${error.detail ?? error.message}${wait}`, mayWork ? resume : null);
  }

  function say(heading, text, onRetry = null) {
    note.textContent = "";
    title.hidden = true;
    releaseRows();
    clear(found).append(wrong(heading, text, onRetry));
  }

  async function tellNothing(signal) {
    const { items } = await getJson("model", { signal });
    note.textContent = "";
    title.hidden = true;
    releaseRows();
    clear(found).append(items === 0 ? emptyGallery() : nothingMatches());
  }

  /** Before the first search: some photos to start from, or how to fill a gallery that is empty. */
  async function start() {
    const { signal } = leaving;
    try {
      const { items } = await getJson("model", { signal });
      const places = Array.from({ length: Math.min(SAMPLES, items) }, (_, i) => Math.floor((i * items) / SAMPLES));
      const pages = await Promise.all(places.map((offset) => getJson(`items?limit=1&offset=${offset}`, { signal })));
      if (query !== null) return; // a photo was quicker
      clear(found).append(
        items === 0 ? emptyGallery() : samples(pages.flatMap((page) => page.items), (item) => byItem(item.id)),
      );
    } catch (error) {
      if (!isAbort(error) && query === null) failed(error);
    }
  }

  /** Do again what could not be done. */
  function resume() {
    if (filters.node.hidden) filters.refresh();
    if (running !== null || found.querySelector(".notice-wrong") === null) return;
    if (query === null) start();
    else search();
  }

  function releaseRows() {
    for (const url of urls) URL.revokeObjectURL(url);
    urls = [];
  }
}

function parsed(text) {
  try {
    const where = JSON.parse(text ?? "null");
    return where !== null && typeof where === "object" && !Array.isArray(where) ? where : null;
  } catch {
    return null;
  }
}
