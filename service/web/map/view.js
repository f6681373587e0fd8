// The gallery in two dimensions: neighbours here are neighbours in search.

import { getJson, isAbort, postJson } from "../lib/api.js";
import { clear, h, stylesheet } from "../lib/dom.js";
import { filterPanel } from "../lib/filters.js";
import { attributeLine, attributes, count, percent, plural } from "../lib/format.js";
import { cancel, follow } from "../lib/jobs.js";
import { photo } from "../lib/photo.js";
import { toast } from "../lib/toast.js";
import { Plot } from "./plot.js";

/** Show the view in `root`; gives what ends it. */
export async function show(root) {
  await stylesheet("style/map.css");
  const leaving = new AbortController();
  const { signal } = leaving;
  let where = null;
  let job = null;
  let told = null;
  let asked = 0;

  const colour = h("select", { id: "map-colour", onchange: () => reload() });
  const note = h("p", { class: "map-note quiet", role: "status" });
  const renew = h("button", { type: "button", class: "button", hidden: true, onclick: () => draw() }, "Draw again");
  const legend = h("ul", { class: "map-legend", "aria-label": "Colours" });
  const canvas = h("canvas", {
    class: "map-canvas",
    tabindex: "0",
    role: "application",
    "aria-label":
      "Map of the gallery. Arrow keys go from photo to photo, Enter searches for more like it, plus and minus zoom, 0 shows all.",
  });
  const card = h("div", { class: "map-card", hidden: true, role: "status" });
  const stage = h("div", { class: "map-stage", hidden: true }, canvas, card);
  const place = h("div", { class: "map-place" });
  const filters = filterPanel({
    onChange: (wanted) => {
      where = wanted;
      reload();
    },
  });
  clear(root).append(
    h(
      "section",
      { class: "map", "aria-labelledby": "map-title" },
      h(
        "header",
        { class: "map-head" },
        h("h1", { id: "map-title" }, "Map"),
        note,
        h("div", { class: "map-tools" }, h("label", { class: "option", for: "map-colour" }, "Colour", colour), renew),
      ),
      filters.node,
      place,
      h("div", { class: "map-body" }, stage, legend),
    ),
  );

  const plot = new Plot(canvas, {
    onPoint: (id, at) => tell(id, at),
    onChoose: (id) => (location.hash = `#/search?item=${id}`),
  });
  const sized = new ResizeObserver(() => plot.resize());
  sized.observe(stage);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => plot.draw();
  scheme.addEventListener("change", recolour);

  const fields = await getJson("fields?values=0", { signal });
  colour.append(...fields.fields.map(({ name }) => h("option", { value: name }, name)));
  await load();

  return () => {
    leaving.abort();
    sized.disconnect();
    scheme.removeEventListener("change", recolour);
    plot.end();
  };

  async function reload() {
    try {
      await load();
    } catch (error) {
      if (!isAbort(error)) toast(error.detail ?? error.message, { kind: "error" });
    }
  }

  async function load({ drawn = false } = {}) {
    const mine = ++asked;
    if (!drawn) {
      const { mapped } = await getJson("model", { signal });
      if (!mapped) {
        await draw();
        return;
      }
    }
    const query = new URLSearchParams({ colour: colour.value || "label" });
    if (where !== null) query.set("where", JSON.stringify(where));
    const map = await getJson(`map?${query}`, { signal });
    if (mine !== asked) return; // another colour or filter was chosen meanwhile
    clear(place);
    stage.hidden = false;
    renew.hidden = map.missing === 0;
    note.textContent =
      plural(map.ids.length, "photo") + (map.missing ? `; ${count(map.missing)} newer not on it yet` : "");
    plot.show(map);
    showLegend(map.colours);
  }

  /** Have the map drawn, and show how far that is. */
  async function draw() {
    renew.hidden = true;
    const { items } = await getJson("model", { signal });
    if (items === 0) {
      stage.hidden = true;
      clear(place).append(
        h(
          "div",
          { class: "empty-state" },
          h("h2", {}, "Nothing to map yet"),
          h("p", { class: "quiet" }, "The gallery is empty."),
          h("a", { class: "button primary", href: "#/gallery" }, "Add photos"),
        ),
      );
      return;
    }
    const bar = h("progress", { max: "1", value: "0", "aria-label": "Drawing the map" });
    const words = h("p", { class: "quiet", role: "status" }, "Drawing the map, once. It is kept with the gallery.");
    const stop = h("button", { type: "button", class: "button", onclick: () => job && cancel(job.id) }, "Stop");
    clear(place).append(h("div", { class: "map-progress" }, words, bar, stop));
    try {
      job = await postJson("map", null, { signal });
      await follow(job.id, {
        signal,
        onProgress: ({ done, total, stage: step }) => {
          if (total) bar.value = done / total;
          if (step) words.textContent = `${step[0].toUpperCase()}${step.slice(1)}: ${percent(total ? done / total : 0, 0)}`;
        },
      });
    } catch (error) {
      if (isAbort(error)) return;
      clear(place).append(
        h("div", { class: "empty-state" }, h("p", {}, error.detail ?? error.message), h("button", { type: "button", class: "button primary", onclick: () => draw() }, "Draw the map")),
      );
      return;
    } finally {
      job = null;
    }
    await load({ drawn: true });
  }

  function showLegend(colours) {
    clear(legend).append(
      ...colours.legend.map((entry, code) =>
        h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              class: "map-value",
              "aria-pressed": "false",
              onclick: (event) => {
                const pressed = event.currentTarget.getAttribute("aria-pressed") !== "true";
                for (const each of legend.querySelectorAll("button")) each.setAttribute("aria-pressed", "false");
                event.currentTarget.setAttribute("aria-pressed", String(pressed));
                plot.emphasize(pressed ? code : null);
              },
            },
            swatch(plot.colour(code)),
            h("span", { class: "map-word" }, word(entry)),
            h("span", { class: "quiet" }, count(entry.count)),
          ),
        ),
      ),
    );
  }

  async function tell(id, at) {
    told = id;
    card.hidden = id === null;
    if (id === null) return;
    card.style.left = `${at.x}px`;
    card.style.top = `${at.y}px`;
    card.classList.toggle("map-card-left", at.x > canvas.clientWidth / 2);
    card.classList.toggle("map-card-up", at.y > canvas.clientHeight / 2);
    clear(card).append(photo({ id }, { size: 256, alt: "" }));
    try {
      const item = await getJson(`items/${id}`, { signal });
      if (told !== id) return;
      card.append(
        h("p", { class: "card-label" }, item.label ?? `Item ${id}`),
        h("p", { class: "card-attributes quiet" }, attributeLine(item)),
      );
    } catch (error) {
      if (!isAbort(error)) toast(error.detail ?? error.message, { kind: "error" });
    }
  }
}

function word({ value, low, high }) {
  if (value !== null) return attributes(value);
  return low === null ? "others" : `${attributes(low)} – ${attributes(high)}`;
}

function swatch(colour) {
  const dot = h("span", { class: "map-swatch", "aria-hidden": "true" });
  dot.style.background = colour;
  return dot;
}
