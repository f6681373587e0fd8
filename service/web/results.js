// The grid of nearest items.

const section = document.getElementById("results");
const grid = document.getElementById("grid");
const note = document.getElementById("results-note");
const template = document.getElementById("card");

export function show({ results, took_ms }) {
  grid.replaceChildren(...results.map(card));
  const photos = results.length === 1 ? "1 photo" : `${results.length} photos`;
  note.textContent = `${photos} in ${took_ms.toFixed(0)} ms`;
  section.hidden = false;
}

export function hide() {
  section.hidden = true;
}

function card({ id, score, label, attributes, image_url: url }) {
  const item = template.content.cloneNode(true);
  const link = item.querySelector(".card-link");
  const image = item.querySelector(".card-image");
  const name = item.querySelector(".card-label");
  const attributeList = item.querySelector(".card-attributes");
  link.href = url;
  image.src = url;
  image.alt = label ? `${label}, item ${id}` : `Item ${id}`;
  image.addEventListener("error", () => {
    const standIn = document.createElement("span");
    standIn.className = "card-image gone";
    standIn.textContent = "This photo cannot be shown";
    image.replaceWith(standIn);
  });
  name.textContent = label ?? `Item ${id}`;
  name.classList.toggle("none", label === null);
  const number = item.querySelector(".card-score");
  number.textContent = score.toFixed(3);
  number.title = "Cosine similarity, −1 to 1";
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) attributeList.append(pair(key, value));
  }
  return item;
}

function pair(key, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = key;
  description.textContent = value;
  row.append(term, description);
  return row;
}
