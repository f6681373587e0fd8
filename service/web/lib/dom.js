// Building and changing what is on the page. Text is always text: nothing here parses HTML.

/**
 * An element with properties and children.
 *
 * `class`, `data-…`, `aria-…`, `role`, `for` and other names are attributes; functions under `on…`
 * are listeners; booleans set or leave out an attribute; null and undefined leave it out. Children
 * are nodes or text; null and false are left out, lists are taken apart.
 */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") {
      node.addEventListener(name.slice(2), value);
    } else if (name === "value" || name === "checked") {
      node[name] = value;
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return node;
}

/** Empty a node, and give it back. */
export function clear(node) {
  node.replaceChildren();
  return node;
}

/** `call`, once nothing has asked for it for `ms` milliseconds. */
export function debounce(call, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), ms);
  };
}

const loaded = new Map();

/** Load a style sheet, a path below `web/`, once; resolves when it applies. */
export function stylesheet(path) {
  if (!loaded.has(path)) {
    loaded.set(
      path,
      new Promise((resolve, reject) => {
        document.head.append(
          h("link", { rel: "stylesheet", href: `web/${path}`, onload: resolve, onerror: reject }),
        );
      }),
    );
  }
  return loaded.get(path);
}

let lastId = 0;

/** An id that no other element has. */
export function uniqueId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
