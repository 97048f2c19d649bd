// The pages: asks the service for what each shows, puts that into the document, and asks again. plot.js draws.

import { Plot, sample, spark, valueAt } from "./plot.js";

const EVERY_MS = 5000;
/** What hardly changes, or is dear to ask for. */
const SELDOM_MS = 60_000;
const LONGEST_MS = 30_000;
const HOUR_MS = 3_600_000;
/** Growth that begins a capture, unless the configuration says otherwise. */
const FAST_PER_MINUTE = 1 << 20;
const MOST_VERDICTS = 5;
const SILENCE = "The service does not answer; is pgleak watch running? `systemctl status pgleak`";

/** In words, and how bad it is. */
const OUTCOMES = {
  leak: ["leak", "bad"],
  held_until_reset: ["held until reset", "warn"],
  growing_cache: ["growing cache", "warn"],
  grew_until_the_end: ["grew until the end", "warn"],
  not_proven: ["not proven", "plain"],
  nothing_seen: ["no leak seen", "good"],
};
const STATES = { running: ["running", "live"], failed: ["failed", "bad"] };
const FILES = [
  "report.txt", "flame.svg", "flame-inverted.svg", "contexts.svg", "stacks.folded", "profile.pb.gz", "verdict.json",
  "capture.json",
];

const asked = new URLSearchParams(location.search);

// Numbers and times as people read them, bytes as in render/units.rs.

function bytes(value) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1023.5 && unit + 1 < units.length; unit += 1) value /= 1024;
  const digits = unit === 0 || value >= 99.95 ? 0 : value < 9.995 ? 2 : 1;
  return `${value.toFixed(digits)} ${unit === 0 && Math.round(value) === 1 ? "byte" : units[unit]}`;
}

function signed(value) {
  const sign = Math.round(value) === 0 ? "" : value < 0 ? "−" : "+";
  return sign + bytes(Math.abs(value));
}

const count = (value) => value.toLocaleString("en");

/** `2 h 5 min`. */
function duration(ms) {
  let left = Math.max(0, Math.round(ms / 1000));
  const words = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    if (left >= size && words.length < 2) words.push(`${Math.floor(left / size)} ${unit}`);
    left %= size;
  }
  return words.join(" ") || "0 s";
}

const STAMP = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23", timeZoneName: "short",
});

/** `2026-11-29 03:12:45 CET`: the browser's zone, and no doubt which number is the month. */
function stamp(ms) {
  const part = Object.fromEntries(STAMP.formatToParts(ms).map(({ type, value }) => [type, value]));
  return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second} ${part.timeZoneName}`;
}

function time(ms, text = stamp(ms)) {
  return el("time", { dateTime: new Date(ms).toISOString(), title: stamp(ms) }, text);
}

// The document.

const byId = (id) => document.getElementById(id);
const copyOf = (template) => () => byId(template).content.firstElementChild.cloneNode(true);
const listItem = () => el("li");
const isGiven = (value) => value !== undefined && value !== null && value !== "";

function el(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(isGiven));
  return made;
}

const link = (href, text) => el("a", { href }, text);
const span = (...children) => el("span", {}, ...children);

/** Puts text or an element into another, unless it is there: what stays the same keeps focus and selection. */
function put(slot, value) {
  if (value instanceof Node) {
    if (slot.childNodes.length !== 1 || !slot.firstChild.isEqualNode(value)) slot.replaceChildren(value);
  } else if (slot.textContent !== String(value ?? "")) {
    slot.textContent = value ?? "";
  }
}

/** The same for the parts of `root` that have these names. */
function fill(root, values) {
  for (const [name, value] of Object.entries(values)) put(root.querySelector(`[data-slot="${name}"]`), value);
}

/** Makes a child of `parent` for each item, as `update(child, item)` wants it; children that were there are kept. */
function keep(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const keys = new Set(items.map((item) => String(keyOf(item))));
  for (const [key, child] of known) if (!keys.has(key)) child.remove();
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    const child = known.get(key) ?? make();
    child.dataset.key = key;
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

function show(id, isShown) {
  byId(id).hidden = !isShown;
}

/** A list of terms; those without a value are left out. */
function facts(list, values) {
  const given = Object.entries(values).filter(([, value]) => isGiven(value));
  list.replaceChildren(...given.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

/** Tells what became of something that was asked for. */
function say(text, more) {
  const close = () => byId("said").replaceChildren();
  const dismiss = el("button", { type: "button", ariaLabel: "Dismiss", onclick: close }, "×");
  byId("said").replaceChildren(span(text, " ", more), dismiss);
}

function entitle(name) {
  document.title = `${name} – pgleak on ${state.host}`;
}

/** Keeps how the page was left in its address, for reloading it and for sending it to somebody. */
function remember(values) {
  const address = new URL(location);
  address.hash = "";
  for (const [name, value] of Object.entries(values)) {
    if (isGiven(value)) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
  }
  history.replaceState(null, "", address);
}

// The service.

/** What it said last of everything as it is now. */
let state;
/** How far its clock is ahead of the browser's. */
let aheadMs = 0;

const now = () => Date.now() + aheadMs;

async function request(path, body) {
  const post = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { signal: AbortSignal.timeout(LONGEST_MS), ...post }).catch(() => {
    throw new Error(SILENCE);
  });
  if (response.status === 401) location.assign("/login");
  const date = Date.parse(response.headers.get("date"));
  // It counts whole seconds.
  if (date) aheadMs = date + 500 - Date.now();
  if (!response.ok) throw new Error(reasonIn(await response.text()) || `The service answers with ${response.status}`);
  return response;
}

function reasonIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return text.trim();
  }
}

async function ask(path, body) {
  return (await request(path, body)).json();
}

let known = { running: undefined, at: 0, captures: [] };

/** The list of captures. Asked for when it may be another: the service reads the findings of all for it. */
async function captureList() {
  const running = state.running.map(({ number }) => number).join();
  if (running !== known.running || now() - known.at > SELDOM_MS) {
    known = { captures: await ask("/api/v1/captures"), running, at: now() };
  }
  return known.captures;
}

async function captureNow(button) {
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true";
  const pid = Number(button.dataset.pid);
  try {
    const { number } = await ask("/api/v1/captures", { pid });
    say(`Capture ${number} of process ${pid} has begun.`, link(`/capture?n=${number}`, "See it"));
  } catch (error) {
    say(`Process ${pid} is not captured: ${error.message}`);
  }
  button.ariaBusy = "false";
  refresh();
}

// What is on several pages.

const inWords = (status, outcome) => STATES[status] ?? OUTCOMES[outcome] ?? [status, "plain"];
const growthOf = ({ per_minute }) => (per_minute === null ? "new" : `${signed(per_minute)}/min`);
const captureLink = (number) => link(`/capture?n=${number}`, `capture ${number}`);
const processName = ({ kind, pid, database }) => [kind, pid, database && `in ${database}`].filter(Boolean).join(" ");
const foundGrowth = ({ outcome }) => outcome && !["not_proven", "nothing_seen"].includes(outcome);

/** A button, or a link to the capture that it would begin; either has the focus that the other had. */
function offerCapture(place, pid, number) {
  const [button, running] = place.children;
  const hadFocus = place.contains(document.activeElement);
  button.dataset.pid = pid;
  button.ariaLabel = `${button.textContent}, process ${pid}`;
  button.hidden = number !== undefined;
  put(running, number && captureLink(number));
  if (hadFocus) (running.firstElementChild ?? button).focus();
}

function badge(status, outcome) {
  const [text, tone] = inWords(status, outcome);
  return el("span", { className: `badge ${tone}` }, text);
}

/** Says how old everything is: much older than usual if the service hangs or does not answer. */
function showAge() {
  if (!state) return;
  if (!state.at_ms) return put(byId("asof"), "the first look is being taken");
  const { looks, up_seconds } = state.figures;
  const usual = Math.max(EVERY_MS, looks > 0 ? (up_seconds * 1000) / looks : 0);
  const age = now() - state.at_ms;
  const isStale = age > 3 * usual;
  byId("asof").classList.toggle("stale", isStale);
  put(byId("asof"), time(state.at_ms, `${isStale ? "stale: " : ""}as of ${duration(age)} ago`));
}

/** Whether somebody points or reads there: a row that moves then is another that is clicked. */
function isInUse(part) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && part.contains(selection.anchorNode);
  return part.matches(":hover") || part.contains(document.activeElement) || isSelected;
}

// The page of all processes.

/** What a column is sorted by. */
const COLUMNS = {
  pid: ({ pid }) => pid,
  kind: ({ kind }) => kind,
  database: ({ database }) => database ?? "",
  user: ({ user }) => user ?? "",
  anon: ({ anon }) => anon,
  growth: ({ per_minute }) => per_minute ?? 0,
  context: ({ contexts }) => contexts[0]?.bytes ?? 0,
  server: ({ server }) => server,
};
const LARGEST_FIRST = ["anon", "growth", "context"];

class ServersPage {
  #body = byId("processes").tBodies[0];
  #heads = [...document.querySelectorAll("th[data-column]")];
  #filter = byId("filter");
  #column = asked.get("sort") in COLUMNS ? asked.get("sort") : "growth";
  #isDown = !asked.has("up");

  constructor() {
    this.#filter.value = asked.get("find") ?? "";
    this.#filter.addEventListener("input", () => {
      remember({ find: this.#filter.value });
      if (state) this.#showProcesses(true);
    });
    for (const head of this.#heads) {
      head.firstElementChild.addEventListener("click", () => this.#sortBy(head.dataset.column));
    }
  }

  async load() {
    entitle("Processes");
    showFigures(state.figures);
    this.#showProcesses(false);
    showRunning();
    showFound(await captureList());
  }

  #sortBy(column) {
    this.#isDown = column === this.#column ? !this.#isDown : LARGEST_FIRST.includes(column);
    this.#column = column;
    remember({ sort: column, up: this.#isDown ? undefined : 1 });
    if (state) this.#showProcesses(true);
  }

  #showProcesses(isAskedFor) {
    const wanted = state.processes.filter(fits(this.#filter.value));
    const captured = new Map(state.running.map(({ number, subject }) => [subject.pid, number]));
    const rows = this.#inOrder(wanted, isAskedFor);
    const update = (row, process) => showRow(row, process, captured.get(process.pid));
    keep(this.#body, rows, keyOf, copyOf("process"), update);
    const [shown, all] = [count(wanted.length), count(state.processes.length)];
    put(byId("count"), shown === all ? `${all} processes` : `${shown} of ${all} processes`);
    show("none", state.at_ms && !wanted.length);
    for (const head of this.#heads) {
      const isThis = head.dataset.column === this.#column;
      head.ariaSort = !isThis ? "none" : this.#isDown ? "descending" : "ascending";
    }
  }

  #inOrder(processes, isAskedFor) {
    const value = COLUMNS[this.#column];
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const direction = this.#isDown ? -1 : 1;
    const sorted = processes.toSorted((a, b) => direction * compare(value(a), value(b)) || a.pid - b.pid);
    const isHeld = !isAskedFor && isInUse(this.#body);
    show("held", isHeld);
    if (!isHeld) return sorted;
    const places = new Map([...this.#body.children].map(({ dataset }, index) => [dataset.key, index]));
    const place = (process) => places.get(keyOf(process)) ?? places.size;
    return sorted.sort((a, b) => place(a) - place(b));
  }
}

const keyOf = ({ row, pid }) => String(row ?? `pid ${pid}`);

/** Whether all words are somewhere in what a process is. */
function fits(filter) {
  const words = filter.toLowerCase().split(/\s+/);
  return ({ pid, kind, database, user, server }) => {
    const text = [pid, kind, database, user, server].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function showRow(row, process, capture) {
  const { pid, anon, spark: values, contexts: [largest] } = process;
  const size = largest && el("span", { className: "size" }, bytes(largest.bytes));
  fill(row, {
    pid: process.row === null ? pid : link(`/process?id=${process.row}`, pid),
    kind: process.kind,
    database: process.database,
    user: process.user,
    anon: bytes(anon),
    growth: growthOf(process),
    spark: values.length > 1 ? spark(values, `from ${bytes(values[0])} to ${bytes(anon)}`) : "",
    context: largest && span(el("code", {}, largest.label), " ", size),
    server: span(...process.server.split(/(?<=\/)/).flatMap((part) => [part, el("wbr")])),
  });
  row.classList.toggle("fast", process.per_minute >= FAST_PER_MINUTE);
  offerCapture(row.lastElementChild, pid, capture);
}

function showFigures(figures) {
  const { store_trouble, held_back, held_back_why, undelivered, undelivered_why, unread } = figures;
  const percent = (figures.cpu_seconds_last_minute / 60) * 100;
  put(byId("cost"), [
    `pgleak itself: ${percent.toFixed(2)} % of a core`,
    `reads ${bytes(figures.read_bytes_last_minute)}/min`,
    `${bytes(figures.own_bytes)} of memory`,
    `${bytes(figures.series_bytes)} of series`,
    `up ${duration(figures.up_seconds * 1000)}`,
  ].join(", "));
  const warnings = [
    store_trouble && `What is seen is not kept: ${store_trouble}`,
    held_back_why && `Not captured (${count(held_back)} since the start), the last: ${held_back_why}`,
    undelivered_why && `Not delivered (${count(undelivered)} since the start), the last: ${undelivered_why}`,
  ];
  keep(byId("warnings"), warnings.filter(Boolean), (text) => text, listItem, put);
  const dropped = [
    [figures.looks_left_out, "looks left out"],
    [figures.not_stored, "looks not stored"],
    [unread.budget, "readings of contexts put off by the budget"],
    [unread.unknown, "of servers that are not known"],
    [unread.failed, "that failed"],
  ].filter(([value]) => value > 0);
  put(byId("dropped"), `Since the start: ${dropped.map(([value, what]) => `${count(value)} ${what}`).join(", ")}.`);
  show("dropped", dropped.length);
}

function showRunning() {
  const update = (item, { number, subject, begun_ms, why }) =>
    put(item, span(captureLink(number), ` of ${processName(subject)}, for ${duration(now() - begun_ms)}: ${why}`));
  keep(byId("running-list"), state.running, ({ number }) => number, listItem, update);
  show("running", state.running.length);
}

function showFound(captures) {
  const found = captures.filter(foundGrowth).slice(0, MOST_VERDICTS);
  keep(byId("found-list"), found, ({ number }) => number, copyOf("verdict"), (item, brief) => fill(item, {
    outcome: badge(brief.status, brief.outcome),
    what: link(`/capture?n=${brief.number}`, `${brief.function} in ${brief.context ?? "no known context"}`),
    rate: `${bytes(brief.bytes_per_second)}/s`,
    who: processName(brief),
    when: time(brief.begun_ms, `${duration(now() - brief.begun_ms)} ago`),
  }));
  show("found", found.length);
}

// The page of one process.

class ProcessPage {
  #row = Number(asked.get("id"));
  #buttons = [...document.querySelectorAll("#spans button")];
  #plots = ["memory", "contexts"].map((id) => new Plot(byId(id), {
    onSpan: (from, to) => this.#zoom(from, to),
    onCursor: (at, isByKey) => this.#point(at, isByKey),
  }));
  /** The `last` milliseconds, or from one time to another; all that there is, if none is given. */
  #span = Object.fromEntries(["last", "from", "to"].map((name) => [name, Number(asked.get(name)) || undefined]));
  #answer; #live; #cursor; #strong; #soon;
  #hidden = new Set();
  #styles = new Map();

  constructor() {
    if (!["last", "from"].some((name) => asked.has(name))) this.#span = { last: HOUR_MS };
    for (const button of this.#buttons) {
      button.addEventListener("click", () => this.#go({ last: Number(button.dataset.last) }));
    }
    byId("data").addEventListener("toggle", () => this.#answer && this.#showTable());
  }

  async load() {
    this.#live = state.processes.find(({ row }) => row === this.#row);
    const isFirst = !this.#answer;
    const [from, to] = this.#range().map(Math.round);
    const query = new URLSearchParams(from > 0 ? { from } : {});
    // Up to the present is up to what the service takes for it.
    if (this.#span.from || !this.#live) query.set("to", to);
    this.#answer = await ask(`/api/v1/processes/${this.#row}?${query}`);
    // Of one that has ended, the last hour is not that before now.
    if (isFirst && !this.#live && !this.#span.from) return this.load();
    this.#showHeader(this.#answer.process);
    this.#showPlots();
    this.#showLegend();
    this.#showTable();
  }

  /** When what there is of it begins and ends. */
  #bounds() {
    const process = this.#answer?.process;
    return [process?.first_ms ?? 0, process && !this.#live ? process.last_ms : now()];
  }

  #range() {
    const { last, from, to } = this.#span;
    const [first, end] = this.#bounds();
    return from ? [from, to ?? end] : [last ? Math.max(first, end - last) : first, end];
  }

  #showHeader(process) {
    const live = this.#live;
    const capture = state.running.find(({ subject }) => subject.pid === process.pid);
    entitle(processName(process));
    put(byId("what"), processName(process));
    put(byId("now"), live ? `${bytes(live.anon)} of RssAnon, ${growthOf(live)}` : "This process has ended.");
    offerCapture(byId("offer"), process.pid, capture?.number);
    show("offer", live);
    facts(byId("about"), {
      server: process.server,
      user: process.user,
      seen: span(time(process.first_ms), " to ", live ? "now" : time(process.last_ms)),
    });
  }

  #showPlots() {
    const [from, to] = this.#range();
    const { memory, contexts, captures } = this.#answer;
    const points = memory.map(({ at_ms, anon }) => [at_ms, anon]);
    const band = memory.map(({ at_ms, anon, peak }) => [at_ms, anon, peak]);
    const marks = captures.map(({ number, begun_ms, status, outcome }) => {
      const [word, tone] = inWords(status, outcome);
      const name = `capture ${number}: ${word}, ${stamp(begun_ms)}`;
      return { at: begun_ms, href: `/capture?n=${number}`, tone, name };
    });
    this.#plots[0].show({ from, to, marks, band, lines: [{ points, style: 0, hasGaps: true }], isFromZero: false });
    const lines = contexts.filter(({ label }) => !this.#hidden.has(label)).map(({ label, points }) => (
      { points, style: this.#styleOf(label), isStrong: label === this.#strong }));
    this.#plots[1].show({ from, to, marks: [], band: [], lines, isFromZero: true });
    put(byId("range"), span(time(from), " to ", time(to), ` (${duration(to - from)})${gain(points, from, to)}`));
    show("contexts-figure", contexts.length);
    for (const button of this.#buttons) {
      const isThis = Number(button.dataset.last) === (this.#span.last ?? 0);
      button.ariaPressed = String(isThis && !this.#span.from);
    }
  }

  /** A context keeps its line while others come and go. */
  #styleOf(label) {
    if (!this.#styles.has(label)) this.#styles.set(label, this.#styles.size);
    return this.#styles.get(label);
  }

  /** What was held at the cursor, or last. */
  #showLegend() {
    const { memory, contexts } = this.#answer;
    const at = this.#cursor ?? Infinity;
    const point = memory.findLast(({ at_ms }) => at_ms <= at);
    put(byId("read"), point && span(this.#cursor ? "at " : "last ", time(point.at_ms),
      `: ${bytes(point.anon)}, peak ${bytes(point.peak)}, RssShmem ${bytes(point.shmem)}`));
    keep(byId("legend"), contexts, ({ label }) => label, () => this.#legendButton(), (button, { label, points }) => {
      const value = valueAt(points, at);
      button.ariaPressed = String(!this.#hidden.has(label));
      fill(button, {
        sample: sample(this.#styleOf(label)),
        label,
        value: value === undefined ? "not read yet" : bytes(value),
        change: value === undefined ? "" : `(${signed(value - points[0][1])})`,
      });
    });
  }

  #legendButton() {
    const button = copyOf("series")();
    const emphasize = (label) => {
      this.#strong = label;
      this.#showPlots();
    };
    button.addEventListener("click", () => {
      const label = button.dataset.key;
      if (!this.#hidden.delete(label)) this.#hidden.add(label);
      this.#showPlots();
      this.#showLegend();
    });
    for (const begin of ["pointerenter", "focus"]) button.addEventListener(begin, () => emphasize(button.dataset.key));
    for (const end of ["pointerleave", "blur"]) button.addEventListener(end, () => emphasize());
    return button;
  }

  #showTable() {
    if (!byId("data").open) return;
    const { memory, contexts } = this.#answer;
    const [head, body] = [byId("data-head"), byId("data-body")];
    const names = ["time", "RssAnon", "peak", "RssShmem", ...contexts.map(({ label }) => label)];
    keep(head, names, (name) => name, () => el("th", { scope: "col" }), put);
    keep(body, memory.toReversed(), ({ at_ms }) => at_ms, () => el("tr"), (row, { at_ms, anon, peak, shmem }) => {
      const values = [anon, peak, shmem, ...contexts.map(({ points }) => valueAt(points, at_ms))];
      const cells = [time(at_ms), ...values.map((value) => (value === undefined ? "" : bytes(value)))];
      keep(row, [...cells.keys()], (index) => index, () => el("td"), (cell, index) => put(cell, cells[index]));
    });
  }

  /** Shows another time: with what is known of it at once, with all of it when the service has answered. */
  #go(next) {
    this.#span = next;
    remember({ last: next.last, from: next.from, to: next.to });
    if (this.#answer) this.#showPlots();
    clearTimeout(this.#soon);
    this.#soon = setTimeout(refresh, 150);
  }

  #zoom(from, to) {
    if (from === undefined) return this.#go({ last: 0 });
    const [first, end] = this.#bounds();
    const wide = Math.round(Math.min(Math.max(to - from, 2 * EVERY_MS), end - first));
    const begin = Math.round(Math.min(Math.max(from, first), end - wide));
    // What reaches the present stays with it.
    const isFollowing = this.#live && begin + wide > end - wide / 50;
    this.#go(isFollowing ? { last: wide } : { from: begin, to: begin + wide });
  }

  #point(at, isByKey) {
    this.#cursor = at;
    this.#plots.forEach((plot) => plot.point(at));
    if (this.#answer) this.#showLegend();
    if (isByKey) put(byId("read-aloud"), byId("read").textContent);
  }
}

/** By how much it grew between two times. */
function gain(points, from, to) {
  const shown = points.filter(([at]) => at >= from && at <= to);
  if (!shown.length) return ": nothing was seen in this time";
  const [[first, before], [last, after]] = [shown[0], shown.at(-1)];
  const perMinute = ((after - before) * 60_000) / Math.max(1, last - first);
  return `: RssAnon ${bytes(before)}, then ${bytes(after)}; ${signed(after - before)}, ${signed(perMinute)}/min`;
}

// The page of all captures.

class CapturesPage {
  async load() {
    entitle("Captures");
    const captures = await captureList();
    keep(byId("captures").tBodies[0], captures, ({ number }) => number, copyOf("capture"), showBrief);
    show("none", !captures.length);
  }
}

function showBrief(row, brief) {
  fill(row, {
    number: captureLink(brief.number),
    outcome: badge(brief.status, brief.outcome),
    function: brief.function,
    context: brief.context,
    rate: brief.bytes_per_second === null ? "" : `${bytes(brief.bytes_per_second)}/s`,
    process: processName(brief),
    trigger: brief.trigger,
    when: time(brief.begun_ms),
    note: brief.error ?? (brief.status === "expired" ? "its artifacts are gone" : ""),
  });
}

// The page of one capture.

class CapturePage {
  #number = Number(asked.get("n"));
  #pictures = new Pictures(this.#number);
  #status; #shown; #askedAt = -Infinity;

  constructor() {
    byId("copy").addEventListener("click", copyTicket);
  }

  async load() {
    if (this.#status !== "running" && now() - this.#askedAt < SELDOM_MS) return;
    const answer = await ask(`/api/v1/captures/${this.#number}`);
    const { capture } = answer;
    // Whether others were told of it is not shown, and no reason to draw anew.
    const shown = JSON.stringify({ ...answer, capture: { ...capture, told: true } });
    if (shown !== this.#shown) this.#showAll(answer, await ask("/api/v1/processes"));
    [this.#shown, this.#status, this.#askedAt] = [shown, capture.status, now()];
    const [passed, probed] = [duration(now() - capture.begun_ms), duration(capture.probed_seconds * 1000)];
    put(byId("running"), `For ${passed} so far; with probes for ${probed} at most. Then stacks get their names.`);
  }

  #showAll({ capture, ticket, earlier }, processes) {
    const { status, findings, subject, error, why, begun_ms } = capture;
    entitle(`Capture ${this.#number}: ${inWords(status, findings?.outcome)[0]}`);
    put(byId("badge"), badge(status, findings?.outcome));
    put(byId("answer"), findings?.answer ?? error ?? `${processName(subject)} is being captured.`);
    const of = processLink(subject, processes);
    put(byId("about"), span(`Capture ${this.#number} of `, of, ", ", time(begun_ms), `, because ${why}`));
    for (const one of ["running", "expired"]) show(one, status === one);
    showFacts(capture);
    const items = (texts) => texts.map((text) => el("li", {}, text));
    const losses = (findings?.losses ?? []).map(({ count: lost, meaning }) => `Lost: ${count(lost)} ${meaning}`);
    byId("losses").replaceChildren(...items(losses));
    byId("notes").replaceChildren(...items(findings?.notes ?? []));
    byId("suspects").replaceChildren(...(findings?.suspects ?? []).map(suspect));
    byId("ticket").value = ticket;
    show("copy", status !== "running");
    show("artifacts", status === "done");
    if (status === "done") this.#pictures.show(earlier);
  }
}

/** What ended long ago is not among the processes. */
function processLink(subject, processes) {
  const isSame = ({ this_boot, pid, start_ticks }) =>
    this_boot && pid === subject.pid && start_ticks === subject.start_ticks;
  const found = processes.find(isSame);
  return found ? link(`/process?id=${found.row}`, processName(subject)) : processName(subject);
}

function showFacts({ subject, findings, trigger, probed_seconds, status }) {
  const { target, window } = findings ?? {};
  const memory = { before: target?.rss_anon_start, after: target?.rss_anon_end };
  const sizes = Object.entries(memory).filter(([, value]) => isGiven(value));
  facts(byId("facts"), {
    host: target?.host,
    server: [target?.server, subject.server].filter(Boolean).join(", "),
    user: subject.user,
    trigger,
    recorded: window && span(`${duration(window.seconds * 1000)} from `, time(Date.parse(window.started)),
      `, ${window.end.replaceAll("_", " ")}`),
    "with probes": status === "running" ? undefined : duration(probed_seconds * 1000),
    slowdown: window?.expected_slowdown && `${window.expected_slowdown.toFixed(2)} times, as expected beforehand`,
    allocations: window && `${count(window.recorded)} recorded${window.is_estimate ? "; figures are estimates" : ""}`,
    RssAnon: sizes.map(([when, value]) => `${bytes(value)} ${when}`).join(", "),
    "build ID": target?.build_id,
  });
}

function suspect(found, index) {
  const item = copyOf("suspect")();
  const { interval, named_caller: caller, contexts } = found;
  const tone = found.class === "leak" ? "bad" : "warn";
  fill(item, {
    function: found.function,
    class: el("span", { className: `badge ${tone}` }, found.class.replaceAll("_", " ")),
    rate: `${bytes(found.bytes_per_second)}/s`,
    paths: `The call path with most of ${count(found.paths)}, innermost first`,
  });
  const place = ({ name, path = [], held_bytes }) =>
    el("li", {}, `${[...path, name].join(" › ")}: ${bytes(held_bytes)}`);
  facts(item.querySelector("dl"), {
    holds: `${bytes(found.held_bytes)} in ${count(found.chunks)} chunks, for ${bytes(found.requested_bytes)} asked for`,
    interval: interval && `${bytes(interval[0])}/s to ${bytes(interval[1])}/s, nineteen times of twenty`,
    contexts: contexts.length ? el("ul", {}, ...contexts.map(place)) : undefined,
    // What is sure is still a measurement.
    confidence: `${Math.min(99, Math.round(found.confidence * 100))} %`,
    why: found.reason,
    "called by": caller ? `${caller}, the nearest with a name` : found.callers.join(" ← "),
    source: found.source,
    "keeps from others": found.pinned_bytes ? bytes(found.pinned_bytes) : undefined,
    "while running": found.statement && el("code", {}, found.statement),
  });
  item.querySelector("details").open = index === 0;
  item.querySelector("ol").append(...found.path.map((step) => el("li", {}, step)));
  return item;
}

async function copyTicket() {
  const ticket = byId("ticket");
  try {
    await navigator.clipboard.writeText(ticket.value);
    say("The text for the ticket is copied.");
  } catch {
    // A browser lets a page copy at localhost and over TLS only.
    byId("text").open = true;
    ticket.focus();
    ticket.select();
    say("This browser does not let the page copy; the text is selected: press Ctrl+C.");
  }
}

/** Flame graphs, one at a time, and the files of a capture. */
class Pictures {
  #tabs = [...document.querySelectorAll("[role=tab]")];
  #chosen = this.#tabs[0];
  #turn = 0;
  #number;

  constructor(number) {
    this.#number = number;
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.#choose(tab));
    byId("tabs").addEventListener("keydown", (event) => this.#key(event));
    byId("since").addEventListener("change", () => this.#compare());
  }

  show(earlier) {
    const file = (name) => el("a", { href: this.#url(name), download: `pgleak-${this.#number}-${name}` }, name);
    byId("files").replaceChildren(...FILES.map((name) => el("li", {}, file(name))));
    byId("since").replaceChildren(...earlier.map(({ number, begun_ms, pid }) =>
      el("option", { value: number }, `${number}, ${stamp(begun_ms)}, process ${pid}`)));
    show("tab-since", earlier.length);
    this.#choose(this.#chosen.hidden ? this.#tabs[0] : this.#chosen);
  }

  #url(name) {
    return `/captures/${this.#number}/${name}`;
  }

  #choose(chosen) {
    this.#chosen = chosen;
    for (const tab of this.#tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    byId("picture").setAttribute("aria-labelledby", chosen.id);
    const { file } = chosen.dataset;
    show("compare", !file);
    if (file) this.#draw(this.#url(file));
    else this.#compare();
  }

  async #compare() {
    const base = `/captures/${this.#number}/since/${byId("since").value}`;
    byId("before").href = `${base}/diff-before.svg`;
    put(byId("table"), "Comparing …");
    show("frame", false);
    const text = await this.#textOf(`${base}/diff.txt`);
    if (text === undefined) return;
    put(byId("table"), text);
    this.#frame(`${base}/diff.svg`);
  }

  /** A frame is not as high as its picture by itself, and cannot be asked: the picture's text says how high it is. */
  async #draw(path) {
    const text = await this.#textOf(path);
    if (text !== undefined) this.#frame(path, /<svg[^>]* height="(\d+)"/.exec(text)?.[1]);
  }

  /** Nothing, if it cannot be had, or if another was asked for meanwhile. */
  async #textOf(path) {
    const turn = (this.#turn += 1);
    try {
      const text = await (await request(path)).text();
      return turn === this.#turn ? text : undefined;
    } catch (error) {
      show("frame", false);
      put(byId("table"), "");
      say(error.message);
    }
  }

  #frame(path, height) {
    const frame = byId("frame");
    // Room for a scroll bar below.
    frame.style.height = height ? `${Number(height) + 20}px` : "";
    frame.title = `Flame graph: ${this.#chosen.textContent}`;
    frame.src = path;
    byId("alone").href = path;
    show("frame", true);
  }

  #key(event) {
    const tabs = this.#tabs.filter((tab) => !tab.hidden);
    const at = tabs.indexOf(this.#chosen);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.#choose(tabs.at(next % tabs.length));
    this.#chosen.focus();
  }
}

// Asking again and again.

const PAGES = { servers: ServersPage, process: ProcessPage, captures: CapturesPage, capture: CapturePage };
const page = new PAGES[document.body.dataset.page]();
let [timer, isBusy, isAskedAgain] = [undefined, false, false];

async function refresh() {
  if (isBusy) {
    isAskedAgain = true;
    return;
  }
  clearTimeout(timer);
  [isBusy, isAskedAgain] = [true, false];
  await showNow();
  isBusy = false;
  if (isAskedAgain) refresh();
  else if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

async function showNow() {
  try {
    state = await ask("/api/v1/state");
    put(byId("host"), state.host);
    put(byId("version"), `pgleak ${state.version}`);
    showAge();
    await page.load();
    show("trouble", false);
  } catch (error) {
    console.error(error);
    put(byId("trouble"), `${error.message}; trying again every ${EVERY_MS / 1000} s`);
    show("trouble", true);
  }
  document.body.ariaBusy = "false";
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-pid]");
  if (button) captureNow(button);
});
setInterval(showAge, 1000);
// Where the form for the token has led to.
if (location.hash === "#again") remember({});
refresh();
