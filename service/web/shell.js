// Dialogs of the shell: the access key, and what the keys of the keyboard do.

import { key, setKey } from "./lib/api.js";
import { openDialog } from "./lib/dialog.js";
import { h } from "./lib/dom.js";

const KEYS = [
  ["/", "choose a photo"],
  ["← → ↑ ↓", "move among photos"],
  ["Enter", "compare with the query"],
  ["m", "search for more like this"],
  ["Esc", "close what is open"],
  ["?", "this help"],
];

let asking = null;

/** Ask for an access key; resolves to whether one was given. Several that ask share one dialog. */
export function askForKey(error = null) {
  asking ??= new Promise((resolve) => {
    let given = false;
    const input = h("input", {
      type: "password",
      id: "key-input",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "dscl_…",
      value: key() ?? "",
      "aria-describedby": "key-why",
      required: true,
    });
    const forget = () => {
      setKey(null);
      dialog.close();
    };
    const form = h(
      "form",
      {
        class: "dialog-form",
        onsubmit: (event) => {
          event.preventDefault();
          given = true;
          setKey(input.value.trim());
          dialog.close();
        },
      },
      h("p", { id: "key-why" }, error?.detail ?? "The key that is sent with every request."),
      h("label", { for: "key-input" }, "Access key"),
      input,
      h("p", { class: "quiet" }, "It is kept until this tab is closed, and sent to this service alone."),
      h(
        "div",
        { class: "dialog-buttons" },
        key() && h("button", { type: "button", class: "button", onclick: forget }, "Forget the key"),
        h("button", { type: "submit", class: "button primary" }, "Use this key"),
      ),
    );
    const dialog = openDialog({
      title: "Access key",
      body: form,
      onClose: () => {
        asking = null;
        resolve(given);
      },
    });
    input.focus();
  });
  return asking;
}

/** Show which keys do what. */
export function showHelp() {
  openDialog({
    title: "Keyboard",
    body: h(
      "div",
      { class: "dialog-form" },
      h(
        "dl",
        { class: "key-list" },
        KEYS.map(([name, what]) => [h("dt", {}, h("kbd", {}, name)), h("dd", {}, what)]),
      ),
    ),
  });
}
