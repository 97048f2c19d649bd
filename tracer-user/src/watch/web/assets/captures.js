// The page of all captures.

import {
  badge, byId, bytes, captureLink, captureList, copyOf, entitle, fill, keep, processName, show, start, time,
} from "./page.js";

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

start(new CapturesPage());
