// The panel that measures recall@K.

import * as api from "./api.js";

const button = document.getElementById("measure");
const place = document.getElementById("measure-result");

export function connect() {
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Measuring …";
    try {
      place.replaceChildren(figures(await api.evaluate()));
    } catch (error) {
      place.replaceChildren(paragraph(error.message));
    } finally {
      button.disabled = false;
      button.textContent = "Measure again";
    }
  });
}

function figures({ recall, r_precision, map_at_r, queries, skipped, unlabelled, protocol, took_ms }) {
  const table = document.createElement("table");
  table.className = "figures";
  const rows = Object.entries(recall).map(([k, value]) => [`Recall@${k}`, value]);
  rows.push(["R-precision", r_precision], ["MAP@R", map_at_r]);
  for (const [name, value] of rows) table.append(row(name, value));
  const caption = table.createCaption();
  caption.className = "quiet";
  caption.textContent = [
    `${queries.toLocaleString("en")} queries`,
    skipped && `${skipped.toLocaleString("en")} alone with their label, left out`,
    unlabelled && `${unlabelled.toLocaleString("en")} without a label, left out`,
    protocol,
    `${(took_ms / 1000).toFixed(1)} s`,
  ].filter(Boolean).join(" · ");
  return table;
}

function row(name, value) {
  const tr = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const bar = document.createElement("progress");
  bar.value = value;
  bar.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  const figure = `${(100 * value).toFixed(1)} %`;
  tr.append(head, cell(bar, "track"), cell(figure));
  return tr;
}

function cell(content, className = "") {
  const td = document.createElement("td");
  td.className = className;
  td.append(content);
  return td;
}

function paragraph(text) {
  const p = document.createElement("p");
  p.className = "quiet message";
  p.textContent = text;
  return p;
}
