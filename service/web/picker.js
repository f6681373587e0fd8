// Three ways to hand over a photo – choose, drop, paste – and its preview.

export class Picker {
  #drop = document.getElementById("drop");
  #input = document.getElementById("file");
  #preview = document.getElementById("preview");
  #title = document.getElementById("drop-title");
  #hint = document.getElementById("drop-hint");

  constructor(onPick) {
    const take = (file) => {
      if (!file) return;
      this.#show(file);
      onPick(file);
    };
    this.#input.addEventListener("change", () => {
      take(this.#input.files[0]);
      this.#input.value = ""; // so that choosing the same file again counts as a choice
    });
    document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
    // The whole window takes a drop: one that misses the box must not replace the page.
    window.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.#drop.classList.add("over");
    });
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) this.#drop.classList.remove("over");
    });
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#drop.classList.remove("over");
      take(event.dataTransfer?.files[0]);
    });
    this.#preview.addEventListener("error", () => { this.#preview.hidden = true; });
  }

  set busy(busy) {
    this.#drop.classList.toggle("busy", busy);
  }

  #show(file) {
    URL.revokeObjectURL(this.#preview.src);
    this.#preview.src = URL.createObjectURL(file);
    this.#preview.hidden = false;
    this.#title.textContent = file.name || "Pasted photo";
    this.#hint.textContent = "Choose, drop or paste another";
  }
}
