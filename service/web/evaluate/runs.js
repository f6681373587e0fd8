// Evaluations that were run in this tab, to compare with, and their files.

const KEY = "dscl-runs";
const KEPT = 8;

/** Earlier runs, the latest first: {name, when, answer}. */
export function earlierRuns() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

/** Keep a run. Photos of hard queries go: they would fill the store. */
export function keepRun(run) {
  const slim = { ...run, answer: { ...run.answer, hardest: null, confusion: null } };
  const runs = [slim, ...earlierRuns()].slice(0, KEPT);
  try {
    sessionStorage.setItem(KEY, JSON.stringify(runs));
  } catch {
    sessionStorage.setItem(KEY, JSON.stringify(runs.map((each) => ({ ...each, answer: { ...each.answer, per_class: null } }))));
  }
}

/** The figures of a run as CSV: one line for all, and one for each class. */
export function asCsv(answer) {
  const ks = Object.keys(answer.recall);
  const head = ["label", "queries", ...ks.map((k) => `recall@${k}`), "r_precision", "map_at_r"];
  const line = (label, each) => [label, each.queries, ...ks.map((k) => each.recall[k]), each.r_precision, each.map_at_r];
  const rows = [head, line("(all)", answer), ...(answer.per_class ?? []).map((each) => line(each.label, each))];
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  const text = String(value);
  // What begins like a formula would be run by a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Have the browser save a text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
