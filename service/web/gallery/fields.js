// The inputs of a label, a sku and attributes: for photos that are added, and for one that is edited.

import { h } from "../lib/dom.js";

let lists = 0;

/**
 * Rows to fill in.
 *
 * @param {object[]} fields of the gallery, as `/fields` gives them: their types and values.
 * @param {object} item what is known so far.
 * @returns {{node: HTMLElement, read: () => ({label: ?string, sku: ?string, attributes: object} | null)}}
 *   `read` gives null, and shows where, if a value is not of its field's type. An attribute without
 *   a value is left out.
 */
export function fieldRows(fields, item) {
  const known = fields.filter((field) => field.name !== "label");
  const label = textRow("Label", "label", item.label, fields.find((field) => field.name === "label"));
  const sku = textRow("SKU", "sku", item.sku);
  const rows = h("div", { class: "fields-attributes" });
  const attributes = [];
  for (const field of known) addRow(field, item.attributes?.[field.name]);
  for (const [name, value] of Object.entries(item.attributes ?? {})) {
    if (!known.some((field) => field.name === name)) addRow({ name, type: kindOf(value) }, value);
  }

  const newName = h("input", { type: "text", class: "input", placeholder: "Name", "aria-label": "Name of another attribute" });
  const newValue = h("input", { type: "text", class: "input", placeholder: "Value", "aria-label": "Value of another attribute" });
  const another = h("div", { class: "fields-row fields-another" }, newName, newValue);
  const node = h("div", { class: "fields" }, label.node, sku.node, rows, another);
  return { node, read };

  function addRow(field, value) {
    const row = attributeRow(field, value);
    attributes.push(row);
    rows.append(row.node);
  }

  function read() {
    const values = {};
    for (const row of attributes) {
      const value = row.read();
      if (value === undefined) return null;
      if (value !== null) values[row.name] = value;
    }
    const name = newName.value.trim();
    if (newValue.value.trim() !== "" && name === "") {
      newName.focus();
      return null;
    }
    if (name !== "" && newValue.value.trim() !== "") values[name] = guessed(newValue.value.trim());
    return { label: label.read(), sku: sku.read(), attributes: values };
  }
}

function textRow(title, name, value, field) {
  const input = h("input", { type: "text", class: "input", name, value: value ?? "", autocomplete: "off" });
  const list = field ? suggestions(field, input) : null;
  const node = h("label", { class: "fields-row" }, h("span", {}, title), input, list);
  return { node, read: () => input.value.trim() || null };
}

function attributeRow({ name, type, values }, value) {
  const control = type === "boolean" ? yesNo(value) : typed(type, value);
  control.setAttribute("name", `attribute:${name}`);
  const list = type === "string" && values ? suggestions({ values }, control) : null;
  const node = h("label", { class: "fields-row" }, h("span", {}, name), control, list);
  const read = () => {
    if (!control.reportValidity()) return undefined;
    const text = control.value.trim();
    if (text === "") return null;
    if (type === "boolean") return text === "true";
    return type === "number" ? Number(text) : text;
  };
  return { name, node, read };
}

function typed(type, value) {
  const text = value === undefined || value === null ? "" : String(value);
  if (type === "number") return h("input", { type, class: "input", value: text, step: "any" });
  return h("input", { type: "text", class: "input", value: text, autocomplete: "off" });
}

function yesNo(value) {
  const options = [["", "—"], ["true", "yes"], ["false", "no"]];
  const control = h(
    "select",
    { class: "input" },
    ...options.map(([given, words]) => h("option", { value: given }, words)),
  );
  control.value = value === undefined || value === null ? "" : String(value);
  return control;
}

function suggestions({ values }, input) {
  lists += 1;
  const id = `values-${lists}`;
  input.setAttribute("list", id);
  const options = values.filter(({ value }) => value !== null);
  return h("datalist", { id }, ...options.map(({ value }) => h("option", { value: String(value) })));
}

/** The type of an attribute that the gallery's list of fields does not have yet. */
const kindOf = (value) => (value === null ? "string" : typeof value);

/** A value as JSON would have it: 2012 and true are no strings. */
function guessed(text) {
  if (text === "true" || text === "false") return text === "true";
  return /^-?\d+(\.\d+)?$/.test(text) ? Number(text) : text;
}
