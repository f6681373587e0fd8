// A dialog over the page: the focus stays in it, Escape closes it, and returns where it was.

import { h, uniqueId } from "./dom.js";

/**
 * Open a dialog.
 *
 * @param {string} options.title its heading.
 * @param {Node} options.body what it holds.
 * @param {string} [options.className]
 * @param {() => void} [options.onClose] called once, however it was closed.
 * @returns {{node: HTMLDialogElement, close: () => void}}
 */
export function openDialog({ title, body, className = "", onClose = () => {} }) {
  const id = uniqueId("dialog");
  const before = document.activeElement;
  const close = () => node.close();
  const node = h(
    "dialog",
    { class: `dialog ${className}`.trim(), "aria-labelledby": id },
    h(
      "header",
      { class: "dialog-head" },
      h("h2", { id }, title),
      h("button", { type: "button", class: "button icon", "aria-label": "Close", onclick: close }, "✕"),
    ),
    h("div", { class: "dialog-body" }, body),
  );
  node.addEventListener("click", (event) => {
    // The backdrop is the dialog itself, outside its box.
    if (event.target !== node) return;
    const box = node.getBoundingClientRect();
    const inside =
      event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) close();
  });
  node.addEventListener("close", () => {
    node.remove();
    onClose();
    if (before?.isConnected) before.focus();
  });
  document.body.append(node);
  node.showModal();
  return { node, close };
}
