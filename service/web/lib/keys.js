// Moving through a grid with the arrow keys: one of its cards takes part in the tab order.

/**
 * Have arrow keys, Home and End move the focus among the cards of a grid.
 *
 * @param {HTMLElement} grid its cards match `selector`, and sit in rows as the layout has it.
 * @param {(card: HTMLElement, key: string) => boolean} [onKey] told of other keys; true: it was its.
 */
export function roving(grid, selector, onKey = () => false) {
  const cards = () => [...grid.querySelectorAll(selector)];
  grid.addEventListener("focusin", (event) => {
    const here = event.target.closest(selector);
    if (!here) return;
    for (const card of cards()) card.tabIndex = card === here ? 0 : -1;
  });
  grid.addEventListener("keydown", (event) => {
    const here = event.target.closest(selector);
    if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = cards();
    const to = target(all, all.indexOf(here), event.key);
    if (to !== null) {
      event.preventDefault();
      all[to].focus();
    } else if (event.target === here && onKey(here, event.key)) {
      event.preventDefault();
    }
  });
}

function target(all, at, pressed) {
  const top = (card) => Math.round(card.getBoundingClientRect().top);
  const columns = () => all.filter((card) => top(card) === top(all[0])).length;
  const within = (to) => Math.min(all.length - 1, Math.max(0, to));
  switch (pressed) {
    case "ArrowRight":
      return within(at + 1);
    case "ArrowLeft":
      return within(at - 1);
    case "ArrowDown":
      return at + columns() < all.length ? at + columns() : at;
    case "ArrowUp":
      return at - columns() >= 0 ? at - columns() : at;
    case "Home":
      return 0;
    case "End":
      return all.length - 1;
    default:
      return null;
  }
}
