// The page of one capture: what was found, pictures, files, text for the ticket.

import {
  ask, asked, badge, byId, bytes, copyOf, count, duration, el, entitle, facts, fill, inWords, isGiven, link, now,
  DRAWN_WITHIN_MS, processName, put, request, say, SELDOM_MS, show, span, stamp, start, time,
} from "./page.js";

const FILES = [
  "report.txt", "flame.svg", "flame-inverted.svg", "contexts.svg", "stacks.folded", "profile.pb.gz", "verdict.json",
  "capture.json",
];

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
      const text = await (await request(path, undefined, DRAWN_WITHIN_MS)).text();
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

start(new CapturePage());
