//! `report.txt`, also shown on the terminal: what leaks, and why one may believe it.

use super::{
    page::Page,
    processes::{self, labelled},
    suspect::{one_line, suspect},
    units::{bytes, count, counted, exact_bytes, rate, seconds},
};
use crate::profile::{
    Capture, Class, EndReason, FLOOR, OUTSIDE, Outcome, Place, Sampling, Tally, Verdict, Windows, judge,
};

/// How many places of one kind get a line.
const MOST_LINES: usize = 5;

/// How many suspects are described in full; more are listed in one line each.
const MOST_SUSPECTS: usize = 8;

/// Growth of the process by more than this beyond what survives is pointed out.
const UNEXPLAINED_BYTES: u64 = 1 << 20;

/// The report on a capture.
pub fn report(capture: &Capture) -> String {
    let verdict = judge(capture);
    let mut page = Page::default();
    answer(&mut page, capture, &verdict);
    suspects(&mut page, capture, &verdict);
    other_places(&mut page, capture, &verdict);
    totals(&mut page, capture, &verdict);
    process(&mut page, capture);
    memory(&mut page, capture);
    window(&mut page, capture);
    probes(&mut page, capture);
    losses(&mut page, capture);
    notes(&mut page, capture);
    page.into_text()
}

/// The first lines as one.
pub(super) fn answer_text(capture: &Capture, verdict: &Verdict) -> String {
    let mut page = Page::default();
    answer(&mut page, capture, verdict);
    page.into_text().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first lines: all that somebody has to read.
fn answer(page: &mut Page, capture: &Capture, verdict: &Verdict) {
    let survived = verdict.totals.survived;
    let recorded_for = seconds(capture.window.record_ns);
    match &verdict.suspects[..] {
        [] if verdict.totals.recorded.count == 0 => page.hang(
            "No leak seen: ",
            &format!("{} allocated nothing in the {recorded_for} of recording.", subject(capture)),
        ),
        [] => {
            let mut text = format!(
                "of {} allocated in {recorded_for}, {} {}, and nothing of it grew steadily.",
                bytes(verdict.totals.recorded.held),
                bytes(survived.held),
                if verdict.process_ended { "were held at the end" } else { "are left" },
            );
            let unclear = verdict.unclear_one();
            if let Some(place) = unclear {
                text += &format!(" Not clear: {} ({}).", named(place), bytes(place.survived.held));
            }
            if verdict.not_recorded > 0 {
                text += &format!(
                    " But {} {} not recorded because the kernel maps were full, so that a leak may look like \
                     a cache: give more with --map-memory.",
                    counted(verdict.not_recorded, "allocation"),
                    if verdict.not_recorded == 1 { "was" } else { "were" },
                );
            }
            let lead =
                if verdict.outcome() == Outcome::NotProven { "No leak proven: " } else { "No leak seen: " };
            page.hang(lead, &text);
        }
        [first, others @ ..] if capture.traces_blocks() => {
            contexts_grow(page, first, others, verdict.process_ended)
        }
        [first, others @ ..] => {
            let (lead, verb) = match verdict.outcome() {
                Outcome::GrewUntilTheEnd => ("GREW UNTIL THE END: ", "kept"),
                Outcome::HeldUntilReset => ("HELD UNTIL RESET: ", "piles up"),
                Outcome::GrowingCache => ("GROWING CACHE: ", "takes"),
                _ => ("LEAK: ", "leaks"),
            };
            let text = format!(
                "{} {verb} {} in {}.",
                named(first),
                rate(first.course.growth_per_second),
                contexts_in_short(first)
            );
            let text = match first.course.class {
                Class::Held if !verdict.process_ended => {
                    format!("{text} It goes at the end of {}.", first.life.end())
                }
                _ => text,
            };
            page.hang(lead, &text);
            let indent = " ".repeat(lead.len());
            match others {
                [] => {}
                [second] => page.hang(
                    &indent,
                    &format!("{}, too: {}.", named(second), rate(second.course.growth_per_second)),
                ),
                [second, rest @ ..] => page.hang(
                    &indent,
                    &format!(
                        "{}, too: {}; {} below.",
                        named(second),
                        rate(second.course.growth_per_second),
                        counted(rest.len() as u64, "smaller suspect")
                    ),
                ),
            }
        }
    }
    if verdict.process_ended {
        let ended = match capture.window.end {
            EndReason::TargetExec => "became another program",
            _ => "ended",
        };
        let text = format!(
            "{} {ended} after {recorded_for}, which took everything with it: what was held until \
             then is no leak by itself.",
            if capture.is_of_several() { "The processes" } else { "The process" }
        );
        page.hang("", &text);
    } else if !verdict.settled_at_all {
        page.hang("", "Nothing was given time to settle: suspects may be work that was still going on.");
    }
    if let Some(sampling) = &capture.window.sampling {
        page.hang("", &caveat(sampling));
    }
    if capture.traces_blocks() {
        page.hang("", FIRST_LOOK);
    }
    if capture.counters.iter().any(|counter| counter.loss && counter.value > 0) {
        page.hang("", "The recording is incomplete, see LOSSES below.");
    }
    if let Some(more) = unexplained(capture, verdict) {
        let (than, because) = match &capture.memory {
            Some(_) => ("its memory contexts", "by memory that PostgreSQL gave back and libc keeps"),
            None => ("this explains", "by blocks that a few chunks keep in use"),
        };
        let who =
            if capture.traces_malloc() { "" } else { " `--allocator malloc` shows whose malloc it is." };
        page.hang(
            "",
            &format!(
                "{} grew by {} more than {than}: by malloc of libraries or JIT, or {because}.{who}",
                if capture.is_of_several() { "The processes" } else { "The process" },
                bytes(more)
            ),
        );
    }
}

/// What blocks say, and what they do not.
const FIRST_LOOK: &str = "This is a first look, at blocks only: a block serves many requests, and who needed the next one \
     need not be who leaks. `--context NAME` instead of `--allocator blocks` names that.";

/// The first lines about contexts that grow.
fn contexts_grow(page: &mut Page, first: &Place, others: &[Place], process_ended: bool) {
    let lead = match first.course.class {
        _ if process_ended => "GREW UNTIL THE END: ",
        Class::Held => "HELD UNTIL RESET: ",
        _ => "GROWS: ",
    };
    let by = match &first.children[..] {
        [] => "nobody meanwhile: it has room in those that it had".to_owned(),
        [one] => one.label.clone(),
        [one, two] => format!("{} and {}", one.label, two.label),
        [one, rest @ ..] => format!("{} and {}", one.label, counted(rest.len() as u64, "other function")),
    };
    let end = match first.course.class {
        Class::Held if !process_ended => format!(" It goes at the end of {}.", first.life.end()),
        _ => String::new(),
    };
    let text = format!(
        "the context {} {} by {}; its blocks were acquired by {by}.{end}",
        first.head,
        if process_ended { "grew" } else { "grows" },
        rate(first.course.growth_per_second)
    );
    page.hang(lead, &text);
    if let [second, rest @ ..] = others {
        let more = match rest.len() as u64 {
            0 => String::new(),
            more => format!("; {} below", counted(more, "other context")),
        };
        let text = format!("{}, too: {}{more}.", second.head, rate(second.course.growth_per_second));
        page.hang(&" ".repeat(lead.len()), &text);
    }
}

/// Growth of the process beyond that of its contexts, or if these were not read, of all that survives.
fn unexplained(capture: &Capture, verdict: &Verdict) -> Option<u64> {
    let more = match &capture.memory {
        Some(memory) => {
            let growth = memory.rss_anon_after?.checked_sub(memory.rss_anon_before?)?;
            growth.checked_sub(memory.contexts_after.saturating_sub(memory.contexts_before))?
        }
        None => {
            let target = &capture.target;
            let growth = target.rss_anon_end?.checked_sub(target.rss_anon_start?)?;
            // Half-empty blocks of small leaked contexts take three times as much as their chunks.
            growth.checked_sub(verdict.totals.survived.held.saturating_mul(3))?
        }
    };
    (more > UNEXPLAINED_BYTES).then_some(more)
}

fn named(place: &Place) -> String {
    match (&place.named_caller, place.callers.first()) {
        (Some(caller), _) => {
            // What it mostly calls says as much.
            let callee = place.children.first().filter(|child| {
                !child.is_wrapper && !child.label.contains("+0x") && child.held * 2 > place.survived.held
            });
            match callee {
                Some(callee) => format!("{} (nameless, between {caller} and {})", place.head, callee.label),
                None => format!("{} (nameless, below {caller})", place.head),
            }
        }
        (None, Some(caller)) => format!("{} (called by {caller})", place.head),
        (None, None) => place.head.clone(),
    }
}

fn contexts_in_short(place: &Place) -> String {
    match &place.contexts[..] {
        [] => "no known context".to_owned(),
        [one] => one.name.clone(),
        [one, two] => format!("{} and {}", one.name, two.name),
        [one, two, rest @ ..] => {
            format!("{}, {} and {}", one.name, two.name, counted(rest.len() as u64, "other context"))
        }
    }
}

fn suspects(page: &mut Page, capture: &Capture, verdict: &Verdict) {
    if verdict.suspects.is_empty() {
        return;
    }
    page.heading(if capture.traces_blocks() {
        "CONTEXTS THAT GROW, by bytes of blocks (in parentheses: helpers, and what all work runs below)"
    } else {
        "SUSPECTS, by bytes held (in parentheses: allocator helpers, and what all work runs below)"
    });
    for (index, place) in verdict.suspects.iter().take(MOST_SUSPECTS).enumerate() {
        page.blank();
        suspect(page, index + 1, place, capture, verdict.process_ended);
    }
    if let Some(more) = verdict.suspects.get(MOST_SUSPECTS..).filter(|more| !more.is_empty()) {
        page.blank();
        page.line(&format!("   and {}:", counted(more.len() as u64, "smaller one")));
        for place in more {
            one_line(page, place, &rate(place.course.growth_per_second));
        }
    }
}

fn other_places(page: &mut Page, capture: &Capture, verdict: &Verdict) {
    for (heading, places, with_reason) in [
        ("NOT CLEAR: capture again, or longer, if these matter", &verdict.unclear, true),
        ("CACHES: filled up, no leak", &verdict.caches, true),
        ("IN FLIGHT: work that had not ended, no leak", &verdict.in_flight, true),
        ("RELEASED WHILE SETTLING: work that ended, no leak", &verdict.settled, false),
    ] {
        if places.is_empty() {
            continue;
        }
        page.heading(heading);
        for place in places.iter().take(MOST_LINES) {
            one_line(page, place, if with_reason { &place.course.reason } else { "" });
        }
        let more = places.get(MOST_LINES..).unwrap_or(&[]);
        if !more.is_empty() {
            let mut sum = Tally::default();
            more.iter().for_each(|place| sum += place.survived);
            page.line(&format!(
                "  and {} with {}",
                counted(more.len() as u64, "more place"),
                bytes(sum.held)
            ));
        }
    }
    if verdict.rest.count > 0 {
        page.blank();
        let rest = verdict.rest;
        let what = if capture.traces_blocks() { "block" } else { "chunk" };
        page.line(&format!("Elsewhere: {} in {}.", bytes(rest.held), counted(rest.count, what)));
    }
}

fn totals(page: &mut Page, capture: &Capture, verdict: &Verdict) {
    let what = if capture.traces_blocks() { "blocks" } else { "chunks" };
    page.heading(&format!(
        "TOTALS                                 {what}              bytes held         requested"
    ));
    let totals = &verdict.totals;
    let settled = format!("left after {} of settling", seconds(capture.window.settle_ns));
    let rows = [
        ("allocated while recording", totals.recorded),
        ("freed one by one", totals.freed),
        ("ended by a reset or delete", totals.reset),
        ("left when recording ended", totals.at_record_end),
        (if verdict.process_ended { "held when the process ended" } else { &settled }, totals.survived),
    ];
    for (name, tally) in rows {
        page.line(&format!(
            "  {name:30} {:>12} {:>23} {:>17}",
            count(tally.count),
            count(tally.held),
            count(tally.requested)
        ));
    }
    if let Some(others) = capture.profile.no_blocks {
        page.hang(
            "  ",
            &format!(
                "Left out: {} in {} of malloc that {} no block of a context (--allocator malloc shows them).",
                bytes(others.held),
                counted(others.count, "chunk"),
                if others.count == 1 { "is" } else { "are" }
            ),
        );
    } else {
        page.hang("  ", "Held counts what chunks take in their context, headers and rounding included.");
    }
    if capture.is_estimate() {
        page.hang("  ", "All of it is estimated: what was sampled, times what each sample stands for.");
    }
}

/// Who allocates.
fn subject(capture: &Capture) -> &'static str {
    if capture.is_of_several() { "the processes" } else { "the process" }
}

fn process(page: &mut Page, capture: &Capture) {
    let target = &capture.target;
    if capture.is_of_several() {
        page.heading("PROCESSES, by what is left of their allocations");
        processes::list(page, capture);
        page.blank();
        page.hang(
            "  ",
            &format!("{}, on {}", counted(capture.processes.len() as u64, "process"), target.host),
        );
    } else {
        page.heading("PROCESS");
        let who = labelled(
            &format!("{} {}", target.kind, target.pid),
            [("database", &target.database), ("user", &target.user)],
        );
        page.hang("  ", &format!("{who}, on {}", target.host));
    }
    let build = target.build_id.as_ref().map_or(String::new(), |id| format!(", build ID {id}"));
    page.hang("  ", &format!("{}, {}{build}", target.server, target.binary));
    if let (Some(start), Some(end)) = (target.rss_anon_start, target.rss_anon_end) {
        let change = if end >= start {
            format!("grew by {}", exact_bytes(end - start))
        } else {
            format!("shrank by {}", exact_bytes(start - end))
        };
        page.hang("  RssAnon   ", &format!("{}, then {}: {change}", bytes(start), bytes(end)));
    }
    if let Some(shared) = target.rss_shmem_end {
        let who = if capture.is_of_several() { "one of them" } else { "it" };
        page.hang(
            "  RssShmem  ",
            &format!("{}: shared buffers that {who} has touched, no leak", bytes(shared)),
        );
    }
}

/// What survives in places of that name when recording ended.
fn held_in(capture: &Capture, place: &str) -> u64 {
    let groups = capture.profile.groups.iter().filter(|group| capture.profile.place(group).name == place);
    groups.map(|group| group.recorded.held).sum()
}

/// How many contexts get a line.
const MOST_CONTEXTS: usize = 10;

/// Growth of the process = growth of its contexts + what is outside of them; growth of a context =
/// what survives + its overhead + what was not traced.
fn memory(page: &mut Page, capture: &Capture) {
    let Some(memory) = &capture.memory else { return };
    page.heading("MEMORY CONTEXTS while recording        before         after          grew");
    let grew = |before: u64, after: u64| signed(after as i64 - before as i64);
    let mut row = |name: &str, before: u64, after: u64| {
        page.line(&format!(
            "  {name:30} {:>12} {:>13} {:>13}",
            bytes(before),
            bytes(after),
            grew(before, after)
        ));
    };
    row("all contexts", memory.contexts_before, memory.contexts_after);
    if let (Some(start), Some(end)) = (memory.rss_anon_before, memory.rss_anon_after) {
        row("RssAnon", start, end);
        let contexts = memory.contexts_after as i64 - memory.contexts_before as i64;
        page.line(&format!(
            "  {:30} {:>12} {:>13} {:>13}",
            "outside of contexts, or kept",
            "",
            "",
            signed(end as i64 - start as i64 - contexts)
        ));
        if capture.traces_malloc() {
            let held: u64 = OUTSIDE.iter().map(|place| held_in(capture, place)).sum();
            page.line(&format!(
                "  {:30} {:>12} {:>13} {:>13}",
                "  traced: malloc and mmap",
                "",
                "",
                signed(held as i64)
            ));
        }
        page.hang(
            "  ",
            "(malloc of libraries, and what PostgreSQL gave back and libc keeps; less than zero: \
             blocks that were there and are touched only now)",
        );
    }
    let has_small = capture.window.sampling.as_ref().is_some_and(|sampling| sampling.min_size > 0);
    let traced = if capture.is_estimate() { "estimated" } else { "traced" };
    let not_traced = if has_small { "too small for --min-size, or not traced" } else { "not traced" };
    for growth in memory.by_label.iter().take(MOST_CONTEXTS) {
        let blocks = || vec![Some(format!("{} of blocks acquired meanwhile", signed(growth.traced as i64)))];
        let chunks = || {
            vec![
                Some(format!(
                    "{} {traced} ({} requested)",
                    signed(growth.traced as i64),
                    bytes(growth.requested)
                )),
                // Where blocks cannot be read, nothing is known of either.
                (growth.overhead != 0 || growth.untraced.is_some())
                    .then(|| format!("{} free and headers", signed(growth.overhead))),
                growth.untraced.map(|untraced| format!("{} {not_traced}", signed(untraced))),
            ]
        };
        let parts = if capture.traces_blocks() { blocks() } else { chunks() };
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let more = growth.contexts_after as i64 - growth.contexts_before as i64;
        let more = if more == 0 { String::new() } else { format!(" ({more:+} contexts)") };
        page.hang(
            &format!("  {:>11}  ", grew(growth.before, growth.after)),
            &format!("{}{more}: {}", growth.label, parts.join(", ")),
        );
    }
    let others = memory.by_label.len().saturating_sub(MOST_CONTEXTS);
    if others > 0 {
        page.line(&format!("  and {}", counted(others as u64, "other name")));
    }
    if !memory.troubles.is_empty() {
        page.hang("  ", &format!("not complete: {}", memory.troubles));
    }
}

/// Bytes with a sign.
fn signed(value: i64) -> String {
    format!("{}{}", if value < 0 { '-' } else { '+' }, bytes(value.unsigned_abs()))
}

fn window(page: &mut Page, capture: &Capture) {
    let window = &capture.window;
    page.heading("WINDOW");
    let asked = |asked: u64, was: u64| {
        // Timers are late by some milliseconds.
        if asked.abs_diff(was) > 100_000_000 {
            format!(" of {} asked for", seconds(asked))
        } else {
            String::new()
        }
    };
    let of = |ns, requested_ns| format!("{}{}", seconds(ns), asked(requested_ns, ns));
    let (record, settle) = if window.windows.is_some() {
        ("in windows, see below".to_owned(), seconds(window.settle_ns))
    } else {
        (of(window.record_ns, window.requested_record_ns), of(window.settle_ns, window.requested_settle_ns))
    };
    let tool = &capture.tool;
    page.hang(
        "  ",
        &format!(
            "{} {}, started {}, recorded {record}, settled {settle}",
            tool.name, tool.version, window.started
        ),
    );
    if let Some(windows) = &window.windows {
        page.hang("  ", &windows_in_words(windows));
    }
    if let Some(sampling) = &window.sampling {
        page.hang("  ", &sampling_in_words(sampling));
    }
    let end = match window.end {
        EndReason::Completed => "the time was over",
        EndReason::Interrupted => "it was interrupted",
        EndReason::TargetExited if capture.is_of_several() => "all processes had ended",
        EndReason::TargetExited => "the process ended",
        EndReason::TargetExec => "the process became another program",
        EndReason::TooSlow => "it slowed the process down more than allowed",
        EndReason::MapFull => "the kernel maps were full",
    };
    page.hang("  ", &format!("ended because {end}"));
    let slowdown = window.expected_slowdown.map_or(String::new(), |factor| {
        format!("; expected to be {factor:.2} times as slow as without the recording")
    });
    page.hang(
        "  ",
        &format!(
            "{} used {} of CPU while recording{slowdown}",
            subject(capture),
            seconds(window.target_cpu_ns)
        ),
    );
    if capture.traces_blocks() {
        page.hang(
            "  ",
            &format!(
                "said to grow: more used than ever before at the end of {} time slices, and by {}",
                FLOOR.chunks,
                rate(FLOOR.bytes_per_second)
            ),
        );
        return;
    }
    page.hang(
        "  ",
        &format!(
            "called a leak: at least {} chunks, {} and survivors in {:.0} % of the time slices",
            FLOOR.chunks,
            rate(FLOOR.bytes_per_second),
            FLOOR.slices * 100.0
        ),
    );
}

/// What was done for `--overhead`.
fn windows_in_words(windows: &Windows) -> String {
    format!(
        "--overhead {}: recorded for {} in {} of {} in all, {:.1} % of the time and {:.2} % of its work; \
         rates are those of all the work. About {:.1} % of the time was added; {} of windows were gone later",
        windows.allowed * 100.0,
        seconds(windows.record_ns),
        counted(windows.count, "window"),
        seconds(windows.wall_ns),
        windows.record_ns as f64 * 100.0 / windows.wall_ns.max(1) as f64,
        windows.work * 100.0,
        windows.added * 100.0,
        counted(windows.gone, "survivor"),
    )
}

/// What somebody has to know who reads no further.
fn caveat(sampling: &Sampling) -> String {
    let of_small = match sampling.min_size {
        0 => String::new(),
        size => format!("Allocations of less than {} were not looked at. ", counted(size, "byte")),
    };
    if sampling.mean_bytes == 0 {
        return format!("{of_small}A leak of smaller ones does not show here.");
    }
    format!(
        "{of_small}All figures are estimates from {}, one each {} that were asked for.",
        counted(sampling.recorded, "sampled allocation"),
        bytes(sampling.mean_bytes)
    )
}

/// What was done for `--min-size` and `--sample`.
fn sampling_in_words(sampling: &Sampling) -> String {
    let all = sampling.recorded + sampling.left_out;
    let of = format!("{} of {} were recorded", count(sampling.recorded), counted(all, "allocation"));
    let min_size = match sampling.min_size {
        0 => String::new(),
        size => format!("--min-size {size}: smaller allocations were left out; "),
    };
    if sampling.mean_bytes == 0 {
        return format!("{min_size}{of}");
    }
    format!(
        "{min_size}--sample {mean}: one allocation each {mean} bytes asked for on average, one of s bytes with \
         probability p = 1 - exp(-s / {mean}), which stands for 1 / p; {of}. Contexts were all recorded",
        mean = sampling.mean_bytes
    )
}

fn probes(page: &mut Page, capture: &Capture) {
    page.heading("PROBES");
    let (called, idle): (Vec<_>, Vec<_>) = capture.sites.iter().partition(|site| site.entries > 0);
    for site in called {
        let mut returns =
            site.returns.map_or(String::new(), |returns| format!(", {}", counted(returns, "return")));
        if site.unawaited > 0 {
            returns.push_str(&format!(" and {} not awaited", count(site.unawaited)));
        }
        page.hang(
            &format!("  {:18} ", site.function),
            &format!(
                "{}{returns}; {:#x} `{}`, {}, found by {}",
                counted(site.entries, "call"),
                site.probe_address.0,
                site.instruction,
                site.cost_class,
                site.found_by
            ),
        );
    }
    if !idle.is_empty() {
        let names: Vec<&str> = idle.iter().map(|site| site.function.as_str()).collect();
        page.hang("  not called         ", &names.join(", "));
    }
}

fn losses(page: &mut Page, capture: &Capture) {
    let mut lost = capture.counters.iter().filter(|counter| counter.loss && counter.value > 0).peekable();
    if lost.peek().is_none() {
        return;
    }
    page.heading("LOSSES");
    for counter in lost {
        page.hang(
            &format!("  {:>12}  ", count(counter.value)),
            &format!("{} ({})", counter.meaning, counter.name),
        );
    }
}

fn notes(page: &mut Page, capture: &Capture) {
    if capture.notes.is_empty() {
        return;
    }
    page.heading("NOTES");
    for note in &capture.notes {
        page.hang("  * ", note);
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
