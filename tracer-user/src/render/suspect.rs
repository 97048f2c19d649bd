//! One place of the verdict as text: in full for a suspect, in a line for the others.

use super::{
    page::Page,
    units::{bytes, count, counted, exact_bytes, percent, rate},
};
use crate::profile::{Capture, Class, Place, Step, wrappers::Role};

/// The most lines of the hottest path; the middle of a longer one is left out.
const MOST_STEPS: usize = 16;

/// Contexts of a suspect that are named.
const MOST_CONTEXTS: usize = 6;

/// The most characters of a statement.
const MOST_STATEMENT: usize = 240;

/// Nothing that was seen for some seconds is surer.
const MOST_CONFIDENCE: f64 = 0.99;

/// A suspect in full.
pub(super) fn suspect(page: &mut Page, number: usize, place: &Place, capture: &Capture, process_ended: bool) {
    let queries = &capture.queries;
    let is_estimate = capture.is_estimate();
    let course = &place.course;
    // What was held by a process that ended is no leak by itself.
    let class = match course.class {
        _ if process_ended => "GREW".to_owned(),
        Class::Leak if place.is_context => "GROWS".to_owned(),
        class => class.name().to_uppercase(),
    };
    page.hang(
        &format!("{number}. "),
        &format!("{}: {class}, {}", place.head, rate(course.growth_per_second)),
    );
    let mut field = |name: &str, text: &str| page.hang(&format!("   {name:13} "), text);
    if let Some((file, line)) = &place.source {
        field("at", &line.map_or_else(|| file.clone(), |line| format!("{file}:{line}")));
    }
    if let Some(caller) = &place.named_caller {
        field("named", &format!("the binary has no name for it; its nearest caller with one is {caller}"));
    }
    if !place.callers.is_empty() {
        field("called by", &place.callers.join(" < "));
    }
    let survived = place.survived;
    let chunks = counted(survived.count - place.made.count, what(place));
    let about = if is_estimate { "about " } else { "" };
    let mut holds = format!("{about}{} in {chunks}", exact_bytes(survived.held - place.made.held));
    if place.made.count > 0 {
        let made = counted(place.made.count, "context");
        holds += &format!(", and {made} with {} of their own", exact_bytes(place.made.held));
    }
    if place.pinned > 0 {
        holds += &format!(", and keeps {} of their blocks from others", exact_bytes(place.pinned));
    }
    if is_estimate {
        holds += &format!(": estimated from {}", counted(place.seen() - place.made.count, "sample"));
    }
    field("holds", &holds);
    if !place.is_context {
        field("requested", &exact_bytes(survived.requested));
    }
    field("why", &course.reason);
    field("confidence", &format!("{:.2} of 1", course.confidence.min(MOST_CONFIDENCE)));
    if let Some([low, high]) = course.interval {
        let by =
            if capture.window.windows.is_some() { "how windows differ" } else { "the chance of sampling" };
        field("interval", &format!("{} to {}, 95 % of the time, by {by}", rate(low), rate(high)));
    }
    if course.steady_per_second < course.growth_per_second * 0.7 {
        field("", &format!("{} of it is steady, the rest came in bursts", rate(course.steady_per_second)));
    }
    let by_age = format!("{}  (oldest first, bytes of each time slice)", bars(place));
    field(if place.is_context { "growth" } else { "by age" }, &by_age);
    let contexts: Vec<String> = place
        .contexts
        .iter()
        .take(MOST_CONTEXTS)
        .map(|share| {
            let many = if share.contexts > 1 {
                format!(" in {} or more contexts", count(share.contexts))
            } else {
                String::new()
            };
            let below = share
                .path
                .as_ref()
                .filter(|path| path.len() > 1)
                .map_or(String::new(), |path| format!(" (below {})", path[1..].join(" > ")));
            format!("{}{below} {}{many}", share.name, bytes(share.tally.held))
        })
        .collect();
    let more = place.contexts.len().saturating_sub(MOST_CONTEXTS);
    let more = if more > 0 { format!("; {more} more names") } else { String::new() };
    if !contexts.is_empty() {
        field("contexts", &format!("{}{more}", contexts.join("; ")));
    }
    if course.class == Class::Held {
        field(
            "but",
            &format!(
                "all of it goes at the end of {}: it may be the working memory of what runs",
                place.life.end()
            ),
        );
    }
    let seen = place.query.and_then(|(at, part)| Some((queries.get(at as usize)?, part)));
    if let Some((query, part)) = seen {
        let id = query.id.map_or(String::new(), |id| format!("query id {id}: "));
        let short: String = query.statement.chars().take(MOST_STATEMENT).collect();
        let cut = if short.len() < query.statement.len() { " …" } else { "" };
        let part = percent((part * 1000.0) as u64, 1000);
        field("while running", &format!("{part} of what was seen: {id}{short}{cut}"));
    }
    let mut lead = if place.is_context { "acquired by" } else { "below it" };
    for child in &place.children {
        let share = percent(child.held, survived.held);
        let text = match child.is_wrapper {
            true => format!("{share:>5}  by itself ({})", child.label),
            false => format!("{share:>5}  {}", child.label),
        };
        page.line(&format!("   {lead:13} {text}"));
        lead = "";
    }
    if place.paths == 0 {
        return;
    }
    let paths = counted(place.paths as u64, "call path");
    let hottest = match place.paths {
        1 => paths,
        _ => format!("{paths}; the hottest has {}", percent(place.hottest_held, survived.held)),
    };
    page.hang("   reached by    ", &format!("{hottest}, innermost first:"));
    path(page, &place.hottest);
}

/// What a place holds.
fn what(place: &Place) -> &'static str {
    if place.is_context { "block" } else { "chunk" }
}

/// A path with a line for each function that says something.
fn path(page: &mut Page, steps: &[Step]) {
    let mut lines: Vec<(bool, String)> = Vec::new();
    // Wrappers and drivers share a line with their like.
    for run in steps.chunk_by(|a, b| a.role == b.role && a.role != Role::Worker && !a.is_head && !b.is_head) {
        let labels: Vec<&str> = run.iter().map(|step| step.label.as_str()).collect();
        let labels = labels.join(" < ");
        let is_head = run.iter().any(|step| step.is_head);
        lines.push((
            is_head,
            if run[0].role == Role::Worker || is_head { labels } else { format!("({labels})") },
        ));
    }
    let left_out = lines.len().saturating_sub(MOST_STEPS);
    let tail = lines.len() - MOST_STEPS.min(lines.len()) / 4;
    for (index, (is_head, text)) in lines.iter().enumerate() {
        // The head and what is near it on the inner side, and the outermost lines.
        if left_out > 0 && !is_head && (tail - left_out..tail).contains(&index) {
            if index == tail - left_out {
                page.line(&format!("                 … {left_out} more"));
            }
            continue;
        }
        page.hang(if *is_head { "               > " } else { "                 " }, text);
    }
}

/// Bytes of each time slice as a row of bars.
fn bars(place: &Place) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = place.slices.iter().map(|slice| slice.held).max().unwrap_or(0).max(1);
    place
        .slices
        .iter()
        .map(|slice| match slice.held {
            0 => '·',
            held => BARS[(held as f64 / most as f64 * 7.0).round() as usize],
        })
        .collect()
}

/// A place in a line: how much, how many, where, and `remark`.
pub(super) fn one_line(page: &mut Page, place: &Place, remark: &str) {
    let context = place.contexts.first().map_or("", |share| &share.name);
    let caller = match (&place.named_caller, place.callers.first()) {
        (Some(caller), _) => format!(" below {caller}"),
        (None, Some(caller)) => format!(" < {caller}"),
        (None, None) => String::new(),
    };
    let chunks = counted(place.survived.count, what(place));
    let remark = if remark.is_empty() { String::new() } else { format!(": {remark}") };
    page.hang(
        &format!("  {:>10}  ", bytes(place.survived.held)),
        &match place.is_context {
            true => format!("{}, {chunks}{remark}", place.head),
            false => format!("{}{caller} [{context}], {chunks}{remark}", place.head),
        },
    );
}
