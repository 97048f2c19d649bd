// Courses over time, drawn as SVG: axes, lines, a band, marks and a cursor; zoomed by mouse, finger, wheel and keys.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 10, right: 22, bottom: 30, left: 84 };
const HEIGHT = 260;
const PIXELS_A_TIME = 84;
const LEAST_DRAG = 6;
const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [
  SECOND, 5 * SECOND, 15 * SECOND, 30 * SECOND, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
  HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY,
];
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

const [SECONDS, MINUTES, DAYS] = [
  { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" },
  { hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
  { day: "numeric", month: "short" },
].map((options) => new Intl.DateTimeFormat("en-GB", options));

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

/** The value of the last of `points`, `[time, value]` in order of time, that is not after `at`. */
export function valueAt(points, at) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= at) low = middle + 1;
    else high = middle;
  }
  return points[low - 1]?.[1];
}

/** The class that gives a line its colour and dashes: twelve that differ in both. */
export function styleOf(index) {
  return `c${index % 6} d${index % 4}`;
}

/** A short line as it stands in a legend. */
export function sample(index) {
  return svg("svg", { class: "sample", width: 34, height: 10, "aria-hidden": "true" },
    svg("path", { class: `line ${styleOf(index)}`, d: "M1 5H33" }));
}

/** A line of the size of a word. What hardly changes is flat: its noise would look like growth. */
export function spark(values, name) {
  const [width, height, inset] = [96, 24, 2];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const range = Math.max(high - low, high / 50, 1 << 20);
  const at = (value, index) => {
    const x = inset + (index / Math.max(1, values.length - 1)) * (width - 2 * inset);
    return `${x.toFixed(1)},${(height - inset - ((value - low) / range) * (height - 2 * inset)).toFixed(1)}`;
  };
  return svg("svg", { class: "spark", width, height, role: "img", "aria-label": name },
    svg("polyline", { points: values.map(at).join(" ") }));
}

/** Round values between two numbers of bytes, written in one unit. */
function byteTicks(low, high, most) {
  const power = Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(high, 1)) / 10)));
  const unit = 1024 ** power;
  const rough = (high - low) / most / unit;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * [1, 2, 5, 10].find((factor) => factor * ten >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / unit / step);
  const count = Math.floor(high / unit / step) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, index) => {
    const value = (first + index) * step;
    return { value: value * unit, text: `${value.toFixed(digits)} ${UNITS[power]}` };
  });
}

/** Round times of the browser's zone between two. */
function timeTicks(from, to, most) {
  const step = STEPS.find((step) => (to - from) / step <= most) ?? STEPS.at(-1);
  const offset = new Date(from).getTimezoneOffset() * MINUTE;
  const ticks = [];
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step) {
    const isMidnight = (at - offset) % DAY === 0;
    ticks.push({ at, text: (isMidnight ? DAYS : step < MINUTE ? SECONDS : MINUTES).format(at) });
  }
  return ticks;
}

/** Cuts points, which begin with their time, where nobody looked: not only did nothing change there. */
function pieces(points) {
  const steps = points.slice(1).map(([at], index) => at - points[index][0]).sort((a, b) => a - b);
  const gap = Math.max(3 * MINUTE, 6 * (steps[steps.length >> 1] ?? 0));
  const pieces = [];
  points.forEach((point, index) => {
    if (index === 0 || point[0] - points[index - 1][0] > gap) pieces.push([]);
    pieces.at(-1).push(point);
  });
  return pieces;
}

/**
 * Draws into `host`, which can have the focus. `onSpan(from, to)` is told what is zoomed to, `onSpan()` to show all;
 * `onCursor(at, isByKey)` which time is pointed at, `undefined` for none.
 */
export class Plot {
  #host; #onSpan; #onCursor; #root; #layers = {}; #marks = new Map(); #width = 0; #cursor; #dragged;
  #model = { from: 0, to: 1, lines: [], band: [], marks: [], isFromZero: false };
  #low = 0; #high = 1;

  constructor(host, { onSpan, onCursor }) {
    [this.#host, this.#onSpan, this.#onCursor] = [host, onSpan, onCursor];
    this.#root = svg("svg", { height: HEIGHT });
    for (const name of ["grid", "band", "lines", "cursor", "drag", "marks"]) {
      this.#root.append(this.#layers[name] = svg("g", { class: name }));
    }
    host.append(this.#root);
    new ResizeObserver(() => this.#resize()).observe(host);
    host.addEventListener("pointerdown", (event) => this.#press(event));
    host.addEventListener("pointermove", (event) => this.#move(event));
    host.addEventListener("pointerup", (event) => this.#release(event));
    host.addEventListener("pointercancel", () => this.#drag());
    // A finger that is lifted leaves as well, and what it pointed at is to be read.
    host.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && this.#onCursor());
    host.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    host.addEventListener("keydown", (event) => this.#key(event));
  }

  /**
   * Each of `lines` is `{ points: [[time, value]], style, hasGaps, isStrong }`, of `marks` `{ at, href, name, tone }`,
   * of `band` `[time, low, high]`. Times are milliseconds since 1970.
   */
  show(model) {
    this.#model = model;
    this.#draw();
  }

  /** Shows the values at a time, or at none. */
  point(at) {
    this.#cursor = at;
    this.#drawCursor();
  }

  #resize() {
    const width = this.#host.clientWidth;
    if (width === this.#width) return;
    this.#width = width;
    this.#root.setAttribute("width", width);
    this.#draw();
  }

  #x(at) {
    const { from, to } = this.#model;
    return MARGIN.left + ((at - from) / (to - from)) * (this.#width - MARGIN.left - MARGIN.right);
  }

  #at(event) {
    const { from, to } = this.#model;
    const inner = this.#width - MARGIN.left - MARGIN.right;
    const part = (event.clientX - this.#root.getBoundingClientRect().left - MARGIN.left) / inner;
    return from + Math.min(1, Math.max(0, part)) * (to - from);
  }

  #y(value) {
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    return HEIGHT - MARGIN.bottom - ((value - this.#low) / (this.#high - this.#low)) * inner;
  }

  #draw() {
    if (this.#width <= MARGIN.left + MARGIN.right) return;
    this.#scale();
    this.#drawGrid();
    this.#drawLines();
    this.#drawMarks();
    this.#drawCursor();
  }

  #scale() {
    const { from, to, lines, band, isFromZero } = this.#model;
    const isShown = ([at]) => at >= from && at <= to;
    const values = lines.flatMap(({ points }) => points.filter(isShown).map(([, value]) => value));
    values.push(...band.filter(isShown).map(([, , high]) => high));
    const high = values.reduce((most, value) => Math.max(most, value), 0);
    const low = isFromZero ? 0 : values.reduce((least, value) => Math.min(least, value), high);
    // What hardly changes is to look like that.
    const range = Math.max(high - low, high / 50, 64 << 10);
    const middle = (high + low) / 2;
    this.#low = isFromZero ? 0 : Math.max(0, middle - range * 0.55);
    this.#high = isFromZero ? range * 1.05 : Math.max(middle + range * 0.55, this.#low + range * 1.1);
  }

  #drawGrid() {
    const { from, to } = this.#model;
    const [left, right, bottom] = [MARGIN.left, this.#width - MARGIN.right, HEIGHT - MARGIN.bottom];
    const most = Math.max(2, Math.floor((right - left) / PIXELS_A_TIME));
    this.#layers.grid.replaceChildren(
      ...byteTicks(this.#low, this.#high, 5).flatMap(({ value, text }) => [
        svg("path", { d: `M${left} ${this.#y(value)}H${right}` }),
        svg("text", { x: left - 8, y: this.#y(value) + 4, "text-anchor": "end" }, text),
      ]),
      ...timeTicks(from, to, most).flatMap(({ at, text }) => [
        svg("path", { d: `M${this.#x(at)} ${bottom}v5` }),
        svg("text", { x: this.#x(at), y: bottom + 20, "text-anchor": "middle" }, text),
      ]),
      svg("path", { class: "axis", d: `M${left} ${bottom}H${right}` }),
    );
  }

  #drawLines() {
    const { lines, band, from, to } = this.#model;
    const isShown = ([at]) => at >= from && at <= to;
    const spot = (at, value) => `${this.#x(at).toFixed(1)} ${this.#y(value).toFixed(1)}`;
    const line = ({ points, style, hasGaps, isStrong }) => {
      const shown = points.filter(isShown);
      const way = (piece) => `M${piece.map(([at, value]) => spot(at, value)).join("L")}`;
      const path = (hasGaps ? pieces(shown) : [shown]).map(way).join("");
      return svg("path", { class: `line ${styleOf(style)}${isStrong ? " strong" : ""}`, d: path });
    };
    const area = (piece) => {
      const [high, low] = [piece.map(([at, , high]) => spot(at, high)), piece.map(([at, low]) => spot(at, low))];
      return svg("polygon", { points: [...high, ...low.reverse()].join(" ") });
    };
    this.#layers.lines.replaceChildren(...lines.filter(({ points }) => points.some(isShown)).map(line));
    this.#layers.band.replaceChildren(...pieces(band.filter(isShown)).map(area));
  }

  /** Links that were there before are kept, and with them the focus. */
  #drawMarks() {
    const { marks, from, to } = this.#model;
    const bottom = HEIGHT - MARGIN.bottom;
    const shown = marks.filter(({ at }) => at >= from && at <= to);
    const gone = new Set(this.#marks.keys());
    for (const { at, href, name, tone } of shown) {
      gone.delete(href);
      let link = this.#marks.get(href);
      if (!link) {
        link = svg("a", { href }, svg("title"), svg("path", { class: "rule", d: `M0 ${MARGIN.top}V${bottom}` }),
          svg("rect", { x: -10, y: bottom - 20, width: 20, height: 24 }),
          svg("path", { class: "flag", d: `M0 ${bottom}l-6 -11h12z` }));
        this.#marks.set(href, link);
        this.#layers.marks.append(link);
      }
      link.setAttribute("class", tone);
      link.setAttribute("aria-label", name);
      link.firstChild.textContent = name;
      link.setAttribute("transform", `translate(${this.#x(at).toFixed(1)} 0)`);
    }
    for (const href of gone) {
      this.#marks.get(href).remove();
      this.#marks.delete(href);
    }
  }

  #drawCursor() {
    const { lines, from, to } = this.#model;
    const at = this.#cursor;
    if (at === undefined || at < from || at > to || !this.#width) return this.#layers.cursor.replaceChildren();
    const x = this.#x(at);
    const values = lines.map(({ points, style }) => ({ value: valueAt(points, at), style }));
    this.#layers.cursor.replaceChildren(
      svg("path", { d: `M${x} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` }),
      ...values.filter(({ value }) => value !== undefined).map(({ value, style }) =>
        svg("circle", { class: styleOf(style), cx: x, cy: this.#y(value), r: 4 })));
  }

  /** Marks what is being dragged over; nothing, if nothing is. */
  #drag(at) {
    if (at === undefined) this.#dragged = undefined;
    const [a, b] = at === undefined ? [0, 0] : [this.#x(this.#dragged), this.#x(at)].sort((a, b) => a - b);
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    this.#layers.drag.replaceChildren(
      ...(b > a ? [svg("rect", { x: a, y: MARGIN.top, width: b - a, height: inner })] : []));
  }

  #press(event) {
    if (event.button !== 0 || event.target.closest("a")) return;
    this.#dragged = this.#at(event);
    this.#host.setPointerCapture(event.pointerId);
  }

  #move(event) {
    const at = this.#at(event);
    if (this.#dragged !== undefined) this.#drag(at);
    this.#onCursor(at, false);
  }

  #release(event) {
    if (this.#dragged === undefined) return;
    const [from, to] = [this.#dragged, this.#at(event)].sort((a, b) => a - b);
    this.#drag();
    if (this.#x(to) - this.#x(from) >= LEAST_DRAG) this.#onSpan(from, to);
    else this.#onCursor(to, false);
  }

  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#zoom(event.deltaY < 0 ? 0.8 : 1.25, this.#at(event));
  }

  #zoom(factor, around) {
    const { from, to } = this.#model;
    this.#onSpan(around - (around - from) * factor, around + (to - around) * factor);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target !== this.#host) return;
    const { from, to } = this.#model;
    const range = to - from;
    const isShown = this.#cursor >= from && this.#cursor <= to;
    const pan = (part) => this.#onSpan(from + part * range, to + part * range);
    const step = (part) => {
      const next = (isShown ? this.#cursor : to) + part * range;
      this.#onCursor(Math.min(to, Math.max(from, next)), true);
    };
    const around = isShown ? this.#cursor : (from + to) / 2;
    const act = {
      "+": () => this.#zoom(0.5, around),
      "=": () => this.#zoom(0.5, around),
      "-": () => this.#zoom(2, around),
      "0": () => this.#onSpan(),
      ArrowLeft: () => (event.shiftKey ? step(-0.02) : pan(-0.25)),
      ArrowRight: () => (event.shiftKey ? step(0.02) : pan(0.25)),
      Escape: () => (this.#drag(), this.#onCursor()),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
