// Removing with undo: what is removed is hidden at once, and deleted when the time to undo is over.
//
// So an undo brings back the item itself, with its id and its photo. Removals outlive the view; a
// page that is left sends those that still wait.

import { deleteOnLeave, send } from "../lib/api.js";
import { toast } from "../lib/toast.js";

const UNDO_MS = 8000;

/** Ids that are hidden → the timer that will delete them. */
const waiting = new Map();

export const isRemoved = (id) => waiting.has(id);

export const waitingCount = () => waiting.size;

/**
 * Remove an item, unless that is undone in time.
 *
 * @param {object} item
 * @param {object} callbacks
 * @param {() => void} callbacks.onGone it has been deleted.
 * @param {() => void} callbacks.onBack it is there after all: undone, or refused by the service.
 */
export function remove(item, { onGone, onBack }) {
  const { id } = item;
  const message = toast(`${item.label ?? `Item ${id}`} removed.`, {
    action: "Undo",
    onAction: undo,
    timeout: UNDO_MS,
  });
  waiting.set(id, setTimeout(commit, UNDO_MS));

  function undo() {
    clearTimeout(waiting.get(id));
    waiting.delete(id);
    onBack();
  }

  async function commit() {
    message.close();
    try {
      await send("DELETE", `items/${id}`);
      onGone();
    } catch (error) {
      // Somebody else may have been first.
      if (error.code === "item_not_found") onGone();
      else {
        toast(`Not removed: ${error.detail ?? error.message}`, { kind: "error" });
        waiting.delete(id);
        onBack();
      }
    } finally {
      waiting.delete(id);
    }
  }
}

addEventListener("pagehide", () => {
  for (const [id, timer] of waiting) {
    clearTimeout(timer);
    deleteOnLeave(`items/${id}`);
  }
  waiting.clear();
});
