// Numbers and values as people read them.

const whole = new Intl.NumberFormat("en");
const sizes = ["bytes", "kB", "MB", "GB", "TB"];

/** A whole number: 8,131. */
export function count(n) {
  return whole.format(n);
}

/** Something and how many: "1 photo", "8,131 photos". */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** A share of 1 as per cent: 0.811 → "81.1 %". */
export function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

/** A cosine similarity in −1 … 1: "0.934". */
export function score(value) {
  return value.toFixed(3).replace("-", "−");
}

/** A number of bytes: "2.1 MB". */
export function bytes(n) {
  let unit = 0;
  let value = n;
  while (value >= 1000 && unit < sizes.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${sizes[unit]}`;
}

/** The value of an attribute; numbers without separators, for most of them are years. */
export function attributes(value) {
  if (value === true) return "yes";
  if (value === false) return "no";
  return typeof value === "number" ? String(Math.round(value * 1e6) / 1e6) : String(value);
}

/** All values of an item's attributes in one line; of yes and no, the names of those with yes. */
export function attributeLine(item) {
  return Object.entries(item.attributes ?? {})
    .filter(([, value]) => value !== null && value !== false)
    .map(([name, value]) => (value === true ? name : attributes(value)))
    .join("\u00a0· ");
}

/** Seconds or milliseconds that something took: "38 ms", "2.4 s". */
export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
