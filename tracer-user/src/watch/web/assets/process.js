// The page of one process: its memory and contexts over time, and the same as a table.

import {
  ask, asked, byId, bytes, copyOf, duration, el, entitle, EVERY_MS, facts, fill, growthOf, inWords, keep, now,
  offerCapture, processName, put, refresh, remember, show, signed, span, stamp, start, state, time,
} from "./page.js";
import { Plot, sample, valueAt } from "./plot.js";

const HOUR_MS = 3_600_000;

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
    byId("measure").addEventListener("click", () => this.#measure());
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
    show("measured", live);
    facts(byId("about"), {
      server: process.server,
      user: process.user,
      seen: span(time(process.first_ms), " to ", live ? "now" : time(process.last_ms)),
    });
  }

  /** The kernel walks the page table for this: only when somebody asks. */
  async #measure() {
    const [button, place] = [byId("measure"), byId("rollup")];
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    put(place, "…");
    try {
      const has = await ask(`/api/v1/processes/${this.#row}/smaps`);
      put(place, [
        `${bytes(has.private_dirty)} go when it ends`,
        `Pss ${bytes(has.pss)} (${bytes(has.pss_anon)} without a file, ${bytes(has.pss_shmem)} shared memory)`,
        `Rss ${bytes(has.rss)}`,
        `${bytes(has.anon_huge_pages)} in huge pages`,
        `${bytes(has.swap)} in swap`,
      ].join(", ") + `; that took ${has.took_ms.toFixed(1)} ms`);
    } catch (error) {
      put(place, error.message);
    }
    button.ariaBusy = "false";
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

start(new ProcessPage());
