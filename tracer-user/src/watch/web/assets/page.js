// What all pages have in common: asks the service, puts what it says into the document, and asks again.

export const EVERY_MS = 5000;
/** What hardly changes, or is dear to ask for. */
export const SELDOM_MS = 60_000;
const LONGEST_MS = 30_000;
/** For what is drawn first: longer than the service takes for it at most. */
export const DRAWN_WITHIN_MS = 95_000;
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

export const asked = new URLSearchParams(location.search);

for (const link of document.querySelectorAll("nav a")) {
  if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
}

// Numbers and times as people read them, bytes as in render/units.rs.

export function bytes(value) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1023.5 && unit + 1 < units.length; unit += 1) value /= 1024;
  const digits = unit === 0 || value >= 99.95 ? 0 : value < 9.995 ? 2 : 1;
  return `${value.toFixed(digits)} ${unit === 0 && Math.round(value) === 1 ? "byte" : units[unit]}`;
}

export function signed(value) {
  const sign = Math.round(value) === 0 ? "" : value < 0 ? "−" : "+";
  return sign + bytes(Math.abs(value));
}

export const count = (value) => value.toLocaleString("en");

/** `2 h 5 min`. */
export function duration(ms) {
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
export function stamp(ms) {
  const part = Object.fromEntries(STAMP.formatToParts(ms).map(({ type, value }) => [type, value]));
  return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second} ${part.timeZoneName}`;
}

export function time(ms, text = stamp(ms)) {
  return el("time", { dateTime: new Date(ms).toISOString(), title: stamp(ms) }, text);
}

// The document.

export const byId = (id) => document.getElementById(id);
export const copyOf = (template) => () => byId(template).content.firstElementChild.cloneNode(true);
export const listItem = () => el("li");
export const isGiven = (value) => value !== undefined && value !== null && value !== "";

export function el(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(isGiven));
  return made;
}

export const link = (href, text) => el("a", { href }, text);
export const span = (...children) => el("span", {}, ...children);

/** Puts text or an element into another, unless it is there: what stays the same keeps focus and selection. */
export function put(slot, value) {
  if (value instanceof Node) {
    if (slot.childNodes.length !== 1 || !slot.firstChild.isEqualNode(value)) slot.replaceChildren(value);
  } else if (slot.textContent !== String(value ?? "")) {
    slot.textContent = value ?? "";
  }
}

/** The same for the parts of `root` that have these names. */
export function fill(root, values) {
  for (const [name, value] of Object.entries(values)) put(root.querySelector(`[data-slot="${name}"]`), value);
}

/** Makes a child of `parent` for each item, as `update(child, item)` wants it; children that were there are kept. */
export function keep(parent, items, keyOf, make, update) {
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

export function show(id, isShown) {
  byId(id).hidden = !isShown;
}

/** A list of terms; those without a value are left out. */
export function facts(list, values) {
  const given = Object.entries(values).filter(([, value]) => isGiven(value));
  list.replaceChildren(...given.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

/** Tells what became of something that was asked for. */
export function say(text, more) {
  const close = () => byId("said").replaceChildren();
  const dismiss = el("button", { type: "button", ariaLabel: "Dismiss", onclick: close }, "×");
  byId("said").replaceChildren(span(text, " ", more), dismiss);
}

export function entitle(name) {
  document.title = `${name} – pgleak on ${state.host}`;
}

/** Keeps how the page was left in its address, for reloading it and for sending it to somebody. */
export function remember(values) {
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
export let state;
/** How far its clock is ahead of the browser's. */
let aheadMs = 0;

export const now = () => Date.now() + aheadMs;

export async function request(path, body, longest = LONGEST_MS) {
  const post = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { signal: AbortSignal.timeout(longest), ...post }).catch(() => {
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

export async function ask(path, body) {
  return (await request(path, body)).json();
}

let known = { running: undefined, at: 0, captures: [] };

/** The list of captures. Asked for when it may be another: the service reads the findings of all for it. */
export async function captureList() {
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

export const inWords = (status, outcome) => STATES[status] ?? OUTCOMES[outcome] ?? [status, "plain"];
export const growthOf = ({ per_minute }) => (per_minute === null ? "new" : `${signed(per_minute)}/min`);
export const captureLink = (number) => link(`/capture?n=${number}`, `capture ${number}`);
export const processName = ({ kind, pid, database }) => `${kind} ${pid}${database ? ` in ${database}` : ""}`;
export const foundGrowth = ({ outcome }) => outcome && !["not_proven", "nothing_seen"].includes(outcome);

/** A button, or a link to the capture that it would begin; either has the focus that the other had. */
export function offerCapture(place, pid, number) {
  const [button, running] = place.children;
  const hadFocus = place.contains(document.activeElement);
  button.dataset.pid = pid;
  button.ariaLabel = `${button.textContent}, process ${pid}`;
  button.hidden = number !== undefined;
  put(running, number && captureLink(number));
  if (hadFocus) (running.firstElementChild ?? button).focus();
}

export function badge(status, outcome) {
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

// Asking again and again.

let [page, timer, isBusy, isAskedAgain] = [undefined, undefined, false, false];

/** Shows a page, which loads what it shows, for as long as it is open. */
export function start(shown) {
  page = shown;
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-pid]");
    if (button) captureNow(button);
  });
  setInterval(showAge, 1000);
  // Where the form for the token has led to.
  if (location.hash === "#again") remember({});
  refresh();
}

export async function refresh() {
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
