// A photo on which a box can be dragged: what is inside is what is searched by.

import { h } from "../lib/dom.js";

// Shares of the photo: a smaller box was a click, and a key press moves it so far.
const LEAST = 0.03;
const STEP = 0.02;

// So near to a corner of the box, in pixels, it is taken hold of there.
const REACH = 20;

/**
 * A photo with a box on it.
 *
 * @param {File | Blob} file
 * @param {(blob: Blob | null) => void} options.onCrop told what is inside the box, null for all.
 * @returns {{node: HTMLElement, url: string, reset: () => void, release: () => void}}
 */
export function cropper(file, { onCrop }) {
  const url = URL.createObjectURL(file);
  const image = h("img", { class: "crop-image", src: url, alt: "Your photo", draggable: "false" });
  const box = h("div", {
    class: "crop-box",
    hidden: true,
    tabindex: "0",
    role: "group",
    "aria-label": "Part of the photo that is searched by. Arrow keys move it, with Shift they change its size, Escape takes it away.",
  });
  const whole = h(
    "button",
    { type: "button", class: "button", hidden: true, onclick: () => reset() },
    "Whole photo",
  );
  const start = h("button", { type: "button", class: "button", onclick: () => startByButton() }, "Crop");
  const stage = h("div", { class: "crop-stage" }, image, box);
  const hint = h("p", { class: "crop-hint quiet" }, "Drag a box on the photo to search by a part of it.");
  const tools = h("div", { class: "crop-tools" }, start, whole);
  const node = h(
    "div",
    { class: "crop" },
    stage,
    hint,
    tools,
  );
  let part = null; // {x, y, w, h} as shares of the photo
  let from = null;
  let moved = null; // the box as it was when it was taken hold of

  image.addEventListener("load", () => {
    stage.style.setProperty("--ratio", String(image.naturalWidth / image.naturalHeight));
  });
  // The service may read it all the same: TIFF, for one.
  image.addEventListener("error", () => {
    node.replaceChildren(h("p", { class: "crop-unseen quiet" }, `${file.name || "The photo"} cannot be shown here.`));
  });
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const corner = oppositeCorner(event);
    from = corner ?? shares(event);
    moved = corner === null && event.target === box ? part : null;
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = shares(event);
    if (moved !== null) {
      const inside = (value, size) => Math.min(1 - size, Math.max(0, value));
      place({ ...moved, x: inside(moved.x + to.x - from.x, moved.w), y: inside(moved.y + to.y - from.y, moved.h) });
      return;
    }
    place({
      x: Math.min(from.x, to.x),
      y: Math.min(from.y, to.y),
      w: Math.abs(from.x - to.x),
      h: Math.abs(from.y - to.y),
    });
  });
  stage.addEventListener("pointerup", finish);
  stage.addEventListener("pointercancel", finish);
  box.addEventListener("keydown", pressed);

  function shares(event) {
    const bounds = image.getBoundingClientRect();
    const within = (value) => Math.min(1, Math.max(0, value));
    return {
      x: within((event.clientX - bounds.left) / bounds.width),
      y: within((event.clientY - bounds.top) / bounds.height),
    };
  }

  /** Where a box that is sized by the corner at the pointer stays; null if none is there. */
  function oppositeCorner(event) {
    if (part === null) return null;
    const { left, right, top, bottom } = box.getBoundingClientRect();
    const near = (a, b) => Math.abs(a - b) <= REACH;
    const x = near(event.clientX, left) ? part.x + part.w : near(event.clientX, right) ? part.x : null;
    const y = near(event.clientY, top) ? part.y + part.h : near(event.clientY, bottom) ? part.y : null;
    return x === null || y === null ? null : { x, y };
  }

  function finish() {
    if (from === null) return;
    from = null;
    if (part !== null && (part.w < LEAST || part.h < LEAST)) reset();
    else if (part !== null) cut();
  }

  function startByButton() {
    node.classList.add("crop-open");
    place({ x: 0.15, y: 0.15, w: 0.7, h: 0.7 });
    box.focus();
    cut();
  }

  function pressed(event) {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key === "Escape") {
      reset();
      start.focus();
    } else if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const next = event.shiftKey
        ? { ...part, w: part.w + dx, h: part.h + dy }
        : { ...part, x: part.x + dx, y: part.y + dy };
      if (next.w >= LEAST && next.h >= LEAST && next.x >= 0 && next.y >= 0 && next.x + next.w <= 1 && next.y + next.h <= 1) {
        place(next);
        cut();
      }
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  function place(wanted) {
    part = wanted;
    box.hidden = false;
    whole.hidden = false;
    start.hidden = true;
    // Set through the object model, which the page's policy allows; attributes it does not.
    box.style.left = `${100 * part.x}%`;
    box.style.top = `${100 * part.y}%`;
    box.style.width = `${100 * part.w}%`;
    box.style.height = `${100 * part.h}%`;
  }

  function reset() {
    const had = part !== null;
    part = null;
    box.hidden = true;
    whole.hidden = true;
    start.hidden = false;
    node.classList.remove("crop-open");
    if (had) onCrop(null);
  }

  async function cut() {
    const wanted = part;
    await image.decode();
    const width = Math.max(1, Math.round(wanted.w * image.naturalWidth));
    const height = Math.max(1, Math.round(wanted.h * image.naturalHeight));
    const canvas = h("canvas", { width, height });
    canvas
      .getContext("2d")
      .drawImage(image, wanted.x * image.naturalWidth, wanted.y * image.naturalHeight, width, height, 0, 0, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
    if (wanted === part) onCrop(blob);
  }

  return { node, url, reset, release: () => URL.revokeObjectURL(url) };
}
