// The page of all processes: a table that is sorted and filtered, what is captured, what was found.

import {
  asked, badge, byId, bytes, captureLink, captureList, copyOf, count, duration, el, entitle, fill, foundGrowth,
  growthOf, keep, link, listItem, now, offerCapture, processName, put, remember, show, span, start, state, time,
} from "./page.js";
import { spark } from "./plot.js";

/** Growth that begins a capture, unless the configuration says otherwise. */
const FAST_PER_MINUTE = 1 << 20;
const MOST_VERDICTS = 5;

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

function troubleOf(what, { count: times, why, at_ms }) {
  return why && `${what} (${count(times)} since the start), the last ${duration(now() - at_ms)} ago: ${why}`;
}

function showFigures(figures) {
  const { store_trouble, held_back, undelivered, unread } = figures;
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
    troubleOf("Not captured", held_back),
    troubleOf("Not delivered", undelivered),
  ];
  keep(byId("warnings"), warnings.filter(Boolean), (text) => text, listItem, put);
  const dropped = [
    [figures.looks_left_out, "looks left out"],
    [figures.unseen, "processes not readable"],
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

/** Whether somebody points or reads there: a row that moves then is another that is clicked. */
function isInUse(part) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && part.contains(selection.anchorNode);
  return part.matches(":hover") || part.contains(document.activeElement) || isSelected;
}

start(new ServersPage());
