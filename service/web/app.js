// Puts the page together: a photo comes in, a search goes out, results or a notice are shown.

import * as api from "./api.js";
import { Picker } from "./picker.js";
import * as quality from "./quality.js";
import * as results from "./results.js";

const RETRY_MS = 1000;

const facts = document.getElementById("facts");
const empty = document.getElementById("empty");
const count = document.getElementById("count");

let photo = null;
let retry = null; // the timer of the next try to describe the gallery
let running = null; // the AbortController of the search under way

const picker = new Picker((file) => {
  photo = file;
  search();
});
count.addEventListener("change", () => { if (photo) search(); });
quality.connect();
describe();

async function search() {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  picker.busy = true;
  try {
    const answer = await api.search(photo, count.value, mine.signal);
    notify(null);
    if (answer.results.length) results.show(answer);
    else results.hide();
    await describe();
  } catch (error) {
    if (error.name === "AbortError") return;
    results.hide();
    notify(error);
  } finally {
    if (running === mine) picker.busy = false;
  }
}

/** Say what is being searched; while the gallery is being opened, ask again. */
async function describe() {
  clearTimeout(retry);
  try {
    const { name, items, dim } = await api.model();
    facts.textContent = `${items.toLocaleString("en")} photos · ${name} · ${dim} dimensions`;
    empty.hidden = items > 0;
  } catch (error) {
    facts.textContent = error.message;
    retry = setTimeout(describe, RETRY_MS);
  }
}

function notify(error) {
  const notice = document.getElementById("notice");
  notice.hidden = error === null;
  if (error === null) return;
  document.getElementById("notice-text").textContent = error.message;
}
