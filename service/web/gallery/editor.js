// One item, large, with what is known about it: to be looked at and changed.

import { send } from "../lib/api.js";
import { openDialog } from "../lib/dialog.js";
import { h } from "../lib/dom.js";
import { photo } from "../lib/photo.js";
import { toast } from "../lib/toast.js";
import { fieldRows } from "./fields.js";

// The longer side in pixels of the photo.
const SIZE = 768;

/**
 * Open an item.
 *
 * @param {object} item
 * @param {object} options
 * @param {object[]} options.fields of the gallery, as `/fields` gives them.
 * @param {(item: object) => void} options.onChanged told what it is now.
 * @param {(item: object) => void} options.onRemove it is to go.
 */
export function openEditor(item, { fields, onChanged, onRemove }) {
  const rows = fieldRows(fields, item);
  const problem = h("p", { class: "editor-problem", role: "alert" });
  const save = h("button", { type: "submit", class: "button primary" }, "Save");
  const form = h(
    "form",
    { class: "editor-form", onsubmit: submit },
    rows.node,
    problem,
    h(
      "div",
      { class: "editor-actions" },
      save,
      h("button", { type: "button", class: "button", onclick: search }, "More like this"),
      h("button", { type: "button", class: "button danger", onclick: removeIt }, "Remove"),
    ),
  );
  const dialog = openDialog({
    title: `Item ${item.id}`,
    className: "editor-dialog",
    body: h(
      "div",
      { class: "editor" },
      h("div", { class: "editor-photo" }, photo(item, { size: SIZE })),
      form,
    ),
  });

  function search() {
    dialog.close();
    location.hash = `#/search?item=${item.id}`;
  }

  function removeIt() {
    dialog.close();
    onRemove(item);
  }

  async function submit(event) {
    event.preventDefault();
    const wanted = rows.read();
    if (wanted === null) return;
    const change = difference(item, wanted);
    if (Object.keys(change).length === 0) {
      dialog.close();
      return;
    }
    save.disabled = true;
    problem.textContent = "";
    try {
      const changed = await send("PATCH", `items/${item.id}`, change);
      dialog.close();
      onChanged(changed);
      toast("Saved.");
    } catch (error) {
      problem.textContent = error.detail ?? error.message;
    } finally {
      save.disabled = false;
    }
  }
}

/** What of `wanted` is not so yet; null takes a value away. */
export function difference(item, wanted) {
  const change = {};
  if (wanted.label !== (item.label ?? null)) change.label = wanted.label;
  if (wanted.sku !== (item.sku ?? null)) change.sku = wanted.sku;
  const attributes = {};
  for (const [name, value] of Object.entries(wanted.attributes)) {
    if (item.attributes[name] !== value) attributes[name] = value;
  }
  for (const [name, value] of Object.entries(item.attributes)) {
    if (value !== null && !(name in wanted.attributes)) attributes[name] = null;
  }
  if (Object.keys(attributes).length > 0) change.attributes = attributes;
  return change;
}
