// Points on a canvas: zoom, pan, and which of them the pointer means. 50,000 stay smooth, because a
// frame is one pass over typed arrays and a grid answers what is near.

const FULL = 65535;
const GRID = 128;
const MARGIN = 16;
const NEAR_PX = 14;
const MOST_ZOOM = 60;

// More points than this are drawn as squares, which are quicker.
const MOST_ROUND = 5000;

// Milliseconds that the pointer rests on a point before its photo is asked for: to cross a full map
// would otherwise ask for hundreds.
const REST_MS = 60;

// Okabe and Ito's colours first, which people with any colour vision tell apart, then hues a golden
// angle apart, so that no two neighbours in the legend are alike; grey is for all others.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b5a800"];
const GOLDEN_ANGLE = 137.508;
const OTHERS = "#8a8f96";

// Numbers from low to high; each to be seen on light and on dark.
const RAMP = ["#4a63d9", "#1f8fb5", "#2c9c6a", "#b08a12", "#d9602b"];

/** A map's points. */
export class Plot {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(id: number | null, at: {x: number, y: number}) => void} options.onPoint told of the
   *   point under the pointer or the keys, in pixels of the canvas; null: of none.
   * @param {(id: number) => void} options.onChoose a point was clicked, or Enter pressed on it.
   */
  constructor(canvas, { onPoint, onChoose }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onPoint = onPoint;
    this.onChoose = onChoose;
    this.map = null;
    this.legend = [];
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.emphasized = null;
    this.current = null;
    this.frame = 0;
    this.resting = 0;
    this.pointers = new Map();
    this.moved = 0;
    this.ended = new AbortController();
    const listen = (name, call, options = {}) =>
      canvas.addEventListener(name, call, { signal: this.ended.signal, ...options });
    listen("pointerdown", (event) => this.#down(event));
    listen("pointermove", (event) => this.#move(event));
    listen("pointerup", (event) => this.#up(event));
    listen("pointercancel", (event) => this.pointers.delete(event.pointerId));
    listen("pointerleave", (event) => event.pointerType === "mouse" && this.#point(null));
    listen("wheel", (event) => this.#wheel(event), { passive: false });
    listen("keydown", (event) => this.#key(event));
    listen("blur", () => this.#point(null));
  }

  /** Stop listening. */
  end() {
    this.ended.abort();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.resting);
  }

  /** Show a map, as `GET /map` gives it with colours. */
  show(map) {
    this.#point(null);
    this.map = map;
    this.x = Float32Array.from(map.x, (value) => value / FULL);
    this.y = Float32Array.from(map.y, (value) => value / FULL);
    this.codes = Uint8Array.from(map.colours.codes);
    this.others = map.colours.legend.findIndex((entry) => entry.value === null && entry.low === null);
    this.steps = map.colours.ordered ? map.colours.legend.length - (this.others >= 0 ? 1 : 0) : 0;
    this.emphasized = null;
    this.cells = new Map();
    for (let i = 0; i < this.x.length; i += 1) {
      const cell = cellOf(this.x[i], this.y[i]);
      if (this.cells.has(cell)) this.cells.get(cell).push(i);
      else this.cells.set(cell, [i]);
    }
    this.resize();
  }

  /** The colour of a place in the legend. */
  colour(code) {
    if (code === this.others) return OTHERS;
    if (this.steps > 0) return onRamp(this.steps > 1 ? code / (this.steps - 1) : 0);
    if (code < COLOURS.length) return COLOURS[code];
    const lightness = 44 + 8 * (code % 3);
    return `hsl(${Math.round((code * GOLDEN_ANGLE) % 360)} 55% ${lightness}%)`;
  }

  /** Have the points of one colour stand out; null: of none. */
  emphasize(code) {
    this.emphasized = code;
    this.draw();
  }

  /** Take up the canvas's size on the page. */
  resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    this.draw();
  }

  /** Draw at the next frame. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#draw());
  }

  get #scale() {
    const side = Math.min(this.canvas.clientWidth, this.canvas.clientHeight) - 2 * MARGIN;
    return Math.max(1, side) * this.view.zoom;
  }

  #toScreen(i) {
    return {
      x: this.canvas.clientWidth / 2 + (this.x[i] - this.view.x) * this.#scale,
      y: this.canvas.clientHeight / 2 + (this.y[i] - this.view.y) * this.#scale,
    };
  }

  #toMap(x, y) {
    return {
      x: this.view.x + (x - this.canvas.clientWidth / 2) / this.#scale,
      y: this.view.y + (y - this.canvas.clientHeight / 2) / this.#scale,
    };
  }

  #draw() {
    const { context, canvas } = this;
    const ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.map === null) return;
    const n = this.x.length;
    const size = Math.max(2.5, Math.min(9, (3 * Math.sqrt(4000 / Math.max(n, 1)) + 1) * Math.sqrt(this.view.zoom))) * ratio;
    const scale = this.#scale * ratio;
    const left = canvas.width / 2 - this.view.x * scale;
    const top = canvas.height / 2 - this.view.y * scale;
    if (n > MOST_ROUND) this.#drawPixels(left, top, scale, Math.round(size));
    else this.#drawRound(left, top, scale, size);
    context.globalAlpha = 1;
    if (this.current !== null) {
      const at = this.#toScreen(this.current);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2 * ratio;
      context.beginPath();
      context.arc(at.x * ratio, at.y * ratio, size / 2 + 5 * ratio, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  #alpha(code) {
    return this.emphasized !== null && code !== this.emphasized ? 0.12 : 0.85;
  }

  #drawRound(left, top, scale, size) {
    const { context, canvas } = this;
    for (let code = 0; code < this.map.colours.legend.length; code += 1) {
      context.fillStyle = this.colour(code);
      context.globalAlpha = this.#alpha(code);
      context.beginPath();
      for (let i = 0; i < this.x.length; i += 1) {
        if (this.codes[i] !== code) continue;
        const x = left + this.x[i] * scale;
        const y = top + this.y[i] * scale;
        if (x < -size || y < -size || x > canvas.width + size || y > canvas.height + size) continue;
        context.moveTo(x + size / 2, y);
        context.arc(x, y, size / 2, 0, 2 * Math.PI);
      }
      context.fill();
    }
  }

  // Squares, written as pixels: where no graphics processor helps, ten times as fast as drawing them.
  #drawPixels(left, top, scale, size) {
    const { width, height } = this.canvas;
    if (width === 0 || height === 0) return;
    const image = this.context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = this.map.colours.legend.map((_, code) => packed(this.colour(code), this.#alpha(code)));
    for (let i = 0; i < this.x.length; i += 1) {
      const x = Math.round(left + this.x[i] * scale - size / 2);
      const y = Math.round(top + this.y[i] * scale - size / 2);
      if (x < 0 || y < 0 || x + size > width || y + size > height) continue;
      const colour = colours[this.codes[i]];
      for (let row = y; row < y + size; row += 1) pixels.fill(colour, row * width + x, row * width + x + size);
    }
    this.context.putImageData(image, 0, 0);
  }

  #point(i, after = 0) {
    if (i === this.current) return;
    this.current = i;
    this.draw();
    clearTimeout(this.resting);
    if (i === null) this.onPoint(null, { x: 0, y: 0 });
    else if (after === 0) this.onPoint(this.map.ids[i], this.#toScreen(i));
    else this.resting = setTimeout(() => this.onPoint(this.map.ids[i], this.#toScreen(i)), after);
  }

  #near(x, y) {
    if (this.map === null) return null;
    const at = this.#toMap(x, y);
    const reach = NEAR_PX / this.#scale;
    let best = null;
    let least = reach * reach;
    for (const i of this.#within(at, reach)) {
      const distance = (this.x[i] - at.x) ** 2 + (this.y[i] - at.y) ** 2;
      if (distance <= least) [best, least] = [i, distance];
    }
    return best;
  }

  *#within(at, reach) {
    const low = (value) => Math.max(0, Math.floor((value - reach) * GRID));
    const high = (value) => Math.min(GRID, Math.floor((value + reach) * GRID));
    for (let row = low(at.y); row <= high(at.y); row += 1) {
      for (let column = low(at.x); column <= high(at.x); column += 1) {
        yield* this.cells.get(row * (GRID + 1) + column) ?? [];
      }
    }
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (this.pointers.size === 1) this.moved = 0;
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    const now = { x: event.offsetX, y: event.offsetY };
    if (before === undefined) {
      this.#point(this.#near(now.x, now.y), REST_MS);
      return;
    }
    this.pointers.set(event.pointerId, now);
    this.moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (a) => Math.hypot(a.x - other.x, a.y - other.y) || 1;
      this.#zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else {
      this.view.x -= (now.x - before.x) / this.#scale;
      this.view.y -= (now.y - before.y) / this.#scale;
      this.#point(null);
      this.draw();
    }
  }

  #up(event) {
    const alone = this.pointers.size === 1;
    this.pointers.delete(event.pointerId);
    if (!alone || this.moved > 6) return;
    const i = this.#near(event.offsetX, event.offsetY);
    // On a touch screen, the first tap shows what a second one chooses.
    if (i !== null && (event.pointerType === "mouse" || i === this.current)) this.onChoose(this.map.ids[i]);
    else this.#point(i);
  }

  #wheel(event) {
    event.preventDefault();
    this.#zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }

  #zoom(factor, x, y) {
    const before = this.#toMap(x, y);
    this.view.zoom = Math.min(MOST_ZOOM, Math.max(0.5, this.view.zoom * factor));
    const after = this.#toMap(x, y);
    this.view.x += before.x - after.x;
    this.view.y += before.y - after.y;
    this.#point(null);
    this.draw();
  }

  #key(event) {
    if (this.map === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in directions) this.#step(...directions[event.key]);
    else if (event.key === "Enter" && this.current !== null) this.onChoose(this.map.ids[this.current]);
    else if (event.key === "+" || event.key === "=") this.#zoom(1.5, ...middle);
    else if (event.key === "-") this.#zoom(1 / 1.5, ...middle);
    else if (event.key === "0") {
      this.view = { zoom: 1, x: 0.5, y: 0.5 };
      this.draw();
    } else if (event.key === "Escape") this.#point(null);
    else return;
    event.preventDefault();
  }

  // To the next point in a direction: near, and not far off to the side.
  #step(dx, dy) {
    const from = this.current === null ? this.view : { x: this.x[this.current], y: this.y[this.current] };
    let best = null;
    let least = Infinity;
    for (let i = 0; i < this.x.length; i += 1) {
      if (i === this.current) continue;
      const along = (this.x[i] - from.x) * dx + (this.y[i] - from.y) * dy;
      const aside = Math.abs((this.x[i] - from.x) * dy) + Math.abs((this.y[i] - from.y) * dx);
      if (this.current !== null && (along <= 0 || aside > along)) continue;
      const cost = this.current === null ? Math.abs(along) + aside : along + 2 * aside;
      if (cost < least) [best, least] = [i, cost];
    }
    if (best === null) return;
    const at = this.#toScreen(best);
    const inside = at.x > 0 && at.y > 0 && at.x < this.canvas.clientWidth && at.y < this.canvas.clientHeight;
    if (!inside) [this.view.x, this.view.y] = [this.x[best], this.y[best]];
    this.#point(best);
  }
}

function cellOf(x, y) {
  return Math.floor(y * GRID) * (GRID + 1) + Math.floor(x * GRID);
}

/** The colour of a place on the ramp, from 0 to 1. */
function onRamp(place) {
  const at = place * (RAMP.length - 1);
  const below = Math.min(Math.floor(at), RAMP.length - 2);
  const mixed = [1, 3, 5].map((i) => {
    const [low, high] = [RAMP[below], RAMP[below + 1]].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(low + (high - low) * (at - below));
  });
  return `rgb(${mixed.join(" ")})`;
}

/** A CSS colour as a pixel of an image: its bytes are red, green, blue and alpha. */
function packed(colour, alpha) {
  const one = new OffscreenCanvas(1, 1).getContext("2d");
  one.fillStyle = colour;
  one.fillRect(0, 0, 1, 1);
  const { data } = one.getImageData(0, 0, 1, 1);
  data[3] = Math.round(255 * alpha);
  return new Uint32Array(data.buffer)[0];
}
