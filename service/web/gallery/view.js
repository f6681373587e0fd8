// The gallery: browse, add by drop, edit, remove with undo.

import { getJson, isAbort } from "../lib/api.js";
import { clear, h, stylesheet } from "../lib/dom.js";
import { filterPanel } from "../lib/filters.js";
import { attributes as formatAttribute, count } from "../lib/format.js";
import { photo } from "../lib/photo.js";
import { toast } from "../lib/toast.js";
import { addingPanel, isAddable } from "./adding.js";
import { openEditor } from "./editor.js";
import { isRemoved, remove, waitingCount } from "./removals.js";

// Items in one request: a screen or two.
const PAGE = 60;

/** Show the view in `root`; gives what ends it. */
export async function show(root) {
  stylesheet("style/gallery.css");
  const leaving = new AbortController();
  let where = null;
  let fields = [];
  let total = 0;
  let offset = 0;
  let loading = null;
  let adding = null;
  const cards = new Map();

  const size = h("p", { class: "gallery-size quiet", role: "status" });
  const chooser = h("input", {
    type: "file",
    multiple: true,
    hidden: true,
    accept: "image/*,.zip",
    onchange: () => {
      add([...chooser.files]);
      chooser.value = "";
    },
  });
  const addButton = h(
    "button",
    { type: "button", class: "button primary", onclick: () => chooser.click() },
    "Add photos",
  );
  const addingPlace = h("div", { class: "gallery-adding" });
  const grid = h("ul", { class: "grid gallery-grid", "aria-label": "Photos of the gallery" });
  const empty = h("div", { class: "gallery-empty", hidden: true });
  const more = h("button", { type: "button", class: "button gallery-more", hidden: true, onclick: load }, "Show more");
  const filters = filterPanel({ onChange: (wanted) => choose(wanted) });
  const view = h(
    "section",
    { class: "gallery", "aria-labelledby": "gallery-title" },
    h(
      "header",
      { class: "gallery-head" },
      h("h1", { id: "gallery-title" }, "Gallery"),
      size,
      h("div", { class: "gallery-tools" }, addButton, chooser),
    ),
    addingPlace,
    filters.node,
    grid,
    empty,
    more,
    h("div", { class: "gallery-drop", "aria-hidden": "true" }, "Drop photos or a zip to add them"),
  );
  clear(root).append(view);

  grid.addEventListener("keydown", pressed);
  grid.addEventListener("focusin", (event) => rove(event.target.closest(".gallery-card")));
  listenForDrops();
  const seen = new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && load(),
    { rootMargin: "600px" },
  );
  seen.observe(more);

  await Promise.all([loadFields(), load()]);

  return () => {
    leaving.abort();
    seen.disconnect();
    adding?.stop();
  };

  // Browsing

  async function loadFields() {
    ({ fields } = await getJson("fields?values=50", { signal: leaving.signal }));
  }

  async function load() {
    if (loading) return loading;
    loading = (async () => {
      const query = new URLSearchParams({ offset, limit: PAGE });
      if (where !== null) query.set("where", JSON.stringify(where));
      const asked = where;
      const page = await getJson(`items?${query}`, { signal: leaving.signal });
      if (asked !== where) return;
      total = page.total - (where === null ? waitingCount() : 0);
      offset += page.items.length;
      for (const item of page.items) place(item);
      more.hidden = page.items.length < PAGE || offset >= total;
    })();
    try {
      await loading;
    } finally {
      loading = null;
      tell();
    }
    return undefined;
  }

  async function choose(wanted) {
    where = wanted;
    await reload();
  }

  async function reload() {
    // Whatever is under way belongs to an earlier choice.
    await loading?.catch(() => {});
    offset = 0;
    cards.clear();
    clear(grid);
    await load();
  }

  function place(item, { first = false } = {}) {
    if (isRemoved(item.id) || cards.has(item.id)) return;
    const card = h("li", { class: "card gallery-card", tabindex: cards.size === 0 ? "0" : "-1", "data-id": item.id });
    cards.set(item.id, { item, card });
    fill(card, item);
    if (first) grid.prepend(card);
    else grid.append(card);
  }

  function fill(card, item) {
    const told = Object.values(item.attributes)
      .filter((value) => value !== null)
      .map(formatAttribute)
      .join(" · ");
    clear(card).append(
      h(
        "button",
        { type: "button", class: "gallery-open", tabindex: "-1", "aria-label": `Open item ${item.id}`, onclick: () => open(item.id) },
        photo(item, { size: 256 }),
      ),
      h("p", { class: "card-label" }, item.label ?? "No label"),
      h("p", { class: "card-attributes quiet" }, told),
    );
    card.setAttribute("aria-label", [item.label ?? `Item ${item.id}`, told].filter(Boolean).join(", "));
  }

  /** Say how many there are, and what to do if there are none. */
  function tell() {
    const what = total === 1 ? "photo" : "photos";
    size.textContent = where === null ? `${count(total)} ${what}` : `${count(total)} ${what} match`;
    const nothing = cards.size === 0 && more.hidden;
    empty.hidden = !nothing;
    if (nothing) clear(empty).append(...(where === null ? howToFill() : noneMatch()));
  }

  function noneMatch() {
    return [
      h("h2", {}, "No photo matches"),
      h("p", { class: "quiet" }, "Take a filter away to see more."),
    ];
  }

  function howToFill() {
    return [
      h("h2", {}, "The gallery is empty"),
      h("p", {}, "Drop photos here, or a zip whose folders are labels."),
      h(
        "button",
        { type: "button", class: "button primary", onclick: () => chooser.click() },
        "Choose photos",
      ),
      h("p", { class: "quiet" }, "From a shell: ", h("code", {}, "dscl index add GALLERY PHOTOS")),
    ];
  }

  // By keyboard

  function rove(card) {
    if (card === null) return;
    for (const each of grid.querySelectorAll('[tabindex="0"]')) each.tabIndex = -1;
    card.tabIndex = 0;
  }

  function pressed(event) {
    const card = event.target.closest(".gallery-card");
    if (card === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const id = Number(card.dataset.id);
    const all = [...grid.children];
    const at = all.indexOf(card);
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (event.key in steps) all[at + steps[event.key]]?.focus();
    else if (event.key === "Home") all[0].focus();
    else if (event.key === "End") all.at(-1).focus();
    else if (event.key === "Enter") open(id);
    else if (event.key === "m") location.hash = `#/search?item=${id}`;
    else if (event.key === "Delete") takeAway(id, all[at + 1] ?? all[at - 1]);
    else return;
    event.preventDefault();
  }

  // Editing and removing

  function open(id) {
    const { item, card } = cards.get(id);
    openEditor(item, {
      fields,
      onChanged: (changed) => {
        cards.get(id).item = changed;
        fill(card, changed);
        card.focus();
        loadFields().catch(report);
      },
      onRemove: () => takeAway(id, card.nextElementSibling ?? card.previousElementSibling),
    });
  }

  function takeAway(id, next) {
    const { item, card } = cards.get(id);
    const before = card.nextElementSibling;
    card.remove();
    cards.delete(id);
    total -= 1;
    tell();
    next?.focus();
    remove(item, {
      onGone: () => {
        offset -= 1;
      },
      onBack: () => {
        if (leaving.signal.aborted || cards.has(id)) return;
        cards.set(id, { item, card });
        grid.insertBefore(card, before?.isConnected ? before : null);
        total += 1;
        tell();
        card.focus();
      },
    });
  }

  // Adding

  function add(files) {
    if (adding !== null) {
      toast("Photos are being added: wait for them, or stop them.");
      return;
    }
    const usable = files.filter(isAddable);
    if (usable.length < files.length) {
      const others = files.filter((file) => !isAddable(file));
      toast(`No photo or zip: ${others.map((file) => file.name).join(", ")}`, { kind: "error" });
    }
    if (usable.length === 0) return;
    adding = addingPanel(usable, {
      fields,
      onAdded: (item) => {
        total += 1;
        place(item, { first: true });
        tell();
      },
      onBulk: () => reload().catch(report),
      onClose: () => {
        adding = null;
        clear(addingPlace);
        loadFields().catch(report);
      },
    });
    clear(addingPlace).append(adding.node);
    adding.node.querySelector("input, button")?.focus();
  }

  function listenForDrops() {
    // Enter and leave come for each element on the way, and so are counted.
    let inside = 0;
    const on = (name, listener) => view.addEventListener(name, listener);
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    on("dragenter", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      inside += 1;
      view.classList.add("dropping");
    });
    on("dragover", (event) => carriesFiles(event) && event.preventDefault());
    on("dragleave", () => {
      inside = Math.max(0, inside - 1);
      view.classList.toggle("dropping", inside > 0);
    });
    on("drop", (event) => {
      inside = 0;
      view.classList.remove("dropping");
      if (!carriesFiles(event)) return;
      event.preventDefault();
      add([...event.dataTransfer.files]);
    });
  }

  function report(error) {
    if (!isAbort(error)) toast(error.detail ?? error.message, { kind: "error" });
  }
}
