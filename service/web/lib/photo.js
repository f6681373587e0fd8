// An item's photo: its thumbnail, loaded when it comes into sight.

import { getBlob, isAbort, key } from "./api.js";
import { h } from "./dom.js";

let observer = null;

/**
 * An `<img>` of an item.
 *
 * @param {{id: number, label?: string}} item
 * @param {number} [options.size] the longer side in pixels.
 * @param {string} [options.alt] what it shows; its label unless said.
 */
export function photo(item, { size = 256, alt = item.label ? `Photo: ${item.label}` : `Photo of item ${item.id}` } = {}) {
  const path = `items/${item.id}/thumbnail?size=${size}`;
  const image = h("img", { class: "photo", alt, decoding: "async", draggable: "false" });
  image.addEventListener("error", () => {
    image.classList.add("photo-missing");
    image.alt = "The photo cannot be shown";
    image.title = "Its file is gone, or damaged.";
  });
  image.addEventListener("load", () => image.classList.add("photo-there"));
  if (key()) {
    // An <img> sends no headers, and so no key.
    whenSeen(image, () => fill(image, path));
  } else {
    image.loading = "lazy";
    image.src = path;
  }
  return image;
}

async function fill(image, path) {
  try {
    const url = URL.createObjectURL(await getBlob(path));
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch (error) {
    if (!isAbort(error)) image.dispatchEvent(new Event("error"));
  }
}

const waiting = new WeakMap();

function whenSeen(image, call) {
  observer ??= new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        waiting.get(entry.target)?.();
        waiting.delete(entry.target);
      }
    },
    { rootMargin: "300px" },
  );
  waiting.set(image, call);
  observer.observe(image);
}
