// A filter made from the gallery's own fields: values with their counts, ranges for numbers.

import { getJson, isAbort } from "./api.js";
import { clear, debounce, h, uniqueId } from "./dom.js";
import { attributes, count } from "./format.js";

// Values of a field that can be ticked; numbers with more of them become a range.
const VALUES = 12;

/**
 * A panel of all fields.
 *
 * @param {(where: object | null) => void} options.onChange told the filter after each choice.
 * @param {object | null} [options.where] the filter at the start.
 * @returns {{node: HTMLElement, where: () => object | null, refresh: () => Promise<void>}}
 */
export function filterPanel({ onChange, where = null }) {
  const chosen = new Map(Object.entries(where ?? {}));
  const rows = h("div", { class: "filter-rows" });
  const number = h("span", { class: "filter-number" });
  const summary = h("summary", {}, h("span", {}, "Filters"), number);
  const reset = h(
    "button",
    { type: "button", class: "button filter-reset", hidden: true, onclick: () => choose(() => chosen.clear(), true) },
    "Clear all",
  );
  const node = h("details", { class: "filters", hidden: true }, summary, rows, reset);
  const later = debounce(() => onChange(current()), 250);

  function current() {
    return chosen.size === 0 ? null : Object.fromEntries(chosen);
  }

  function choose(change, anew = false) {
    change();
    tell();
    if (anew) refresh();
    later();
  }

  function tell() {
    number.textContent = chosen.size === 0 ? "" : String(chosen.size);
    reset.hidden = chosen.size === 0;
  }

  async function refresh() {
    let fields;
    try {
      ({ fields } = await getJson(`fields?values=${VALUES}`));
    } catch (error) {
      // Whoever asks for items is told why not.
      if (isAbort(error)) throw error;
      return;
    }
    clear(rows).append(...fields.filter((field) => field.values.length > 0).map(row));
    node.hidden = rows.childElementCount === 0;
    tell();
  }

  function row(field) {
    const ranged = field.more && (field.type === "number" || field.type === "integer");
    return h("fieldset", { class: "filter" }, h("legend", {}, field.name), ranged ? range(field) : values(field));
  }

  function values(field) {
    const ticked = new Set([chosen.get(field.name)].flat().filter((value) => value !== undefined));
    const list = field.values.map(({ value, count: items }) => {
      const id = uniqueId("value");
      const box = h("input", {
        type: "checkbox",
        id,
        checked: ticked.has(value),
        onchange: () =>
          choose(() => {
            if (box.checked) ticked.add(value);
            else ticked.delete(value);
            if (ticked.size === 0) chosen.delete(field.name);
            else chosen.set(field.name, ticked.size === 1 ? [...ticked][0] : [...ticked]);
          }),
      });
      return h(
        "label",
        { class: "filter-value", for: id },
        box,
        h("span", { class: "filter-word" }, attributes(value)),
        h("span", { class: "filter-count quiet" }, count(items)),
      );
    });
    if (field.more) list.push(other(field, ticked));
    return list;
  }

  // A value that is too rare to be listed.
  function other(field, ticked) {
    const rare = [...ticked].find((value) => !field.values.some((each) => each.value === value));
    return h("input", {
      type: "search",
      class: "filter-other",
      "aria-label": `Another ${field.name}`,
      placeholder: "Another …",
      value: rare ?? "",
      onchange: (event) =>
        choose(() => {
          const text = event.target.value.trim();
          if (text === "") chosen.delete(field.name);
          else chosen.set(field.name, text);
        }),
    });
  }

  function range(field) {
    const bounds = { ...(chosen.get(field.name) ?? {}) };
    const input = (operator, word) =>
      h("input", {
        type: "number",
        step: "any",
        class: "filter-bound",
        "aria-label": `${field.name} ${word}`,
        placeholder: word,
        value: bounds[operator] ?? "",
        onchange: (event) =>
          choose(() => {
            if (event.target.value === "") delete bounds[operator];
            else bounds[operator] = Number(event.target.value);
            if (Object.keys(bounds).length === 0) chosen.delete(field.name);
            else chosen.set(field.name, { ...bounds });
          }),
      });
    return h("div", { class: "filter-range" }, input("gte", "from"), input("lte", "to"));
  }

  refresh();
  return { node, where: current, refresh };
}
