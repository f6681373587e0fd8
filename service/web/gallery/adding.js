// Adding photos: a list of what was dropped, each with its progress and what became of it.
//
// Photos go one by one, so that each tells at once whether it was taken; a zip becomes a job.

import { isAbort, postForm } from "../lib/api.js";
import { clear, h } from "../lib/dom.js";
import { bytes, count } from "../lib/format.js";
import { cancel, follow } from "../lib/jobs.js";
import { fieldRows } from "./fields.js";

// The service embeds as many at a time as it has threads; two keep it and the line busy.
const AT_A_TIME = 2;

const ZIP = /\.zip$/i;
const PICTURE = /\.(jpe?g|jfif|png|webp|avif|bmp|tiff?|gif)$/i;

/** Whether a file may be a photo or a zip: the service judges by content. */
export const isAddable = (file) =>
  file.type.startsWith("image/") || PICTURE.test(file.name) || isZip(file);

const isZip = (file) => ZIP.test(file.name) || file.type === "application/zip";

/**
 * The panel of an upload, from the files to what became of them.
 *
 * @param {File[]} files
 * @param {object} options
 * @param {object[]} options.fields of the gallery, as `/fields` gives them.
 * @param {(item: object) => void} options.onAdded told of each item.
 * @param {() => void} options.onBulk told when a zip is through.
 * @param {() => void} options.onClose the panel is no longer wanted.
 * @returns {{node: HTMLElement, stop: () => void}}
 */
export function addingPanel(files, { fields, onAdded, onBulk, onClose }) {
  const stop = new AbortController();
  const zips = files.filter(isZip);
  const photos = files.filter((file) => !isZip(file));

  const known = fieldRows(fields, {});
  const described = h(
    "fieldset",
    { class: "adding-fields" },
    h("legend", {}, "What they have in common"),
    known.node,
  );
  const start = h("button", { type: "submit", class: "button primary" }, "Add");
  const leave = h("button", { type: "button", class: "button", onclick: close }, "Cancel");
  const status = h("p", { class: "adding-status", role: "status" });
  const bar = h("progress", { class: "adding-bar", max: 1, value: 0, hidden: true, "aria-label": "Added" });
  const rows = files.map((file) => new Row(file));
  const node = h(
    "form",
    { class: "adding", "aria-label": "Add photos", onsubmit: submit },
    h("h2", {}, heading(photos, zips)),
    photos.length > 0 ? described : null,
    zips.length > 0
      ? h(
          "p",
          { class: "quiet" },
          "Folders in a zip are labels, unless it has an items.csv with path, label, sku and attributes.",
        )
      : null,
    h("div", { class: "adding-actions" }, start, leave),
    bar,
    status,
    h("ul", { class: "adding-list" }, ...rows.map((row) => row.node)),
  );
  return { node, stop: () => stop.abort() };

  function close() {
    stop.abort();
    onClose();
  }

  async function submit(event) {
    event.preventDefault();
    const common = known.read();
    if (common === null) return;
    described.disabled = true;
    start.hidden = true;
    leave.textContent = "Stop";
    bar.hidden = false;
    const left = [...rows];
    let done = 0;
    const tell = () => {
      bar.value = (done + rows.reduce((sum, row) => sum + row.part, 0)) / rows.length;
      const refused = rows.filter((row) => row.state === "refused").length;
      status.textContent =
        `${count(done)} of ${count(rows.length)} done` + (refused ? `, ${count(refused)} refused` : "");
    };
    const work = async () => {
      while (left.length > 0 && !stop.signal.aborted) {
        const row = left.shift();
        await (isZip(row.file) ? addZip(row, tell) : addPhoto(row, common, tell));
        row.part = 0;
        done += 1;
        tell();
      }
    };
    tell();
    await Promise.all(Array.from({ length: AT_A_TIME }, work));
    for (const row of left) row.say("stopped", "Not sent");
    const refused = rows.filter((row) => row.state === "refused").length;
    const stopped = stop.signal.aborted;
    status.textContent = stopped
      ? "Stopped. What was added stays."
      : refused === 0
        ? "All added."
        : `${count(rows.length - refused)} added, ${count(refused)} refused: see below.`;
    leave.textContent = "Close";
    if (refused === 0 && !stopped && rows.every((row) => !row.listed)) onClose();
  }

  async function addPhoto(row, { label, sku, attributes }, tell) {
    const form = new FormData();
    form.append("file", row.file);
    if (label) form.append("label", label);
    if (sku && files.length === 1) form.append("sku", sku);
    if (Object.keys(attributes).length > 0) form.append("attributes", JSON.stringify(attributes));
    try {
      row.say("sending", "Sending …");
      const item = await postForm("items", form, {
        signal: stop.signal,
        onProgress: (part) => {
          row.part = 0.9 * part;
          tell();
        },
      });
      row.say("added", "Added");
      onAdded(item);
    } catch (error) {
      row.fail(error);
    }
  }

  async function addZip(row, tell) {
    const form = new FormData();
    form.append("file", row.file);
    let job = null;
    const cancelJob = () => job && cancel(job.id);
    try {
      row.say("sending", "Sending …");
      job = await postForm("items/bulk", form, {
        signal: stop.signal,
        onProgress: (part) => {
          row.part = 0.3 * part;
          tell();
        },
      });
      stop.signal.addEventListener("abort", cancelJob);
      const result = await follow(job.id, {
        signal: stop.signal,
        onProgress: ({ done, total }) => {
          row.part = 0.3 + 0.7 * (total ? done / total : 0);
          row.say("sending", `${count(done)} of ${count(total)} photos`);
          tell();
        },
      });
      row.tellResult(result);
    } catch (error) {
      row.fail(error);
    } finally {
      stop.signal.removeEventListener("abort", cancelJob);
      onBulk();
    }
  }
}

function heading(photos, zips) {
  const parts = [];
  if (photos.length > 0) parts.push(photos.length === 1 ? "1 photo" : `${count(photos.length)} photos`);
  if (zips.length > 0) parts.push(zips.length === 1 ? "1 zip" : `${count(zips.length)} zips`);
  return `Add ${parts.join(" and ")}`;
}

/** One file of the list. */
class Row {
  constructor(file) {
    this.file = file;
    this.part = 0;
    this.state = "waiting";
    this.listed = false;
    this.words = h("span", { class: "adding-words" }, bytes(file.size));
    this.details = h("ul", { class: "adding-details" });
    this.node = h(
      "li",
      { class: "adding-row", "data-state": "waiting" },
      h("span", { class: "adding-name" }, file.name),
      this.words,
      this.details,
    );
  }

  say(state, words) {
    this.state = state;
    this.node.dataset.state = state;
    this.words.textContent = words;
  }

  fail(error) {
    if (isAbort(error)) this.say("stopped", "Stopped");
    else this.say("refused", error.detail ?? error.message);
  }

  tellResult(result) {
    const { added, updated, unchanged, duplicates, skipped, problems } = result;
    const parts = [`${count(added)} added`];
    if (updated) parts.push(`${count(updated)} updated`);
    if (unchanged) parts.push(`${count(unchanged)} there already`);
    if (duplicates) parts.push(`${count(duplicates)} look like others`);
    if (skipped) parts.push(`${count(skipped)} skipped`);
    this.say("added", parts.join(", "));
    this.listed = skipped > 0;
    clear(this.details);
    for (const each of problems) {
      this.details.append(h("li", {}, h("strong", {}, each.path), ` ${each.reason}`));
    }
  }
}
