// recall@K of the gallery: run it, see where it fails, compare two runs, take the figures along.

import { getJson, isAbort, postJson } from "../lib/api.js";
import { clear, h, stylesheet } from "../lib/dom.js";
import { filterPanel } from "../lib/filters.js";
import { count, duration, percent, plural, score } from "../lib/format.js";
import { cancel, follow } from "../lib/jobs.js";
import { photo } from "../lib/photo.js";
import { recallChart } from "./chart.js";
import { asCsv, download, earlierRuns, keepRun } from "./runs.js";

const HARDEST = 12;
const CONFUSED = 20;
const CLASSES = 20;

/** Show the view in `root`; gives what ends it. */
export async function show(root) {
  await stylesheet("style/evaluate.css");
  const leaving = new AbortController();
  const { signal } = leaving;
  let job = null;

  const ks = h("input", { type: "text", id: "ks", value: "1, 2, 4, 8", inputmode: "numeric", "aria-describedby": "ks-why" });
  const through = h("select", { id: "through" }, h("option", { value: "exact" }, "exact search: the model alone"), h("option", { value: "index" }, "the index, as searches are answered"));
  const filters = filterPanel({ onChange: () => {} });
  const run = h("button", { type: "submit", class: "button primary" }, "Evaluate");
  const stop = h("button", { type: "button", class: "button", hidden: true, onclick: () => job && cancel(job.id) }, "Stop");
  const bar = h("progress", { max: "1", hidden: true, "aria-label": "Evaluating" });
  const words = h("p", { class: "quiet", role: "status" });
  const outcome = h("div", { class: "evaluation" });
  clear(root).append(
    h(
      "section",
      { class: "evaluate", "aria-labelledby": "evaluate-title" },
      h("h1", { id: "evaluate-title" }, "Evaluate"),
      h("p", { class: "quiet evaluate-lead" }, "Each labelled photo is looked up among all others: how often is one of its class among the K nearest?"),
      h(
        "form",
        { class: "evaluate-form", onsubmit: (event) => (event.preventDefault(), start()) },
        h("label", { class: "field", for: "ks" }, "K", ks, h("span", { class: "quiet", id: "ks-why" }, "numbers from 1, by commas")),
        h("label", { class: "field", for: "through" }, "Ranked by", through),
        filters.node,
        h("div", { class: "evaluate-buttons" }, run, stop),
      ),
      h("div", { class: "evaluate-progress" }, bar, words),
      outcome,
    ),
  );
  const [latest] = earlierRuns();
  if (latest) showRun(latest, { old: true });

  return () => leaving.abort();

  async function start() {
    const wanted = ks.value.split(/[\s,;]+/).filter(Boolean).map(Number);
    if (wanted.length === 0 || wanted.some((k) => !Number.isInteger(k) || k < 1)) {
      say(`“${ks.value}” are no values of K: write whole numbers from 1, such as 1, 2, 4, 8.`);
      ks.focus();
      return;
    }
    const exact = through.value === "exact";
    const asked = { ks: [...new Set(wanted)], exact, per_class: true, hardest: HARDEST, confusion: CONFUSED, background: true };
    if (filters.where() !== null) asked.query_where = filters.where();
    run.disabled = true;
    stop.hidden = false;
    bar.hidden = false;
    bar.removeAttribute("value");
    words.textContent = "Evaluating …";
    const began = performance.now();
    try {
      job = await postJson("evaluate", asked, { signal });
      const answer = await follow(job.id, {
        signal,
        onProgress: ({ done, total, stage }) => {
          if (!total) return;
          bar.value = done / total;
          words.textContent = `${stage || "ranking"}: ${count(done)} of ${count(total)} queries`;
        },
      });
      words.textContent = `${plural(answer.queries, "query", "queries")} in ${duration(performance.now() - began)}.`;
      const done = { name: name(answer, asked), when: new Date().toISOString(), answer };
      const before = earlierRuns();
      keepRun(done);
      showRun(done, { before });
    } catch (error) {
      if (isAbort(error)) return;
      words.textContent = "";
      say(error.detail ?? error.message);
    } finally {
      job = null;
      run.disabled = false;
      stop.hidden = true;
      bar.hidden = true;
    }
  }

  async function say(text) {
    const notice = h("div", { class: "notice notice-wrong", role: "alert" }, h("p", { class: "notice-title" }, "That did not work"), h("p", {}, text));
    clear(outcome).append(notice);
    const { items } = await getJson("model", { signal });
    if (items === 0) notice.append(h("a", { href: "#/gallery" }, "Add labelled photos first."));
  }

  function showRun(shown, { before = earlierRuns().slice(1), old = false } = {}) {
    const { answer } = shown;
    const other = h("select", { id: "compare-with" }, h("option", { value: "" }, "nothing"), before.map((each, i) => h("option", { value: String(i) }, `${time(each.when)}: ${each.name}`)));
    const chart = h("div", { class: "evaluation-chart" });
    const figures = h("div", { class: "evaluation-figures" });
    const redraw = () => {
      const compared = other.value === "" ? null : before[Number(other.value)];
      const runs = [{ name: "this run", recall: answer.recall }];
      if (compared) runs.push({ name: "compared run", recall: compared.answer.recall });
      clear(chart).append(recallChart(runs));
      if (compared) {
        chart.append(
          h(
            "ul",
            { class: "chart-legend quiet" },
            h("li", { class: "chart-legend-now" }, `this run: ${shown.name}`),
            h("li", { class: "chart-legend-before" }, `${time(compared.when)}: ${compared.name}`),
          ),
        );
      }
      clear(figures).append(table(answer, compared?.answer));
    };
    other.addEventListener("change", redraw);
    redraw();
    clear(outcome).append(
      h(
        "section",
        { class: "panel", "aria-labelledby": "recall-title" },
        h("header", { class: "panel-head" }, h("h2", { id: "recall-title" }, "recall@K"), h("p", { class: "quiet" }, old ? `${time(shown.when)}: ${answer.protocol}` : answer.protocol)),
        h("div", { class: "evaluation-top" }, chart, figures),
        h(
          "div",
          { class: "panel-tools" },
          before.length > 0 && h("label", { class: "field-inline", for: "compare-with" }, "Compare with", other),
          h("button", { type: "button", class: "button", onclick: () => download("evaluation.json", "application/json", `${JSON.stringify(answer, null, 1)}\n`) }, "Download JSON"),
          h("button", { type: "button", class: "button", onclick: () => download("evaluation.csv", "text/csv", asCsv(answer)) }, "Download CSV"),
        ),
      ),
      answer.per_class && classes(answer.per_class),
      answer.confusion?.length > 0 && confusion(answer.confusion),
      answer.hardest?.length > 0 && hardest(answer.hardest),
    );
  }
}

function name(answer, asked) {
  const parts = [`model ${answer.model.name}`, asked.exact ? "exact" : `through ${answer.index?.kind ?? "the index"}`];
  if (asked.query_where) parts.push(`where ${JSON.stringify(asked.query_where)}`);
  return parts.join(", ");
}

function time(iso) {
  return new Date(iso).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

function table(answer, other) {
  const rows = [
    ...Object.keys(answer.recall).map((k) => [`recall@${k}`, answer.recall[k], other?.recall[k]]),
    ["R-precision", answer.r_precision, other?.r_precision],
    ["MAP@R", answer.map_at_r, other?.map_at_r],
  ];
  return h(
    "table",
    { class: "figures" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Figure"), h("th", { scope: "col" }, "This run"), other && [h("th", { scope: "col" }, "Compared"), h("th", { scope: "col" }, "Change")])),
    h(
      "tbody",
      {},
      rows.map(([what, now, before]) =>
        h("tr", {}, h("th", { scope: "row" }, what), h("td", {}, percent(now)), other && [h("td", {}, before === undefined ? "–" : percent(before)), change(now, before)]),
      ),
      h("tr", {}, h("th", { scope: "row" }, "Queries"), h("td", {}, count(answer.queries)), other && [h("td", {}, count(other.queries)), h("td", {})]),
      answer.skipped > 0 && h("tr", {}, h("th", { scope: "row" }, "Alone in their class"), h("td", {}, count(answer.skipped)), other && [h("td", {}), h("td", {})]),
      answer.unlabelled > 0 && h("tr", {}, h("th", { scope: "row" }, "Without a label"), h("td", {}, count(answer.unlabelled)), other && [h("td", {}), h("td", {})]),
    ),
  );
}

function change(now, before) {
  if (before === undefined) return h("td", {}, "–");
  const points = 100 * (now - before);
  const kind = points > 0.05 ? "better" : points < -0.05 ? "worse" : "";
  return h("td", { class: kind }, `${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)}`);
}

function classes(all) {
  const worst = [...all].sort((a, b) => a.recall[first(a)] - b.recall[first(b)] || b.queries - a.queries);
  const k = first(all[0]);
  const list = h("ol", { class: "bars" });
  const fill = (n) => clear(list).append(...worst.slice(0, n).map(bar));
  const more = h("button", { type: "button", class: "button", hidden: worst.length <= CLASSES, onclick: () => (fill(worst.length), (more.hidden = true)) }, `Show all ${count(worst.length)}`);
  fill(CLASSES);
  return h(
    "section",
    { class: "panel", "aria-labelledby": "classes-title" },
    h("header", { class: "panel-head" }, h("h2", { id: "classes-title" }, "By class"), h("p", { class: "quiet" }, `recall@${k}, lowest first`)),
    list,
    more,
  );

  function bar(each) {
    const share = each.recall[k];
    const filled = h("span", { class: "bar-filled" });
    filled.style.width = `${100 * share}%`;
    return h(
      "li",
      { class: "bar-row" },
      h("span", { class: "bar-label" }, each.label),
      h("span", { class: "bar-track", "aria-hidden": "true" }, filled),
      h("span", { class: "bar-value" }, percent(share, 0)),
      h("span", { class: "bar-count quiet" }, plural(each.queries, "query", "queries")),
    );
  }
}

function first(each) {
  return Object.keys(each.recall).map(Number).sort((a, b) => a - b)[0];
}

function confusion(pairs) {
  return h(
    "section",
    { class: "panel", "aria-labelledby": "confusion-title" },
    h("header", { class: "panel-head" }, h("h2", { id: "confusion-title" }, "Taken for one another"), h("p", { class: "quiet" }, "whose nearest photo is of another class, most frequent first")),
    h(
      "ul",
      { class: "pairs" },
      pairs.map((pair) =>
        h(
          "li",
          { class: "pair" },
          pair.query !== null && h("a", { class: "pair-photo", href: `#/search?item=${pair.query}` }, photo({ id: pair.query, label: pair.label }, { size: 192 })),
          h("a", { class: "pair-photo", href: `#/search?item=${pair.nearest.id}` }, photo({ id: pair.nearest.id, label: pair.found }, { size: 192 })),
          h("p", { class: "pair-words" }, h("strong", {}, pair.label), " taken for ", h("strong", {}, pair.found)),
          h("p", { class: "quiet" }, `${plural(pair.count, "query", "queries")}, ${percent(pair.share, 0)} of its class`),
        ),
      ),
    ),
  );
}

function hardest(queries) {
  return h(
    "section",
    { class: "panel", "aria-labelledby": "hardest-title" },
    h("header", { class: "panel-head" }, h("h2", { id: "hardest-title" }, "Hardest queries"), h("p", { class: "quiet" }, "each with its nearest photos; a tick marks those of its class")),
    queries.map((query) =>
      h(
        "div",
        { class: "hard" },
        h(
          "figure",
          { class: "hard-query" },
          query.id !== null ? h("a", { href: `#/search?item=${query.id}` }, photo({ id: query.id, label: query.label }, { size: 256 })) : h("p", {}, query.file),
          h("figcaption", {}, h("strong", {}, query.label), h("span", { class: "quiet" }, query.first_answer === null ? " first right one beyond what was looked at" : ` first right one at ${query.first_answer}`)),
        ),
        h(
          "ol",
          { class: "hard-neighbours" },
          query.neighbours.map((near) =>
            h(
              "li",
              { class: near.right ? "near right" : "near wrong" },
              h("a", { href: `#/search?item=${near.id}` }, photo({ id: near.id, label: near.label }, { size: 192 })),
              h("p", {}, h("span", { class: "near-mark", "aria-hidden": "true" }, near.right ? "✓" : "✗"), h("span", { class: "out-of-sight" }, near.right ? "Right: " : "Wrong: "), near.label),
              h("p", { class: "quiet near-score" }, score(near.score)),
            ),
          ),
        ),
      ),
    ),
  );
}
