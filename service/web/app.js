// The shell: which view is shown, the key, light or dark, and a server that is gone.

import { events, getJson, isAbort, key, onKeyWanted } from "./lib/api.js";
import { clear, h } from "./lib/dom.js";
import { plural } from "./lib/format.js";
import { askForKey, showHelp } from "./shell.js";

// Loaded when they are first shown.
const VIEWS = {
  search: { title: "Search", load: () => import("./search/view.js") },
  gallery: { title: "Gallery", load: () => import("./gallery/view.js") },
  map: { title: "Map", load: () => import("./map/view.js") },
  evaluate: { title: "Evaluate", load: () => import("./evaluate/view.js") },
};
const THEME = "dscl-theme";

const root = document.getElementById("view");
let leave = null;
let shown = 0;
let failed = false;

/** The view that the address names, and its parameters: `#/search?item=17`. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: path in VIEWS ? path : "search", params: new URLSearchParams(query) };
}

async function show() {
  const { name, params } = place();
  shown += 1;
  failed = false;
  const mine = shown;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].title} · Search by photo`;
  try {
    const view = await VIEWS[name].load();
    if (mine !== shown) return;
    leave?.();
    leave = null;
    const left = await view.show(clear(root), params);
    if (mine === shown) leave = left ?? null;
    else left?.();
  } catch (error) {
    if (isAbort(error) || mine !== shown) return;
    failed = true;
    // A view that could not be loaded: whether the server is gone, a request tells.
    if (error instanceof TypeError) tellFacts();
    clear(root).append(
      h(
        "div",
        { class: "notice notice-wrong", role: "alert" },
        h("h1", { class: "notice-title" }, "That did not work"),
        h("p", {}, error.detail ?? error.message),
        h("p", {}, h("button", { type: "button", class: "button", onclick: show }, "Try again")),
      ),
    );
  }
}

async function tellFacts() {
  const facts = document.getElementById("facts");
  try {
    const { items } = await getJson("model");
    facts.textContent = plural(items, "photo");
    document.getElementById("key").hidden = key() === null;
  } catch (error) {
    facts.textContent = "";
    document.getElementById("key").hidden = key() === null && error.status !== 401;
  }
}

/** Another key shows the view anew. */
async function changeKey() {
  if (await askForKey()) show();
}

function switchTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem(THEME, document.documentElement.dataset.theme);
}

function pressed(event) {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "?") showHelp();
  else if (event.key === "/") {
    event.preventDefault();
    const upload = [...document.querySelectorAll("[data-upload]")].find((each) => each.checkVisibility());
    if (upload) upload.focus();
    else location.hash = "#/search";
  }
}

const theme = localStorage.getItem(THEME);
if (theme) document.documentElement.dataset.theme = theme;
onKeyWanted(askForKey);
document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("help").addEventListener("click", showHelp);
document.getElementById("key").addEventListener("click", changeKey);
document.addEventListener("keydown", pressed);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  root.focus();
});
// What is dropped beside a place for it would replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
window.addEventListener("hashchange", show);
events.addEventListener("key", tellFacts);
events.addEventListener("gallery", tellFacts);
events.addEventListener("gone", () => (document.getElementById("gone").hidden = false));
events.addEventListener("back", () => {
  document.getElementById("gone").hidden = true;
  tellFacts();
  if (failed) show();
});
tellFacts();
show();
