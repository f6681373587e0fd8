// Short messages at the edge of the page, told to screen readers as well.

import { h } from "./dom.js";

const SHOWN_MS = 6000;

/**
 * Show a message for a while.
 *
 * @param {"info" | "error"} [options.kind] an error stays until it is closed, and interrupts.
 * @param {string} [options.action] the word of a button …
 * @param {() => void} [options.onAction] … and what it does; the message then goes.
 * @param {number} [options.timeout] milliseconds that it is shown; not counted while it has focus.
 * @returns {{close: () => void}}
 */
export function toast(text, { kind = "info", action, onAction, timeout = SHOWN_MS } = {}) {
  const close = () => {
    clearTimeout(timer);
    node.remove();
  };
  const node = h(
    "div",
    { class: `toast toast-${kind}`, role: kind === "error" ? "alert" : "status" },
    h("p", { class: "toast-text" }, text),
    action &&
      h(
        "button",
        {
          type: "button",
          class: "button",
          onclick: () => {
            close();
            onAction?.();
          },
        },
        action,
      ),
    h("button", { type: "button", class: "button icon", "aria-label": "Close message", onclick: close }, "✕"),
  );
  let timer = 0;
  const start = () => {
    if (kind !== "error") timer = setTimeout(close, timeout);
  };
  node.addEventListener("focusin", () => clearTimeout(timer));
  node.addEventListener("focusout", start);
  document.getElementById("toasts").append(node);
  start();
  return { close };
}
